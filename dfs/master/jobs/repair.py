"""Repair: every chunk gets back the fragments that it lacks, the most exposed chunk first.

What is missing is in two places: the wanting table names chunks whose fragments were lost, broken
or never written, and the rows of a dead disk (DOWN after its grace, or FAILED) name all that was on
it. A scan walks both, a slice at a time, and fills a bounded queue that is ordered by the number of
fragments a chunk can still lose, then by how long it has been exposed; workers take from its head
while the scan is under way, so that work begins at once and no plan is ever built whole.

A standing job: it can be paused and held to a budget, and never ends.
"""

import heapq
import logging
import math
from collections.abc import AsyncIterator
from typing import Final

import trio

from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, DiskId
from dfs.master import fragments
from dfs.master.commands import PlaceFragment, StartJob
from dfs.master.health import available
from dfs.master.jobs.board import RunningJob
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.mover import Mover
from dfs.master.jobs.waits import Waits
from dfs.master.keyspace import get_chunk, get_chunks, get_counters
from dfs.wire.messages import PlanReply
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

WORKERS: Final = 64
"""Chunks repaired at a time, over all servers."""
QUEUE_MAX: Final = 100_000
"""Chunks queued at most. Less urgent ones are left for the next scan."""
SLICE: Final = 128
"""Chunks looked at between two turns of the event loop."""
IDLE_S: Final = 0.25
"""Between two looks at whether anything has changed."""
SCAN_BUSY_S: Final = 5.0
"""While there is work, scans are at least so far apart."""
SCAN_AGAIN_S: Final = 30.0
"""With nothing to do and nothing changed, everything is looked through again after so long."""
WAIT_FIRST_S: Final = 5.0
WAIT_MOST_S: Final = 300.0
"""Pauses between two attempts at one chunk, each twice the last; the first, where servers or
disks have changed meanwhile."""
STALE_LOOK_S: Final = 2.0
"""Which disks have stale fragments is looked up so often at most."""
CLAIMED_S: Final = 2.0
"""A chunk that another job has in hand is looked at again after so long."""


def missing(context: JobContext, chunk: Chunk) -> tuple[int, ...]:
    """Indexes without a GOOD fragment on a disk that is not given up."""
    given_up = context.liveness.given_up
    have = {fragment.index for fragment in chunk.good if not given_up(fragment.disk)}
    return tuple(index for index in range(chunk.width) if index not in have)


class _Queue:
    """Chunks to repair, the most urgent first; at most `limit`, less urgent ones are refused."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[int, int, ChunkId]] = []
        self._spare: dict[ChunkId, int] = {}
        """Of what is queued. Entries of the heap that say otherwise are out of date."""
        self._worst = -(1 << 30)
        """No chunk queued has more to spare."""
        self.refused = False
        """Something did not fit since this was last set to False."""

    def __len__(self) -> int:
        return len(self._spare)

    def add(self, chunk: ChunkId, spare: int, since_ns: int) -> bool:
        """False where it is there already, or has no room. More urgent than it was, it moves up."""
        known = self._spare.get(chunk)
        if known is not None and known <= spare:
            return False
        if known is None and len(self._spare) >= self._limit:
            self.refused = True
            if spare >= self._worst:
                return False
            self._prune()
        self._spare[chunk] = spare
        self._worst = max(self._worst, spare)
        heapq.heappush(self._heap, (spare, since_ns, chunk))
        return known is None

    def _prune(self) -> None:
        """Keep the more urgent half."""
        current = [entry for entry in self._heap if self._spare.get(entry[2]) == entry[0]]
        self._heap = heapq.nsmallest(self._limit // 2, current)
        self._spare = {chunk: spare for spare, _, chunk in self._heap}
        self._worst = self._heap[-1][0]

    def pop(self) -> ChunkId | None:
        while self._heap:
            spare, _, chunk = heapq.heappop(self._heap)
            if self._spare.get(chunk) == spare:
                del self._spare[chunk]
                return chunk
        return None


class Repair:
    """The kind `repair`."""

    name = "repair"

    def __init__(self, context: JobContext, mover: Mover) -> None:
        self._context = context
        self._mover = mover
        self._queue = _Queue(QUEUE_MAX)
        self._waits = Waits(WAIT_FIRST_S, WAIT_MOST_S)
        self._again_at = math.inf
        """When something that was passed over wants another look."""
        self._active = 0
        self._changed = trio.Event()
        """Set when the queue grew or the scan ended."""
        self._hurry = False
        self._stale: tuple[float, list[DiskId]] = (-math.inf, [])
        """Disks with stale fragments, and when that was so."""

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        raise FileSystemError("repair always runs, it cannot be started")

    def hurry(self) -> None:
        """Look through everything again now, and try again what has failed."""
        self._waits.clear()
        self._hurry = True

    async def run(self, job: RunningJob) -> str:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work, job)
            await self._watch(job)
        raise AssertionError("repair ended")

    # ------------------------------------------------------------------ finding

    async def _watch(self, job: RunningJob) -> None:
        """Scan whenever there may be something new, and say how things stand."""
        seen = (-1, -1)
        scanned_at = trio.current_time() - SCAN_AGAIN_S
        while True:
            await job.turn()
            stamp = (self._context.liveness.version, get_counters(self._context.reader).wanting)
            passed_s = trio.current_time() - scanned_at
            again = trio.current_time() >= self._again_at
            if len(self._queue):
                # A disk that failed meanwhile may have made other chunks more urgent.
                due = stamp[0] != seen[0] and passed_s >= SCAN_BUSY_S
                due |= self._queue.refused and len(self._queue) < QUEUE_MAX // 2
                due |= again and passed_s >= SCAN_AGAIN_S
            else:
                # Nor need others wait for a chunk that takes long.
                due = stamp != seen or self._queue.refused or passed_s >= SCAN_AGAIN_S
                due |= again and passed_s >= SCAN_BUSY_S
                due &= not self._active or passed_s >= SCAN_BUSY_S
            if due or self._hurry:
                if not (len(self._queue) or self._active):
                    job.reset()
                seen, scanned_at = stamp, trio.current_time()
                self._hurry = self._queue.refused = False
                job.note = self._describe(await self._scan(job))
            await trio.sleep(IDLE_S)

    async def _scan(self, job: RunningJob) -> int:
        """Queue what is missing; how many chunks cannot be repaired now."""
        stuck = 0
        self._again_at = math.inf
        async for chunk, since_ns in self._candidates():
            lacks = missing(self._context, chunk)
            if not lacks:
                continue
            if chunk.chunk in self._context.claims.moving:
                self._look_again(trio.current_time() + CLAIMED_S)
                continue
            until = self._waits.until(chunk.chunk, self._context.liveness.version)
            if trio.current_time() < until:
                stuck += 1
                self._look_again(until)
                continue
            # What it can still lose; below zero, it cannot be read.
            if self._queue.add(chunk.chunk, chunk.m - len(lacks), since_ns):
                job.items_total += 1
                job.bytes_total += len(lacks) * chunk.fragment_length
                self._wake()
        return stuck

    async def _candidates(self) -> AsyncIterator[tuple[Chunk, int]]:
        """(chunk, since when) of SEALED chunks that may lack something."""
        reader = self._context.reader
        after: ChunkId = 0
        while rows := fragments.wanting(reader, after, SLICE):
            chunks = get_chunks(reader, [number for number, _ in rows])
            for chunk, (_, since_ns) in zip(chunks, rows, strict=True):
                if chunk is not None:
                    yield chunk, since_ns
            after = rows[-1][0]
            await trio.lowlevel.checkpoint()
        for disk in self._context.liveness.given_up_disks():
            after = 0
            since_ns = self._context.now_ns()
            while numbers := fragments.on_disk(reader, disk, after, SLICE):
                for chunk in get_chunks(reader, numbers):
                    if chunk is not None and chunk.state is ChunkState.SEALED:
                        yield chunk, since_ns
                after = numbers[-1]
                await trio.lowlevel.checkpoint()
                if not self._context.liveness.given_up(disk):
                    break

    def _describe(self, stuck: int) -> str:
        if not stuck:
            return ""
        return (
            f"{stuck} chunk{'s wait' if stuck > 1 else ' waits'} for servers or room: too few of "
            "their fragments can be read, or no disk is left that may take another"
        )

    # ------------------------------------------------------------------ mending

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _work(self, job: RunningJob) -> None:
        while True:
            await job.turn()
            number = self._queue.pop()
            if number is None:
                await self._changed.wait()
                continue
            self._active += 1
            try:
                await self._mend(job, number)
            finally:
                self._active -= 1

    async def _mend(self, job: RunningJob, number: ChunkId) -> None:
        """Make all that a chunk lacks. It waits a while where that failed for some of it."""
        chunk = get_chunk(self._context.reader, number)
        if chunk is None or chunk.state is not ChunkState.SEALED:
            job.moved(1, 0)
            return
        lacks = missing(self._context, chunk)
        failure: DfsError | None = None
        # Without the claim: a job that is paused must not keep others from the chunk.
        async with job.paid(len(lacks) * chunk.fragment_length) as bill:
            try:
                with self._context.claims.chunk(number) as free:
                    if free:
                        for index in lacks:
                            try:
                                bill.moved += await self._make(job, number, index)
                            except DfsError as error:
                                # One that has no place keeps none of the others from theirs.
                                failure = failure or error
                        if failure is not None:
                            raise failure
                    else:
                        self._look_again(trio.current_time() + CLAIMED_S)
            except DfsError as error:
                job.failures += 1
                self._defer(number)
                log.info("chunk %d is not repaired yet: %s", number, error)
            except Exception:
                job.failures += 1
                self._defer(number)
                log.exception("chunk %d is not repaired yet", number)
            else:
                self._waits.forget(number)
        job.moved(1, 0)

    async def _make(self, job: RunningJob, number: ChunkId, index: int) -> int:
        """Make fragment `index`, unless the chunk has got it meanwhile; the bytes written."""
        chunk = get_chunk(self._context.reader, number)
        lacks = () if chunk is None else missing(self._context, chunk)
        if chunk is None or index not in lacks:
            return 0
        serves = self._context.liveness.serves
        if available(chunk, serves) < chunk.k and self._reclaim(chunk):
            return 0
        disk = self._mover.target(chunk, index)
        if not disk:
            raise FileSystemError(
                f"no disk is left that may take fragment {index}: those with room have one of "
                "this chunk already",
                hint="add a server, or bring one back",
            )
        stored = await self._mover.make(chunk, index, disk, urgent=len(lacks) >= chunk.m)
        job.moved(0, stored)
        job.bytes_total += stored - chunk.fragment_length
        return stored

    def _reclaim(self, chunk: Chunk) -> bool:
        """Take back stale fragments of a chunk that cannot be read without them."""
        context = self._context
        lacks = missing(context, chunk)
        reclaimed = False
        disks = self._with_stale()
        for disk, index in list(fragments.stale_of(context.reader, chunk.chunk, disks)):
            if index in lacks and not context.claims.is_deleting(disk, chunk.chunk):
                reclaimed |= context.journal.append(
                    PlaceFragment(context.now_ns(), chunk.chunk, index, disk, True)
                )
        return reclaimed

    def _with_stale(self) -> list[DiskId]:
        """Disks that answer and may have stale fragments, as it was a moment ago.

        They are few, and looking for them takes long where there are thousands of disks.
        """
        context, now = self._context, trio.current_time()
        if not get_counters(context.reader).stale:
            return []
        found_at, disks = self._stale
        if now - found_at >= STALE_LOOK_S:
            serving = [place.disk for place in context.liveness.serving()]
            disks = [disk for disk in serving if fragments.doomed_on(context.reader, disk, 0, 1)]
            self._stale = now, disks
        return disks

    def _defer(self, number: ChunkId) -> None:
        self._look_again(self._waits.put_off(number, self._context.liveness.version))

    def _look_again(self, at: float) -> None:
        self._again_at = min(self._again_at, at)
