"""What the master knows to be open stays what is open here; failures of that are not silent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.client.ticket import Ticket
from dfs.core.errors import DfsError, FileSystemError, UnavailableError
from dfs.wire.messages import Apply, CloseSession, Empty, Message, Open, Release, SetAttr
from tests.unit.client.rig import running


def asks(request: Message, kind: type) -> bool:
    return isinstance(request, Apply) and any(isinstance(op, kind) for op in request.ops)


def intercept(
    client: Client, monkeypatch: pytest.MonkeyPatch, around: Callable[[Message, Any], Any]
) -> None:
    """Have `await around(request, send)` answer every request to the master."""
    call_once = client.meta.link.call_once

    async def seen(request: Message, *args: Any, **more: Any) -> Any:
        return await around(request, lambda: call_once(request, *args, **more))

    monkeypatch.setattr(client.meta.link, "call_once", seen)


async def end_session(client: Client) -> None:
    await client.meta.link.call_once(CloseSession(client.meta.session.current_id), Empty)


@pytest.mark.parametrize("how", ["open", "create"])
async def test_a_release_that_is_late_does_not_close_what_was_opened_after_it(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    lost = 0

    async def lose_release_once(request: Message, send: Any) -> Any:
        nonlocal lost
        if asks(request, Release) and not lost:
            lost += 1
            await trio.sleep(1)
            raise UnavailableError("the connection broke")
        return await send()

    async with running(tmp_path) as (world, client), world.client("other") as other:
        await client.write_file("/a", b"kept")
        await trio.sleep(1)
        intercept(client, monkeypatch, lose_release_once)
        await (await client.open("/a")).close()
        await trio.sleep(0.1)
        file = await client.open("/a", "r" if how == "open" else "a+")
        await trio.sleep(10)
        assert lost == 1
        await other.unlink("/a")
        await trio.sleep(30)
        client.cache.clear()
        file._file.extents.forget()
        assert await file.pread(10, 0) == b"kept"
        await file.close()


async def test_an_unlinked_file_stays_although_reopening_it_failed_at_first(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    async def away(request: Message, send: Any) -> Any:
        nonlocal refused
        if asks(request, Open) and refused < 3:
            refused += 1
            raise UnavailableError("the master is away for a moment")
        return await send()

    async with (
        running(tmp_path, on_unavailable="error") as (world, client),
        world.client("other") as other,
    ):
        await client.write_file("/a", b"kept")
        async with await client.open("/a") as file:
            intercept(client, monkeypatch, away)
            await end_session(client)
            with pytest.raises(DfsError):
                await client.mkdir("/d")
            await trio.sleep(10)
            assert refused == 3
            await other.unlink("/a")
            await trio.sleep(30)
            file._file.extents.forget()
            assert await file.pread(10, 0) == b"kept"


@pytest.mark.allow_logs("cannot be opened again")
async def test_a_file_that_went_with_the_session_says_so_at_the_next_write_flush_and_close(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        file = await client.open("/a", "w")
        await file.write(b"a")
        await file.flush()
        await other.unlink("/a")
        await end_session(client)
        await client.mkdir("/d")
        await trio.sleep(10)
        for attempt in (lambda: file.write(b"b"), file.flush, file.fsync, file.close):
            with pytest.raises(FileSystemError, match="inode"):
                await attempt()


async def test_a_late_reply_to_set_attr_takes_nothing_back_that_a_commit_said(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(request: Message, send: Any) -> Any:
        reply = await send()
        if asks(request, SetAttr):
            await trio.sleep(3)
        return reply

    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"a" * 50)
            await file.flush()
            intercept(client, monkeypatch, slow)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.truncate, 10)
                await trio.sleep(1)
                await file.pwrite(b"b" * 30, 10)
                await file.flush()
                assert file.size == 40
            assert file.size == 40
            await file.truncate(5)
            assert file.size == 5
        assert await client.read_file("/a") == b"aaaaa"


async def test_an_open_sees_what_others_have_published_also_of_a_file_that_is_dirty(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        await client.write_file("/a", b"old old old")
        async with await client.open("/a", "r+") as file:
            assert await file.read() == b"old old old"
            await file.pwrite(b"own", 4)
            async with await other.open("/a", "r+") as elsewhere:
                await elsewhere.pwrite(b"new", 0)
            assert await client.read_file("/a") == b"new own old"


async def test_bytes_that_change_have_another_epoch(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        await client.write_file("/a", b"old old")
        async with await client.open("/a", "r+") as file:
            opened = file._file
            assert await file.read() == b"old old"
            # Read while a write waits for room: of before that write.
            epochs = []

            async def busy() -> None:
                epochs.append(opened.epoch)

            monkeypatch.setattr(opened._files.writers, "make_room", busy)
            await file.pwrite(b"own", 4)
            assert opened.epoch > epochs[-1]
            # Others have written before a commit that says so.
            async with await other.open("/a", "r+") as elsewhere:
                await elsewhere.pwrite(b"new", 0)
            before = opened.epoch
            await file.flush()
            assert opened.epoch > before
            assert await file.pread(7, 0) == b"new own"
            # And before extents that say so.
            async with await other.open("/a", "r+") as elsewhere:
                await elsewhere.pwrite(b"2nd", 0)
            opened.extents.forget()
            before = opened.epoch
            assert await file.pread(7, 0) == b"2nd own"
            assert opened.epoch > before


@pytest.mark.parametrize("given_up", ["settled", "failed"])
async def test_a_ticket_that_was_given_up_keeps_no_chunk_from_being_sealed(
    tmp_path: Path, autojump_clock: MockClock, given_up: str
) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/a", b"a")
        (chunks,) = client.writers._writers.values()
        ticket: Ticket = await chunks.submit([b"b" * 1000, b"c" * 100_000])
        if given_up == "settled":
            ticket.settle()
        else:
            ticket.fail(UnavailableError("not now"))
        await trio.sleep(5)
        assert chunks._current is not None
        assert chunks._current._held == 0
        began = trio.current_time()
        await chunks.close()
        assert trio.current_time() - began < 1
