"""Where the blocking calls of one disk run: a few threads of its own.

A hung disk then holds up its own requests and no other disk's.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from dfs.core.workers import Starters
from dfs.wire.threads import Threads

T = TypeVar("T")

THREADS_PER_DISK: Final = 4


class DiskWorkers(Starters, Protocol):
    """Workers of a disk, which may hang for ever."""

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        """As `run`, but cancelling leaves a function behind that has started; it runs on."""


class DiskThreads(Threads):
    """`DiskWorkers` by threads, at most `count` at a time."""

    def __init__(self, count: int = THREADS_PER_DISK) -> None:
        super().__init__(count, "disk")
