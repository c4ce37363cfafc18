"""Conversion: files that have got another policy are written anew, as that policy says.

`dfs policy set` has given the files below an inode their policy, so what is written meanwhile is
right already. The job walks the tree and gathers the extents that lie in chunks of any other
policy, small files together, until they fill a chunk: that is one rewrite (`Rewriter`). Only
extents of files that have the policy move: a copy elsewhere in the cluster that shares the bytes
and has another policy keeps them where they are.

It walks until nothing is left to be done. Places in the tree are written down; before one is,
everything up to it is done.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from itertools import islice
from typing import Final

import trio

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, PolicyId
from dfs.core.inode import Extent, Inode, InodeFlag
from dfs.core.policy import Policy
from dfs.core.units import format_size
from dfs.master import extents
from dfs.master.claims import Claims
from dfs.master.commands import StartJob
from dfs.master.jobs.board import RunningJob, seconds_for
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.rewriter import (
    PARTS_MAX,
    PAUSES_S,
    Portion,
    Rewriter,
    Runs,
    Terms,
    expected_bytes,
    refuse_while_held,
)
from dfs.master.jobs.tree_walk import Place, TreeWalk
from dfs.master.keyspace import get_chunk, get_inode, get_policy
from dfs.wire.messages import PlanReply
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Rewrites at a time."""
SOURCES_MAX: Final = 256
"""Chunks that one rewrite reads from."""
SLICE: Final = 1000
"""Extents of one file gone through in one go."""
CHUNKS_KNOWN: Final = 10_000
"""Chunks whose records are kept in mind during a walk."""
FAILED_MAX: Final = 1000
"""A walk in which so many rewrites failed goes no further."""
PATH_MAX: Final = 200


class Convert:
    """The kind `convert`."""

    name = "convert"

    def __init__(self, context: JobContext, rewriter: Rewriter) -> None:
        self._context = context
        self._rewriter = rewriter

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        """Raises FileSystemError for an inode or a policy that is not there."""
        context = self._context
        inode = get_inode(context.reader, request.ino) if request.ino > 0 else None
        policy = get_policy(context.reader, request.policy) if request.policy > 0 else None
        if inode is None:
            raise FileSystemError(f"there is no inode {request.ino}")
        if policy is None:
            raise FileSystemError(f"no policy has the number {request.policy}")
        path = request.path[:PATH_MAX] or f"inode {inode.ino}"
        command = StartJob(
            context.now_ns(),
            self.name,
            f"{path} to {policy.name}",
            bandwidth=request.bandwidth,
            ino=inode.ino,
            policy=policy.policy,
        )
        refusal = ""
        try:
            context.liveness.choose(policy, random=context.random)
        except DfsError as error:
            refusal = str(error)
        count = _Count()
        if request.plan:
            count = await self._count(inode.ino, policy)
        moved = round(count.bytes * policy.redundancy.expansion)
        notes = (
            f"{count.files} files, {format_size(count.bytes)} of content to be written anew as "
            f"{policy.redundancy}; before compression",
        )
        seconds = seconds_for(context, moved, request.bandwidth)
        chunks = -(-count.bytes // CHUNK_MAX_BYTES)
        plan = PlanReply(self.name, command.subject, chunks, moved, seconds, (), notes, refusal)
        return plan, command

    async def _count(self, ino: int, policy: Policy) -> "_Count":
        """All that is kept otherwise below an inode, whatever policy its files have by now."""
        count = _Count()
        scan = _Scan(self._context, policy.policy)
        async with aclosing(TreeWalk(self._context.reader, ino).files()) as files:
            async for inode in files:
                async with aclosing(scan.extents(inode)) as found:
                    before = count.bytes
                    async for extent, _ in found:
                        count.bytes += extent.length
                count.files += count.bytes > before
        return count

    async def run(self, job: RunningJob) -> str:
        refuse_while_held(self._context)
        policy = get_policy(self._context.reader, job.record.policy)
        if policy is None:
            raise FileSystemError(f"no policy has the number {job.record.policy}")
        if not job.items_total:
            job.note = "counting"
            count = await self._count(job.record.ino, policy)
            job.items_total, job.bytes_total = count.files, count.bytes
            job.note = ""
        pauses = iter((0.0, *PAUSES_S))
        while True:
            whole = not job.place
            walk = _Walk(self._context, self._rewriter, job, policy)
            await walk.run()
            job.place = ()
            left = walk.failed or walk.waiting
            if whole and not walk.found and not left:
                return f"all is kept as {policy.name} says"
            if whole and walk.found and not walk.moved and not left:
                return f"{walk.found} extents cannot be moved; run dfs admin fsck"
            pause_s = next(pauses, None) if left else 0.0
            if pause_s is None:
                break
            job.note = f"{walk.left()}; trying again" if left else ""
            await trio.sleep(pause_s)
        return walk.left()


class _Count:
    """What is kept otherwise than it shall be."""

    def __init__(self) -> None:
        self.files = self.bytes = 0


class _Scan:
    """Finds the extents of files that lie in chunks of another policy."""

    def __init__(self, context: JobContext, policy: PolicyId) -> None:
        self._reader = context.reader
        self._policy = policy
        self._chunks: dict[ChunkId, Chunk | None] = {}

    async def extents(self, inode: Inode) -> AsyncGenerator[tuple[Extent, Chunk], None]:
        """In order; what a truncation has left for the purge is left out."""
        trimmed = bool(inode.flags & InodeFlag.TRIMMED)
        start = 0
        while True:
            rows = extents.visible(self._reader, inode.ino, start, extents.ALL, trimmed=trimmed)
            found = list(islice(rows, SLICE))
            for extent in found:
                chunk = self._chunk(extent.chunk)
                if chunk is not None and chunk.policy != self._policy:
                    yield extent, chunk
            if len(found) < SLICE:
                return
            start = found[-1].end
            await trio.lowlevel.checkpoint()

    def _chunk(self, number: ChunkId) -> Chunk | None:
        if number not in self._chunks:
            if len(self._chunks) >= CHUNKS_KNOWN:
                self._chunks.clear()
            self._chunks[number] = get_chunk(self._reader, number)
        return self._chunks[number]


class _Group:
    """Extents of one or many files that go into one new chunk."""

    def __init__(self, place: Place) -> None:
        self.place = place
        """Where its first file is."""
        self.ranges: dict[ChunkId, set[tuple[int, int]]] = {}
        """(offset, length) in each chunk."""
        self.length = 0
        self.extents = 0
        self.files = 0

    def fits(self, extent: Extent) -> bool:
        return (
            self.length + extent.length <= CHUNK_MAX_BYTES
            and self.extents < PARTS_MAX
            and (len(self.ranges) < SOURCES_MAX or extent.chunk in self.ranges)
        )

    def add(self, extent: Extent) -> None:
        self.ranges.setdefault(extent.chunk, set()).add((extent.chunk_offset, extent.length))
        self.length += extent.length
        self.extents += 1


class _Walk:
    """Once through the tree, from the job's place on."""

    def __init__(
        self, context: JobContext, rewriter: Rewriter, job: RunningJob, policy: Policy
    ) -> None:
        self.found = 0
        """Extents that were to be moved."""
        self.moved = 0
        """Bytes of files that were."""
        self.waiting = 0
        """Extents in chunks that are still written."""
        self.failed = 0
        """Rewrites that failed."""
        self._why = ""
        self._context = context
        self._rewriter = rewriter
        self._job = job
        self._policy = policy
        self._tree = TreeWalk(context.reader, job.record.ino, job.place)
        self._claims = _SharedClaims(context.claims)
        self._undone: list[_Group] = []
        """In the order in which they were begun."""

    def left(self) -> str:
        """What is not converted, and why."""
        if self.failed:
            return f"{self.failed} rewrites failed: {self._why}"
        return f"{self.waiting} extents are in chunks that are still being written"

    async def run(self) -> None:
        limit = trio.Semaphore(AT_ONCE)
        self._job.failures = 0
        async with trio.open_nursery() as nursery, aclosing(self._gathered()) as groups:
            async for group in groups:
                await self._job.turn()
                await limit.acquire()
                if self.failed >= FAILED_MAX:
                    break
                nursery.start_soon(self._carry_out, group, limit)

    async def _gathered(self) -> AsyncGenerator[_Group, None]:
        scan = _Scan(self._context, self._policy.policy)
        place = self._tree.place
        group = self._begin(place)
        async with aclosing(self._tree.files()) as files:
            async for inode in files:
                if inode.policy != self._policy.policy:
                    continue
                before = self.found
                async with aclosing(scan.extents(inode)) as found:
                    async for extent, chunk in found:
                        if chunk.state is not ChunkState.SEALED:
                            self.waiting += 1
                            continue
                        if not group.fits(extent):
                            yield group
                            group = self._begin(place)
                        group.add(extent)
                        self.found += 1
                group.files += self.found > before
                # Of the file before the next one: that may be in the same group.
                place = self._tree.place
                if not group.extents:
                    group.place = place
        if group.extents:
            yield group
        else:
            self._undone.remove(group)

    def _begin(self, place: Place) -> _Group:
        """A new group. Until it is carried out, the job's place is not beyond it."""
        group = _Group(place)
        self._undone.append(group)
        return group

    async def _carry_out(self, group: _Group, limit: trio.Semaphore) -> None:
        job = self._job
        try:
            await self._rewrite(group)
        except DfsError as error:
            self.failed += 1
            self._why = str(error)
            job.failures += 1
            log.info("convert: %d extents stay as they are for now: %s", group.extents, error)
        finally:
            self._undone.remove(group)
            job.place = self._undone[0].place if self._undone else self._tree.place
            limit.release()

    async def _rewrite(self, group: _Group) -> None:
        job = self._job
        # Without the claims: a job that is paused must not keep others from the chunks.
        async with job.paid(expected_bytes(self._policy, group.length)) as bill:
            with ExitStack() as claims:
                busy = [
                    chunk
                    for chunk in sorted(group.ranges)
                    if not claims.enter_context(self._claims.chunk(chunk))
                ]
                portions = list(self._portions(group, busy))
                if portions:
                    terms = Terms(bound=job.bound, only=self._policy.policy)
                    done = await self._rewriter.rewrite(portions, self._policy, terms)
                    bill.moved = done.stored
                    self.moved += done.moved
                    job.moved(0, done.moved)
                    if done.failure is not None:
                        raise done.failure
            if busy:
                raise FileSystemError(f"other work has {len(busy)} of the chunks in hand")
        job.moved(group.files, 0)

    def _portions(self, group: _Group, busy: Sequence[ChunkId]) -> Iterator[Portion]:
        for number in sorted(group.ranges.keys() - set(busy)):
            chunk = get_chunk(self._context.reader, number)
            if chunk is not None and chunk.state is ChunkState.SEALED:
                runs = Runs()
                for offset, length in sorted(group.ranges[number]):
                    runs.add(offset, length)
                yield Portion(chunk, runs.parts())


class _SharedClaims:
    """Several rewrites of one job may copy from the same chunk at a time; other jobs may not."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._users: Counter[ChunkId] = Counter()
        self._held: dict[ChunkId, ExitStack] = {}

    @contextmanager
    def chunk(self, chunk: ChunkId) -> Iterator[bool]:
        """As `Claims.chunk`."""
        if chunk not in self._held:
            stack = ExitStack()
            if not stack.enter_context(self._claims.chunk(chunk)):
                stack.close()
                yield False
                return
            self._held[chunk] = stack
        self._users[chunk] += 1
        try:
            yield True
        finally:
            self._users[chunk] -= 1
            if not self._users[chunk]:
                del self._users[chunk]
                self._held.pop(chunk).close()
