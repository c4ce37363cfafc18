"""The narrow interface through which every state change goes, and its local form.

The local journal applies a command straight to the store, whose own log (WAL) is the log: when
`append` returns, the change survives the death of the process; when `sync` returns, it survives
a power cut. A replicated journal will put the commands through a shared log first.
"""

from typing import Protocol, TypeVar

import trio

from dfs.core.workers import Workers
from dfs.master.commands import Command
from dfs.master.state import State

R = TypeVar("R")


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


class LocalJournal:
    """One process, one store. `sync` shares one flush among all who asked before it began."""

    def __init__(self, state: State, workers: Workers) -> None:
        self._state = state
        self._workers = workers
        self._appended = 0
        self._synced = 0
        self._flushing: trio.Event | None = None

    def append(self, command: Command[R]) -> R:
        result = self._state.apply(command)
        self._appended += 1
        return result

    @property
    def position(self) -> int:
        return self._state.store.position

    async def sync(self) -> None:
        wanted = self._appended
        if self._synced >= wanted:
            await trio.lowlevel.checkpoint()
        while self._synced < wanted:
            if self._flushing is not None:
                # It may have begun before our change was made: then we flush again.
                await self._flushing.wait()
            else:
                await self._flush()

    async def _flush(self) -> None:
        covered = self._appended
        done = self._flushing = trio.Event()
        try:
            await self._workers.run(self._state.store.sync)
            self._synced = max(self._synced, covered)
        finally:
            # Also when cancelled or failed: another waiter then tries for itself.
            self._flushing = None
            done.set()
