"""Directories that are recalled while those who want them give up and come again."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError, UnavailableError
from dfs.core.ids import InodeId
from dfs.wire.messages import Cred, Message, Recalls
from tests.unit.client.rig import hold, running

ROOT = Cred(0, 0)


def make(client: Client, ino: InodeId, name: bytes) -> None:
    inode = client.meta.delegations.create(ino, name, 0o644, ROOT)
    assert inode is not None
    client.meta.delegations.release(inode.ino, ROOT)


async def look(client: Client, ino: InodeId) -> None:
    with pytest.raises(FileSystemError):
        await client.meta.lookup(ino, b"none")


class Deaf:
    """A client that does not get to know what it is to give back, while `deaf` is set."""

    def __init__(self, client: Client) -> None:
        self.deaf = True
        self.missed: list[Recalls] = []
        self._call_once = client.meta.link.call_once
        client.meta.link.call_once = self._call  # type: ignore[method-assign]

    async def _call(self, request: Message, *args: Any, **more: Any) -> Any:
        reply = await self._call_once(request, *args, **more)
        if self.deaf and isinstance(reply, Recalls) and reply.inos:
            self.missed.append(reply)
            raise UnavailableError("the reply was lost")
        return reply


@pytest.mark.parametrize("pause_s", [5, 60])
async def test_a_recall_that_nobody_waited_for_does_not_shorten_the_next(
    tmp_path: Path, autojump_clock: MockClock, pause_s: float
) -> None:
    async with running(tmp_path) as (world, own), world.client("elsewhere") as other:
        deaf = Deaf(own)
        own.meta.delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)
        with trio.move_on_after(0.05):
            await look(other, ino)
        await trio.sleep(1)
        assert deaf.missed
        deaf.deaf = False
        await trio.sleep(pause_s)
        assert own.meta.delegations.directory(ino) is not None
        make(own, ino, b"made")
        # It takes the holder a moment to tell what it did.
        world.network.set_latency(0.3)
        await look(other, ino)
        assert (await other.meta.lookup(ino, b"made")).is_file
        await own.meta.sync()
        world.check_metadata()


@pytest.mark.allow_logs("has not given directory")
async def test_a_directory_is_taken_from_who_never_answers_although_those_who_wait_give_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, own), world.client("elsewhere") as other:
        Deaf(own)
        own.meta.delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)
        begun = trio.current_time()
        for _ in range(100):
            with trio.move_on_after(2.0) as scope:
                await look(other, ino)
            if not scope.cancelled_caught:
                break
            await trio.sleep(1.0)
        assert 15 <= trio.current_time() - begun < 30
        world.check_metadata()
