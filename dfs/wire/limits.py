"""What one connection, and one server, hold at most: `Limits`, and `ByteBudget` to keep to it."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import trio
from trio.lowlevel import Task

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of connections. Reaching one makes the other side wait, it never fails a request."""

    body_bytes: int = 16 * MIB
    """Of one frame's body; a longer one ends the connection."""
    payload_bytes: int = 16 * MIB
    """Of one frame's raw payload; a longer one ends the connection."""
    calls: int = 256
    """Calls in flight on one connection, from one side; further ones wait for their turn."""
    requests: int = 512
    """Async handlers running on one connection; then it is not read from."""
    queued_bytes: int = 8 * MIB
    """Bytes waiting to be sent on one connection; then callers wait and requests are not read."""
    held_bytes: int = 64 * MIB
    """Payloads of requests being handled by one server, all connections together."""
    kept_bytes: int = 32 * MIB
    """Of memory that payloads are received into, kept for the next ones."""
    connections: int = 4096
    """Accepted by one server; further ones are refused with BusyError."""
    hello_s: float = 5.0
    """For the hello of an accepted connection to arrive."""
    ping_s: float = 5.0
    """Of silence while calls wait, until the other side is asked whether it lives."""
    dead_s: float = 15.0
    """Of silence while calls wait, until the connection counts as broken."""
    stall_s: float = 10.0
    """Of silence in the middle of a payload, until the connection counts as broken."""
    payload_s: float = 30.0
    """For a request's payload to arrive: it takes of `held_bytes` from its first byte on."""


class ByteBudget:
    """Bytes shared by many; who wants more than is left waits, first come first served."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._waiting: OrderedDict[Task, int] = OrderedDict()

    def try_acquire(self, count_bytes: int) -> bool:
        """Take `count_bytes` if they are there and nobody waits; whether that was so."""
        if self._waiting or self.used_bytes + count_bytes > self.total_bytes:
            return False
        self.used_bytes += count_bytes
        return True

    async def acquire(self, count_bytes: int) -> None:
        """Take `count_bytes` (at most `total_bytes`), waiting until they are there."""
        if count_bytes > self.total_bytes:
            raise ValueError(f"{count_bytes} bytes are more than the whole budget")
        if self.try_acquire(count_bytes):
            return
        task = trio.lowlevel.current_task()
        self._waiting[task] = count_bytes

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[task]
            self._hand_out()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def release(self, count_bytes: int) -> None:
        """Give `count_bytes` back."""
        self.used_bytes -= count_bytes
        if self._waiting:
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            task, count_bytes = next(iter(self._waiting.items()))
            if self.used_bytes + count_bytes > self.total_bytes:
                return
            del self._waiting[task]
            self.used_bytes += count_bytes
            trio.lowlevel.reschedule(task)
