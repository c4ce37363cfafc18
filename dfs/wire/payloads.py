"""Memory that payloads are received into, used again as soon as nobody refers to it.

Fresh memory for each payload costs more than the payload itself: the kernel clears and maps 256
pages for each MiB. A payload is handed out as a memoryview; as long as it, or a part of it, exists
anywhere, its memory has a reference more than ours, and is left alone. Owned by a server or a
pool, shared by its connections; used in the scheduler's thread only.
"""

import sys
from collections import deque
from typing import Final

KEEP_BYTES: Final = 32 * 1024 * 1024
_SMALL_BYTES: Final = 64 * 1024
"""Up to here the allocator has memory at hand."""

_LOOK_AT: Final = 8
"""So many are looked at before fresh memory is taken: most may be in a cache, for long. One that
is in use goes to the end, so that the first is what was used last: a processor has it at hand."""

_probe = deque([bytearray()])
_FREE: Final = sys.getrefcount(_probe[0])
"""References to an item of a deque that nobody else refers to."""


class PayloadMemory:
    """Keeps up to `keep_bytes`; gives out as much as is asked for."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._kept: dict[int, deque[bytearray]] = {}

    def take(self, length: int) -> memoryview:
        """A buffer of `length` bytes with arbitrary content; it belongs to the caller."""
        if length <= _SMALL_BYTES:
            return memoryview(bytearray(length))
        size = _class_of(length)
        kept = self._kept.get(size)
        if kept is not None:
            for _ in range(min(len(kept), _LOOK_AT)):
                if sys.getrefcount(kept[0]) == _FREE:
                    return memoryview(kept[0])[:length]
                kept.rotate(-1)
        fresh = bytearray(size)
        if self._kept_bytes + size > self._keep_bytes:
            # What is free has a size that nobody asks for now; what is not may be in a cache, and
            # stay there: it would keep out what comes and goes.
            self._kept.clear()
            self._kept_bytes = 0
        if size <= self._keep_bytes:
            self._kept.setdefault(size, deque()).append(fresh)
            self._kept_bytes += size
        return memoryview(fresh)[:length]


def _class_of(length: int) -> int:
    """The next of sixteen sizes to each power of two: at most a sixteenth too much."""
    step = 1 << max(0, (length - 1).bit_length() - 5)
    return -(-length // step) * step
