"""The narrow interface through which every state change goes, and its local form.

The local journal applies a command straight to the store, whose own log (WAL) is the log: when
`append` returns, the change survives the death of the process; when `sync` returns, it survives
a power cut. A replicated journal will put the commands through a shared log first.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import trio
from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from dfs.core.errors import DfsError
from dfs.core.workers import Starters
from dfs.master.commands import Command
from dfs.master.state import State

R = TypeVar("R")

Wake = Callable[[Outcome[None]], None]


class _Waiter:
    """Who waits, and how far the log has to be on the disk for it."""

    __slots__ = ("upto", "wake")

    def __init__(self, wake: Wake, upto: int) -> None:
        self.wake: Wake | None = wake
        self.upto = upto


class Journal(Protocol):
    def append(self, command: Command[R]) -> R:
        """Apply a command; its result. Raises what `State.apply` raises."""

    @property
    def position(self) -> int:
        """How far the log reaches: goes up with every change, and back with one that is lost."""

    async def sync(self) -> None:
        """Return when every command appended before the call is on the disk.

        Raises NoSpaceError or DfsError where the disk fails.
        """

    def when_synced(self, wake: Wake) -> None:
        """As `sync`, without a task: `wake` is told when, or what it would raise."""


class LocalJournal:
    """One process, one store. `sync` shares one flush among all who asked before it began."""

    def __init__(self, state: State, workers: Starters) -> None:
        self._state = state
        self._workers = workers
        self._appended = 0
        self._synced = 0
        self._flushing = False
        self._waiting: deque[_Waiter] = deque()

    def append(self, command: Command[R]) -> R:
        result = self._state.apply(command)
        self._appended += 1
        return result

    @property
    def position(self) -> int:
        return self._state.store.position

    async def sync(self) -> None:
        if self._synced >= self._appended:
            await trio.lowlevel.checkpoint()
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        told: list[Outcome[None]] = []
        waiter = _Waiter(told.append, self._appended)
        self._wait(waiter)
        if told:
            told[0].unwrap()
            return
        waiter.wake = partial(reschedule, current_task())

        def abort(_: object) -> Abort:
            waiter.wake = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def when_synced(self, wake: Wake) -> None:
        if self._synced >= self._appended:
            wake(Value(None))
        else:
            self._wait(_Waiter(wake, self._appended))

    def _wait(self, waiter: _Waiter) -> None:
        self._waiting.append(waiter)
        if not self._flushing:
            self._flush()

    def _flush(self) -> None:
        self._flushing = True
        self._workers.start(partial(self._flushed, self._appended), self._state.store.sync)

    def _flushed(self, covered: int, outcome: Outcome[None]) -> None:
        self._flushing = False
        if not isinstance(outcome, Error):
            self._synced = max(self._synced, covered)
        waiting = self._waiting
        while waiting and waiting[0].upto <= covered:
            wake = waiting.popleft().wake
            if wake is not None:
                wake(_again(outcome))
        # The flush may have begun before the changes of the others: they need another.
        if waiting and not self._flushing:
            self._flush()


def _again(outcome: Outcome[None]) -> Outcome[None]:
    """For one more of those who are told: neither an outcome nor an exception serves two."""
    if isinstance(outcome, Error):
        error = outcome.error
        return Error(error.again() if isinstance(error, DfsError) else error)
    return Value(None)
