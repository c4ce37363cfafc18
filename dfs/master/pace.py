"""A bound on the part of the event loop that one kind of work takes, whoever does it."""

import trio


class Pace:
    """`async with pace:` around each stretch of work: stretches come one at a time, first come
    first served, and after each of t seconds comes a pause of t * `rest`.

    The stretch itself must not wait for anything.
    """

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._lock = trio.Lock()
        self._began = 0.0

    def __repr__(self) -> str:
        return f"<Pace 1:{self._rest:g}, {self._lock.statistics().tasks_waiting} wait>"

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        self._began = trio.current_time()

    async def __aexit__(self, *_: object) -> None:
        try:
            await trio.sleep((trio.current_time() - self._began) * self._rest)
        finally:
            self._lock.release()
