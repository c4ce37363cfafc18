"""Files get another policy and are written anew, while clients go on."""

from pathlib import Path
from random import Random

import pytest
import trio

from dfs.client import Client
from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import DfsError
from dfs.core.ids import DEFAULT_POLICY, EC_POLICY, SCRATCH_POLICY
from dfs.master.keyspace import CHUNK, COMPACT_JOB, decode_chunk, scan_prefix
from dfs.wire.messages import JobState, SetPolicy
from tests.simulation.test_healing import finished, play, until
from tests.simulation.world import World

KIB = 1 << 10

pytestmark = pytest.mark.allow_logs(".")


def content(path: str) -> bytes:
    random = Random(path)
    return random.randbytes(random.choice((0, 10, 3000, 200_000)))


async def fill(world: World, files: int = 40) -> list[str]:
    """Small and middling files in a tree, one big one, packed into several chunks."""
    paths = []
    async with world.client("maker") as client:
        await client.admin.control(COMPACT_JOB, "pause")
        await client.mkdir("/tree")
        for number in range(4):
            await client.mkdir(f"/tree/{number}")
            await client.mkdir(f"/tree/{number}/deeper")
    for part in range(0, files, 10):
        async with world.client(f"writer{part}") as client:
            for number in range(part, part + 10):
                below = "deeper/" if number % 3 else ""
                paths.append(f"/tree/{number % 4}/{below}{number}")
                await client.write_file(paths[-1], content(paths[-1]))
    async with world.client("writer") as client:
        await client.write_file("/tree/big", Random("big").randbytes(9 << 20))
    await until(lambda: not world.not_whole() and not world.unlisted(), 300)
    return paths


async def check(client: Client, paths: list[str]) -> None:
    for path in paths:
        assert await client.read_file(path) == content(path), path
    assert await client.read_file("/tree/big") == Random("big").randbytes(9 << 20)


async def set_policy(client: Client, paths: list[str], policy: int) -> int:
    """Of all files, and their directories; the number of the tree's root."""
    for path in ("/tree", *(f"/tree/{n}" for n in range(4)), "/tree/big", *paths):
        inode = await client.stat(path)
        await client.meta.apply(SetPolicy(inode.ino, policy))
    return (await client.stat("/tree")).ino


def in_use(world: World) -> list[Chunk]:
    found = (decode_chunk(value) for _, value in scan_prefix(world.store, CHUNK))
    return [chunk for chunk in found if chunk.state is ChunkState.SEALED]


def policies(world: World) -> set[int]:
    return {chunk.policy for chunk in in_use(world)}


async def converted(world: World, client: Client, root: int, policy: int) -> None:
    job = await client.admin.start("convert", ino=root, policy=policy)
    info = await finished(client, job.job)
    assert (info.state, info.failures) == (JobState.DONE, 0), info
    assert policies(world) == {policy}, info


def test_a_tree_is_converted_and_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        paths = await fill(world)
        async with world.client("operator") as client:
            root = (await client.stat("/tree")).ino
            plan = await client.admin.plan("convert", ino=root, policy=EC_POLICY, path="/tree")
            size = sum(len(content(path)) for path in paths) + (9 << 20)
            assert plan.bytes == size * 1.5
            assert plan.subject == "/tree to ec"
            assert policies(world) == {DEFAULT_POLICY}
            assert await set_policy(client, paths, EC_POLICY) == root
            await converted(world, client, root, EC_POLICY)
            chunks = in_use(world)
            assert all((chunk.k, chunk.m) == (4, 2) for chunk in chunks)
            assert len(chunks) == 1, "small files and the big one fit into one"
            assert chunks[0].live == chunks[0].length == size
            await check(client, paths)
            assert (await client.admin.plan("convert", ino=root, policy=EC_POLICY)).bytes == 0
            await set_policy(client, paths, SCRATCH_POLICY)
            await converted(world, client, root, SCRATCH_POLICY)
            await until(lambda: not world.unlisted(), 200)
            await check(client, paths)

    play(tmp_path / "disks", story, servers=7)


def test_a_copy_with_another_policy_keeps_what_it_shares(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with world.client("operator") as client:
            data = Random(5).randbytes(300 * KIB)
            await client.write_file("/one", data)
            one, other = await client.stat("/one"), None
            async with await client.open("/other", "w"):
                other = await client.stat("/other")
            await client.meta.clone_range(one.ino, 0, other.ino, 0, len(data))
        await until(lambda: not world.not_whole(), 100)
        async with world.client("operator") as client:
            await client.meta.apply(SetPolicy(one.ino, EC_POLICY))
            job = await client.admin.start("convert", ino=one.ino, policy=EC_POLICY)
            assert (await finished(client, job.job)).state is JobState.DONE
            assert policies(world) == {DEFAULT_POLICY, EC_POLICY}
            extents = (await client.meta.extents(other.ino, 0)).extents
            assert {e.chunk for e in extents} <= {
                chunk.chunk for chunk in in_use(world) if chunk.policy == DEFAULT_POLICY
            }
            assert await client.read_file("/one") == await client.read_file("/other") == data

    play(tmp_path / "disks", story, servers=7)


def test_it_goes_on_after_power_cuts_with_files_changed_and_servers_lost(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        paths = await fill(world)
        world.network.set_latency(0.005, 0.02)
        async with world.client("operator") as client:
            root = await set_policy(client, paths, EC_POLICY)
            await client.meta.apply(SetPolicy(root, EC_POLICY))
            async with await client.open(paths[3], "r+") as file:
                await file.pwrite(b"old", 0)
                job = await client.admin.start(
                    "convert", ino=root, policy=EC_POLICY, bandwidth=4 << 20
                )
                await trio.sleep(0.2)
                await world.cut_power()
                await file.pwrite(b"new", 1)
            await client.unlink(paths[4])
            await world.crash("cs3")
            await trio.sleep(1)
            await world.cut_power()
            await world.start_host("cs3")
            await client.rename(paths[5], "/tree/renamed")
            info = await finished(client, job.job)
            assert info.state is JobState.DONE, info
            read = await client.read_file(paths[3])
            assert read[:4] == b"onew"
            assert read[4:] == content(paths[3])[4:]
            assert await client.read_file("/tree/renamed") == content(paths[5])
            assert policies(world) == {EC_POLICY}
            await check(client, [p for p in paths if p not in paths[3:6]])
            world.network.set_latency(0.0)
            await until(lambda: not world.unlisted() and not world.not_whole(), 300)

    play(tmp_path / "disks", story, servers=8)


def test_what_cannot_be_is_refused_and_a_cancelled_one_stays_in_order(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        paths = await fill(world, 20)
        async with world.client("operator") as client:
            root = await set_policy(client, paths, EC_POLICY)
            plan = await client.admin.plan("convert", ino=root, policy=EC_POLICY)
            assert "needs 6 servers" in plan.refusal
            with pytest.raises(DfsError, match="needs 6 servers"):
                await client.admin.start("convert", ino=root, policy=EC_POLICY)
            with pytest.raises(DfsError, match="no inode 99999"):
                await client.admin.start("convert", ino=99999, policy=EC_POLICY)
            with pytest.raises(DfsError, match="no policy has the number 77"):
                await client.admin.start("convert", ino=root, policy=77)
            await set_policy(client, paths, SCRATCH_POLICY)
            world.network.set_latency(0.1, 0.2)
            job = await client.admin.start("convert", ino=root, policy=SCRATCH_POLICY)
            await trio.sleep(1)
            await client.admin.control(job.job, "cancel")
            world.network.set_latency(0.0)
            await until(lambda: not world.unlisted() and not world.not_whole(), 300)
            await check(client, paths)

    play(tmp_path / "disks", story, servers=4)
