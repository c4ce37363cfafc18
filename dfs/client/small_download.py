"""Small files of a download: fetched by where their bytes lie, written in batches."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import local_files
from dfs.client.block_cache import Block
from dfs.client.fetcher import StaleExtentError
from dfs.client.interval_map import IntervalMap
from dfs.client.local_files import NewFile
from dfs.client.together import together
from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId
from dfs.core.inode import Extent

if TYPE_CHECKING:
    from dfs.client.download import Download, Wanted

SMALL_BYTES: Final = 1024 * 1024
_BATCH_FILES: Final = 512
_BATCH_BYTES: Final = 8 * 1024 * 1024
_BATCHES_AT_ONCE: Final = 3
_FETCH_BYTES: Final = 4 * 1024 * 1024
_FETCHES_AT_ONCE: Final = 8
_GAP_BYTES: Final = 256 * 1024
"""Bytes nobody wants that are fetched along, rather than asking twice."""


@dataclass(slots=True)
class _Batch:
    files: list["Wanted"] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Range:
    chunk: ChunkId
    start: int
    end: int


class SmallFiles:
    """Takes files one by one; batches run in the download's nursery."""

    def __init__(self, job: "Download", nursery: trio.Nursery) -> None:
        self.failure: Exception | None = None
        """What ended the download."""
        self._job = job
        self._nursery = nursery
        self._batch = _Batch()
        self._limit = trio.Semaphore(_BATCHES_AT_ONCE)
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def add(self, wanted: "Wanted") -> None:
        """Take a file; waits while enough of them are under way."""
        self._batch.files.append(wanted)
        self._batch.size += wanted.inode.size
        if len(self._batch.files) >= _BATCH_FILES or self._batch.size >= _BATCH_BYTES:
            await self._send()

    async def finish(self) -> None:
        """Send what is left and wait for all."""
        if self._batch.files:
            await self._send()
        while self._running:
            await self._idle.park()

    async def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        await self._limit.acquire()
        self._running += 1
        self._nursery.start_soon(self._run, batch.files)

    async def _run(self, files: list["Wanted"]) -> None:
        try:
            await self._download(files)
        except Exception as error:
            self.failure = self.failure or error
            self._nursery.cancel_scope.cancel()
        finally:
            self._running -= 1
            self._limit.release()
            self._idle.unpark_all()

    async def _download(self, files: list["Wanted"]) -> None:
        job = self._job
        fetched = _Fetched()
        extents: dict[int, tuple[Extent, ...]] = {}
        for number, wanted in enumerate(files):
            if wanted.extents is not None:
                extents[number] = wanted.extents
        missing = [number for number in range(len(files)) if number not in extents]
        failed: dict[int, DfsError] = {}

        async def ask(number: int) -> None:
            try:
                extents[number] = await self._extents(files[number])
            except DfsError as error:
                failed[number] = error

        await together([partial(ask, number) for number in missing], at_once=_FETCHES_AT_ONCE)
        ranges = _ranges([e for each in extents.values() for e in each])
        await together(
            [partial(self._fetch, each, fetched) for each in ranges], at_once=_FETCHES_AT_ONCE
        )
        ready: list[Wanted] = []
        new_files: list[NewFile] = []
        for number, wanted in enumerate(files):
            error = failed.get(number)
            parts: list[tuple[int, Buffer]] = []
            if error is None:
                try:
                    parts = fetched.parts(extents[number])
                except _MissingError:
                    # Some range it needs failed: alone it may do better, or say why.
                    try:
                        parts = await self._alone(wanted)
                    except DfsError as failure:
                        error = failure
            if error is not None:
                job.fail(wanted.remote, error)
                continue
            inode = wanted.inode
            ready.append(wanted)
            new_files.append(
                NewFile(wanted.path, inode.mode, inode.atime_ns, inode.mtime_ns, inode.size, parts)
            )
        results = await job.client.workers.run(local_files.write_whole, new_files)
        for wanted, problem in zip(ready, results, strict=True):
            if problem is not None:
                job.fail(wanted.path, problem)
            else:
                job.done(wanted)
                job.progress.bytes_done += wanted.inode.size
        job.tell()

    async def _extents(self, wanted: "Wanted") -> tuple[Extent, ...]:
        extents: list[Extent] = []
        offset = 0
        while True:
            reply = await self._job.client.meta.extents(wanted.inode.ino, offset)
            self._job.client.resolver.learn(reply.layout)
            extents += [e for e in reply.extents if e.file_offset < wanted.inode.size]
            if not reply.more or not reply.extents:
                return tuple(extents)
            offset = reply.extents[-1].end

    async def _fetch(self, wanted: _Range, fetched: "_Fetched") -> None:
        try:
            slabs = await self._job.client.fetcher.fetch(
                wanted.chunk, wanted.start, wanted.end - wanted.start
            )
        except DfsError:
            return  # those that need it find it missing
        for slab in slabs:
            fetched.add(wanted.chunk, slab.blocks)

    async def _alone(self, wanted: "Wanted") -> list[tuple[int, Buffer]]:
        """Fetch the bytes of one file, by its extents as they are now."""
        for last_try in (False, True):
            fetched = _Fetched()
            extents = await self._extents(wanted)
            try:
                for each in _ranges(list(extents)):
                    slabs = await self._job.client.fetcher.fetch(
                        each.chunk, each.start, each.end - each.start
                    )
                    for slab in slabs:
                        fetched.add(each.chunk, slab.blocks)
            except StaleExtentError:
                if last_try:
                    raise
            else:
                return fetched.parts(extents)
        raise AssertionError


class _MissingError(Exception):
    """Bytes that are needed were not fetched."""


class _Fetched:
    """Blocks by chunk and offset."""

    def __init__(self) -> None:
        self._chunks: dict[ChunkId, IntervalMap[memoryview]] = {}

    def add(self, chunk: ChunkId, blocks: list[Block]) -> None:
        known = self._chunks.setdefault(chunk, IntervalMap())
        for start, data in blocks:
            known.set(start, start + len(data), data)

    def parts(self, extents: tuple[Extent, ...]) -> list[tuple[int, Buffer]]:
        """The bytes of a file: (offset, bytes). Raises _MissingError."""
        parts: list[tuple[int, Buffer]] = []
        for extent in extents:
            known = self._chunks.get(extent.chunk)
            end = extent.chunk_offset + extent.length
            at = extent.chunk_offset
            for span in known.slices(at, end) if known is not None else ():
                if span.start != at:
                    raise _MissingError
                data = span.value[span.skip : span.skip + span.end - span.start]
                parts.append((extent.file_offset + span.start - extent.chunk_offset, data))
                at = span.end
            if at != end:
                raise _MissingError
        return parts


def _ranges(extents: list[Extent]) -> list[_Range]:
    """What to fetch: neighbours in one request, none larger than it may be."""
    ranges: list[_Range] = []
    for extent in sorted(extents, key=lambda e: (e.chunk, e.chunk_offset)):
        start, end = extent.chunk_offset, extent.chunk_offset + extent.length
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and last.chunk == extent.chunk
            and start <= last.end + _GAP_BYTES
            and max(end, last.end) - last.start <= _FETCH_BYTES
        ):
            ranges[-1] = _Range(extent.chunk, last.start, max(end, last.end))
        else:
            ranges.append(_Range(extent.chunk, start, end))
    return ranges
