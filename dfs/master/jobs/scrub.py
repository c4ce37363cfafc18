"""Scrub: every fragment is read and checked where it lies, over and over, at a bounded rate.

Walks the chunk table in order of chunk and has all fragments of a chunk verified by their servers
at the same time. A chunk whose fragments are all whole gets its time of verification; a bad
fragment is marked, and repair makes it anew. The position is kept across restarts. The standing job
takes `ROUND_S` for a round; one that a person starts goes as fast as the budget allows, once.
"""

import logging
from itertools import islice
from typing import Final

import trio

from dfs.core.chunk import Chunk, ChunkState, Fragment
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId
from dfs.master.commands import MarkVerified, StartJob
from dfs.master.jobs.board import RunningJob
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.mover import Mover
from dfs.master.keyspace import (
    CHUNK,
    SCRUB_JOB,
    chunk_key,
    decode_chunk,
    get_chunk,
    get_counters,
    prefix_end,
)
from dfs.master.liveness import SERVES
from dfs.wire.messages import FragmentVerdict, PlanReply, VerifyFragment
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

ROUND_S: Final = 14 * 24 * 3600.0
"""Time for one round of the standing job: two weeks."""
RATE_LEAST: Final = 1024 * 1024
"""Bytes a second that the standing job reads at least, over the whole cluster."""
AT_ONCE: Final = 8
"""Chunks verified at a time by a job that a person started; more on a big cluster."""
AT_ONCE_MOST: Final = 256
CHUNK_TAKES_S: Final = 5.0
"""What verifying a chunk takes on disks where clients go first."""
BATCH: Final = 64
"""Verified chunks noted in one command."""
VERIFY_TIMEOUT_S: Final = 600.0
REST_S: Final = 3600.0
"""Between two rounds of the standing job."""
FRESH_S: Final = 24 * 3600
"""The standing job leaves out what was verified so lately: small clusters rest most of the day."""
SLICE: Final = 256
"""Chunks passed over between two turns of the event loop."""


def at_once_for(chunks: int, least: int) -> int:
    """Chunks to verify at a time, so that a round of so many ends in time."""
    return min(AT_ONCE_MOST, max(least, int(chunks * CHUNK_TAKES_S / ROUND_S)))


class Scrub:
    """The kind `scrub`."""

    name = "scrub"

    def __init__(self, context: JobContext, mover: Mover) -> None:
        self._context = context
        self._mover = mover

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        context = self._context
        items = get_counters(context.reader).chunks
        stored = context.liveness.totals().used
        command = StartJob(
            context.now_ns(),
            self.name,
            "whole cluster",
            bandwidth=request.bandwidth,
            items_total=items,
            bytes_total=stored,
        )
        note = "reads every fragment where it lies; nothing is moved"
        return PlanReply(self.name, command.subject, items, stored, -1.0, (), (note,)), command

    async def run(self, job: RunningJob) -> str:
        standing = job.record.job == SCRUB_JOB
        # What the disks hold and what the tables say is compared along with the bytes.
        self._want_reports()
        while True:
            if not job.position:
                job.reset()
                job.items_total = get_counters(self._context.reader).chunks
                job.bytes_total = self._context.liveness.totals().used
            await self._round(job, standing)
            job.position = 0
            if not standing:
                bad = job.failures
                return f"{bad} bad fragments found" if bad else "all fragments are whole"
            await trio.sleep(REST_S)
            self._want_reports()

    def _want_reports(self) -> None:
        context = self._context
        disks = [place.disk for place in context.liveness.serving()]
        context.reports.want(disks)

    async def _round(self, job: RunningJob, standing: bool) -> None:
        """Verify all chunks past the job's position."""
        fresh_s, at_once = (FRESH_S, 1) if standing else (0, AT_ONCE)
        limit = at_once_for(get_counters(self._context.reader).chunks, at_once)
        while chunks := await self._next(job, limit, fresh_s):
            began = trio.current_time()
            verified: list[ChunkId] = []
            read_before = job.bytes_done
            async with trio.open_nursery() as nursery:
                for chunk in chunks:
                    nursery.start_soon(self._verify, job, chunk, verified)
            if verified:
                self._context.journal.append(
                    MarkVerified(self._context.now_ns(), tuple(sorted(verified)))
                )
            if standing:
                spent_s = trio.current_time() - began
                await trio.sleep(max(0.0, (job.bytes_done - read_before) / self._rate() - spent_s))

    async def _next(self, job: RunningJob, limit: int, fresh_s: int) -> list[Chunk]:
        """The next SEALED chunks past the job's position that were not verified lately."""
        context = self._context
        found: list[Chunk] = []
        more = True
        while more and len(found) < limit:
            more = False
            now_s = context.now_ns() // 1_000_000_000
            rows = context.reader.scan(chunk_key(job.position + 1), prefix_end(CHUNK))
            for _, value in islice(rows, SLICE):
                more = True
                chunk = decode_chunk(value)
                job.position = chunk.chunk
                if chunk.state is ChunkState.SEALED and now_s - chunk.verified_s >= fresh_s:
                    found.append(chunk)
                    if len(found) == limit:
                        break
                else:
                    job.moved(1, 0)
            await trio.lowlevel.checkpoint()
        return found

    def _rate(self) -> float:
        """Bytes a second for one round in the time that it may take."""
        return max(RATE_LEAST, self._context.liveness.totals().used / ROUND_S)

    async def _verify(self, job: RunningJob, chunk: Chunk, verified: list[ChunkId]) -> None:
        """Have all fragments of a chunk read; add it to `verified` if all were whole."""
        await job.turn(chunk.width * chunk.fragment_length)
        # That may have taken hours.
        now = get_chunk(self._context.reader, chunk.chunk)
        if now is None or now.state is not ChunkState.SEALED:
            job.moved(1, 0)
            return
        chunk = now
        verdicts: list[FragmentVerdict] = []
        async with trio.open_nursery() as nursery:
            for fragment in chunk.good:
                nursery.start_soon(self._verify_one, chunk, fragment, verdicts)
        bad = sum(bool(verdict.reason) for verdict in verdicts)
        if len(verdicts) - bad == chunk.width:
            verified.append(chunk.chunk)
        job.failures += bad
        job.moved(1, sum(verdict.read for verdict in verdicts))

    async def _verify_one(
        self, chunk: Chunk, fragment: Fragment, verdicts: list[FragmentVerdict]
    ) -> None:
        """Adds the verdict, where there is one."""
        context = self._context
        place = context.liveness.location(fragment.disk)
        if place is None or place.state not in SERVES:
            return
        request = VerifyFragment(fragment.disk, chunk.chunk, fragment.index, chunk.length)
        try:
            verdict = await context.pool.call(
                place.address, request, FragmentVerdict, timeout_s=VERIFY_TIMEOUT_S
            )
        except DfsError as error:
            log.info("chunk %d on disk %d is not verified: %s", chunk.chunk, fragment.disk, error)
            return
        if verdict.reason and not self._is_there(chunk.chunk, fragment):
            return
        verdicts.append(verdict)
        if verdict.reason:
            log.warning(
                "scrub: fragment %d of chunk %d on disk %d is %s: %s",
                fragment.index,
                chunk.chunk,
                fragment.disk,
                verdict.reason,
                verdict.detail,
            )
            self._mover.note_bad(chunk.chunk, ((fragment.disk, fragment.index, verdict.reason),))

    def _is_there(self, number: ChunkId, fragment: Fragment) -> bool:
        """Whether the fragment still counts: it may have been moved, and another have its place."""
        chunk = get_chunk(self._context.reader, number)
        here = None if chunk is None else chunk.on(fragment.disk)
        return here is not None and here.index == fragment.index
