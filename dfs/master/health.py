"""How many chunks are healthy, degraded, at risk or lost.

Only chunks that may lack something are looked at, whatever the size of the cluster: those in the
wanting table, the OPEN ones, and those on disks that cannot be read now. All others are healthy. A
count never holds the event loop for longer than a slice, and takes its time where much is away;
`Health.counts` is the last full count.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator
from itertools import islice
from typing import Final

import msgspec

from dfs.core.chunk import Chunk, ChunkState, FragmentState
from dfs.core.ids import ChunkId, DiskId
from dfs.master.fragments import is_whole
from dfs.master.keyspace import (
    CHUNK_BY_SESSION,
    FRAGMENT_BY_DISK,
    WANTING,
    Reader,
    get_chunks,
    get_counters,
    key_id,
    scan_prefix,
    second_id,
    u64,
)

SLICE_CHUNKS: Final = 512
"""Chunks looked at in one go: a few milliseconds."""

PROMPT_CHUNKS: Final = 4 * SLICE_CHUNKS
"""As long as no more have to be looked at, a count is made when somebody asks."""


class Counts(msgspec.Struct, frozen=True):
    """Chunks that hold data, by what is left of them."""

    healthy: int = 0
    degraded: int = 0
    at_risk: int = 0
    lost: int = 0

    @property
    def bad(self) -> int:
        """Those that are not healthy."""
        return self.degraded + self.at_risk + self.lost


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
    """Of chunks that are not healthy."""

    __slots__ = ("at_risk", "degraded", "empty", "lost")

    def __init__(self) -> None:
        self.degraded = self.at_risk = self.lost = 0
        self.empty = 0
        """Unreadable, and nothing is in them."""

    def add(self, chunk: Chunk, alive: Callable[[DiskId], bool]) -> None:
        left = available(chunk, alive)
        if left >= chunk.width:
            return
        if left > chunk.k:
            self.degraded += 1
        elif left == chunk.k:
            self.at_risk += 1
        elif chunk.length:
            self.lost += 1
        else:
            self.empty += 1

    def counts(self, chunks: int) -> Counts:
        """`chunks`: all OPEN and SEALED ones. What changed during the count may be in it twice."""
        healthy = max(0, chunks - self.bad - self.empty)
        return Counts(healthy, self.degraded, self.at_risk, self.lost)

    @property
    def bad(self) -> int:
        return self.degraded + self.at_risk + self.lost


class Health:
    """The last count, and how to make the next one."""

    def __init__(self, reader: Reader, away: Callable[[], Collection[DiskId]]) -> None:
        """`away`: the disks that cannot be read now."""
        self._reader = reader
        self._away = away
        self.counts = Counts()
        self.is_prompt = True
        """The last count did not have to look at more than `PROMPT_CHUNKS`."""

    async def count(self, pause: Callable[[], Awaitable[None]], *, most: int | None = None) -> bool:
        """Count; `pause` is awaited between slices.

        False: it gave up, since more than `most` chunks would have to be looked at.
        """
        away = frozenset(self._away())
        tally = _Tally()
        looked_at = 0
        for prefix, id_of, counts_here in _sources(away):
            for keys in self._slices(prefix):
                for chunk in get_chunks(self._reader, map(id_of, keys)):
                    if chunk is not None and counts_here(chunk):
                        tally.add(chunk, lambda disk: disk not in away)
                looked_at += len(keys)
                if most is not None and looked_at > most:
                    self.is_prompt = False
                    return False
                if tally.bad > self.counts.bad:
                    # It takes its time, and people should know as soon as possible.
                    self.counts = tally.counts(self._held())
                await pause()
        self.is_prompt = looked_at <= PROMPT_CHUNKS
        self.counts = tally.counts(self._held())
        return True

    def _held(self) -> int:
        """Chunks that hold data, or may soon."""
        counters = get_counters(self._reader)
        return counters.chunks - counters.chunks_doomed - counters.chunks_retired

    def _slices(self, prefix: bytes) -> Iterator[list[bytes]]:
        """The keys that begin with `prefix`. Between two slices the store may change."""
        after = b""
        while True:
            rows = scan_prefix(self._reader, prefix, after=after)
            keys = [key for key, _ in islice(rows, SLICE_CHUNKS)]
            if keys:
                yield keys
            if len(keys) < SLICE_CHUNKS:
                return
            after = keys[-1]


_Source = tuple[bytes, Callable[[bytes], ChunkId], Callable[[Chunk], bool]]


def _sources(away: Collection[DiskId]) -> Iterator[_Source]:
    """Where chunks that may lack something are listed: a prefix, the chunk of a key, and which
    chunks are counted there. No chunk is counted at two places."""
    yield WANTING, key_id, lambda _: True
    yield CHUNK_BY_SESSION, second_id, lambda chunk: chunk.state is ChunkState.OPEN
    for disk in sorted(away):

        def first_here(chunk: Chunk, disk: DiskId = disk) -> bool:
            if chunk.state is not ChunkState.SEALED or not is_whole(chunk):
                return False
            return disk == min(good.disk for good in chunk.good if good.disk in away)

        yield FRAGMENT_BY_DISK + u64(disk), second_id, first_here
