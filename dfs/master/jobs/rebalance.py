"""Rebalance: the same share of every disk in use, with the fewest bytes moved.

The goal of a disk is its capacity times the share of the whole cluster that is in use. What disks
hold beyond their goal is all that has to move, and it moves straight to disks below theirs: always
from the fullest to the emptiest that may have it, where the chunk's failure domains stay apart. A
chunk keeps all of its fragments throughout: the new one counts before the old one is deleted.

The run keeps its own account of what disks hold, since heartbeats lag behind; between two passes it
waits for the disks to have deleted what was moved away, and looks again.
"""

import logging
from collections.abc import Iterator
from heapq import nsmallest
from typing import Final

import msgspec
import trio

from dfs.core.chunk import Chunk, DiskState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, DiskId
from dfs.master import fragments
from dfs.master.commands import StartJob
from dfs.master.jobs.board import RunningJob, seconds_for
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.mover import Mover
from dfs.master.keyspace import get_chunk, get_counters
from dfs.wire.messages import DiskInfo, PlannedDisk, PlanReply, ServerInfo
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Chunks moved at a time."""
PASSES_MAX: Final = 10
SLICE: Final = 64
TARGETS_TRIED: Final = 32
"""Emptiest disks that are tried for one fragment."""
AIM: Final = 0.5
"""A run goes on to this part of the threshold, so that little writing does not undo it."""
SETTLE_S: Final = 0.5
SETTLE_LOOKS: Final = 240
"""How long, and how often at most, to wait for what was moved away to be deleted."""
HEARTBEATS_S: Final = 3.0
"""After the last deletion, until all disks have said what they hold."""


class Fill:
    """What one disk holds, by our own account, and what it should."""

    __slots__ = ("capacity", "disk", "goal", "info", "server", "used")

    def __init__(self, server: ServerInfo, info: DiskInfo, share: float) -> None:
        self.disk = info.disk
        self.server = server
        self.info = info
        self.capacity = info.capacity
        self.used = float(info.used)
        self.goal = share * info.capacity

    def __repr__(self) -> str:
        return f"<Fill disk {self.disk}: {self.used:.0f} of {self.goal:.0f}>"

    @property
    def excess(self) -> float:
        """Relative to the goal: 0.1 is a tenth too much, -1 is empty."""
        return self.used / self.goal - 1 if self.goal else 0.0


class Fills:
    """All disks that take part."""

    def __init__(self, servers: tuple[ServerInfo, ...]) -> None:
        disks = [
            (server, disk)
            for server in servers
            for disk in server.disks
            if disk.state in (DiskState.UP, DiskState.FULL, DiskState.UNSTEADY) and disk.capacity
        ]
        capacity = sum(disk.capacity for _, disk in disks)
        self.share = sum(disk.used for _, disk in disks) / capacity if capacity else 0.0
        self.all = [Fill(server, disk, self.share) for server, disk in disks]
        self.by_disk = {fill.disk: fill for fill in self.all}

    def worst(self) -> float:
        """How far the disk that is farthest from its goal is from it, relative to it."""
        return max((abs(fill.excess) for fill in self.all), default=0.0)

    def surplus(self) -> float:
        """Bytes that have to move for all disks to reach their goals."""
        return sum(max(0.0, fill.used - fill.goal) for fill in self.all)


class _Move(msgspec.Struct, frozen=True):
    chunk: ChunkId
    index: int
    source: DiskId
    target: DiskId
    expected: int


class Rebalance:
    """The kind `rebalance`."""

    name = "rebalance"

    def __init__(self, context: JobContext, mover: Mover) -> None:
        self._context = context
        self._mover = mover

    # ------------------------------------------------------------------ planning

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        """Raises FileSystemError for a threshold out of range."""
        if not 0.001 <= request.threshold <= 1:
            raise FileSystemError(
                f"a threshold of {request.threshold:.2%} makes no sense",
                hint="use one from 0.1% to 100%",
            )
        context = self._context
        fills = Fills(context.liveness.server_infos())
        moved = int(fills.surplus()) if fills.worst() > request.threshold else 0
        held = sum(fill.info.fragments for fill in fills.all)
        used = sum(fill.info.used for fill in fills.all)
        items = round(moved * held / used) if used else 0
        planned = tuple(
            PlannedDisk(
                fill.disk,
                fill.server.server,
                fill.info.path,
                fill.server.address,
                fill.capacity,
                fill.info.used,
                round(fill.goal) if moved else fill.info.used,
            )
            for fill in fills.all
        )
        notes = [f"all disks are to be filled to {fills.share:.1%}"]
        if not moved:
            notes = [
                f"nothing to move: no disk is more than {request.threshold:.1%} off the average"
            ]
        command = StartJob(
            context.now_ns(),
            self.name,
            "whole cluster",
            threshold=request.threshold,
            bandwidth=request.bandwidth,
            items_total=items,
            bytes_total=moved,
        )
        seconds = seconds_for(context, moved, request.bandwidth)
        reply = PlanReply(self.name, "whole cluster", items, moved, seconds, planned, tuple(notes))
        return reply, command

    # ------------------------------------------------------------------ running

    async def run(self, job: RunningJob) -> str:
        threshold = job.record.threshold
        fills = await self._look()
        for _ in range(PASSES_MAX):
            if fills.worst() <= threshold:
                break
            moved_before = job.bytes_done
            job.bytes_total = job.bytes_done + int(fills.surplus())
            await _Pass(self._context, self._mover, job, fills).run()
            fills = await self._look()
            if job.bytes_done == moved_before:
                break
        off = f"{fills.worst():.1%} off the average fill"
        if fills.worst() <= threshold:
            return f"no disk is more than {off}"
        return (
            f"the fullest or emptiest disk is {off}; nothing more can be moved with the chunks' "
            "failure domains kept apart"
        )

    async def _look(self) -> Fills:
        """How full the disks are once they have deleted what was moved away from them."""
        for _ in range(SETTLE_LOOKS):
            if not get_counters(self._context.reader).stale:
                break
            await trio.sleep(SETTLE_S)
        await trio.sleep(HEARTBEATS_S)
        return Fills(self._context.liveness.server_infos())


class _Pass:
    """Moves until our own account says that all is even, or nothing more can be moved."""

    def __init__(self, context: JobContext, mover: Mover, job: RunningJob, fills: Fills) -> None:
        self._context = context
        self._mover = mover
        self._job = job
        self._fills = fills
        self._aim = AIM * job.record.threshold
        self._rows: dict[DiskId, Iterator[ChunkId]] = {}
        self._exhausted: set[DiskId] = set()

    async def run(self) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                await self._job.turn()
                await limit.acquire_on_behalf_of(token := object())
                move = await self._next_move()
                if move is None:
                    limit.release_on_behalf_of(token)
                    break
                self._book(move, move.expected)
                nursery.start_soon(self._carry_out, move, limit, token)

    def _book(self, move: _Move, amount: float) -> None:
        self._fills.by_disk[move.source].used -= amount
        self._fills.by_disk[move.target].used += amount

    async def _next_move(self) -> _Move | None:
        """From the fullest disk that still has something to give."""
        while True:
            sources = (
                fill
                for fill in self._fills.all
                if fill.disk not in self._exhausted and fill.excess > 0
            )
            source = max(sources, key=lambda fill: fill.excess, default=None)
            if source is None:
                return None
            lowest = min(fill.excess for fill in self._fills.all)
            if source.excess <= self._aim and lowest >= -self._aim:
                return None
            move = await self._from(source)
            if move is not None:
                return move
            self._exhausted.add(source.disk)

    async def _from(self, source: Fill) -> _Move | None:
        """The next fragment of this disk that fits somewhere."""
        rows = self._rows.get(source.disk)
        if rows is None:
            rows = self._rows[source.disk] = self._walk(source.disk)
        for looked, number in enumerate(rows):
            if looked % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            if number in self._context.claims.moving:
                continue
            found = self._mover.movable(number, source.disk)
            move = None if found is None else self._place(*found, source)
            if move is not None:
                return move
        return None

    def _walk(self, disk: DiskId) -> Iterator[ChunkId]:
        """All chunks with a fragment on a disk once, from a random one on."""
        reader = self._context.reader
        ids = fragments.on_disk(reader, disk, 0, 1)
        last = get_counters(reader).next_chunk
        if not ids:
            return
        start = self._context.random.randrange(ids[0] - 1, last)
        for after, end in ((start, last), (0, start)):
            at = after
            while numbers := fragments.on_disk(reader, disk, at, SLICE):
                for number in numbers:
                    if number > end:
                        break
                    yield number
                at = numbers[-1]
                if at > end:
                    break

    def _place(self, chunk: Chunk, index: int, source: Fill) -> _Move | None:
        """Where a fragment of `source` goes best; None where it should stay."""
        if not fragments.is_whole(chunk):
            return None
        expected = chunk.fragment_length
        taken = {other.disk for other in chunk.fragments}
        stay = [other.disk for other in chunk.good if other.disk != source.disk]
        spread = self._mover.spread(chunk)
        fitting = (
            fill
            for fill in self._fills.all
            if fill.disk not in taken and self._gains(source, fill, expected)
        )
        for fill in nsmallest(TARGETS_TRIED, fitting, key=lambda fill: fill.excess):
            if self._context.liveness.allows(spread, stay, fill.disk):
                return _Move(chunk.chunk, index, source.disk, fill.disk, expected)
        return None

    def _still_fits(self, move: _Move, chunk: Chunk) -> bool:
        """Waiting for its turn takes time, in which repair gives the chunk other disks."""
        fragment = chunk.on(move.source)
        if fragment is None or fragment.index != move.index or chunk.on(move.target) is not None:
            return False
        stay = [other.disk for other in chunk.good if other.disk != move.source]
        return self._context.liveness.allows(self._mover.spread(chunk), stay, move.target)

    def _gains(self, source: Fill, target: Fill, amount: int) -> bool:
        """The two are nearer to their goals afterwards, and the target does not go past its own
        by more than the aim allows."""
        if target.info.state is DiskState.FULL or target.excess >= 0:
            return False
        over = (target.used + amount) / target.goal - 1
        under = (source.used - amount) / source.goal - 1
        return over <= max(self._aim, -target.excess) and under >= min(-self._aim, -source.excess)

    async def _carry_out(self, move: _Move, limit: trio.CapacityLimiter, token: object) -> None:
        job = self._job
        try:
            async with job.paid(move.expected) as bill:
                with self._context.claims.chunk(move.chunk) as free:
                    chunk = get_chunk(self._context.reader, move.chunk)
                    if free and chunk is not None and self._still_fits(move, chunk):
                        bill.moved = await self._mover.make(chunk, move.index, move.target)
                        job.moved(1, bill.moved)
        except DfsError as error:
            job.failures += 1
            log.info("rebalance: chunk %d stays on disk %d: %s", move.chunk, move.source, error)
        finally:
            limit.release_on_behalf_of(token)
        self._book(move, bill.moved - move.expected)
