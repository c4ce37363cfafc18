"""What the C library does with memory that is freed, in a process that runs for long.

Left as it is, glibc keeps an arena for each of RocksDB's threads, and of a compaction's buffers
what lies at the end: of the memory a master took for a million files, a third was of no use. Of
what a mount takes and frees for each MiB that is written, it keeps nothing: the kernel maps and
clears it anew each time, which was a tenth of the mount's processor time.
"""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 * 1024
"""What is larger is mapped by itself, and given back when it is freed. It is the default; that it
stays so has to be said, since it grows with what is freed."""


_REUSED_BYTES: Final = 32 * 1024 * 1024
"""The most glibc takes for a threshold of its own."""


def keep_little() -> None:
    """Call it before there are threads. Does nothing where the C library is another one."""
    _set({_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _LARGE_BYTES, _M_TRIM_THRESHOLD: _LARGE_BYTES})


def keep_buffers() -> None:
    """Have buffers of some MiB used again. Does nothing where the C library is another one."""
    _set({_M_MMAP_THRESHOLD: _REUSED_BYTES, _M_TRIM_THRESHOLD: _REUSED_BYTES})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
