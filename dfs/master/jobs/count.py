"""Counting chunks that lack something, over and over, in the background."""

from typing import Final

import trio

from dfs.master.health import Health

PAUSE_FACTOR: Final = 4
"""A slice that took t is followed by a pause of 4 t: a fifth of the event loop at most."""


class CountHealth:
    """Keeps `Health.counts` fresh, for when too much is away to count it when somebody asks."""

    name = "counting chunks"
    idle_s = 5.0

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
