"""Chunks that are left alone for a while after a failure, each time twice as long."""

import math
from typing import Final

import msgspec
import trio

from dfs.core.ids import ChunkId

KEPT: Final = 100_000
"""Chunks remembered; the first that failed are forgotten, and tried again too early."""


class _Wait(msgspec.Struct, frozen=True):
    failed_at: float
    pause_s: float
    version: int


class Waits:
    """When each chunk that failed may be tried again. Owned by one job."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._waits: dict[ChunkId, _Wait] = {}

    def __repr__(self) -> str:
        return f"<Waits of {len(self._waits)} chunks>"

    def put_off(self, chunk: ChunkId, version: int = 0) -> float:
        """It has failed, when the world was of `version`; until when it is left alone."""
        last = self._waits.get(chunk)
        pause_s = self._first_s if last is None else min(self._most_s, 2 * last.pause_s)
        while len(self._waits) >= KEPT:
            self._waits.pop(next(iter(self._waits)))
        self._waits[chunk] = _Wait(trio.current_time(), pause_s, version)
        return self.until(chunk, version)

    def until(self, chunk: ChunkId, version: int = 0) -> float:
        """When it may be tried (again), trio's time; in a changed world after the first pause."""
        wait = self._waits.get(chunk)
        if wait is None:
            return -math.inf
        return wait.failed_at + (wait.pause_s if version == wait.version else self._first_s)

    def forget(self, chunk: ChunkId) -> None:
        """It has not failed."""
        self._waits.pop(chunk, None)

    def clear(self) -> None:
        self._waits.clear()
