"""Making one fragment anew on another disk: what repair, drain and rebalance all do.

The target's server reads the other fragments and writes its own, server to server; the master
sends the order and, once the new fragment is on the target's disk, places it: from then on it
counts, and what it replaces is stale. Whatever is interrupted leaves the chunk as it was, and at
most a fragment that nobody counts on, which the disk's next report brings up.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

import trio

from dfs.core.chunk import Chunk, ChunkState, DiskState, FragmentState
from dfs.core.errors import DfsError, FragmentError, NoSpaceError
from dfs.core.ids import ChunkId, DiskId
from dfs.core.policy import Spread
from dfs.master.backup import hold
from dfs.master.commands import ANY_INDEX, FragmentMark, MarkFragments, PlaceFragment
from dfs.master.fragments import REPORTED
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import doomed_key, get_chunk, get_policy
from dfs.master.liveness import SERVES
from dfs.wire.messages import (
    DeleteFragments,
    Empty,
    FragmentSource,
    RebuildFragment,
    RebuiltFragment,
)

log = logging.getLogger(__name__)

REBUILD_TIMEOUT_S: Final = 600.0
"""A whole chunk at the pace that clients leave to background work."""
DELETE_TIMEOUT_S: Final = 30.0
REPORT_AFTER_S: Final = 30.0
"""After an order whose end is not known, its disk is asked what it holds this much later."""
NO_ROOM_S: Final = 60.0
"""A full disk whose reserve is used up, too, is not tried again for so long."""
TARGET_AT_ONCE: Final = 3
"""Fragments made on one disk at a time: reading and writing overlap, and clients get through."""


class Mover:
    """One for all jobs. Callers hold the claim on the chunk."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._targets: dict[DiskId, trio.CapacityLimiter] = {}
        self._busy: Counter[DiskId] = Counter()
        self._no_room: dict[DiskId, float] = {}
        """Disks that refused a fragment for want of room, and until when that counts."""

    def __repr__(self) -> str:
        return f"<Mover {self._busy.total()} fragments under way>"

    # ------------------------------------------------------------------ where to

    def spread(self, chunk: Chunk) -> Spread:
        policy = get_policy(self._context.reader, chunk.policy)
        return Spread.SERVER if policy is None else policy.spread

    def movable(self, number: ChunkId, disk: DiskId) -> tuple[Chunk, int] | None:
        """A chunk and the index of its fragment on `disk`, where that may be moved elsewhere.

        Open ones are still written, and what is lost or broken is for repair to make anew.
        """
        chunk = get_chunk(self._context.reader, number)
        fragment = None if chunk is None else chunk.on(disk)
        if (
            chunk is None
            or fragment is None
            or chunk.state is not ChunkState.SEALED
            or fragment.state is not FragmentState.GOOD
        ):
            return None
        return chunk, fragment.index

    def target(self, chunk: Chunk, index: int) -> DiskId:
        """A disk for fragment `index`, which the chunk lacks; 0 where there is none.

        The one that lost it, where that takes data: nothing else need move. One that broke it is
        taken only where no other is left, and a full one, of its reserve, where even that is so.
        """
        liveness = self._context.liveness
        here = next((f for f in chunk.fragments if f.index == index), None)
        full = self._without_room()
        mendable: DiskId = 0
        if here is not None and here.state is not FragmentState.GOOD:
            state = liveness.state(here.disk)
            takes = state in (DiskState.UP, DiskState.UNSTEADY)
            # Of metadata that were restored, a disk may have another fragment there by now.
            held = hold.is_held(self._context.reader)
            if takes and here.state is FragmentState.LOST and not held:
                return here.disk
            if takes or (state is DiskState.FULL and here.disk not in full):
                mendable = here.disk
        stay = [
            fragment.disk
            for fragment in chunk.good
            if fragment.index != index and not liveness.given_up(fragment.disk)
        ]
        return (
            self.elsewhere(chunk, stay)
            or mendable
            or self.elsewhere(chunk, stay, avoid=full, upkeep=True)
        )

    def _without_room(self) -> set[DiskId]:
        now = trio.current_time()
        self._no_room = {disk: until for disk, until in self._no_room.items() if until > now}
        return set(self._no_room)

    def elsewhere(
        self,
        chunk: Chunk,
        stay: Iterable[DiskId],
        *,
        avoid: Iterable[DiskId] = (),
        upkeep: bool = False,
    ) -> DiskId:
        """A disk that has nothing of the chunk, apart from those in `stay`; 0 where there is none.

        One that is about to delete a stale fragment of it has that still. `upkeep`: a full one,
        of its reserve, where there is no other.
        """
        context = self._context
        spread, stay = self.spread(chunk), tuple(stay)
        shunned = {*avoid, *(fragment.disk for fragment in chunk.fragments)}
        while disk := context.liveness.extend(
            spread, stay, random=context.random, avoid=shunned, upkeep=upkeep
        ):
            # Nor one whose server seems to have just died: the order would wait for it.
            deleting = context.reader.get(doomed_key(disk, chunk.chunk)) is not None
            if context.liveness.is_served(disk) and not deleting:
                break
            shunned.add(disk)
        return disk

    def sources(self, chunk: Chunk, index: int) -> tuple[FragmentSource, ...]:
        """Fragments that can be read: the one of the same index first, idle disks first.

        CORRUPT ones come last: where other fragments are damaged, too, they may have the very
        blocks that are missing. Before them those of servers that seem to have just died.
        """
        found: list[tuple[tuple[bool, ...], int, FragmentSource]] = []
        liveness = self._context.liveness
        for fragment in chunk.fragments:
            place = liveness.location(fragment.disk)
            if fragment.state is FragmentState.LOST or place is None or place.state not in SERVES:
                continue
            corrupt = fragment.state is FragmentState.CORRUPT
            last = corrupt, not liveness.is_served(fragment.disk), fragment.index != index
            source = FragmentSource(fragment.index, fragment.disk, place.address)
            found.append((last, self._busy[fragment.disk], source))
        found.sort(key=lambda each: each[:2])
        return tuple(source for _, _, source in found)

    # ------------------------------------------------------------------ making it

    async def make(self, chunk: Chunk, index: int, disk: DiskId, *, urgent: bool = False) -> int:
        """Make fragment `index` on `disk` and place it; the bytes that it takes there.

        `urgent`: clients need not go first.

        Raises DfsError where that failed, FragmentError where the chunk has changed meanwhile
        or too few fragments of it can be read.
        """
        limiter = self._targets.setdefault(disk, trio.CapacityLimiter(TARGET_AT_ONCE))
        async with limiter:
            place = self._context.liveness.location(disk)
            if place is None or not self._context.liveness.is_served(disk):
                raise FragmentError(
                    f"disk {disk} cannot take a fragment of chunk {chunk.chunk} now"
                )
            chunk = self._check_free(chunk.chunk, index, disk)
            sources = self.sources(chunk, index)
            enough = any(source.index == index for source in sources) or len(sources) >= chunk.k
            if not enough:
                raise FragmentError(
                    f"chunk {chunk.chunk}: {len(sources)} of the {chunk.k} fragments needed to "
                    f"make fragment {index} can be read",
                    hint="bring back the servers that hold the others, see dfs admin chunks",
                )
            request = RebuildFragment(
                disk, chunk.chunk, index, chunk.k, chunk.m, chunk.length, sources,
                keep=hold.is_held(self._context.reader), urgent=urgent,
            )  # fmt: skip
            involved = [disk, *(source.disk for source in sources)]
            self._busy.update(involved)
            try:
                reply = await self._order(place.address, request)
            finally:
                self._busy.subtract(involved)
        indexes = {source.disk: source.index for source in sources}
        self.note_bad(
            chunk.chunk, [(bad, indexes.get(bad, ANY_INDEX), why) for bad, why in reply.bad]
        )
        await self._place(chunk.chunk, index, disk, place.address)
        self._context.liveness.charge((disk,), reply.stored)
        return reply.stored

    def _check_free(self, number: ChunkId, index: int, disk: DiskId) -> Chunk:
        """The chunk as it is now. Its server puts what it makes in the place of what it holds.

        Raises FragmentError where that may be a fragment that counts, or is about to be deleted.
        """
        chunk = get_chunk(self._context.reader, number)
        if chunk is None or chunk.state is not ChunkState.SEALED:
            raise FragmentError(f"chunk {number} is gone")
        here = chunk.on(disk)
        if here is not None and (here.index != index or here.state is FragmentState.GOOD):
            raise FragmentError(f"disk {disk} has fragment {here.index} of chunk {number} by now")
        if self._context.reader.get(doomed_key(disk, number)) is not None:
            raise FragmentError(f"disk {disk} is deleting another fragment of chunk {number}")
        return chunk

    async def _order(self, address: str, request: RebuildFragment) -> RebuiltFragment:
        done = False
        try:
            reply = await self._context.pool.call(
                address, request, RebuiltFragment, timeout_s=REBUILD_TIMEOUT_S
            )
            done = True
        except (FragmentError, NoSpaceError) as error:
            # The server's own refusal: it made nothing.
            done = True
            if isinstance(error, NoSpaceError):
                self._no_room[request.disk] = trio.current_time() + NO_ROOM_S
            raise
        finally:
            if not done:
                self._want_report(request.disk)
        return reply

    async def _place(self, chunk_id: ChunkId, index: int, disk: DiskId, address: str) -> None:
        context = self._context
        if context.liveness.location(disk) is None:
            raise FragmentError(f"disk {disk} was removed while it got a fragment")
        context.reports.note_changed(chunk_id)
        if context.journal.append(PlaceFragment(context.now_ns(), chunk_id, index, disk)):
            return
        if self._is_nobodys(chunk_id, disk) and not hold.is_held(context.reader):
            # Removed or moved away meanwhile: nobody else will tell this disk.
            try:
                await context.pool.call(
                    address,
                    DeleteFragments(disk, (chunk_id,)),
                    Empty,
                    timeout_s=DELETE_TIMEOUT_S,
                )
            except DfsError:
                self._want_report(disk)
        raise FragmentError(f"chunk {chunk_id} has changed while fragment {index} was made")

    def _is_nobodys(self, number: ChunkId, disk: DiskId) -> bool:
        """What was made on a disk in vain will never count."""
        chunk = get_chunk(self._context.reader, number)
        if chunk is None or chunk.state is ChunkState.DOOMED:
            return True
        # In the place of one that a RETIRED chunk has there, it is as good as that was.
        return chunk.state is ChunkState.RETIRED and chunk.on(disk) is None

    def _want_report(self, disk: DiskId) -> None:
        context = self._context
        context.reports.want((disk,), not_before=trio.current_time() + REPORT_AFTER_S)

    def note_bad(self, chunk: ChunkId, bad: Iterable[tuple[DiskId, int, str]]) -> None:
        """Servers found these fragments of a chunk to be no good: disk, index, and why."""
        marks = tuple(
            FragmentMark(chunk, disk, REPORTED[reason], index)
            for disk, index, reason in bad
            if reason in REPORTED
        )
        if marks:
            log.warning(
                "chunk %d: bad fragments on %s",
                chunk,
                ", ".join(f"disk {mark.disk} ({mark.state.name.lower()})" for mark in marks),
            )
            self._context.journal.append(MarkFragments(self._context.now_ns(), marks))
            self._context.reports.note_changed(chunk)
