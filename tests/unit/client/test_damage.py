"""Damaged fragments: noticed by the reader, read around, and reported to the master."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.block import BLOCK_BYTES, HEADER_BYTES
from dfs.core.chunk import FragmentState
from dfs.core.errors import CorruptError
from tests.simulation.world import World
from tests.unit.client.rig import chunks_of, directory, fragment_files, running

SIZE = 11 * BLOCK_BYTES + 777


def flip(path: Path, rng: Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(200, len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_header_of_a_record(path: Path, rng: Random) -> None:
    data = bytearray(path.read_bytes())
    magic = data.find(b"\x0c\xdb", len(data) // 3)
    data[magic + 10] ^= 1
    path.write_bytes(data)


def cut(path: Path, rng: Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path, rng: Random) -> None:
    path.unlink()


def empty(path: Path, rng: Random) -> None:
    os.truncate(path, 0)


DAMAGES: list[Callable[[Path, Random], None]] = [flip, flip_header_of_a_record, cut, delete, empty]


async def stored(client: Client, world: World, path: str, data: bytes) -> dict[int, Path]:
    """Store a file, let its chunk be sealed, and say where its fragments are."""
    async with world.client("writer") as writer:
        await writer.write_file(path, data)
    (chunk,) = await chunks_of(client, path)
    return fragment_files(world, chunk)


async def states(client: Client, path: str) -> dict[int, FragmentState]:
    (number,) = await chunks_of(client, path)
    (chunk,) = (await client.meta.locate([number])).chunks
    return {fragment.index: fragment.state for fragment in chunk.fragments}


async def restart(world: World) -> None:
    """Servers look at their files anew."""
    for server in world.servers:
        await world.crash(server)
        await world.start_host(server)
    await world.settle(len(world.servers))


@pytest.mark.allow_logs("")
@pytest.mark.parametrize(
    ("redundancy", "restarted"), [("rep:3", False), ("ec:4+2", False), ("ec:4+2", True)]
)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_file_is_read_around_two_damaged_fragments(
    tmp_path: Path,
    autojump_clock: MockClock,
    damage: Callable[[Path, Random], None],
    redundancy: str,
    restarted: bool,
) -> None:
    rng = Random(5)
    data = rng.randbytes(SIZE)
    async with running(tmp_path, servers=6) as (world, client):
        await directory(client, "/d", redundancy)
        files = await stored(client, world, "/d/a", data)
        for index in (0, 1):
            damage(files[index], rng)
        if restarted:
            await restart(world)
        client.cache.clear()
        assert await client.read_file("/d/a") == data
        # Reported, and not repaired yet: that is looked for four times a second.
        await trio.sleep(0.1)
        found = await states(client, "/d/a")
        bad = [index for index, state in found.items() if state != FragmentState.GOOD]
        # Of copies, those that were never asked have not been found out.
        assert bad == [0, 1] or (redundancy == "rep:3" and set(bad) <= {0, 1})


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("redundancy", ["rep:2", "ec:2+1"])
async def test_every_block_may_be_bad_somewhere_as_long_as_it_is_good_somewhere(
    tmp_path: Path, autojump_clock: MockClock, redundancy: str
) -> None:
    rng = Random(6)
    data = rng.randbytes(SIZE)
    async with running(tmp_path, servers=3) as (world, client):
        await directory(client, "/d", redundancy)
        files = await stored(client, world, "/d/a", data)
        for index, path in files.items():
            raw = bytearray(path.read_bytes())
            record = HEADER_BYTES + BLOCK_BYTES // (1 if redundancy == "rep:2" else 2)
            for block in range(index, 11, len(files)):
                raw[block * record + record // 2] ^= 0xFF
            path.write_bytes(raw)
        client.cache.clear()
        assert await client.read_file("/d/a") == data


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("redundancy", ["rep:3", "ec:4+2"])
async def test_swapped_fragments_are_no_good_data(
    tmp_path: Path, autojump_clock: MockClock, redundancy: str
) -> None:
    rng = Random(7)
    one, other = rng.randbytes(SIZE), rng.randbytes(SIZE)
    async with running(tmp_path, servers=6) as (world, client):
        await directory(client, "/d", redundancy)
        left = await stored(client, world, "/d/one", one)
        right = await stored(client, world, "/d/other", other)
        for index in (0, 1):
            first, second = left[index].read_bytes(), right[index].read_bytes()
            left[index].write_bytes(second)
            right[index].write_bytes(first)
        client.cache.clear()
        assert await client.read_file("/d/one") == one
        assert await client.read_file("/d/other") == other


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("redundancy", ["rep:2", "ec:2+1"])
async def test_when_all_is_lost_the_error_says_what_each_disk_answered(
    tmp_path: Path, autojump_clock: MockClock, redundancy: str
) -> None:
    rng = Random(8)
    async with running(tmp_path, servers=3) as (world, client):
        await directory(client, "/d", redundancy)
        files = await stored(client, world, "/d/a", rng.randbytes(SIZE))
        files[0].unlink()
        raw = bytearray(files[1].read_bytes())
        raw[len(raw) // 2] ^= 1
        files[1].write_bytes(raw)
        client.cache.clear()
        with pytest.raises(CorruptError) as lost:
            await client.read_file("/d/a")
        message = str(lost.value)
        (chunk,) = await chunks_of(client, "/d/a")
        assert f"chunk {chunk}" in message
        assert message.count("disk ") >= 2
        assert "does not match its checksum" in message
