"""Freeing what nobody refers to any more: rows of removed files, fragments of doomed chunks.

`PurgeFiles` works through the purge queue of the state, one bounded command after the other.
`PurgeFragments` tells disks to delete their fragments of doomed chunks and their stale ones, and
has the state forget them once the disk says that they are gone. A stale one waits until its chunk
is whole. The doomed table is in order of disk, so disks that are down keep their rows, cost
nothing, and are served when they return.
"""

import logging
from typing import Final

import trio

from dfs.core.chunk import ChunkState, DiskLocation
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId, DiskId, InodeId
from dfs.master import chunk_reports, fragments, purge
from dfs.master.backup import hold
from dfs.master.commands import DropFragments, PurgeStep
from dfs.master.health import available
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import get_chunk, get_counters
from dfs.wire.messages import DeleteFragments, Empty

log = logging.getLogger(__name__)

STEP_ROWS: Final = 500
"""Rows that one command frees: a few milliseconds of the event loop."""
DELETE_BATCH: Final = 256
"""Fragments that a disk is asked to delete at a time."""
DROP_BATCH: Final = 64
"""Fragments that one command forgets."""
DISKS_AT_ONCE: Final = 8
AGAIN_S: Final = 5.0
"""With nothing to do and nothing changed, all disks are gone through again after so long."""
DELETE_TIMEOUT_S: Final = 60.0


class PurgeFiles:
    """Frees extents and attributes of removed and truncated files, and leftovers of sessions."""

    name = "purging removed files"
    idle_s = 0.5

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._after: InodeId = 0

    async def run_once(self) -> bool:
        if not purge.pending(self._context.reader):
            return False
        step = PurgeStep(self._context.now_ns(), STEP_ROWS, self._after)
        result = self._context.journal.append(step)
        self._after = result.upto
        await trio.lowlevel.checkpoint()
        return result.more


class PurgeFragments:
    """Deletes fragments of doomed chunks from the disks."""

    name = "deleting fragments"
    idle_s = 0.5

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._limit = trio.CapacityLimiter(DISKS_AT_ONCE)
        self._in_vain: tuple[int, int, int] | None = None
        """How things stood when there was nothing to do."""
        self._look_at = 0.0
        """When all disks are gone through again, though nothing has changed."""
        self._after: dict[DiskId, ChunkId] = {}
        """How far each disk's rows have been worked off: the store would have to step over all
        rows that were deleted lately. Forgotten at the end of the rows, to begin anew."""

    async def run_once(self) -> bool:
        """A batch from each disk that can be reached. True if any disk has more."""
        reader = self._context.reader
        counters = get_counters(reader)
        if not (counters.chunks_doomed or counters.stale) or hold.is_held(reader):
            return False
        seen = (counters.chunks_doomed, counters.stale, self._context.liveness.version)
        if seen == self._in_vain and trio.current_time() < self._look_at:
            return False
        more: list[DiskId] = []
        begin_anew = False
        async with trio.open_nursery() as nursery:
            for place in self._context.liveness.serving():
                after = self._after.get(place.disk, 0)
                if fragments.doomed_on(self._context.reader, place.disk, after, 1):
                    nursery.start_soon(self._delete_batch, place, more)
                elif self._after.pop(place.disk, None) is not None:
                    begin_anew = True
                await trio.lowlevel.checkpoint()
        # Rows of disks that are away may be there for long, and disks by the thousand.
        self._in_vain = None if more or begin_anew else seen
        self._look_at = trio.current_time() + AGAIN_S
        return bool(more)

    async def _delete_batch(self, place: DiskLocation, more: list[DiskId]) -> None:
        context = self._context
        disk = place.disk
        async with self._limit:
            # Not read before it is our turn: a stale fragment may be taken back meanwhile.
            after = self._after.get(disk, 0)
            batch = fragments.doomed_on(context.reader, disk, after, DELETE_BATCH)
            if not batch:
                return
            doomed = [chunk for chunk, index in batch if index is None]
            stale = [chunk for chunk, index in batch if index is not None]
            stale = [chunk for chunk in stale if self._is_useless(chunk)]
            with context.claims.deletion(disk, doomed + stale):
                # After a power cut the master must not come back with files that still need them.
                await context.journal.sync()
                # That takes time, in which disks die.
                stale = [chunk for chunk in stale if self._is_useless(chunk)]
                for chunk in stale:
                    context.reports.note_changed(chunk)
                chunks = sorted(doomed + stale)
                if chunks and not await self._delete(place, chunks):
                    return
                # And once more: the disk may have been asked for its list meanwhile.
                for chunk in stale:
                    context.reports.note_changed(chunk)
                for start in range(0, len(chunks), DROP_BATCH):
                    part = tuple(chunks[start : start + DROP_BATCH])
                    context.journal.append(
                        DropFragments(time_ns=context.now_ns(), disk=disk, chunks=part)
                    )
                    await trio.lowlevel.checkpoint()
            self._after[disk] = batch[-1][0]
            more.append(disk)

    def _is_useless(self, chunk_id: ChunkId) -> bool:
        """A stale fragment is kept while its chunk is not whole on disks that are alive.

        A RETIRED chunk is not made whole again: that it can be read will do.
        """
        reader = self._context.reader
        chunk = get_chunk(reader, chunk_id)
        if chunk is None or chunk.state is ChunkState.DOOMED:
            return not chunk_reports.needed(reader, (chunk_id,))
        # Not those from which a master that has just begun has heard nothing yet.
        enough = chunk.k if chunk.state is ChunkState.RETIRED else chunk.width
        return available(chunk, self._context.liveness.serves) >= enough

    async def _delete(self, place: DiskLocation, chunks: list[ChunkId]) -> bool:
        request = DeleteFragments(place.disk, tuple(chunks))
        try:
            await self._context.pool.call(place.address, request, Empty, timeout_s=DELETE_TIMEOUT_S)
        except DfsError as error:
            log.info("disk %d at %s deletes nothing now: %s", place.disk, place.address, error)
            return False
        return True
