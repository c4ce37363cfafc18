"""Ctrl-C and SIGKILL for programs that wait in the mount: whose request is answered with EINTR.

The kernel tells too little and too much: nothing of a read that waits for its read-ahead (and
pyfuse3 is told nothing at all), but of every timer and every child that ends, upon which no
program expects EINTR from a file. So who waits long is looked at. If a signal is pending that is
to end the process, what it waits for is cancelled; the kernel then lets the signal do its work.
Costs nothing to requests that are quick.
"""

import signal
import time
from typing import Final

import trio

POLL_S: Final = 0.25


def _mask(*numbers: signal.Signals) -> int:
    return sum(1 << (number - 1) for number in numbers)


_STOPS: Final = _mask(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""A process that is to be stopped goes on waiting."""
_ENDS: Final = _mask(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Sent by people: who handles them wants to hear of them now; of timers and children, later."""


class Interrupts:
    """Owned by the driver, which runs `watch`. `cancelling` gives the scope of one request."""

    def __init__(self) -> None:
        self._waiting: dict[trio.CancelScope, tuple[int, float]] = {}

    def cancelling(self, pid: int) -> "_Waiting":
        """`with` this around what a thread `pid` waits for; 0: nobody's to interrupt."""
        return _Waiting(self._waiting, pid)

    async def watch(self) -> None:
        """Runs for ever."""
        while True:
            await trio.sleep(POLL_S)
            long_ago = time.monotonic() - POLL_S
            for scope, (pid, since) in list(self._waiting.items()):
                if since < long_ago and is_interrupted(pid):
                    scope.cancel()


class _Waiting:
    __slots__ = ("_pid", "_scope", "_waiting")

    def __init__(self, waiting: dict[trio.CancelScope, tuple[int, float]], pid: int) -> None:
        self._waiting = waiting
        self._pid = pid
        self._scope = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        scope = self._scope.__enter__()
        if self._pid:
            self._waiting[self._scope] = (self._pid, time.monotonic())
        return scope

    def __exit__(self, kind: object, error: object, traceback: object) -> bool | None:
        self._waiting.pop(self._scope, None)
        return self._scope.__exit__(kind, error, traceback)  # type: ignore[arg-type]


def is_interrupted(pid: int) -> bool:
    """Whether a thread has a signal pending that is to end it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            fields = dict(line.split(b":", 1) for line in status if line.startswith((b"S",)))
        pending = int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16)
        unseen = int(fields[b"SigBlk"], 16) | int(fields[b"SigIgn"], 16) | _STOPS
        unseen |= int(fields[b"SigCgt"], 16) & ~_ENDS
    except (OSError, KeyError, ValueError):
        # It has ended, or lives in another namespace: nobody waits here that could be woken.
        return False
    return bool(pending & ~unseen)
