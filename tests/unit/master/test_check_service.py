"""Who may have a check, and when one is given up."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import trio
from outcome import Outcome, capture

from dfs.core.errors import BusyError, FileSystemError
from dfs.master.check.service import WATCHED_S, CheckService
from dfs.master.jobs.context import JobContext
from dfs.master.journal import LocalJournal
from dfs.master.snapshots import Snapshots
from dfs.wire import messages as m
from dfs.wire.handlers import Peer
from dfs.wire.hello import Hello
from tests.unit.master.rig import Rig

T = TypeVar("T")
NOTHING = memoryview(b"")


class StuckWorkers:
    """Snapshots are never ready."""

    free = True

    async def run(self, function: Callable[..., T], *args: object) -> T:
        if function.__name__ == "_take":
            await trio.sleep_forever()
        return function(*args)

    def start(
        self, wake: Callable[[Outcome[Any]], None], function: Callable[..., Any], *args: object
    ) -> None:
        wake(capture(function, *args))


class Checks:
    def __init__(self, service: CheckService) -> None:
        self._service = service
        self._peer = Peer("test", Hello("client"))

    def start(self, nonce: int) -> int:
        return self._service.start(self._peer, m.StartCheck(nonce), NOTHING).check

    def read(self, check: int) -> m.CheckReply:
        return self._service.read(self._peer, m.ReadCheck(check), NOTHING)


@asynccontextmanager
async def checks(work: Path) -> AsyncIterator[Checks]:
    rig = Rig()
    workers = StuckWorkers()
    journal = LocalJournal(rig.state, workers)
    # All that a check needs before there is a snapshot.
    context = cast("JobContext", SimpleNamespace(journal=journal, reader=rig.store))
    service = CheckService(context, Snapshots(work / "snapshots", rig.store, workers), list)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        yield Checks(service)
        nursery.cancel_scope.cancel()


async def test_a_check_that_is_watched_is_the_only_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with checks(tmp_path) as service:
        first = service.start(1)
        assert service.start(1) == first
        for _ in range(50):
            await trio.sleep(WATCHED_S - 1)
            assert service.read(first).phase == "checking metadata"
            with pytest.raises(BusyError):
                service.start(2)


async def test_one_that_nobody_watches_makes_room(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with checks(tmp_path) as service:
        first = service.start(1)
        await trio.sleep(WATCHED_S)
        second = service.start(2)
        assert second != first
        with pytest.raises(FileSystemError, match="another check took its place"):
            service.read(first)
        await trio.sleep(1)
        assert service.read(second).phase == "checking metadata"


async def test_one_that_nobody_watches_any_more_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with checks(tmp_path) as service:
        first = service.start(1)
        await trio.sleep(m.CHECK_IDLE_S + 1)
        reply = service.read(first)
        assert reply.finished
        assert "given up" in reply.error
        assert not list(tmp_path.glob("snapshots/*"))
