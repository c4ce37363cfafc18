"""The pace of background work: not faster than it was told, and behind clients.

`Rate` bounds the bytes a second of one piece of work. `Traffic` is of one disk: background
work takes a turn before each step of a few MiB, and gets it when no client's request is in flight,
and none was a moment ago. While clients are at work at all, steps are some way apart too: a pause
of a client is most often one in which it computes, and it needs the machine for that. Under
clients that never pause background work gets one step now and then, all of it together: slow, but
it ends. What makes data safe that the next failure would take hardly waits for them.
"""

from typing import Final

import trio

QUIET_S: Final = 0.01
"""Without a client's request for so long, a disk is idle: more than the pause between two
requests of a client that waits for each."""
AT_WORK_S: Final = 2.0
"""Clients that wanted something within so long are at work."""
STEP_BYTES: Final = 4 * 1024 * 1024
APART_S: Final = 0.09
"""Steps of so many bytes are at least so far apart then, smaller ones less: on a disk of 150 MB/s
they take two fifths of its time."""
YIELD_MOST_S: Final = 0.2
"""A turn comes after so long, whatever clients do."""
URGENT_YIELD_S: Final = 0.02
"""The same, of work that is urgent: its steps are not apart either."""


class Rate:
    """Spends at most `bytes_per_s`; 0: without bound. What was spent is waited for afterwards."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._due = trio.current_time()

    async def spend(self, count: int) -> None:
        """Account for `count` bytes; returns when the next may be moved."""
        if self._bytes_per_s <= 0:
            return
        self._due = max(self._due, trio.current_time()) + count / self._bytes_per_s
        await trio.sleep_until(self._due)


class Traffic:
    """What clients want of one disk right now. Lives on the event loop."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._last = -AT_WORK_S
        self._next_step = 0.0
        self._ended = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self._urgent_turn = trio.Lock()

    def begin(self) -> None:
        """A client's request begins to use the disk; `end` must follow."""
        self._in_flight += 1

    def end(self) -> None:
        self._in_flight -= 1
        self._last = trio.current_time()
        if not self._in_flight and self._ended:
            self._ended.unpark_all()

    def touch(self) -> None:
        """A client's request came, and was answered at once."""
        self._last = trio.current_time()

    async def turn(self, size: int = STEP_BYTES, *, urgent: bool = False) -> None:
        """Wait until background work may take its next step, of `size` bytes."""
        if not self._in_flight and trio.current_time() >= self._last + AT_WORK_S:
            await trio.lowlevel.checkpoint()
            return
        # One at a time: however much background work there is, clients share with one.
        if urgent:
            async with self._urgent_turn:
                await self._quiet(URGENT_YIELD_S)
            return
        async with self._turn:
            await self._quiet(YIELD_MOST_S)
            await trio.sleep_until(self._next_step)
            self._next_step = trio.current_time() + APART_S * min(1.0, size / STEP_BYTES)

    async def _quiet(self, most_s: float) -> None:
        """Return when clients want nothing, or after so long."""
        with trio.move_on_after(most_s):
            while not self._is_quiet():
                if self._in_flight:
                    await self._ended.park()
                else:
                    await trio.sleep_until(self._last + QUIET_S)

    def _is_quiet(self) -> bool:
        return not self._in_flight and trio.current_time() >= self._last + QUIET_S
