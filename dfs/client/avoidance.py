"""Disks that just failed this client: new chunks go elsewhere for a while."""

from typing import Final

import trio

from dfs.core.errors import DfsError, NoSpaceError
from dfs.core.ids import DiskId

_AVOID_S: Final = 20.0
_AVOID_FULL_S: Final = 5.0
"""The master learns of a full disk with the next heartbeat; then it knows better than we do."""


class Avoidance:
    """Shared by all chunk writers of a client."""

    def __init__(self) -> None:
        self._until: dict[DiskId, float] = {}
        self._last: dict[DiskId, DfsError] = {}

    def note(self, disk: DiskId, error: DfsError) -> None:
        """A disk did not take an append."""
        seconds = _AVOID_FULL_S if isinstance(error, NoSpaceError) else _AVOID_S
        self._until[disk] = trio.current_time() + seconds
        self._last[disk] = error

    def disks(self) -> tuple[DiskId, ...]:
        """Those to stay away from now."""
        now = trio.current_time()
        for disk in [disk for disk, until in self._until.items() if until <= now]:
            del self._until[disk], self._last[disk]
        return tuple(self._until)

    def holds(self, disk: DiskId) -> bool:
        return self._until.get(disk, 0.0) > trio.current_time()

    def errors(self) -> dict[DiskId, DfsError]:
        """What each of them answered."""
        return {disk: self._last[disk] for disk in self.disks()}
