"""What the disks hold against what the master believes, asked for by a check.

As with a chunk report (`chunk_reports.plan` draws the conclusions), but nothing is changed, unless
a repair is wanted: then what is missing is noted as lost, so that it is made anew. A list is as
old as the moment a disk was read: whatever speaks against a fragment is asked for once more.
"""

from collections import Counter
from contextlib import suppress
from typing import Final

import msgspec
import trio

from dfs.core.chunk import ChunkState, DiskState, Fragment, FragmentState
from dfs.core.errors import DfsError, FragmentError
from dfs.core.ids import ChunkId, DiskId
from dfs.master import chunk_reports
from dfs.master.backup import hold
from dfs.master.check.fixes import RebuildChunk
from dfs.master.check.log import CheckLog
from dfs.master.check.problem import Problem
from dfs.master.chunk_reports import END, Stretch
from dfs.master.commands import FragmentMark, MarkFragments
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import (
    EXTENT_BY_CHUNK,
    fragment_by_disk_key,
    get_chunk,
    get_counters,
    scan_prefix,
    u64,
)
from dfs.master.liveness import SERVES
from dfs.wire.messages import (
    DiskInfo,
    FragmentsReply,
    FragmentStatus,
    ListFragments,
    Outcome,
    ServerInfo,
    StatFragment,
)

DISKS_AT_ONCE: Final = 4
STRETCH_FRAGMENTS: Final = 200
"""Fragments compared in one go: a millisecond or two."""
STRETCH_ROWS: Final = 400
PAGE: Final = 2000
STAT_TIMEOUT_S: Final = 20.0
LIST_TIMEOUT_S: Final = 120.0
"""For a page: each fragment of it may cost a seek."""
EXTRA_ASKED: Final = 100
"""Fragments of no chunk, on one disk, that are asked for once more, at most."""


async def check_disks(context: JobContext, log: CheckLog, *, repair: bool) -> list[Problem]:
    """Compare all disks that can be reached, a few at a time.

    Returns what is wrong with the metadata, as only the disks can tell: records that are lost.
    """
    lost: dict[ChunkId, list[_Held]] = {}
    servers = context.liveness.server_infos()
    disks = [(server, disk) for server in servers for disk in server.disks]
    log.begin("checking disks", sum(disk.fragments for _, disk in disks))
    limit = trio.CapacityLimiter(DISKS_AT_ONCE)
    async with trio.open_nursery() as nursery:
        for server, disk in disks:
            check = _DiskCheck(context, log, server, disk, repair, lost)
            nursery.start_soon(check.run, limit)
    return [_rebuilt(context, number, held) for number, held in sorted(lost.items())]


class _Held(msgspec.Struct, frozen=True):
    """A fragment of a chunk whose record is lost."""

    index: int
    disk: DiskId
    k: int
    m: int


def _rebuilt(context: JobContext, number: ChunkId, held: list[_Held]) -> Problem:
    """What can be made of fragments that agree with each other; one of each index."""
    (k, spare), _ = Counter((each.k, each.m) for each in held).most_common(1)[0]
    chosen: dict[int, DiskId] = {}
    for each in held:
        listed = context.reader.get(fragment_by_disk_key(each.disk, number)) is not None
        if (each.k, each.m) == (k, spare) and (listed or each.index not in chosen):
            chosen[each.index] = each.disk
    return Problem(
        f"chunk {number}, which files need, has lost its record; "
        f"{len(chosen)} of its fragments are on disks",
        RebuildChunk(number, k, spare, tuple(sorted(chosen.items()))) if k else None,
        "restore the metadata from a backup",
    )


class _DiskCheck:
    def __init__(
        self,
        context: JobContext,
        log: CheckLog,
        server: ServerInfo,
        disk: DiskInfo,
        repair: bool,
        lost: dict[ChunkId, list[_Held]],
    ) -> None:
        self._context = context
        self._lost = lost
        self._log = log
        self._address = server.address
        self._disk: DiskId = disk.disk
        self._name = f"disk {disk.disk} ({disk.path} on {server.address})"
        self._repair = repair
        self._extra: list[ChunkId] = []

    async def run(self, limit: trio.CapacityLimiter) -> None:
        async with limit:
            state = self._context.liveness.state(self._disk)
            if state not in SERVES:
                self._log.leave(f"{self._name} is {DiskState(state).name}")
                return
            try:
                await self._go_through()
                await self._judge_extra()
            except DfsError as error:
                self._log.leave(f"{self._name}: {error}")

    async def _go_through(self) -> None:
        after: ChunkId = 0
        more = True
        while more:
            # What is younger than this may not be in the list.
            horizon = get_counters(self._context.reader).next_chunk
            page = await self._list(after)
            more = page.more and page.upto > after
            upto = page.upto if more else END
            stretches = chunk_reports.split(
                self._disk, after, page.fragments, False, STRETCH_FRAGMENTS
            )
            last = stretches[-1].upto if stretches else after
            for stretch in (*stretches, Stretch(self._disk, last, upto, ())):
                await self._compare(stretch, horizon)
                self._log.fragments += len(stretch.held)
                self._log.advance(len(stretch.held))
            after = upto

    async def _compare(self, stretch: Stretch, horizon: ChunkId) -> None:
        context = self._context
        while stretch.after < stretch.upto:
            plan = chunk_reports.plan(
                context.reader,
                stretch,
                next_chunk=get_counters(context.reader).next_chunk,
                horizon=horizon,
                spared=context.claims.moving,
                alive=lambda disk: not context.liveness.given_up(disk),
                limit=STRETCH_ROWS,
            )
            self._extra += plan.drop
            for mark in plan.marks:
                await self._judge(mark)
            stretch = stretch.beyond(plan.upto)
            await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------------ fragments of chunks

    async def _judge(self, mark: FragmentMark) -> None:
        if self._listed(mark.chunk) is None:
            return
        state, wrong = await self._ask(mark.chunk)
        fragment = self._listed(mark.chunk)
        if fragment is None or fragment.state is state:
            return  # it has changed meanwhile, or it is as the master says
        name = f"fragment {fragment.index} of chunk {mark.chunk} on {self._name}"
        what = f"{name} {wrong or 'is whole, and noted as lost'}"
        if not self._repair:
            self._log.add(what, Outcome.FOUND)
            return
        marks = (FragmentMark(mark.chunk, self._disk, state, fragment.index),)
        self._context.journal.append(MarkFragments(self._context.now_ns(), marks))
        self._log.add(f"{what}; noted as {state.name.lower()}", Outcome.REPAIRED)

    def _listed(self, number: ChunkId) -> Fragment | None:
        """The fragment that the master believes is on this disk, of a chunk that is SEALED."""
        chunk = get_chunk(self._context.reader, number)
        if chunk is None or chunk.state is not ChunkState.SEALED:
            return None
        here = (fragment for fragment in chunk.fragments if fragment.disk == self._disk)
        return next((each for each in here if each.state is not FragmentState.CORRUPT), None)

    async def _ask(self, number: ChunkId) -> tuple[FragmentState, str]:
        """How a fragment really is, and what is wrong with it."""
        page = await self._list(number - 1, limit=1)
        chunk, fragment = get_chunk(self._context.reader, number), self._listed(number)
        if unusable := dict(page.unusable).get(number):
            return FragmentState.CORRUPT, f"cannot be used: {unusable}"
        held = next((each for each in page.fragments if each.chunk == number), None)
        if held is None:
            return FragmentState.LOST, "is missing"
        if fragment is not None and held.index != fragment.index:
            return FragmentState.LOST, f"is fragment {held.index}"
        if chunk is not None and held.length < chunk.length:
            return FragmentState.LOST, f"is too short: {held.length} of {chunk.length} bytes"
        return FragmentState.GOOD, ""

    async def _list(self, after: ChunkId, limit: int = PAGE) -> FragmentsReply:
        """Raises DfsError where the server does not answer, or its disk has failed."""
        request = ListFragments(self._disk, after, limit)
        pool = self._context.pool
        return await pool.call(self._address, request, FragmentsReply, timeout_s=LIST_TIMEOUT_S)

    # ------------------------------------------------------------------ fragments of no chunk

    async def _judge_extra(self) -> None:
        """What the disk still holds although no chunk is there; a deletion may be on its way."""
        reader = self._context.reader
        extra = 0
        for number in self._extra:
            if get_chunk(reader, number) is not None:
                continue
            if extra < EXTRA_ASKED and not (await self._list(number - 1, limit=1)).fragments:
                continue
            if next(scan_prefix(reader, EXTENT_BY_CHUNK + u64(number)), None) is None:
                extra += 1
                continue
            with suppress(FragmentError):
                status = await self._context.pool.call(
                    self._address,
                    StatFragment(self._disk, number),
                    FragmentStatus,
                    timeout_s=STAT_TIMEOUT_S,
                )
                held = _Held(status.index, self._disk, status.k, status.m)
                self._lost.setdefault(number, []).append(held)
        # A restored master keeps all, and says so itself.
        if extra and not hold.is_held(reader):
            self._log.note(
                f"{self._name} holds {extra} fragments of chunks that are gone: it deletes them "
                "after its next report"
            )
