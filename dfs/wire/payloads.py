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

_BLOCKS_BYTES: Final = 256 * 1024
"""Payloads up to this size are kept in caches for long, one by one: they must not waste much."""
_LOOK_AT: Final = 8
"""So many of those are looked at before fresh memory is taken: most may be in a cache, for long.
Always the same while one of them is free: a processor has those at hand. Of the large ones, which
are few, and whose memory costs more to get anew, all are."""

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
            look_at = _LOOK_AT if size <= _BLOCKS_BYTES else len(kept)
            for index in range(min(len(kept), look_at)):
                if sys.getrefcount(kept[index]) == _FREE:
                    return memoryview(kept[index])[:length]
            kept.rotate(-look_at)
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
    """The next of four sizes to each power of two; of sixteen, where a block is a payload."""
    bits = (length - 1).bit_length()
    step = 1 << max(0, bits - (3 if length > _BLOCKS_BYTES else 5))
    return -(-length // step) * step
