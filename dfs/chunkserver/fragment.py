"""One fragment in use: who may touch its file, and in which order.

A `Fragment` lives on the event loop and lends its `FragmentFile` to one worker thread at a time
for changes. Appends of one writer arrive several at a time and in any order: they are put in
order by their first block, and all that are due when a thread is free are stored by one call. One
that has nobody to wait for goes there without a task of its own (`begin_append`).

Between two awaits nothing else runs; a step that reads and then changes state must not have an
`await` in between.
"""

import math
from collections.abc import Callable
from typing import Final

import trio
from outcome import Error, Outcome, Value

from dfs.chunkserver.fragment_file import Batch, Claim, FragmentFile, Reached
from dfs.chunkserver.fragment_format import FragmentName
from dfs.core.errors import DfsError, FragmentError
from dfs.core.workers import Starters

GAP_WAIT_S: Final = 2.0
"""How long an append waits for the one that belongs before it."""


class _Pending:
    """An append that waits for its turn."""

    __slots__ = ("batch", "outcome", "sync")

    def __init__(self, batch: Batch, sync: bool) -> None:
        self.batch = batch
        self.sync = sync
        self.outcome: Reached | DfsError | None = None


class Fragment:
    """Pinned while anyone uses it; its file is closed when it is retired and no pin is left."""

    def __init__(
        self, file: FragmentFile, workers: Starters, note: Callable[[FragmentName], None]
    ) -> None:
        """`workers` turn OSErrors into DfsErrors (see `Disk`); `note` is told the file's name
        when it is created and when it is sealed."""
        self.file = file
        self.order = trio.Semaphore(1)
        """Taken by whoever changes the file."""
        self.pins = 0
        self.retired = False
        self._workers = workers
        self._note = note
        self._pending: list[_Pending] = []
        self._progress = trio.Event()
        # What an open file held before it was opened may never have been synced.
        self._synced = file.appends if file.sealed or not file.exists else -1
        self._syncing = trio.Semaphore(1)
        """One sync at a time: of bytes that could not be written, the kernel tells only one."""

    def pin(self) -> None:
        self.pins += 1

    def unpin(self) -> None:
        self.pins -= 1
        if self.retired and self.pins == 0:
            self.file.close()

    def retire(self) -> None:
        """Nobody finds it any more; those who have it pinned may finish."""
        self.retired = True
        if self.pins == 0:
            self.file.close()

    # ------------------------------------------------------------------ appending

    def is_next(self, batch: Batch, *, sync: bool) -> bool:
        """Whether nothing else comes before an append: then `begin_append` may.

        What a disk that hangs holds up can be given up, but for what its threads are at.
        """
        return (
            self._workers.free
            and self.order.value > 0
            and (not sync or self._syncing.value > 0)
            and not self._pending
            and not self.retired
            and batch.first_block <= len(self.file.index)
        )

    def begin_append(
        self,
        batch: Batch,
        claim: Claim,
        wake: Callable[[Outcome[Reached]], None],
        *,
        sync: bool = False,
    ) -> None:
        """As `append`, for what `is_next`: `wake` is told the outcome."""
        file = self.file

        def ended(result: "Outcome[list[Reached | DfsError]]") -> None:
            self.order.release()
            if sync:
                self._syncing.release()
            if self._pending:
                self._moved()
            outcome: Outcome[Reached]
            try:
                reached = result.unwrap()[0]
            except BaseException as error:
                outcome = Error(error)
            else:
                if sync:
                    self._synced = file.appends
                if file.exists:
                    self._note(file.name)
                outcome = Error(reached) if isinstance(reached, DfsError) else Value(reached)
            wake(outcome)

        self.order.acquire_nowait()
        if sync:
            self._syncing.acquire_nowait()
        try:
            self._workers.start(ended, file.append, (batch,), claim, sync)
        except BaseException:
            self.order.release()
            if sync:
                self._syncing.release()
            raise

    def _moved(self) -> None:
        """Let those look again who wait for the appends before theirs, or are stored by now."""
        self._progress.set()
        self._progress = trio.Event()

    async def append(self, batch: Batch, claim: Claim, *, sync: bool = False) -> Reached:
        """Store a batch; waits up to `GAP_WAIT_S` for the ones that belong before it.

        With `sync`, it and all before it are durable then: as after `sync`, in the same turn of
        a thread. Those that come meanwhile are stored and synced together after it.

        Raises:
            DiskError: what was to be durable is not; the disk has failed.
            DfsError: it was refused, and nothing of it is stored.
        """
        mine = _Pending(batch, sync)
        self._pending.append(mine)
        give_up_at = math.inf
        try:
            while True:
                async with self.order:
                    late = trio.current_time() >= give_up_at
                    if mine.outcome is None and (late or self._is_due(mine)):
                        await self._store(mine, claim)
                if mine.outcome is not None:
                    break
                if give_up_at == math.inf:
                    give_up_at = trio.current_time() + GAP_WAIT_S
                with trio.CancelScope(deadline=give_up_at):
                    await self._progress.wait()
        finally:
            if mine in self._pending:
                self._pending.remove(mine)
        if isinstance(mine.outcome, DfsError):
            raise mine.outcome
        return mine.outcome

    def _is_due(self, mine: _Pending) -> bool:
        return any(pending is mine for pending in self._due())

    def _due(self) -> list[_Pending]:
        """The pending appends that can be stored now, in order."""
        next_block = self.file.reached.next_block
        due = []
        for pending in sorted(self._pending, key=lambda each: each.batch.first_block):
            batch = pending.batch
            if batch.first_block > next_block:
                break
            due.append(pending)
            next_block = max(next_block, batch.first_block + batch.blocks)
        return due

    async def _store(self, mine: _Pending, claim: Claim) -> None:
        """Store all appends that are due, and `mine` in any case; set their outcomes."""
        if self.retired:
            mine.outcome = FragmentError(f"{self.file.path} was replaced or deleted meanwhile")
            return
        due = self._due()
        if mine not in due:
            due.append(mine)
        for pending in due:
            self._pending.remove(pending)
        batches = [pending.batch for pending in due]
        sync = any(pending.sync for pending in due)
        try:
            if sync:
                async with self._syncing:
                    outcomes = await self._workers.run(self.file.append, batches, claim, True)
                    self._synced = self.file.appends
            else:
                outcomes = await self._workers.run(self.file.append, batches, claim, False)
        except DfsError as error:
            for pending in due:
                pending.outcome = error.again()
        except BaseException:
            # Not begun (cancelled), or a bug: the others' turn is still to come.
            self._pending += due
            raise
        else:
            if self.file.exists:
                self._note(self.file.name)
            for pending, outcome in zip(due, outcomes, strict=True):
                pending.outcome = outcome
        finally:
            self._moved()

    # ------------------------------------------------------------------ syncing, sealing

    async def sync(self) -> None:
        """Everything appended before this call is durable after it. One fdatasync serves many.

        Raises:
            DiskError: it failed; the disk has then failed.
        """
        wanted = self.file.appends
        while self._synced < wanted:
            async with self._syncing:
                if self._synced < wanted:
                    reached = self.file.appends
                    await self._workers.run(self.file.sync)
                    self._synced = max(self._synced, reached)

    async def seal(self, length: int, account: Claim) -> None:
        """See `FragmentFile.seal`. Appends that wait are refused after it."""
        async with self.order, self._syncing:
            await self._workers.run(self.file.seal, length, account)
            self._synced = self.file.appends
            self._note(self.file.name)
