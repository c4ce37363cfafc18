"""Changes that were given up, and reach the master when nobody waits for them any more."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError, UnavailableError
from dfs.core.ids import ROOT_INODE
from dfs.wire.messages import Access, Applied, Apply, Commit, Message, Mkdir, Open
from tests.unit.client.rig import running


class SlowRoad:
    """From `closed` on, changes of a kind stay on the way, and their callers hear nothing.

    `deliver` is when they arrive.
    """

    def __init__(self, client: Client, kind: type) -> None:
        self.closed = False
        self._kind = kind
        self.on_the_way: list[Message] = []
        self._call_once = client.meta.link.call_once
        client.meta.link.call_once = self._call  # type: ignore[method-assign]

    async def _call(self, request: Message, *args: Any, **more: Any) -> Any:
        if self.closed and isinstance(request, Apply):
            if any(isinstance(op, self._kind) for op in request.ops):
                self.on_the_way.append(request)
                await trio.sleep(1)
                raise UnavailableError("no answer")
        return await self._call_once(request, *args, **more)

    async def deliver(self) -> None:
        for request in self.on_the_way:
            await self._call_once(request, Applied)


@pytest.mark.parametrize("on_unavailable", ["error", "wait:20s"])
async def test_an_append_that_arrives_late_is_not_in_the_file_twice(
    tmp_path: Path, autojump_clock: MockClock, on_unavailable: str
) -> None:
    async with running(tmp_path, on_unavailable=on_unavailable) as (world, client):
        road = SlowRoad(client, Commit)
        async with await client.open("/log", "a") as log:
            await log.write(b"one ")
            road.closed = True
            with pytest.raises(UnavailableError):
                await log.flush()
            road.closed = False
            await log.write(b"two")
            await log.flush()
            assert road.on_the_way
            await road.deliver()
        assert await client.read_file("/log") == b"one two"
        world.check_metadata()


async def test_an_append_that_arrives_just_before_it_is_tried_again_is_in_the_file_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="error") as (world, client):
        road = SlowRoad(client, Commit)
        async with await client.open("/log", "a") as log:
            await log.write(b"one ")
            road.closed = True
            with pytest.raises(UnavailableError):
                await log.flush()
            road.closed = False
            await road.deliver()
            await log.write(b"two")
            await log.flush()
        assert await client.read_file("/log") == b"one two"
        world.check_metadata()


async def test_bytes_that_arrive_late_do_not_replace_newer_ones(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="error") as (world, client):
        road = SlowRoad(client, Commit)
        async with await client.open("/a", "w") as file:
            await file.pwrite(b"old", 0)
            road.closed = True
            with pytest.raises(UnavailableError):
                await file.flush()
            road.closed = False
            await file.pwrite(b"new", 0)
            await file.flush()
            await road.deliver()
        client.cache.clear()
        assert await client.read_file("/a") == b"new"
        world.check_metadata()


async def test_a_change_that_was_given_up_does_not_come_after_a_newer_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="error") as (_, client):
        road = SlowRoad(client, Mkdir)
        await client.mkdir("/before")
        road.closed = True
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await client.meta.mkdir(ROOT_INODE, b"a", 0o755)
        road.closed = False
        with pytest.raises(FileSystemError):
            await client.meta.rmdir(ROOT_INODE, b"a")
        await road.deliver()
        assert not await client.exists("/a")
        assert len(road.on_the_way) == 3


async def test_what_became_of_changes_is_certain_once_a_newer_one_is_answered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:5s") as (world, client):
        await client.mkdir("/before")
        world.network.partition("desk", "master")
        for name in (b"a", b"b"):
            with pytest.raises(UnavailableError):
                await client.meta.mkdir(ROOT_INODE, name, 0o755)
        world.network.heal()
        await client.mkdir("/after")
        there = [await client.exists(path) for path in ("/a", "/b")]
        await trio.sleep(60)
        assert [await client.exists(path) for path in ("/a", "/b")] == there
        assert not client.meta.session._lease.in_doubt  # type: ignore[union-attr]


async def test_an_open_whose_caller_has_gone_does_not_take_effect_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:20s") as (world, client):
        await client.write_file("/a", b"data")
        inode = await client.stat("/a")
        road = SlowRoad(client, Open)
        road.closed = True
        with trio.move_on_after(0.5) as scope:
            await client.files.open(inode.ino, int(Access.READ))
        assert scope.cancelled_caught
        road.closed = False
        await client.mkdir("/b")
        await road.deliver()
        await client.unlink("/a")
        with pytest.raises(FileSystemError):
            await client.meta.get_inode(inode.ino)
        assert len(road.on_the_way) == 1
        world.check_metadata()
