"""Compaction: what is still needed of chunks that are mostly dead moves into new ones, packed.

A sweep goes through the chunk table in order and gathers chunks whose dead share is beyond the
threshold, by policy, until what lives in them fills a chunk: that is one rewrite (`Rewriter`).
Nothing is changed in place, and nothing is moved but live bytes. A byte that several files share
counts as live for each of them, so a chunk with such bytes is left alone longer.

A standing job sweeps all the time, slowly; `dfs admin compact` sweeps once, at full speed.

The position that is written down is before every chunk that is not done, so a new master misses
none.
"""

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice
from typing import Final, NoReturn

import trio

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, PolicyId
from dfs.core.units import format_size
from dfs.master import fragments
from dfs.master.backup import hold
from dfs.master.commands import StartJob
from dfs.master.jobs.board import RunningJob, seconds_for
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.rewriter import (
    PARTS_MAX,
    PAUSES_S,
    Portion,
    Rewriter,
    Terms,
    expected_bytes,
    refuse_while_held,
)
from dfs.master.keyspace import (
    CHUNK,
    COMPACT_JOB,
    chunk_key,
    decode_chunk,
    get_chunk,
    get_policy,
    prefix_end,
)
from dfs.wire.messages import PlanReply
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Rewrites at a time."""
SOURCES_MAX: Final = 64
"""Chunks that one rewrite empties."""
FAILED_MAX: Final = 1000
"""A sweep in which so many chunks failed goes no further: something is wrong with all of it."""
THRESHOLD: Final = 0.5
"""The dead share at which the standing job writes a chunk anew."""
REST_S: Final = 60.0
"""Before each of its sweeps."""
PACE: Final = 30.0
"""It takes a thirtieth of the event loop to look for chunks."""
SLICE: Final = 256
"""Chunks looked at between two turns of the event loop."""
SUBJECT: Final = "whole cluster"


def dead_share(chunk: Chunk) -> float:
    """The part of a chunk that no file refers to."""
    return max(0.0, 1 - chunk.live / chunk.length) if chunk.length else 0.0


class Compact:
    """The kind `compact`."""

    name = "compact"

    def __init__(self, context: JobContext, rewriter: Rewriter) -> None:
        self._context = context
        self._rewriter = rewriter

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        """Raises FileSystemError for a bad threshold."""
        threshold = request.threshold
        if not 0.01 <= threshold <= 1:
            raise FileSystemError(
                f"a threshold of {threshold:.0%} makes no sense", hint="use one from 1% to 100%"
            )
        count = await self._count(threshold) if request.plan else _Count()
        context = self._context
        command = StartJob(
            context.now_ns(),
            self.name,
            SUBJECT,
            threshold=threshold,
            bandwidth=request.bandwidth,
        )
        notes = (
            f"of no use is {threshold:.0%} of each or more: {format_size(count.freed)} on the "
            "disks, before compression",
        )
        seconds = seconds_for(context, count.live, request.bandwidth)
        plan = PlanReply(self.name, SUBJECT, count.items, count.live, seconds, (), notes)
        return plan, command

    async def _count(self, threshold: float) -> "_Count":
        """What a sweep would find now."""
        count = _Count()
        async with aclosing(candidates(self._context, threshold)) as found:
            async for chunk in found:
                count.items += 1
                count.live += chunk.live
                count.freed += round((chunk.length - chunk.live) * chunk.width / chunk.k)
        return count

    async def run(self, job: RunningJob) -> str:
        if job.record.job == COMPACT_JOB:
            await self._stand(job)
        refuse_while_held(self._context)
        if not job.items_total:
            count = await self._count(job.record.threshold)
            job.items_total, job.bytes_total = count.items, count.live
        for pause_s in (*PAUSES_S, 0.0):
            sweep = Sweep(self._context, self._rewriter, job, job.record.threshold)
            await sweep.run()
            if not sweep.failed or not pause_s:
                break
            job.position = min(sweep.failed) - 1
            job.note = f"{len(sweep.failed)} chunks could not be rewritten; trying again"
            await trio.sleep(pause_s)
            job.failures = 0
        done = f"{job.items_done} chunks rewritten"
        return f"{done}, {job.failures} could not be: {sweep.why}" if job.failures else done

    async def _stand(self, job: RunningJob) -> NoReturn:
        """Sweep now and then, in no haste. What fails is met again by the next sweep."""
        while True:
            await trio.sleep(REST_S)
            if hold.is_held(self._context.reader):
                continue
            if not job.position:
                job.reset()
            sweep = Sweep(self._context, self._rewriter, job, THRESHOLD, pace=PACE)
            await sweep.run()
            job.note = f"{len(sweep.failed)} chunks failed: {sweep.why}" if sweep.failed else ""


class _Count:
    """Chunks that are due."""

    def __init__(self) -> None:
        self.items = 0
        self.live = 0
        self.freed = 0
        """Bytes on the disks, before compression."""


async def candidates(
    context: JobContext, threshold: float, after: ChunkId = 0, *, pace: float = 0.0
) -> AsyncGenerator[Chunk, None]:
    """SEALED chunks that are whole and dead enough, in order, past `after`; a slice at a time.

    `pace`: a slice that took t is followed by a pause of t times that.
    """
    while True:
        began = trio.current_time()
        rows = context.reader.scan(chunk_key(after + 1), prefix_end(CHUNK))
        chunks = [decode_chunk(value) for _, value in islice(rows, SLICE)]
        took_s = trio.current_time() - began
        for chunk in chunks:
            if _is_due(chunk, threshold):
                yield chunk
        await trio.sleep(pace * took_s)
        if len(chunks) < SLICE:
            return
        after = chunks[-1].chunk


def _is_due(chunk: Chunk, threshold: float) -> bool:
    return (
        chunk.state is ChunkState.SEALED
        and dead_share(chunk) >= threshold
        # What lacks a fragment is repaired first.
        and fragments.is_whole(chunk)
    )


class _Group:
    """Chunks of one policy whose live bytes go into one new chunk."""

    def __init__(self, policy: PolicyId) -> None:
        self.policy = policy
        self.chunks: list[ChunkId] = []
        self.live = 0

    def fits(self, chunk: Chunk) -> bool:
        return len(self.chunks) < SOURCES_MAX and self.live + chunk.live <= CHUNK_MAX_BYTES

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk.chunk)
        self.live += chunk.live


class Sweep:
    """Once through the chunk table, from the job's position on."""

    def __init__(
        self,
        context: JobContext,
        rewriter: Rewriter,
        job: RunningJob,
        threshold: float,
        *,
        pace: float = 0.0,
    ) -> None:
        """`pace`: see `candidates`. With one, how much there is to do is not known before."""
        self._context = context
        self._rewriter = rewriter
        self._job = job
        self._threshold = threshold
        self._pace = pace
        self._groups: dict[PolicyId, _Group] = {}
        self._undone: set[ChunkId] = set()
        """Found and not done with."""
        self._reached: ChunkId = job.position
        self.failed: set[ChunkId] = set()
        self.why = ""
        """What the last failure said."""

    async def run(self) -> None:
        limit = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery, aclosing(self._gathered()) as groups:
            async for group in groups:
                await self._job.turn()
                await limit.acquire()
                if len(self.failed) >= FAILED_MAX:
                    break
                nursery.start_soon(self._carry_out, group, limit)
        self._job.position = 0

    async def _gathered(self) -> AsyncGenerator[_Group, None]:
        found = candidates(self._context, self._threshold, self._reached, pace=self._pace)
        async with aclosing(found):
            async for chunk in found:
                self._reached = chunk.chunk
                if self._pace:
                    self._job.items_total += 1
                    self._job.bytes_total += chunk.live
                self._undone.add(chunk.chunk)
                group = self._groups.get(chunk.policy)
                if group is not None and not group.fits(chunk):
                    yield group
                    group = None
                if group is None:
                    group = self._groups[chunk.policy] = _Group(chunk.policy)
                group.add(chunk)
        for group in self._groups.values():
            yield group

    async def _carry_out(self, group: _Group, limit: trio.Semaphore) -> None:
        job = self._job
        try:
            await self._rewrite(group)
        except DfsError as error:
            self._fail(group.chunks, str(error))
        finally:
            self._undone.difference_update(group.chunks)
            job.position = min(self._undone, default=self._reached + 1) - 1
            limit.release()

    def _fail(self, chunks: Sequence[ChunkId], why: str) -> None:
        self._job.failures += len(chunks)
        self.failed.update(chunks)
        self.why = why
        log.info("compact: %d chunks stay as they are for now: %s", len(chunks), why)

    async def _rewrite(self, group: _Group) -> None:
        context, job = self._context, self._job
        policy = get_policy(context.reader, group.policy)
        if policy is None:
            raise FileSystemError(f"no policy has the number {group.policy}")
        # Without the claims: a job that is paused must not keep others from the chunks.
        async with job.paid(expected_bytes(policy, group.live)) as bill:
            with ExitStack() as claims:
                free = [n for n in group.chunks if claims.enter_context(context.claims.chunk(n))]
                found = [await self._portion(number) for number in free]
                wanted = [portion for portion in found if portion is not None]
                if portions := list(_that_fit(wanted)):
                    terms = Terms(bound=job.bound, upkeep=True)
                    done = await self._rewriter.rewrite(portions, policy, terms)
                    bill.moved = done.stored
                    job.moved(len(portions) - len(done.failed), done.moved)
                    if done.failure is not None:
                        self._fail(done.failed, str(done.failure))
        if left := wanted[len(portions) :]:
            self._fail([portion.chunk.chunk for portion in left], "they did not fit in any more")
        if busy := [number for number in group.chunks if number not in free]:
            self._fail(busy, "other work has them in hand")

    async def _portion(self, number: ChunkId) -> Portion | None:
        """What lives in a chunk, where it is still to be rewritten."""
        parts = await self._rewriter.live_parts(number)
        chunk = get_chunk(self._context.reader, number)
        if chunk is None or not parts or not _is_due(chunk, self._threshold):
            return None
        return Portion(chunk, parts[:PARTS_MAX])


def _that_fit(portions: list[Portion]) -> Iterator[Portion]:
    """As many as one order may have: there may be more that lives than when they were found."""
    length = parts = 0
    for portion in portions:
        length += portion.length
        parts += len(portion.parts)
        if length > CHUNK_MAX_BYTES or parts > PARTS_MAX:
            return
        yield portion
