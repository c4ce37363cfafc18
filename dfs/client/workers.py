"""Where the client's blocking calls run: threads, few enough to leave the event loop its share."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

_THREADS: Final = 3


class ThreadWorkers:
    """`dfs.core.workers.Workers` on trio's threads."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)
