"""The C library's memory, in a process that runs for long and whose libraries have threads.

Left as it is, glibc keeps an arena for each of RocksDB's threads, and of a compaction's buffers
what lies at the end: of the memory a master took for a million files, a third was of no use.
"""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 * 1024
"""What is larger is mapped by itself, and given back when it is freed. It is the default; that it
stays so has to be said, since it grows with what is freed."""


def keep_little() -> None:
    """Call it before there are threads. Does nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
