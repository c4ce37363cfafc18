"""Counting chunks by health, over and over, in the background."""

from typing import Final

import trio

from dfs.master.health import Health

PAUSE_FACTOR: Final = 9
"""A slice that took t is followed by a pause of 9 t: a tenth of the event loop at most."""


class CountHealth:
    """Keeps `Health.counts` fresh, for clusters too big to be counted when somebody asks."""

    name = "counting chunks"
    idle_s = 15.0

    def __init__(self, health: Health) -> None:
        self._health = health
        self._resumed_at = 0.0

    async def run_once(self) -> bool:
        self._resumed_at = trio.current_time()
        await self._health.count(self._pause)
        return False

    async def _pause(self) -> None:
        await trio.sleep((trio.current_time() - self._resumed_at) * PAUSE_FACTOR)
        self._resumed_at = trio.current_time()
