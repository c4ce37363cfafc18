"""fsync: how few questions it takes, and what it asks where an answer says too little."""

import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from outcome import Outcome, Value
from trio.testing import MockClock

from dfs.chunkserver import fragment_file
from dfs.client import Client, unsynced
from dfs.core.block import BLOCK_BYTES
from dfs.core.chunk import ChunkState
from dfs.core.errors import DfsError, LostChangesError
from dfs.wire.calls import Wake
from dfs.wire.messages import Appended, Applied, JobState, Message
from tests.simulation.world import LEASE_S
from tests.unit.client.rig import chunks_of, running


@contextmanager
def counted(client: Client, *, older: type[Message] | None = None) -> Iterator[Counter[str]]:
    """Counts requests by name. Answers of type `older` say nothing of syncs, as they once did."""
    pool = client.meta.link.pool
    call, post = pool.call, pool.post
    asked: Counter[str] = Counter()

    def aged(reply: Message) -> Message:
        if isinstance(reply, Appended | Applied) and type(reply) is older:
            return replace(reply, synced=False)
        return reply

    async def seen_call(address: str, request: Message, *args: Any, **more: Any) -> Any:
        asked[type(request).__name__] += 1
        return aged(await call(address, request, *args, **more))

    def seen_post(address: str, request: Message, kind: Any, wake: Wake, **more: Any) -> Any:
        def wake_aged(result: Outcome[Any]) -> None:
            reply, payload = result.unwrap()
            wake(Value((aged(reply), payload)))

        begun = post(address, request, kind, wake_aged, **more)
        asked[type(request).__name__] += begun is not None
        return begun

    pool.call, pool.post = seen_call, seen_post  # type: ignore[method-assign, assignment]
    try:
        yield asked
    finally:
        pool.call, pool.post = call, post  # type: ignore[method-assign]


async def test_new_bytes_are_brought_to_disk_by_one_question_to_each_server_and_the_master(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.fsync()
            await file.write(b"two")
            with counted(client) as asked:
                await file.fsync()
            assert asked == {"Append": 3, "Apply": 1}
            await world.cut_power()
            await file.fsync()
        assert await client.read_file("/a") == b"onetwo"


async def test_a_write_that_fills_a_block_is_brought_to_disk_no_other_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(os.urandom(BLOCK_BYTES - 1000))
            await file.fsync()
            with counted(client) as asked:
                await file.write(b"to the end of the block".ljust(1000))
                assert not asked, "it is sent along with the question"
                await file.fsync()
            assert asked == {"Append": 3, "Apply": 1}


async def test_files_that_are_synced_at_the_same_time_share_questions(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        names = [f"/{number}" for number in range(20)]
        files = [await client.open(name, "w") for name in names]
        for file in files:
            await file.write(b"one")
            await file.fsync()
        for name, file in zip(names, files, strict=True):
            await file.write(name.encode())
        with counted(client) as asked:
            async with trio.open_nursery() as nursery:
                for file in files:
                    nursery.start_soon(file.fsync)
        assert asked["Append"] == 3
        assert asked["Apply"] <= 2
        await world.cut_power()
        for file in files:
            await file.fsync()
            await file.close()
        for name in names:
            assert await client.read_file(name) == b"one" + name.encode()


async def test_what_is_appended_is_brought_to_disk_the_same_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/log", "a") as log:
            await log.write(b"one")
            await log.fsync()
            await log.write(b"two")
            with counted(client) as asked:
                await log.fsync()
            assert asked == {"Append": 3, "Apply": 1}
            await world.cut_power()
            await log.fsync()
        assert await client.read_file("/log") == b"onetwo"


@pytest.mark.parametrize(
    ("older", "more"), [(Appended, {"SyncFragments": 3}), (Applied, {"SyncBarrier": 1})]
)
async def test_who_does_not_say_that_it_has_synced_is_asked_to(
    tmp_path: Path, autojump_clock: MockClock, older: type[Message], more: dict[str, int]
) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.fsync()
            await file.write(b"two")
            with counted(client, older=older) as asked:
                await file.fsync()
            assert asked == {"Append": 3, "Apply": 1, **more}


async def test_what_was_published_before_is_brought_to_disk_too(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            with counted(client) as asked:
                await file.fsync()
            assert asked == {"SyncFragments": 3, "SyncBarrier": 1}
            await world.cut_power()
        assert await client.read_file("/a") == b"one"


@pytest.mark.parametrize("cut", [1, 2])
async def test_what_power_cuts_took_of_the_servers_is_not_synced(
    tmp_path: Path, autojump_clock: MockClock, cut: int
) -> None:
    """They do not know any more what they had acknowledged."""
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            for server, name in world.fragments()[:cut]:
                await world.crash(server)
                (path,) = (world.root / server).rglob(str(name))
                os.truncate(path, path.stat().st_size - 1)
            await world.mend()
            if cut == 1:
                await file.fsync()
            else:
                with pytest.raises(DfsError, match="on 1 disks for sure, 2 are needed"):
                    await file.fsync()


async def test_a_loss_is_told_also_where_there_is_something_new_to_write(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.fsync()
            await file.write(b"one")
            await file.flush()
            await world.cut_power()
            await file.pwrite(b"two", 100)
            with pytest.raises(LostChangesError):
                await file.fsync()
            await file.fsync()


@pytest.mark.allow_logs("disk .* has failed")
async def test_a_disk_that_took_bytes_and_cannot_keep_them_does_not_count(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = str(tmp_path / "cs1")
    sync_data = fragment_file._sync_data

    def failing(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(bad):
            raise OSError(errno.EIO, "no such sector")
        sync_data(fd)

    async with running(tmp_path, servers=3) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            (chunk,) = await chunks_of(client, "/a")
            monkeypatch.setattr(fragment_file, "_sync_data", failing)
            await file.write(b"two")
            await file.fsync()
            # The other two hold it; the chunk takes no more, and is sealed without the third.
            await file.write(b"three")
            await file.fsync()
            await trio.sleep(1)
        (located,) = (await client.meta.locate([chunk])).chunks
        assert located.state is ChunkState.SEALED
        assert [f.state.name for f in located.fragments].count("LOST") == 1
        assert await client.read_file("/a") == b"onetwothree"


async def compacted(client: Client, _: int) -> None:
    await client.unlink("/other")
    await job_done(client, (await client.admin.start("compact", threshold=0.5)).job)


async def overwritten(client: Client, _: int) -> None:
    await client.unlink("/other")
    async with await client.open("/a", "r+") as again:
        await again.pwrite(b"ONE", 0)
        await again.fsync()


async def drained(client: Client, chunk: int) -> None:
    """Two of its three fragments are elsewhere."""
    (located,) = (await client.meta.locate([chunk])).chunks
    for fragment in located.good[:2]:
        await job_done(client, (await client.admin.start("drain", disks=(fragment.disk,))).job)


async def job_done(client: Client, job: int) -> None:
    with trio.fail_after(600):
        while (info := await client.admin.job(job)).state is JobState.RUNNING:
            await trio.sleep(1)
    assert info.state is JobState.DONE, info


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("happens", [compacted, overwritten, drained])
async def test_bytes_whose_chunk_is_the_masters_meanwhile_are_no_loss(
    tmp_path: Path, autojump_clock: MockClock, happens: Callable[[Client, int], Awaitable[None]]
) -> None:
    """They were published and not synced; then the session ended, and they were moved."""
    async with running(tmp_path, servers=6) as (world, client), world.client("other") as other:
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            async with await client.open("/other", "w") as large:
                await large.write(os.urandom(50_000))
            (chunk,) = await chunks_of(client, "/a")
            world.network.partition("desk", "master")
            await trio.sleep(LEASE_S + 60)
            world.network.heal()
            await happens(other, chunk)
            await trio.sleep(60)
            await file.fsync()
            await client.sync()
        assert (await client.read_file("/a")).lower() == b"one"


@pytest.mark.allow_logs("is suspect")
async def test_a_chunk_that_cannot_be_synced_matters_to_the_files_that_have_bytes_there_only(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where so many files were written to since that it is forgotten which those are."""
    monkeypatch.setattr(unsynced, "_FILES_MAX", 2)
    async with running(tmp_path, servers=7, on_unavailable="wait:5s") as (world, client):
        await client.write_file("/old", b"bytes")
        (chunk,) = await chunks_of(client, "/old")
        gone = [server for server, name in world.fragments() if name.chunk == chunk]
        for server in gone:
            await world.crash(server)
        for number in range(4):
            await client.write_file(f"/{number}", b"bytes")
        assert chunk not in await chunks_of(client, "/3")
        async with await client.open("/new", "w") as new, await client.open("/old", "a") as old:
            await new.write(b"bytes")
            await new.fsync()
            await new.write(b"bytes")
            with trio.fail_after(2):
                await new.fsync()
            await old.write(b"more")
            with pytest.raises(DfsError):
                await old.fsync()
            for server in gone:
                await world.start_host(server)
            await old.fsync()
            assert not client.writers.unsynced.of_any()


@pytest.mark.allow_logs("is suspect")
async def test_a_chunk_that_cannot_be_synced_does_not_matter_to_a_file_that_was_overwritten(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, servers=7, on_unavailable="wait:5s") as (world, client):
        for path in ("/a", "/b"):
            await client.write_file(path, b"bytes")
        (chunk,) = await chunks_of(client, "/a")
        for server, name in world.fragments():
            if name.chunk == chunk:
                await world.crash(server)
        async with await client.open("/a", "w") as file:
            await file.write(b"other")
            await file.fsync()
