"""Writing live bytes of chunks into a new chunk: what compaction and conversion both do.

A chunk of the master's own is allocated, a chunk server fills it (`RewriteChunk`), and the extents
move to it. Whatever is interrupted before that leaves the sources as they were, and the new chunk
to be deleted; whatever is interrupted in between leaves two good chunks. A source is DOOMED when
its last extent went, and its fragments are deleted once that is on the master's disk, as always.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
import trio

from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import DfsError, FragmentError, UnavailableError
from dfs.core.ids import ChunkId, DiskId, PolicyId
from dfs.core.policy import Policy
from dfs.master.backup import hold
from dfs.master.commands import ANY_INDEX, AbandonTarget, AllocateTarget, Place, Placement, Repoint
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.mover import REPORT_AFTER_S, Mover
from dfs.master.keyspace import (
    EXTENT_BY_CHUNK,
    extent_by_chunk_place,
    get_chunk,
    prefix_end,
    u64,
)
from dfs.wire.messages import (
    FragmentSource,
    RewriteChunk,
    RewritePart,
    RewriteSource,
    RewrittenChunk,
)

log = logging.getLogger(__name__)

REWRITE_TIMEOUT_S: Final = 900.0
"""A whole chunk, read and written at the pace that clients leave to background work."""
SLOWEST_S: Final = 300.0
"""No bound makes one order take longer than that, by itself."""
PARTS_MAX: Final = 32_768
"""Runs of live bytes that one rewrite copies: what an order may weigh."""
PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Before a job tries again what failed."""
SLICE: Final = 1000
"""Rows of extent-by-chunk gone through in one go."""
PASSES: Final = 3
"""A file that is copied within the cluster meanwhile may be missed by a pass."""


class Portion(msgspec.Struct, frozen=True):
    """What of one chunk is to be written anew."""

    chunk: Chunk
    parts: tuple[RewritePart, ...]
    """In order, without overlap, none empty."""

    @property
    def length(self) -> int:
        return sum(part.length for part in self.parts)


@dataclass(frozen=True)
class Terms:
    """How chunks are to be rewritten."""

    bound: float = 0.0
    """Bytes a second that may be written; 0: any number."""
    only: PolicyId = 0
    """Only extents of files that have this policy move; 0: all do."""
    upkeep: bool = False
    """It makes room, so it may use the reserve of full disks."""


UNBOUND: Final = Terms()


@dataclass(frozen=True)
class Rewritten:
    moved: int
    """Bytes of files that are in the new chunk now; a byte of two files counts twice."""
    stored: int
    """Bytes of its fragments."""
    failed: tuple[ChunkId, ...] = ()
    """Sources that stay as they are."""
    failure: DfsError | None = None
    """Why the last of them does."""


def expected_bytes(policy: Policy, length: int) -> int:
    """What `length` bytes take on disks under a policy, before compression."""
    return round(length * policy.redundancy.expansion)


def refuse_while_held(context: JobContext) -> None:
    """Raises UnavailableError where nobody knows yet whether these metadata will be used."""
    if hold.is_held(context.reader):
        raise UnavailableError(
            "the metadata were restored, and nobody has confirmed yet that they are to be used",
            hint="see dfs admin confirm-restore",
        )


class Rewriter:
    """One for all jobs. Callers hold the claims on the chunks."""

    def __init__(self, context: JobContext, mover: Mover) -> None:
        self._context = context
        self._mover = mover
        self._busy: Counter[str] = Counter()
        """Orders under way, by address of the server that carries them out."""

    def __repr__(self) -> str:
        return f"<Rewriter {self._busy.total()} chunks under way>"

    async def live_parts(self, chunk: ChunkId) -> tuple[RewritePart, ...]:
        """What extents refer to, in order; a byte of two files is there once.

        Lets others in now and then: what changes meanwhile is for `Repoint` to see.
        """
        runs = Runs()
        start, end = EXTENT_BY_CHUNK + u64(chunk), prefix_end(EXTENT_BY_CHUNK + u64(chunk))
        while rows := list(islice(self._context.reader.scan(start, end), SLICE)):
            for key, value in rows:
                runs.add(extent_by_chunk_place(key)[1], int.from_bytes(value, "big"))
            start = rows[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()
        return runs.parts()

    async def rewrite(
        self, portions: Sequence[Portion], policy: Policy, terms: Terms = UNBOUND
    ) -> Rewritten:
        """Write the portions, together at most a chunk, into a chunk of `policy`; move extents.

        One that cannot be read does not keep the others from that: they go into several chunks.

        Raises DfsError where none was: nothing has changed then, or a part has moved.
        """
        try:
            return await self._rewrite(portions, policy, terms)
        except FragmentError:
            if len(portions) == 1:
                raise
        moved = stored = 0
        failed: tuple[ChunkId, ...] = ()
        failure: DfsError | None = None
        middle = len(portions) // 2
        for half in (portions[:middle], portions[middle:]):
            try:
                done = await self.rewrite(half, policy, terms)
                moved, stored = moved + done.moved, stored + done.stored
                failed, failure = failed + done.failed, done.failure or failure
            except DfsError as error:
                failed += tuple(portion.chunk.chunk for portion in half)
                failure = error
        if failure is not None and len(failed) == len(portions):
            raise failure
        return Rewritten(moved, stored, failed, failure)

    async def _rewrite(
        self, portions: Sequence[Portion], policy: Policy, terms: Terms = UNBOUND
    ) -> Rewritten:
        sources = [self._source(portion) for portion in portions]
        length = sum(portion.length for portion in portions)
        target = self._allocate(policy, length, terms.upkeep)
        try:
            rate = terms.bound / policy.redundancy.expansion
            rate = max(rate, length / SLOWEST_S) if rate else 0.0
            reply = await self._order(target, policy, sources, round(rate))
            indexes = {(s.chunk, each.disk): each.index for s in sources for each in s.sources}
            for chunk, disk, reason in reply.bad:
                index = indexes.get((chunk, disk), ANY_INDEX)
                self._mover.note_bad(chunk, ((disk, index, reason),))
            self._check(target, reply, portions, length)
            # A list that was made before has nothing of the end of this chunk.
            self._context.reports.note_changed(target.chunk)
            moved = await self._move(target.chunk, reply, portions, terms.only)
            return Rewritten(moved, reply.stored)
        finally:
            self._release(target)

    def _source(self, portion: Portion) -> RewriteSource:
        chunk = portion.chunk
        sources = self._mover.sources(chunk, 0)
        if len({source.index for source in sources}) < chunk.k:
            raise FragmentError(
                f"chunk {chunk.chunk}: {len(sources)} of the {chunk.k} fragments needed to read "
                "it can be read",
                hint="bring back the servers that hold the others, see dfs admin chunks",
            )
        return RewriteSource(chunk.chunk, chunk.k, chunk.m, sources, portion.parts)

    def _allocate(self, policy: Policy, length: int, upkeep: bool) -> Chunk:
        context = self._context
        chosen = context.liveness.choose(policy, random=context.random, upkeep=upkeep)
        k, spare = chosen.redundancy.k, chosen.redundancy.m
        context.liveness.charge(chosen.disks, length // k)
        placement = Placement(k, spare, chosen.disks)
        return context.journal.append(AllocateTarget(context.now_ns(), policy.policy, placement))

    async def _order(
        self, target: Chunk, policy: Policy, sources: Iterable[RewriteSource], rate: int
    ) -> RewrittenChunk:
        places = {place.disk: place for place in self._context.liveness.locations(_disks(target))}
        targets = tuple(
            FragmentSource(fragment.index, fragment.disk, places[fragment.disk].address)
            for fragment in target.fragments
        )
        request = RewriteChunk(
            target.chunk, target.k, target.m, policy.compression, targets, tuple(sources), rate
        )
        # One that writes a fragment itself; they take turns.
        address = min((each.address for each in targets), key=lambda each: self._busy[each])
        self._busy[address] += 1
        try:
            return await self._context.pool.call(
                address, request, RewrittenChunk, timeout_s=REWRITE_TIMEOUT_S
            )
        finally:
            self._busy[address] -= 1

    def _check(
        self, target: Chunk, reply: RewrittenChunk, portions: Sequence[Portion], length: int
    ) -> None:
        """Files must not be less safe in the new chunk, until repair has mended that, than here.

        Raises UnavailableError where they would be, FragmentError for an answer that is wrong.
        """
        if reply.length != length:
            raise FragmentError(
                f"chunk {target.chunk} was written with {reply.length} bytes instead of {length}"
            )
        written = {fragment.index for fragment in target.fragments}.difference(reply.lost)
        safest = max(len(portion.chunk.good) - portion.chunk.k for portion in portions)
        if len(written) < target.width and len(written) - target.k < safest:
            raise UnavailableError(
                f"only {len(written)} of {target.width} fragments of a new chunk could be written, "
                "the old ones are safer",
                hint="bring back servers that are down, or add some",
            )

    async def _move(
        self, target: ChunkId, reply: RewrittenChunk, portions: Sequence[Portion], only: PolicyId
    ) -> int:
        """Have the extents move; the sum of their lengths."""
        moved = base = 0
        for portion in portions:
            for _ in range(PASSES):
                in_pass = await self._pass(target, reply, portion, base, only)
                moved += in_pass
                left = get_chunk(self._context.reader, portion.chunk.chunk)
                if not in_pass or left is None or left.state is not ChunkState.SEALED:
                    break
            base += portion.length
        return moved

    async def _pass(
        self, target: ChunkId, reply: RewrittenChunk, portion: Portion, base: int, only: PolicyId
    ) -> int:
        context = self._context
        parts = tuple((part.offset, part.length) for part in portion.parts)
        moved = 0
        after: Place | None = None
        while True:
            source = portion.chunk.chunk
            command = Repoint(
                context.now_ns(), target, reply.length, reply.lost, source, parts, base, only, after
            )
            step = context.journal.append(command)
            moved += step.bytes
            after = step.upto
            await trio.lowlevel.checkpoint()
            if after is None:
                return moved

    def _release(self, target: Chunk) -> None:
        """Delete what nothing refers to, also what a server may still be writing."""
        context = self._context
        now = get_chunk(context.reader, target.chunk)
        if now is None or now.state is not ChunkState.OPEN:
            return
        context.journal.append(AbandonTarget(context.now_ns(), target.chunk))
        context.reports.want(_disks(target), not_before=trio.current_time() + REPORT_AFTER_S)


class Runs:
    """Ranges of a chunk, joined where they touch or overlap."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, offset: int, length: int) -> None:
        """Ranges come in order of offset."""
        if self._ranges and offset <= self._ranges[-1][1]:
            start, end = self._ranges[-1]
            self._ranges[-1] = start, max(end, offset + length)
        else:
            self._ranges.append((offset, offset + length))

    def parts(self) -> tuple[RewritePart, ...]:
        return tuple(RewritePart(start, end - start) for start, end in self._ranges)


def _disks(chunk: Chunk) -> list[DiskId]:
    return [fragment.disk for fragment in chunk.fragments]
