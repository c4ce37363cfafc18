"""Where the blocking calls of one disk run: a few threads of its own.

A hung disk then holds up its own requests and no other disk's.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from dfs.core.workers import Workers

T = TypeVar("T")

THREADS_PER_DISK = 4


class DiskWorkers(Workers, Protocol):
    """Workers of a disk, which may hang for ever."""

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        """As `run`, but cancelling leaves a function behind that has started; it runs on."""


class DiskThreads:
    """`DiskWorkers` by threads, at most `count` at a time."""

    def __init__(self, count: int = THREADS_PER_DISK) -> None:
        self._limiter = trio.CapacityLimiter(count)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(
            function, *args, limiter=self._limiter, abandon_on_cancel=True
        )
