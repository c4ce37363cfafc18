"""What a client must not lose, repeat or misread when replies, sessions and callers go away."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from dfs.client import Client
from dfs.client.append_queue import QUIET_S
from dfs.client.chunk_writers import HELD_TOTAL_BYTES
from dfs.client.extent_map import ExtentMap
from dfs.client.session import _Lease
from dfs.client.write_buffer import PIECE_BYTES
from dfs.client.writer import APPENDED_MAX_BYTES, HELD_MAX_BYTES
from dfs.core.chunk import ChunkState
from dfs.core.errors import FileSystemError, NoSpaceError, UnavailableError
from dfs.core.inode import Inode
from dfs.wire.messages import (
    WINDOW,
    AnyOp,
    Apply,
    CloseSession,
    Commit,
    Cred,
    Empty,
    Message,
    OpenSession,
    SealChunk,
    SessionOpened,
    SyncFragments,
)
from tests.unit.client.rig import chunks_of, running

MIB = 1 << 20


@contextmanager
def intercepted(
    client: Client, *, before: Callable[[Message], None] = lambda _: None, after: Any = None
) -> Iterator[None]:
    """Let `before` see every request to the master, and `await after` every one answered."""
    link = client.meta.link
    call_once = link.call_once

    async def seen(request: Message, *args: Any, **more: Any) -> Any:
        before(request)
        reply = await call_once(request, *args, **more)
        if after is not None:
            await after(request)
        return reply

    link.call_once = seen  # type: ignore[method-assign]
    try:
        yield
    finally:
        link.call_once = call_once  # type: ignore[method-assign]


def is_commit(request: Message) -> bool:
    return isinstance(request, Apply) and any(isinstance(op, Commit) for op in request.ops)


async def lose_reply(request: Message) -> None:
    if is_commit(request):
        raise UnavailableError("the reply was lost")


async def end_session(client: Client) -> None:
    """The master forgets the session; the client does not know yet."""
    await client.meta.link.call_once(CloseSession(client.meta.session.current_id), Empty)


# ------------------------------------------------------------------ appends


async def test_a_client_that_has_read_a_file_reads_what_it_appends_to_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/log", b"hello ")
        async with await client.open("/log") as reader, await client.open("/log", "a") as log:
            assert await reader.pread(100, 0) == b"hello "
            await log.write(b"world")
            await log.flush()
            assert await reader.pread(100, 0) == b"hello world"
            await log.write(b"!" * 300_000)
            assert await reader.pread(1_000_000, 0) == b"hello world" + b"!" * 300_000


async def test_an_append_whose_flush_is_cancelled_stands_in_the_file_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def slow(request: Message) -> None:
        if is_commit(request):
            await trio.sleep(8)

    async with running(tmp_path) as (_, client):
        async with await client.open("/log", "a") as log:
            await log.write(b"one ")
            with intercepted(client, after=slow):
                with trio.move_on_after(5) as scope:
                    await log.flush()
                assert scope.cancelled_caught
            await log.flush()
            await log.write(b"two")
        assert await client.read_file("/log") == b"one two"


async def test_an_append_whose_commit_was_never_answered_stands_in_the_file_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="error") as (_, client):
        async with await client.open("/log", "a+") as log:
            await log.write(b"one ")
            with intercepted(client, after=lose_reply), pytest.raises(UnavailableError):
                await log.flush()
            await log.write(b"two")
            await log.flush()
            assert await log.pread(100, 0) == b"one two"
        assert await client.read_file("/log") == b"one two"


@pytest.mark.parametrize("at", [2, 8, 20])
async def test_a_write_after_an_append_of_the_same_client_comes_after_it(
    tmp_path: Path, autojump_clock: MockClock, at: int
) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/log", b"12345")
        async with await client.open("/log", "a") as log, await client.open("/log", "r+") as file:
            await log.write(b"67890")
            await file.pwrite(b"X", at)
            await log.write(b"end")
        expected = b"1234567890"[:at].ljust(at, b"\0") + b"X" + b"1234567890"[at + 1 :]
        assert await client.read_file("/log") == expected + b"end"


async def test_an_append_in_parts_is_published_in_one_piece(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        async with await client.open("/log", "a") as log, trio.open_nursery() as nursery:
            await log._file.append(b"before ")
            await log._file.append(b"one ", more=True)
            nursery.start_soon(log.flush)
            await trio.sleep(QUIET_S * 1.5)
            async with await other.open("/log", "a") as between:
                await between.write(b"other ")
            await log._file.append(b"two ", more=True)
            await trio.sleep(QUIET_S * 1.5)
            await log._file.append(b"three ")
            await log._file.append(b"after")
        assert await client.read_file("/log") == b"other before one two three after"


async def test_an_append_of_which_no_more_comes_is_published_after_a_moment(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client), await client.open("/log", "a+") as log:
        await log._file.append(b"whole ", more=True)
        began = trio.current_time()
        await log.flush()
        assert QUIET_S <= trio.current_time() - began < 1
        await log._file.append(b"and whole", more=True)
        log._file.finish_append()
        began = trio.current_time()
        await log.flush()
        assert trio.current_time() - began < QUIET_S
        assert await log.pread(100, 0) == b"whole and whole"


async def test_an_append_in_parts_stays_in_one_piece_where_the_buffer_is_full(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    published = [0]

    def note(request: Message) -> None:
        if isinstance(request, Apply):
            for op in request.ops:
                if isinstance(op, Commit):
                    published.append(published[-1] + sum(each.length for each in op.extents))

    async with running(tmp_path) as (_, client), await client.open("/log", "a") as log:
        with intercepted(client, before=note):
            await log.write(bytes(APPENDED_MAX_BYTES - 1))
            await log._file.append(b"one ", more=True)
            await trio.sleep(QUIET_S / 2)
            await log._file.append(b"two")
            await log.flush()
    assert published == [0, APPENDED_MAX_BYTES - 1 + len(b"one two")]


async def test_appends_that_never_seem_to_end_are_published_all_the_same(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client), await client.open("/log", "a+") as log:
        parts = [bytes([number]) * (1 << 20) for number in range(3 * APPENDED_MAX_BYTES >> 20)]
        for part in parts:
            await log._file.append(part, more=True)
        assert await log.pread(len(parts) << 20, 0) == b"".join(parts)
        published = 0

        async def flush() -> None:
            nonlocal published
            await log.flush()
            published += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            while not published:
                await log._file.append(b"more", more=True)
                await trio.sleep(QUIET_S / 2)
        assert await log.pread(4, len(parts) << 20) == b"more"


async def test_an_append_that_never_reached_the_master_is_made_good_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def refuse_commits(request: Message) -> None:
        if is_commit(request):
            raise UnavailableError("the master is away")

    async with running(tmp_path, on_unavailable="error") as (_, client):
        async with await client.open("/log", "a") as log:
            await log.write(b"one ")
            with intercepted(client, before=refuse_commits), pytest.raises(UnavailableError):
                await log.flush()
            await log.write(b"two")
        assert await client.read_file("/log") == b"one two"


async def test_an_append_that_is_in_doubt_when_the_session_ends_stands_in_the_file_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    for lost in (True, False):
        path = f"/log-{lost}"

        def refuse_commits(request: Message) -> None:
            if is_commit(request):
                raise UnavailableError("the master is away")

        async with running(tmp_path / str(lost), on_unavailable="error") as (_, client):
            async with await client.open(path, "a") as log:
                await log.write(b"one ")
                trouble = (
                    intercepted(client, after=lose_reply)
                    if lost
                    else intercepted(client, before=refuse_commits)
                )
                with trouble, pytest.raises(UnavailableError):
                    await log.flush()
                await end_session(client)
                with pytest.raises(OSError):
                    # Without patience the old session's end is reported once.
                    await client.mkdir("/d")
                await log.write(b"two")
            assert await client.read_file(path) == b"one two"


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("others", [0, 1, 12])
@pytest.mark.parametrize("lost", ["question", "answer"])
async def test_an_append_in_doubt_that_was_moved_meanwhile_stands_in_the_file_once(
    tmp_path: Path, autojump_clock: MockClock, lost: str, others: int
) -> None:
    """Its session ends, and compaction moves what it wrote; others may append the very same."""

    def refuse_commits(request: Message) -> None:
        if is_commit(request):
            raise UnavailableError("the master is away")

    trouble: dict[str, Any] = (
        {"after": lose_reply} if lost == "answer" else {"before": refuse_commits}
    )
    async with (
        running(tmp_path, on_unavailable="error") as (world, client),
        world.client("other") as other,
    ):
        async with await client.open("/log", "a") as log:
            async with await client.open("/junk", "w") as junk:
                await junk.write(os.urandom(50_000))
            await log.write(b"line\n")
            with intercepted(client, **trouble), pytest.raises(UnavailableError):
                await log.flush()
            await end_session(client)
            await trio.sleep(20)
            await other.unlink("/junk")
            await other.admin.start("compact", threshold=0.5)
            await trio.sleep(20)
            for _ in range(others):
                async with await other.open("/log", "a") as again:
                    await again.write(b"line\n")
            with suppress(OSError):
                # Without patience the old session's end is reported once.
                await client.mkdir("/d")
            await log.flush()
        assert await client.read_file("/log") == b"line\n" * (others + 1)
        world.check_metadata()


async def test_a_cancelled_commit_does_not_overtake_a_newer_one_of_the_same_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    blocked = True

    def hold_back(request: Message) -> None:
        # The first commit alone fails for a while; the second would pass it.
        if blocked and is_commit(request) and first_sequence in (None, request.sequence):  # type: ignore[attr-defined]
            remember(request)
            raise UnavailableError("not now")

    first_sequence: int | None = None

    def remember(request: Message) -> None:
        nonlocal first_sequence
        first_sequence = request.sequence  # type: ignore[attr-defined]

    async with running(tmp_path) as (_, client):
        file = await client.open("/a", "w")
        with intercepted(client, before=hold_back):
            await file.pwrite(b"old", 0)
            with trio.move_on_after(3):
                await file.flush()
            with trio.move_on_after(0.1):
                await file.close()
            async with trio.open_nursery() as nursery:

                async def unblock() -> None:
                    nonlocal blocked
                    await trio.sleep(7)
                    blocked = False

                nursery.start_soon(unblock)
                async with await client.open("/a", "r+") as again:
                    await again.pwrite(b"new", 0)
        await trio.sleep(10)
        assert await client.read_file("/a") == b"new"


# ------------------------------------------------------------------ fsync


async def test_fsync_covers_what_was_written_while_another_fsync_was_under_way(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"a" * 100_000)
            await file.flush()
            file_writer = file._file.writer
            assert file_writer is not None
            (chunk,) = client.writers.unsynced.of(file.inode.ino)
            call = chunk._pool.call

            async def slow(address: str, request: Message, *args: Any, **more: Any) -> Any:
                reply = await call(address, request, *args, **more)
                if isinstance(request, SyncFragments):
                    await trio.sleep(2)
                return reply

            async with trio.open_nursery() as nursery:
                with monkeypatch.context() as patch:
                    patch.setattr(chunk._pool, "call", slow)
                    nursery.start_soon(file.fsync)
                    await trio.sleep(1)
                    await file.write(b"b" * 100_000)
                    await file.flush()
                    await trio.sleep(5)
            await file.fsync()
            assert chunk.synced


# ------------------------------------------------------------------ sessions


async def test_writing_goes_on_when_a_session_could_not_be_replaced_at_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def away(request: Message) -> None:
        if isinstance(request, OpenSession):
            raise UnavailableError("the master is away for a moment")

    async with running(tmp_path, on_unavailable="error") as (_, client):
        replaced: list[int] = []
        client.meta.session.on_replaced.append(lambda: replaced.append(1))
        async with await client.open("/a", "w") as file, await client.open("/log", "a") as log:
            await file.write(b"a")
            await file.flush()
            await end_session(client)
            with intercepted(client, before=away), pytest.raises(UnavailableError):
                await client.mkdir("/d")
            await client.mkdir("/e")
            assert replaced == [1]
            await file.write(b"b")
            await log.write(b"c")
        assert await client.read_file("/a") == b"ab"
        assert await client.read_file("/log") == b"c"


@pytest.mark.parametrize("how", ["write", "append", "upload"])
async def test_a_chunk_that_the_master_does_not_know_is_not_written_to_again(
    tmp_path: Path, autojump_clock: MockClock, how: str
) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/a", b"a")
        (chunks,) = client.writers._writers.values()
        assert chunks._current is not None
        chunks._retire(chunks._current)
        chunks._current = await chunks._allocate(client.meta.link.patience())
        # As after a power cut that took the chunk's allocation from the master.
        chunks._current.chunk += 500_000
        if how == "upload":
            local = tmp_path / "local"
            local.write_bytes(b"bb")
            assert not (await client.upload([local], "/a")).failures
            assert await client.read_file("/a") == b"bb"
            return
        async with await client.open("/a", "a" if how == "append" else "r+") as file:
            await file.seek(1)
            await file.write(b"bb")
        assert await client.read_file("/a") == b"abb"


async def test_who_waits_for_a_full_window_is_woken_however_the_tasks_interleave() -> None:
    for _ in range(30):
        lease = _Lease(SessionOpened(1, 90.0, "cluster"))
        first = await lease.take()
        for _ in range(WINDOW - 1):
            lease.give_back(await lease.take())
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.take)
                nursery.start_soon(lease.take)
                await trio.lowlevel.checkpoint()
                lease.give_back(first)


# ------------------------------------------------------------------ what is known of extents


class _RolledBack:
    """Answers as a master that lost the last changes of a file."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def extents(self, ino: int, offset: int, *, limit: int) -> Any:
        await trio.lowlevel.checkpoint()
        inode = SimpleNamespace(version=self.version)
        return SimpleNamespace(inode=inode, extents=(), more=False, layout=None)


async def test_a_map_follows_a_master_that_lost_changes() -> None:
    resolver: Any = SimpleNamespace(learn=lambda _: None)
    master: Any = _RolledBack(9)
    known = ExtentMap(5, master, resolver)
    known.forget(10)
    with trio.fail_after(5):
        await known.ensure(0, 10)
    assert known.version == 9
    assert known.knows(0, 10)
    after: Any = SimpleNamespace(version=8)
    known.committed(after, [], 1)
    assert known.version == 8
    assert not known.knows(0, 10)


async def test_an_open_file_follows_a_master_that_lost_changes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def ahead(inode: Inode) -> Inode:
        return replace(inode, version=inode.version + 100, size=inode.size + 50)

    async with running(tmp_path) as (_, client):
        await client.write_file("/a", b"first")
        for again in ("read", "write", "open"):
            async with await client.open("/a", "r+") as file:
                assert await file.pread(5, 0) == b"first"
                # As if there had been changes that the master has lost since.
                opened = file._file
                opened.learn(ahead(opened.inode))
                opened.extents.forget(opened.inode.version)
                if again == "read":
                    await file.pread(5, 0)
                elif again == "write":
                    await file.pwrite(b"first", 0)
                    await file.flush()
                else:
                    await (await client.open("/a")).close()
                assert file.size == 5
                assert await file.pread(100, 0) == b"first"


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("append", [False, True])
async def test_a_file_holds_no_more_than_its_limit_while_commits_fail(
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    append: bool,
) -> None:
    async def full(*_: Any, **__: Any) -> Any:
        raise NoSpaceError("full")

    async with running(tmp_path, on_unavailable="error") as (_, client):
        file = await client.open("/a", "a" if append else "w")
        taken = 0
        with monkeypatch.context() as patch:
            patch.setattr(client.meta, "allocate_chunks", full)
            block = bytes(MIB)
            for _ in range(100):
                held = client.writers.held_bytes
                with suppress(NoSpaceError):
                    await file.write(block)
                taken += client.writers.held_bytes > held
        assert taken * MIB <= client.writers.held_bytes <= HELD_MAX_BYTES + 2 * MIB
        await file.close()
        assert (await client.stat("/a")).size == taken * MIB


async def test_files_together_hold_no_more_than_the_limit(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> Any:
        raise NoSpaceError("full")

    async with running(tmp_path, on_unavailable="error") as (_, client):
        files = [await client.open(f"/{number}", "w") for number in range(4)]
        refused = 0
        with monkeypatch.context() as patch:
            patch.setattr(client.meta, "allocate_chunks", full)
            for _ in range(40):
                for file in files:
                    try:
                        await file.write(bytes(MIB))
                    except NoSpaceError:
                        refused += 1
        assert refused
        assert client.writers.held_bytes <= HELD_TOTAL_BYTES + MIB
        for file in files:
            await file.close()
        assert client.writers.held_bytes == 0


async def test_a_file_that_cannot_be_published_does_not_keep_others_from_being_written(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (_, client):
        bad, good = await client.open("/bad", "w"), await client.open("/good", "w")
        do = client.meta.do

        async def refuse_bad(op: AnyOp, *, cred: Cred | None = None) -> Any:
            if isinstance(op, Commit) and op.ino == bad.inode.ino:
                raise FileSystemError("over quota", errno=errno.EDQUOT)
            return await do(op, cred=cred)

        monkeypatch.setattr(client.meta, "do", refuse_bad)
        with pytest.raises(FileSystemError):
            for _ in range(100):
                await bad.write(bytes(MIB))
        for _ in range(60):
            await good.write(bytes(MIB))
        await good.close()
        assert (await client.stat("/good")).size == 60 * MIB
        with pytest.raises(FileSystemError):
            await bad.close()


async def test_many_tiny_writes_are_bounded_and_committed_in_small_requests(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    largest = 0

    def watch(request: Message) -> None:
        nonlocal largest
        if isinstance(request, Apply):
            count = sum(len(op.extents) for op in request.ops if isinstance(op, Commit))
            largest = max(largest, count)

    rng = Random(1)
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"x")
            await file.flush()
            with intercepted(client, before=watch):
                for _ in range(5000):
                    await file.pwrite(b"x", rng.randrange(1 << 30))
                assert client.writers.held_bytes >= 4000 * PIECE_BYTES
                await file.flush()
        assert 0 < largest <= 1000


# ------------------------------------------------------------------ sealing


async def test_a_chunk_is_sealed_although_the_master_was_away_when_it_was_due(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def away(request: Message) -> None:
        if isinstance(request, SealChunk):
            raise UnavailableError("the master is away")

    async with running(tmp_path, on_unavailable="error") as (_, client):
        await client.write_file("/a", b"a")
        (number,) = await chunks_of(client, "/a")
        (chunks,) = client.writers._writers.values()
        assert chunks._current is not None
        with intercepted(client, before=away):
            chunks._current.close()
            await client.write_file("/b", b"b")
            await trio.sleep(30)
        await trio.sleep(60)
        layout = await client.meta.locate([number])
        assert layout.chunks[0].state == ChunkState.SEALED
