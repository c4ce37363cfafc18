"""Watches one disk: whether it answers, is ours, is writable, and how full it is."""

from pathlib import Path
from typing import Final

import trio

from dfs.chunkserver import identity as identities
from dfs.chunkserver.disk import Disk
from dfs.chunkserver.health import Health, passes
from dfs.core.errors import DfsError

PROBE_INTERVAL_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 30.0
"""A disk that does not answer for so long has failed."""


async def watch(disk: Disk) -> None:
    """Look again and again, until the disk fails."""
    while True:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_alarm, disk.health)
            await _probe(disk)
            nursery.cancel_scope.cancel()
        if disk.health.error:
            return
        await trio.sleep(PROBE_INTERVAL_S)


async def _alarm(health: Health) -> None:
    # Any answer will do: on a busy disk the probe itself may wait long for its turn.
    answered_at = trio.current_time()
    while answered_at + PROBE_TIMEOUT_S > trio.current_time():
        await trio.sleep_until(answered_at + PROBE_TIMEOUT_S)
        answered_at = max(answered_at, health.answered_at)
    health.fail(f"it has not answered for {PROBE_TIMEOUT_S:g} s")


async def _probe(disk: Disk) -> None:
    path = Path(disk.path)

    def look() -> str:
        disk.room.refresh()
        identities.note_holder(path)
        return identities.load(path).disk

    had_room = disk.room.free_bytes > 0
    try:
        uuid = await disk.health.workers.run(look)
    except OSError as error:
        if not passes(error):
            disk.health.fail(
                str(error) if isinstance(error, DfsError) else error.strerror or str(error)
            )
        return
    if uuid != disk.identity.disk:
        disk.health.fail(f"another disk is mounted there now: {uuid}")
    elif had_room != (disk.room.free_bytes > 0):
        disk.health.changed()
