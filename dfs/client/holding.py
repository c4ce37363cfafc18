"""`async with holding(lock)`: as `async with lock`, but a free one costs no turn of the scheduler.

For paths on which a task takes locks that are nearly always free, and soon waits for other things.
"""

import trio


class _Holding:
    __slots__ = ("_lock",)

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def holding(lock: trio.Lock) -> _Holding:
    """See the module."""
    return _Holding(lock)
