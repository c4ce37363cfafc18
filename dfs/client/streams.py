"""A run of blocks on its way to the fragments of a chunk: who has it, who lags, who failed.

A `Flight` sends a run to all fragments at once and waits for them in one task: a task for each
answer would cost more than the rest of a small append. What needs a second try, or a connection
to be opened first, is left to the chunk (`OpenChunk`), which owns all of this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio
from outcome import Outcome
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from dfs.core.buffers import Buffer
from dfs.core.chunk import DiskLocation
from dfs.core.errors import BusyError, DeadlineError, DfsError, FragmentError
from dfs.wire.calls import Call
from dfs.wire.messages import Append, Appended
from dfs.wire.pool import Pool

LAG_S: Final = 3.5
"""How much later than the quickest fragment any other may acknowledge a run."""
SYNC_LAG_S: Final = 15.0
"""The same of a run that they bring to their disks first."""
APPEND_TIMEOUT_S: Final = 20.0
SYNC_TIMEOUT_S: Final = 60.0


class Cancellable(Protocol):
    def cancel(self) -> None: ...


@dataclass(slots=True, eq=False)
class Stream:
    """One fragment as its writer sees it."""

    index: int
    disk: DiskLocation
    acked_blocks: int = 0
    acked_length: int = 0
    """Raw bytes of the chunk that the fragment has acknowledged."""
    synced_length: int = 0
    """Of these, how far they were on the disk after an append."""
    error: DfsError | None = None
    """Why nothing more is sent to it."""
    damaged: bool = False
    """It failed to make durable what it had acknowledged."""
    sending: set[Cancellable] = field(default_factory=set)
    """Appends to it that are under way."""
    moved: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def __str__(self) -> str:
        return f"disk {self.disk.disk} at {self.disk.address}"


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive blocks of one chunk that travel together."""

    first_block: int
    blocks: int
    start: int
    end: int
    """Raw bytes of the chunk: [start, end)."""
    before: trio.Event
    """Set when the run before this one is on its way."""
    sync: bool = False
    """Acknowledged when it is on the disk."""
    on_its_way: trio.Event = field(default_factory=trio.Event)
    _hurry_until: float = math.inf
    _scopes: list[trio.CancelScope] = field(default_factory=list)
    """Of those who wait for its fragments."""

    @property
    def lag_s(self) -> float:
        return SYNC_LAG_S if self.sync else LAG_S

    @property
    def timeout_s(self) -> float:
        return SYNC_TIMEOUT_S if self.sync else APPEND_TIMEOUT_S

    def scope(self) -> trio.CancelScope:
        """To wait in for fragments: it ends when those that have not acknowledged lag behind."""
        made = trio.CancelScope(deadline=self._hurry_until)
        self._scopes.append(made)
        return made

    def hurry(self) -> None:
        """A fragment has it: the others have so much time left."""
        if self._hurry_until == math.inf:
            self._hurry_until = trio.current_time() + self.lag_s
            for scope in self._scopes:
                scope.deadline = self._hurry_until

    def check(self, stream: Stream, reply: Appended) -> None:
        """Raises FragmentError where the answer is none to this run."""
        if reply.next_block < self.first_block + self.blocks:
            raise FragmentError(
                f"{stream} ends at block {reply.next_block} after appending up to "
                f"{self.first_block + self.blocks}"
            )


class Sink(Protocol):
    """The chunk of a flight."""

    def acknowledged(self, stream: Stream, run: Run, *, synced: bool) -> None:
        """The fragment has the run; `synced`: on its disk."""

    def refused(self, stream: Stream, run: Run, error: DfsError) -> None:
        """It has not, and never will."""


class Flight:
    """See the module."""

    def __init__(self, sink: Sink, pool: Pool, run: Run) -> None:
        self.again: list[Stream] = []
        """Those that were busy, or got this run before the one before it."""
        self._sink = sink
        self._pool = pool
        self._run = run
        self._legs: dict[Stream, _Leg] = {}
        """Who has not answered."""
        self._task: Task | None = None

    def post(self, stream: Stream, request: Append, buffers: Sequence[Buffer]) -> bool:
        """Send the run to a fragment, unless that has to be waited for. Does not yield."""
        call = self._pool.post(
            stream.disk.address,
            request,
            Appended,
            partial(self._answered, stream),
            payload=buffers,
            timeout_s=self._run.timeout_s,
        )
        if call is None:
            return False
        leg = self._legs[stream] = _Leg(self, stream, call)
        stream.sending.add(leg)
        return True

    async def wait(self) -> None:
        """Until each has answered, is given up because it lags, or needs another try."""
        if not self._legs:
            return
        run = self._run
        try:
            with run.scope():
                self._task = current_task()
                await wait_task_rescheduled(self._abort)
            for stream in list(self._legs):
                self._sink.refused(
                    stream, run, DeadlineError(f"{stream} lags behind: more than {run.lag_s:g} s")
                )
        finally:
            for leg in list(self._legs.values()):
                leg.cancel()

    def _abort(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def _answered(self, stream: Stream, result: Outcome[tuple[Appended, memoryview]]) -> None:
        try:
            reply, _ = result.unwrap()
            self._run.check(stream, reply)
        except (BusyError, FragmentError):
            self.again.append(stream)
        except DfsError as error:
            self._sink.refused(stream, self._run, error)
        else:
            self._sink.acknowledged(stream, self._run, synced=reply.synced)
        self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """Nothing more comes of a fragment."""
        leg = self._legs.pop(stream, None)
        if leg is not None:
            stream.sending.discard(leg)
            if not self._legs and self._task is not None:
                reschedule(self._task)
                self._task = None


class _Leg:
    """A flight's request to one fragment."""

    __slots__ = ("_call", "_flight", "_stream")

    def __init__(self, flight: Flight, stream: Stream, call: Call) -> None:
        self._flight = flight
        self._stream = stream
        self._call = call

    def cancel(self) -> None:
        self._call.give_up()
        self._flight.ended(self._stream)
