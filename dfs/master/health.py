"""How many chunks are healthy, degraded, at risk or lost: counted in the background, in slices.

A count walks the chunk table. It never holds the event loop for longer than a slice, and on a
big cluster it takes its time; `Health.counts` is the last full count.
"""

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

import msgspec

from dfs.core.chunk import Chunk, ChunkState, FragmentState
from dfs.core.ids import ChunkId, DiskId
from dfs.master.keyspace import CHUNK, Reader, chunk_key, decode_chunk, prefix_end

SLICE_CHUNKS: Final = 256
"""Chunks looked at in one go: about a millisecond."""

PROMPT_CHUNKS: Final = 50_000
"""Up to so many chunks, a count is quick enough to be made when somebody asks."""


class Counts(msgspec.Struct, frozen=True):
    """Chunks that hold data, by what is left of them."""

    healthy: int = 0
    degraded: int = 0
    at_risk: int = 0
    lost: int = 0


def available(chunk: Chunk, alive: Callable[[DiskId], bool]) -> int:
    """Different fragments of a chunk that can be read now."""
    return len(
        {
            fragment.index
            for fragment in chunk.fragments
            if fragment.state is FragmentState.GOOD and alive(fragment.disk)
        }
    )


class _Tally:
    __slots__ = ("at_risk", "degraded", "healthy", "lost")

    def __init__(self) -> None:
        self.healthy = self.degraded = self.at_risk = self.lost = 0

    def add(self, chunk: Chunk, alive: Callable[[DiskId], bool]) -> None:
        if chunk.state is ChunkState.DOOMED:
            return
        left = available(chunk, alive)
        if left >= chunk.k + chunk.m:
            self.healthy += 1
        elif left > chunk.k:
            self.degraded += 1
        elif left == chunk.k:
            self.at_risk += 1
        elif chunk.length:
            self.lost += 1

    def counts(self) -> Counts:
        return Counts(self.healthy, self.degraded, self.at_risk, self.lost)


class Health:
    """The last count, and how to make the next one."""

    def __init__(self, reader: Reader, alive: Callable[[DiskId], bool]) -> None:
        self._reader = reader
        self._alive = alive
        self.counts = Counts()

    async def count(self, pause: Callable[[], Awaitable[None]]) -> Counts:
        """Walk all chunks; `pause` is awaited between slices."""
        tally = _Tally()
        after: ChunkId = 0
        while True:
            rows = self._reader.scan(chunk_key(after + 1), prefix_end(CHUNK))
            chunks = [decode_chunk(value) for _, value in islice(rows, SLICE_CHUNKS)]
            for chunk in chunks:
                tally.add(chunk, self._alive)
            await pause()
            if len(chunks) < SLICE_CHUNKS:
                self.counts = tally.counts()
                return self.counts
            after = chunks[-1].chunk
