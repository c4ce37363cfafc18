"""Freeing what nobody refers to any more: rows of removed files, fragments of doomed chunks.

`PurgeFiles` works through the purge queue of the state, one bounded command after the other.
`PurgeFragments` tells disks to delete their fragments of doomed chunks, and has the state forget
them once the disk says that they are gone. The doomed table is in order of disk, so disks
that are down keep their rows, cost nothing, and are served when they return.
"""

import logging
from itertools import islice
from typing import Final

import trio

from dfs.core.chunk import DiskLocation
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId, DiskId, InodeId
from dfs.master import purge
from dfs.master.backup import hold
from dfs.master.commands import DropFragments, PurgeStep
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import Reader, doomed_key, get_counters, second_id
from dfs.wire.messages import DeleteFragments, Empty

log = logging.getLogger(__name__)

STEP_ROWS: Final = 500
"""Rows that one command frees: a few milliseconds of the event loop."""
DELETE_BATCH: Final = 256
"""Fragments that a disk is asked to delete at a time."""
DROP_BATCH: Final = 64
"""Fragments that one command forgets."""
DISKS_AT_ONCE: Final = 8
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
        self._after: dict[DiskId, ChunkId] = {}
        """How far each disk's rows have been worked off: the store would have to step over all
        rows that were deleted lately. Forgotten at the end of the rows, to begin anew."""

    async def run_once(self) -> bool:
        """A batch from each disk that can be reached. True if any disk has more."""
        reader = self._context.reader
        if not get_counters(reader).chunks_doomed or hold.is_held(reader):
            return False
        more: list[DiskId] = []
        async with trio.open_nursery() as nursery:
            for place in self._context.liveness.serving():
                batch = doomed_on(
                    self._context.reader, place.disk, self._after.get(place.disk, 0), DELETE_BATCH
                )
                if batch:
                    nursery.start_soon(self._delete_batch, place, batch, more)
                elif self._after.pop(place.disk, 0):
                    more.append(place.disk)
                await trio.lowlevel.checkpoint()
        return bool(more)

    async def _delete_batch(
        self, place: DiskLocation, batch: list[ChunkId], more: list[DiskId]
    ) -> None:
        context = self._context
        disk = place.disk
        async with self._limit:
            # After a power cut the master must not come back with files that still need them.
            await context.journal.sync()
            request = DeleteFragments(disk, tuple(batch))
            try:
                await context.pool.call(place.address, request, Empty, timeout_s=DELETE_TIMEOUT_S)
            except DfsError as error:
                log.info("disk %d at %s deletes nothing now: %s", disk, place.address, error)
                return
            for start in range(0, len(batch), DROP_BATCH):
                part = tuple(batch[start : start + DROP_BATCH])
                context.journal.append(
                    DropFragments(time_ns=context.now_ns(), disk=disk, chunks=part)
                )
                await trio.lowlevel.checkpoint()
            self._after[disk] = batch[-1]
            more.append(disk)


def doomed_on(reader: Reader, disk: DiskId, after: ChunkId, limit: int) -> list[ChunkId]:
    """Doomed chunks that the disk has fragments of, in order, past `after`."""
    rows = reader.scan(doomed_key(disk, after + 1), doomed_key(disk + 1, 0))
    return [second_id(key) for key, _ in islice(rows, limit)]
