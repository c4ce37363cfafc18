"""Watching chunk servers: silence becomes SUSPECT, then DOWN."""

import logging
from collections.abc import Callable

from dfs.core.chunk import DiskState
from dfs.core.ids import ServerId
from dfs.master.liveness import Liveness

log = logging.getLogger(__name__)


class WatchServers:
    """Owned by the daemon. `note_broken` tells `liveness` of connections that broke; `note_down`
    is told of servers that are given up."""

    name = "watching servers"
    idle_s = 0.25

    def __init__(
        self,
        liveness: Liveness,
        note_broken: Callable[[], None],
        note_down: Callable[[ServerId], None],
    ) -> None:
        self._liveness = liveness
        self._note_broken = note_broken
        self._note_down = note_down

    async def run_once(self) -> bool:
        self._note_broken()
        for server, state in self._liveness.tick():
            level = logging.INFO if state is DiskState.UP else logging.WARNING
            log.log(
                level, "server %d at %s is %s", server.server, server.address, state.name.lower()
            )
            if state is DiskState.DOWN:
                self._note_down(server.server)
        return False
