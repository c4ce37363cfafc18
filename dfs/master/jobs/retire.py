"""Letting go of chunks whose bytes were copied elsewhere, once no backup is likely to need them.

Compaction and conversion move files' extents to copies. A backup of the metadata that is older
than such a move refers to the old chunk still, though nobody has removed the file: so that chunk is
RETIRED, and kept on the disks for a time. It goes earlier, the oldest first, where the cluster runs
out of room.
"""

import logging
from typing import Final

from dfs.master import chunks
from dfs.master.backup import hold
from dfs.master.commands import ExpireRetired
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import get_counters

log = logging.getLogger(__name__)

KEEP_S: Final = 24 * 3600.0
"""Who makes a backup each day has one that all of is there for."""
BATCH: Final = 64
FREE_LEAST: Final = 0.1
"""With less of the whole capacity free, nothing is kept longer than it takes to delete it."""


class ExpireRetiredChunks:
    """Owned by the daemon."""

    name = "letting go of retired chunks"
    idle_s = 5.0

    def __init__(self, context: JobContext, keep_s: float) -> None:
        self._context = context
        self._keep_s = keep_s

    async def run_once(self) -> bool:
        context = self._context
        if not get_counters(context.reader).chunks_retired or hold.is_held(context.reader):
            return False
        totals = context.liveness.totals()
        short = totals.free < FREE_LEAST * totals.capacity
        before_s = context.now_ns() / 1e9 - self._keep_s
        oldest = chunks.retired(context.reader, BATCH)
        due = tuple(number for since_s, number in oldest if short or since_s <= before_s)
        if not due:
            return False
        context.journal.append(ExpireRetired(context.now_ns(), due))
        if short:
            log.info("%d retired chunks are deleted before their time: space is short", len(due))
        # Whether that was enough, the disks say later.
        return len(due) == BATCH and not short
