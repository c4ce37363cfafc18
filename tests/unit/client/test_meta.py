"""Changes travel together, take effect once, and outlive the master and the session."""

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError, UnavailableError
from dfs.core.ids import ROOT_INODE
from dfs.wire.messages import WINDOW, Apply, Create, Message, Mkdir, Unlink
from tests.simulation.world import LEASE_S
from tests.unit.client.rig import running


def spy(client: Client, before: Callable[[Message], Awaitable[None]]) -> None:
    """Have `before` see each request to the master."""
    call_once = client.meta.link.call_once

    async def spied(request: Message, *args: Any, **more: Any) -> Any:
        await before(request)
        return await call_once(request, *args, **more)

    client.meta.link.call_once = spied  # type: ignore[method-assign]


async def test_changes_of_one_tick_share_a_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        sizes: list[int] = []

        async def note(request: Message) -> None:
            if isinstance(request, Apply):
                sizes.append(len(request.ops))

        await client.meta.session.open()
        spy(client, note)
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(client.meta.create, ROOT_INODE, b"%d" % number, 0o644)
        assert sum(sizes) == 500
        assert len(sizes) <= 3
        entries = [entry async for entry in client.scandir("/")]
        assert len(entries) == 500


async def test_results_are_in_order_and_one_refusal_stops_no_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        results = await client.meta.apply(
            Mkdir(ROOT_INODE, b"a", 0o755),
            Mkdir(ROOT_INODE, b"a", 0o755),
            Create(ROOT_INODE, b"b", 0o644),
            Unlink(ROOT_INODE, b"none"),
        )
        errors = [result.error.errno if result.error else 0 for result in results]
        assert errors == [0, errno.EEXIST, 0, errno.ENOENT]
        inodes = [result.inode is not None for result in results]
        assert inodes == [True, False, True, False]
        assert await client.meta.apply() == []
        many = await client.meta.apply(
            *(Create(ROOT_INODE, b"many %d" % number, 0o644) for number in range(2500))
        )
        assert all(result.error is None for result in many)


async def test_large_changes_are_spread_over_requests(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        value = bytes(60_000)
        files = [await client.meta.create(ROOT_INODE, b"%d" % each, 0o644) for each in range(40)]
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(client.meta.set_xattr, file.ino, b"user.a", value)
        for file in files:
            assert await client.meta.list_xattr(file.ino) == (b"user.a",)


@pytest.mark.allow_logs("")
async def test_a_change_whose_reply_was_lost_takes_effect_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        call_once = client.meta.link.call_once
        lost = 0

        async def lossy(request: Message, *args: Any, **more: Any) -> Any:
            nonlocal lost
            reply = await call_once(request, *args, **more)
            if isinstance(request, Apply) and lost % 3 < 2:
                lost += 1
                raise UnavailableError("the reply was lost")
            lost += 1
            return reply

        client.meta.link.call_once = lossy  # type: ignore[method-assign]
        inode = await client.meta.mkdir(ROOT_INODE, b"a", 0o755)
        assert inode.is_dir
        await client.meta.rmdir(ROOT_INODE, b"a")
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client.mkdir, f"/{number}")
        assert lost >= 9


@pytest.mark.allow_logs("")
async def test_more_changes_than_the_window_holds_wait_for_the_oldest(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        call_once = client.meta.link.call_once
        first = True

        async def stuck(request: Message, *args: Any, **more: Any) -> Any:
            nonlocal first
            if isinstance(request, Apply) and first:
                first = False
                await trio.sleep(5)
            return await call_once(request, *args, **more)

        client.meta.link.call_once = stuck  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.meta.create, ROOT_INODE, b"slow", 0o644)
            await trio.sleep(0.1)
            for number in range(2 * WINDOW):
                nursery.start_soon(client.meta.create, ROOT_INODE, b"%d" % number, 0o644)
                await trio.testing.wait_all_tasks_blocked()
        assert len([entry async for entry in client.scandir("/")]) == 2 * WINDOW + 1


@pytest.mark.allow_logs("")
async def test_calls_wait_for_a_master_that_restarts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.mkdir("/a")
        session = client.meta.session.current_id
        await world.crash("master")

        async def come_back() -> None:
            await trio.sleep(20)
            await world.start_host("master")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            begun = trio.current_time()
            await client.mkdir("/a/b")
            assert (await client.stat("/a/b")).is_dir
            assert 19 < trio.current_time() - begun < 25
        assert client.meta.session.current_id == session


@pytest.mark.allow_logs("")
async def test_with_error_a_missing_master_is_reported_soon(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="error") as (world, client):
        await client.mkdir("/a")
        await world.crash("master")
        begun = trio.current_time()
        with pytest.raises(UnavailableError):
            await client.mkdir("/b")
        assert trio.current_time() - begun < 1
        await world.start_host("master")


@pytest.mark.allow_logs("")
async def test_an_expired_session_is_replaced_and_open_files_stay_open(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait") as (world, client):
        await client.write_file("/a", b"kept")
        file = await client.open("/a", "r")
        before = client.meta.session.current_id
        world.network.partition("desk", "master")
        await trio.sleep(LEASE_S + 60)
        world.network.heal()
        await client.mkdir("/new")
        assert client.meta.session.current_id != before
        await trio.sleep(1)
        await client.unlink("/a")
        await trio.sleep(5)
        assert await file.read() == b"kept"
        await file.close()


async def test_a_cancelled_caller_leaves_the_others_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        world.network.set_latency(0.2)
        scope = trio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await client.meta.create(ROOT_INODE, b"cancelled", 0o644)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            nursery.start_soon(client.meta.create, ROOT_INODE, b"other", 0o644)
            await trio.sleep(0.1)
            scope.cancel()
        assert scope.cancelled_caught
        assert await client.exists("/other")


async def test_errors_name_the_path(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/file", b"")
        for call, path, number in (
            (client.stat("/none"), "/none", errno.ENOENT),
            (client.mkdir("/file"), "/file", errno.EEXIST),
            (client.mkdir("/none/a"), "/none/a", errno.ENOENT),
            (client.rmdir("/file"), "/file", errno.ENOTDIR),
            (client.unlink("/none"), "/none", errno.ENOENT),
            (client.readlink("/file"), "/file", errno.EINVAL),
            (client.stat("/file/below"), "/file/below", errno.ENOTDIR),
        ):
            with pytest.raises(FileSystemError) as refused:
                await call
            assert refused.value.errno == number
            assert str(refused.value).startswith(f"{path}: ")
        for bad in ("relative", "", "/nul\0"):
            with pytest.raises(FileSystemError):
                await client.stat(bad)


async def test_a_walk_leaves_out_what_is_taken_from_its_list(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        for name in ("a/b", "a/c", "d"):
            await client.mkdir(f"/t/{name}", parents=True)
        seen = []
        async for path, entries in client.walk("/t"):
            seen.append(path)
            entries[:] = [entry for entry in entries if entry.name != b"b"]
        assert seen == [b"/t", b"/t/a", b"/t/a/c", b"/t/d"]
        async for entry in client.scandir("/t"):
            assert entry.name == b"a"
            break
