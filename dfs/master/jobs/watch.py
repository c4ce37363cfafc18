"""Watching chunk servers: silence becomes SUSPECT, then DOWN."""

import logging
from collections.abc import Callable

from dfs.core.chunk import DiskState
from dfs.master.liveness import Liveness

log = logging.getLogger(__name__)


class WatchServers:
    """Owned by the daemon. `note_broken` tells `liveness` of connections that broke."""

    name = "watching servers"
    idle_s = 0.25

    def __init__(self, liveness: Liveness, note_broken: Callable[[], None]) -> None:
        self._liveness = liveness
        self._note_broken = note_broken

    async def run_once(self) -> bool:
        self._note_broken()
        for server, state in self._liveness.tick():
            level = logging.INFO if state is DiskState.UP else logging.WARNING
            log.log(
                level, "server %d at %s is %s", server.server, server.address, state.name.lower()
            )
        return False
