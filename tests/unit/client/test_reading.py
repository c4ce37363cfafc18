"""Reading while servers hang, die and come back, and while chunks go away."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client.files import ReadAhead
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import UnavailableError
from dfs.wire.messages import ReadRecords
from tests.unit.client.rig import directory, running

MIB = 1 << 20


def count_reads(client: Any) -> list[ReadRecords]:
    """Every read request that the client sends from now on."""
    seen: list[ReadRecords] = []
    pool = client.fetcher._pool
    call_raw, post = pool.call_raw, pool.post

    async def counted(address: str, request: Any, *args: Any, **more: Any) -> Any:
        seen.append(request)
        return await call_raw(address, request, *args, **more)

    def posted(address: str, request: Any, *args: Any, **more: Any) -> Any:
        call = post(address, request, *args, **more)
        if call is not None and isinstance(request, ReadRecords):
            seen.append(request)
        return call

    pool.call_raw, pool.post = counted, posted
    return seen


async def test_sequential_reads_are_few_large_requests_and_the_cache_answers_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(1).randbytes(16 * MIB)
    async with running(tmp_path, servers=3) as (world, client):
        await directory(client, "/d", "rep:2")
        async with world.client("writer") as writer:
            await writer.write_file("/d/a", data)
        client.cache.capacity_bytes = 64 * MIB
        seen = count_reads(client)
        async with await client.open("/d/a") as file:
            parts = []
            while part := await file.read(64 * 1024):
                parts.append(part)
        assert b"".join(parts) == data
        assert len(seen) < 24
        assert sum(request.length for request in seen) < 1.2 * len(data)
        del seen[:]
        assert await client.read_file("/d/a") == data
        assert not seen


async def test_a_long_stream_leaves_no_more_in_the_cache_than_is_ahead_of_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(1).randbytes(MIB) * 128
    async with running(tmp_path, servers=2) as (world, client):
        await directory(client, "/d", "rep:1")
        async with world.client("writer") as writer:
            await writer.write_file("/d/a", data)
            await writer.write_file("/d/other", data[:MIB])
        client.cache.capacity_bytes = 128 * MIB
        assert await client.read_file("/d/other") == data[:MIB]
        seen = count_reads(client)
        most = 0
        async with await client.open("/d/a") as file:
            for number in range(128):
                assert await file.read(MIB) == data[:MIB], number
                most = max(most, client.cache.used_bytes)
        assert sum(request.length for request in seen) < 1.2 * len(data)
        # What came before it was a stream, and what is on its way.
        assert most < 72 * MIB
        del seen[:]
        assert await client.read_file("/d/other") == data[:MIB]
        assert not seen


async def test_reads_that_come_at_once_are_a_stream_too_in_whatever_order_they_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As the kernel's read-ahead sends them: one waits for a server, and the next one does not."""
    data = Random(1).randbytes(2 * MIB)
    async with running(tmp_path, servers=1) as (world, client):
        await directory(client, "/d", "rep:1")
        async with world.client("writer") as writer:
            await writer.write_file("/d/a", data)
        async with await client.open("/d/a") as other:
            await other.pread(1, MIB)
        async with await client.open("/d/a") as file:

            async def read(offset: int) -> None:
                assert await file.pread(MIB // 2, offset) == data[offset : offset + MIB // 2]

            seen = count_reads(client)
            async with trio.open_nursery() as nursery:
                for offset in (MIB // 2, MIB):
                    nursery.start_soon(read, offset)
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
            assert file._ahead._next == MIB * 3 // 2
        assert seen


async def test_random_reads_fetch_little_more_than_they_need(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(2)
    data = rng.randbytes(16 * MIB)
    async with running(tmp_path, servers=3) as (world, client):
        async with world.client("writer") as writer:
            await writer.write_file("/a", data)
        seen = count_reads(client)
        async with await client.open("/a") as file:
            for _ in range(40):
                offset = rng.randrange(1, len(data) - 5000)
                assert await file.pread(5000, offset) == data[offset : offset + 5000]
        assert all(request.length <= 2 * BLOCK_BYTES for request in seen)


async def test_readers_of_the_same_bytes_share_one_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(3).randbytes(MIB)
    async with running(tmp_path, servers=3) as (world, client):
        async with world.client("writer") as writer:
            await writer.write_file("/a", data)
        world.network.set_latency(0.01)
        seen = count_reads(client)
        file = await client.open("/a")

        async def read() -> None:
            assert await file.pread(MIB, 0) == data

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
        assert len(seen) == 1
        await file.close()


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("fault", ["crash", "hang"])
@pytest.mark.parametrize(("redundancy", "servers"), [("rep:3", 3), ("ec:4+2", 6)])
async def test_servers_that_fail_in_the_middle_cost_a_short_pause_and_no_error(
    tmp_path: Path, autojump_clock: MockClock, fault: str, redundancy: str, servers: int
) -> None:
    data = Random(4).randbytes(6 * MIB)
    async with running(tmp_path, servers=servers) as (world, client):
        await directory(client, "/d", redundancy)
        async with world.client("writer") as writer:
            await writer.write_file("/d/a", data)
        slowest = 0.0
        async with await client.open("/d/a") as file:
            for offset in range(0, len(data), 200_000):
                if offset == 2_000_000:
                    for host in world.servers[:2]:
                        if fault == "crash":
                            await world.crash(host)
                        else:
                            world.network.hang(host)
                begun = trio.current_time()
                assert await file.pread(200_000, offset) == data[offset : offset + 200_000]
                slowest = max(slowest, trio.current_time() - begun)
        assert slowest < 5
        await world.mend()


@pytest.mark.allow_logs("")
async def test_a_read_waits_for_the_only_server_to_come_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(5).randbytes(MIB)
    async with running(tmp_path, servers=3, on_unavailable="wait:30s") as (world, client):
        await directory(client, "/d", "rep:1")
        async with world.client("writer") as writer:
            await writer.write_file("/d/a", data)
        for host in world.servers:
            await world.crash(host)

        async def come_back() -> None:
            await trio.sleep(15)
            for host in world.servers:
                await world.start_host(host)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            begun = trio.current_time()
            assert await client.read_file("/d/a") == data
            assert 14 < trio.current_time() - begun < 20
        for host in world.servers:
            await world.crash(host)
        client.cache.clear()
        begun = trio.current_time()
        with pytest.raises(UnavailableError) as failure:
            await client.read_file("/d/a")
        assert 25 < trio.current_time() - begun < 45
        assert "tried disk" in str(failure.value)
        await world.mend()


@pytest.mark.allow_logs("")
async def test_a_map_that_is_out_of_date_is_fetched_anew(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, servers=3) as (world, client):
        async with world.client("writer") as writer:
            await writer.write_file("/a", b"old" * 1000)
        async with await client.open("/a") as file:
            assert await file.pread(3, 0) == b"old"
            async with world.client("writer") as writer:
                async with await writer.open("/a", "r+") as other:
                    await other.write(b"new" * 1000)
            await trio.sleep(60)  # the old chunk is empty, and its fragments are deleted
            client.cache.clear()
            assert await file.pread(3000, 0) == b"new" * 1000


def test_read_ahead_grows_with_sequential_reads_and_forgets_on_a_jump() -> None:
    ahead = ReadAhead()
    fetched = []
    for number in range(100):
        wanted = ahead.after(number * 65536, (number + 1) * 65536)
        if wanted:
            fetched.append(wanted)
    for (_, end, _), (start, _, _) in pairwise(fetched):
        assert start == end
    sizes = [end - start for start, end, _ in fetched]
    assert sizes[0] >= 512 * 1024
    assert max(sizes) <= 16 * MIB
    assert fetched[-1][1] > 100 * 65536
    assert ahead.after(1_000_000_000, 1_000_065_536) is None
    assert ahead.after(5, 10) is None


def test_what_is_fetched_ahead_of_a_long_stream_is_for_once_and_a_jump_begins_anew() -> None:
    ahead = ReadAhead()
    start = 7 * MIB
    assert ahead.after(start, start + MIB) is None
    fetched = [ahead.after(start + at * MIB, start + (at + 1) * MIB) for at in range(1, 64)]
    wanted = [each for each in fetched if each]
    assert [once for _, _, once in wanted] == sorted(once for _, _, once in wanted)
    assert not wanted[0][2]
    assert wanted[-1][2]
    assert ahead.after(MIB, 2 * MIB) is None
    again = ahead.after(2 * MIB, 3 * MIB)
    assert again is not None
    assert not again[2]
