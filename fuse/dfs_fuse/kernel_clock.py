"""Which times that the kernel hands over were meant as "now".

libfuse 3 has a flag for `utimensat` with UTIME_NOW; pyfuse3 drops it and hands on the kernel's own
stamp, which is of the last tick of its coarse clock: earlier, by some milliseconds, than a stamp
that the master made just before. `make` would find the stamp file that was touched last to be the
oldest. So a time that is a tick of this moment is taken as "now", and the master says when that is.
"""

import time
from typing import Final

CLOCK_REALTIME_COARSE: Final = 5
"""As Linux has it; Python has no name for it."""
TICK_NS: Final = round(time.clock_getres(CLOCK_REALTIME_COARSE) * 1e9)
_SLACK_NS: Final = 10_000
"""Ticks are not quite equal: the clock is being slewed."""


def means_now(stamp_ns: int, coarse_ns: int | None = None) -> bool:
    """Whether a stamp is the coarse clock's last tick, or the one before.

    Of a program that says a time itself, only one that copied it from a file made on a local file
    system in that very moment is mistaken for it, and gets a time a few milliseconds later.
    """
    now_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE) if coarse_ns is None else coarse_ns
    age_ns = now_ns - stamp_ns
    return age_ns == 0 or abs(age_ns - TICK_NS) <= _SLACK_NS
