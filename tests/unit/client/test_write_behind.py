"""What is told to the master later, when the session ends while a batch of it is on its way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfs.client import Client
from dfs.core.errors import DfsError
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.wire.messages import Apply, CloseSession, Cred, Empty, Message
from tests.unit.client.rig import hold, running

ROOT = Cred(0, 0)


class Road:
    """The way of a client's batches to the master: from `close` on they wait for `open`."""

    def __init__(self, client: Client) -> None:
        self._free = trio.Event()
        self._free.set()
        self.waiting = 0
        self._call_once = client.meta.link.call_once
        client.meta.link.call_once = self._pass  # type: ignore[method-assign]

    def close(self) -> None:
        self._free = trio.Event()

    def open(self) -> None:
        self._free.set()

    async def _pass(self, request: Message, *args: Any, **more: Any) -> Any:
        if isinstance(request, Apply) and any(getattr(op, "time_ns", 0) for op in request.ops):
            self.waiting += 1
            await self._free.wait()
        return await self._call_once(request, *args, **more)


@asynccontextmanager
async def held(root: Path) -> AsyncIterator[tuple[Client, Client, InodeId, Road]]:
    """A client with a directory `/d` of its own and a chunk to append to, and another client."""
    async with running(root) as (world, own), world.client("elsewhere") as other:
        own.meta.delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)
        await own.write_file("/d/before", b"bytes")
        yield own, other, ino, Road(own)
        world.check_metadata()


def make(client: Client, ino: InodeId, name: bytes) -> InodeId:
    inode = client.meta.delegations.create(ino, name, 0o644, ROOT)
    assert inode is not None
    client.meta.delegations.release(inode.ino, ROOT)
    return inode.ino


async def replace_session(client: Client, other: Client) -> None:
    """The session ends, and an ordinary change of the client finds that out."""
    await other.meta.link.call(CloseSession(client.meta.session.current_id), Empty)
    await client.meta.mkdir(ROOT_INODE, b"e", 0o755)


@pytest.mark.allow_logs("was answered and is lost", "cannot be opened again")
async def test_bytes_on_their_way_when_the_session_ends_are_an_error_of_their_flush(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (own, other, ino, road):
        road.close()
        inode = own.meta.delegations.create(ino, b"a", 0o644, ROOT)
        assert inode is not None
        file = own.files.adopt(inode, 6)
        await file.write(0, b"bytes")
        failures: list[DfsError] = []

        async def flush() -> None:
            try:
                await file.flush()
            except DfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
            assert road.waiting
            for number in range(5):
                make(own, ino, b"%d" % number)
            await replace_session(own, other)
            await wait_all_tasks_blocked()
            assert not failures
            road.open()
        assert failures
        assert not await other.exists("/d/a")
        with pytest.raises(DfsError):
            await own.files.close(file)
        with pytest.raises(DfsError):
            await own.meta.sync()


@pytest.mark.allow_logs("was answered and is lost")
async def test_who_syncs_a_file_hears_of_its_loss_although_the_session_is_over_before_the_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (own, other, ino, road):
        road.close()
        log = own.meta.delegations.log
        first = make(own, ino, b"first")
        log.hurry()
        await wait_all_tasks_blocked()
        assert road.waiting
        make(own, ino, b"then")
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                await log.settled((first,))
                with pytest.raises(DfsError):
                    log.check(first)

            nursery.start_soon(sync)
            await replace_session(own, other)
            await wait_all_tasks_blocked()
            road.open()
        assert not await other.exists("/d/first")
        with pytest.raises(DfsError):
            await own.meta.sync()
