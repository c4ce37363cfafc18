"""Raw blocks in memory: bounded bytes, the least recently used go first.

Blocks are immutable, so nothing here ever becomes stale. Keyed by (chunk, raw offset of the
block). Blocks that are views of one received buffer keep all of it alive, so they are counted,
used and dropped together, as one slab. What was fetched ahead of a stream goes as soon as it has
been read: the memory is warm in the processor's caches, and serves the next fetch.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from dfs.core.ids import ChunkId

Block = tuple[int, memoryview]
"""Raw offset in the chunk, and the bytes."""

_SLAB_OVERHEAD_BYTES: Final = 512


class _Slab:
    __slots__ = ("chunk", "size", "starts", "unread")

    def __init__(self, chunk: ChunkId, starts: list[int], size: int) -> None:
        self.chunk = chunk
        self.starts = starts
        self.size = size
        self.unread: int | None = None
        """Raw bytes of a stream that are still to be read once; None: to be kept."""


class _ChunkBlocks:
    """The cached blocks of one chunk, in order."""

    __slots__ = ("blocks", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.blocks: dict[int, tuple[memoryview, _Slab]] = {}


class BlockCache:
    """See the module. `capacity_bytes` 0 caches nothing."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._chunks: dict[ChunkId, _ChunkBlocks] = {}
        self._slabs: OrderedDict[_Slab, None] = OrderedDict()

    def get(self, chunk: ChunkId, offset: int) -> Block | None:
        """The block that holds raw `offset` of `chunk`."""
        known = self._chunks.get(chunk)
        if known is not None:
            place = bisect_right(known.starts, offset) - 1
            if place >= 0:
                start = known.starts[place]
                data, slab = known.blocks[start]
                if offset < start + len(data):
                    self._slabs.move_to_end(slab)
                    self.hits += 1
                    return start, data
        self.misses += 1
        return None

    def next_start(self, chunk: ChunkId, offset: int, end: int) -> int:
        """Where the first cached block after `offset` starts; `end` if there is none before it."""
        known = self._chunks.get(chunk)
        if known is None:
            return end
        place = bisect_right(known.starts, offset)
        return min(end, known.starts[place]) if place < len(known.starts) else end

    def put(
        self, chunk: ChunkId, blocks: Iterable[Block], size: int, *, once: bool = False
    ) -> None:
        """Add blocks that share `size` bytes of memory. Known ones are left as they are.

        `once`: a stream will read them, and they may go when `was_read` has told of all of them.
        """
        if size + _SLAB_OVERHEAD_BYTES > self.capacity_bytes:
            return
        known = self._chunks.get(chunk)
        if known is None:
            known = _ChunkBlocks()
        slab = _Slab(chunk, [], size + _SLAB_OVERHEAD_BYTES)
        added = 0
        for start, data in blocks:
            if start not in known.blocks:
                insort(known.starts, start)
                known.blocks[start] = (data, slab)
                slab.starts.append(start)
                added += len(data)
        if not slab.starts:
            return
        if once:
            slab.unread = added
        self._chunks[chunk] = known
        self._slabs[slab] = None
        self.used_bytes += slab.size
        while self.used_bytes > self.capacity_bytes:
            self._drop(self._slabs.popitem(last=False)[0])

    def was_read(self, chunk: ChunkId, start: int, length: int) -> None:
        """So many bytes of the block that starts at `start` were handed out."""
        known = self._chunks.get(chunk)
        found = known.blocks.get(start) if known is not None else None
        if found is None:
            return
        slab = found[1]
        if slab.unread is not None:
            slab.unread -= length
            if slab.unread <= 0:
                del self._slabs[slab]
                self._drop(slab)

    def clear(self) -> None:
        """Drop everything."""
        self._chunks.clear()
        self._slabs.clear()
        self.used_bytes = 0

    def _drop(self, slab: _Slab) -> None:
        self.used_bytes -= slab.size
        known = self._chunks[slab.chunk]
        starts = known.starts
        for start in slab.starts:
            del known.blocks[start]
            del starts[bisect_left(starts, start)]
        if not starts:
            del self._chunks[slab.chunk]
