"""fsync after the master's machine lost power: it fails where answered changes are gone."""

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import DfsError, FileSystemError, LostChangesError
from dfs.core.ids import ROOT_INODE
from dfs.wire.messages import CloseSession, Empty, Message, SyncBarrier
from tests.unit.client.rig import running

LOST = "lost changes that it had answered"


async def durable(client: Client) -> None:
    """What was done up to now is no matter for the test."""
    await client.meta.sync()


async def exists(client: Client, path: str) -> bool:
    try:
        await client.stat(path)
    except FileSystemError:
        return False
    return True


async def test_fsync_fails_once_where_the_master_lost_what_was_written(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await durable(client)
            await file.write(b"one")
            await file.flush()
            await world.cut_power()
            with pytest.raises(LostChangesError, match=LOST) as caught:
                await file.fsync()
            assert caught.value.errno == errno.EIO
            assert (await client.stat("/a")).size == 0
            # Told once; what is written from here on is a new matter.
            await file.pwrite(b"two", 0)
            await file.fsync()
        assert await client.read_file("/a") == b"two"


async def test_every_file_that_was_open_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as one, await client.open("/b", "w") as two:
            await durable(client)
            await one.write(b"1")
            await two.write(b"2")
            await one.flush()
            await two.flush()
            await world.cut_power()
            for file in (one, two):
                with pytest.raises(LostChangesError):
                    await file.fsync()
                await file.fsync()
        async with await client.open("/c", "w") as later:
            await later.fsync()


async def test_a_directory_is_told_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await durable(client)
            await client.mkdir("/d")
            await world.cut_power()
            with pytest.raises(LostChangesError):
                await file.fsync()
            with pytest.raises(LostChangesError):
                await client.meta.sync()
            await client.meta.sync()
        assert not await exists(client, "/d")


async def test_a_later_change_of_the_same_session_does_not_hide_the_loss(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/first")
        await durable(client)
        await client.mkdir("/lost")
        await world.cut_power()
        for number in range(300):  # past everything the reply cache remembers
            await client.mkdir(f"/later{number}")
        with pytest.raises(LostChangesError):
            await client.sync()
        assert not await exists(client, "/lost")


async def test_a_session_that_was_lost_with_its_changes_does_not_hide_the_loss(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/lost")
        session = client.meta.session.current_id
        await world.cut_power()
        await client.mkdir("/later")
        assert client.meta.session.current_id != session
        with pytest.raises(LostChangesError):
            await client.sync()
        assert await exists(client, "/later")


async def test_fsync_succeeds_where_all_was_flushed_before_the_power_cut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            world.store.sync()  # the flush of every second
            await world.cut_power()
            await file.fsync()
        assert await client.read_file("/a") == b"one"


async def test_fsync_succeeds_where_only_the_master_process_died(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            await world.crash("master")
            await world.start_host("master")
            await file.fsync()


async def test_what_was_never_answered_may_be_lost_and_is_done_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await durable(client)
            await file.write(b"one")
            await world.cut_power()
            await file.fsync()
        assert await client.read_file("/a") == b"one"


async def test_an_expired_session_is_no_reason_for_fsync_to_fail(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"one")
            await file.flush()
            link, session = client.meta.link, client.meta.session.current_id
            await link.call_once(CloseSession(session), Empty)
            await file.fsync()
            await client.mkdir("/d")  # opens the next session
            await file.fsync()
            assert client.meta.session.current_id != session
            # Nor when the power goes later, with nothing of it that is not durable.
            await world.cut_power()
            await file.fsync()


async def test_a_client_that_changed_nothing_has_nothing_to_lose(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("reader") as reader:
        await client.mkdir("/d")
        await world.cut_power()
        await reader.sync()


async def test_one_loss_among_several_restarts_is_found(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/kept")
        world.store.sync()
        await world.cut_power()
        await client.mkdir("/lost")
        await world.cut_power()
        await client.mkdir("/later")
        await world.crash("master")
        await world.start_host("master")
        with pytest.raises(LostChangesError):
            await client.sync()
        await client.sync()
        assert await exists(client, "/kept")
        assert not await exists(client, "/lost")


async def test_a_client_of_before_gets_the_answer_of_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/lost")
        await world.cut_power()
        assert await client.meta.link.call_once(SyncBarrier(), Empty) == Empty()


async def test_a_whole_upload_is_not_called_durable_when_the_master_lost_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)

    async with running(tmp_path / "cluster") as (world, client):
        await durable(client)
        sync = client.meta.sync

        async def cut_first() -> None:
            await world.cut_power()
            await sync()

        client.meta.sync = cut_first  # type: ignore[method-assign]
        with pytest.raises(DfsError, match=LOST):
            await client.upload([source], "/a")


async def test_a_loss_is_told_once_although_two_ask_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/lost")
        await world.cut_power()
        await client.mkdir("/later")
        world.network.set_latency(0.5)
        told = 0

        async def sync() -> None:
            nonlocal told
            try:
                await client.meta.sync()
            except LostChangesError:
                told += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.meta.mkdir, ROOT_INODE, b"between", 0o755)
            await trio.sleep(0.5)
            nursery.start_soon(sync)
            await trio.sleep(0.8)
            nursery.start_soon(sync)
        assert told == 1
        await client.meta.sync()


async def test_a_loss_is_told_although_more_of_what_is_lost_was_answered_meanwhile(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (world, client):
        await durable(client)
        await client.mkdir("/lost")
        call_once = client.meta.link.call_once
        arrives = trio.Event()

        async def slow(request: Message, *args: Any, **more: Any) -> Any:
            if isinstance(request, SyncBarrier):
                await arrives.wait()
            return await call_once(request, *args, **more)

        monkeypatch.setattr(client.meta.link, "call_once", slow)
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                with pytest.raises(LostChangesError):
                    await client.meta.sync()

            nursery.start_soon(sync)
            await trio.testing.wait_all_tasks_blocked()
            await client.meta.mkdir(ROOT_INODE, b"lost too", 0o755)
            await world.cut_power()
            arrives.set()
        await client.meta.sync()
