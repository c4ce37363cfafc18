"""Reads ranges of chunks through the block cache; requests for the same bytes share one fetch."""

from typing import Final

import trio

from dfs.client.answer import Slab
from dfs.client.block_cache import Block, BlockCache
from dfs.client.fetcher import FETCH_MAX_BYTES, Fetcher
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId

_PREFETCHES_MAX: Final = 8


class _Flight:
    """A range that is being fetched."""

    __slots__ = ("_waiting", "end", "slabs", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.slabs: list[Slab] | None = None
        """None after `wait`: it failed, and whoever needs it fetches it anew."""
        self._waiting: trio.Event | None = None

    async def wait(self) -> None:
        """Until it has ended."""
        if self._waiting is None:
            self._waiting = trio.Event()
        await self._waiting.wait()

    def landed(self) -> None:
        """Wake who waits."""
        if self._waiting is not None:
            self._waiting.set()


class Reader:
    """Owned by the client; used by all its open files."""

    def __init__(self, fetcher: Fetcher, cache: BlockCache, nursery: trio.Nursery) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._nursery = nursery
        self._flights: dict[ChunkId, list[_Flight]] = {}
        self._prefetches = 0

    async def read(self, chunk: ChunkId, offset: int, length: int) -> list[memoryview]:
        """Raw bytes [offset, offset + length) of a chunk, in parts that follow each other.

        Raises as `Fetcher.fetch`.
        """
        end = offset + length
        at = offset
        parts: list[memoryview] = []
        fetched: list[Block] = []
        while at < end:
            found = _find(fetched, at) or self._cache.get(chunk, at)
            if found is None:
                flight = self._flight_over(chunk, at)
                if flight is None:
                    flight = self._take_off(chunk, at, self._stop(chunk, at, end))
                    slabs = await self._fetch(chunk, flight)
                else:
                    await flight.wait()
                    slabs = flight.slabs or []
                fetched = [block for slab in slabs for block in slab.blocks]
                continue
            start, data = found
            part = data[at - start : end - start]
            parts.append(part)
            self._cache.was_read(chunk, start, len(part))
            at += len(part)
        return parts

    def has(self, chunk: ChunkId, offset: int, end: int) -> bool:
        """Whether all of a range is in the cache."""
        while offset < end:
            found = self._cache.get(chunk, offset)
            if found is None:
                return False
            offset = found[0] + len(found[1])
        return True

    def prefetch(self, chunk: ChunkId, offset: int, end: int, *, once: bool) -> None:
        """Fetch a range into the cache in the background, if it is not there yet.

        `once`: for a stream that will not come back to it.
        """
        while offset < end:
            found = self._cache.get(chunk, offset)
            flight = self._flight_over(chunk, offset)
            if found is not None:
                offset = found[0] + len(found[1])
            elif flight is not None:
                offset = flight.end
            else:
                break
        if offset < end and self._prefetches < _PREFETCHES_MAX:
            # On its way from now on: a read may come before the task has begun.
            flight = self._take_off(chunk, offset, self._stop(chunk, offset, end))
            self._prefetches += 1
            self._nursery.start_soon(self._prefetch, chunk, flight, once)

    async def _prefetch(self, chunk: ChunkId, flight: _Flight, once: bool) -> None:
        try:
            await self._fetch(chunk, flight, once=once)
        except DfsError:
            # The read that needs these bytes will find out for itself, and can report it.
            return
        finally:
            self._prefetches -= 1

    def _stop(self, chunk: ChunkId, start: int, end: int) -> int:
        """How far to fetch from `start`: to what is cached or on its way, and not too far."""
        end = min(self._cache.next_start(chunk, start, end), start + FETCH_MAX_BYTES)
        for flight in self._flights.get(chunk, ()):
            if start < flight.start < end:
                end = flight.start
        return end

    def _flight_over(self, chunk: ChunkId, offset: int) -> _Flight | None:
        for flight in self._flights.get(chunk, ()):
            if flight.start <= offset < flight.end:
                return flight
        return None

    def _take_off(self, chunk: ChunkId, start: int, end: int) -> _Flight:
        flight = _Flight(start, end)
        self._flights.setdefault(chunk, []).append(flight)
        return flight

    async def _fetch(self, chunk: ChunkId, flight: _Flight, *, once: bool = False) -> list[Slab]:
        try:
            slabs = await self._fetcher.fetch(chunk, flight.start, flight.end - flight.start)
            for slab in slabs:
                self._cache.put(chunk, slab.blocks, slab.size, once=once)
            flight.slabs = slabs
        finally:
            flights = self._flights[chunk]
            flights.remove(flight)
            if not flights:
                del self._flights[chunk]
            flight.landed()
        return slabs


def _find(blocks: list[Block], offset: int) -> Block | None:
    for start, data in blocks:
        if start <= offset < start + len(data):
            return start, data
    return None
