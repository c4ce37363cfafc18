"""Rebuilds a fragment from other disks: see `RebuildFragment`.

While one range is put together and written, the next is read; more is never in memory.
"""

from collections.abc import AsyncGenerator, Sequence
from itertools import groupby
from typing import Final
from uuid import UUID

from dfs.chunkserver.ahead import one_ahead
from dfs.chunkserver.arrival import Arrival
from dfs.chunkserver.disk import Disk
from dfs.chunkserver.fragment_file import Batch
from dfs.chunkserver.fragment_format import FragmentHeader
from dfs.chunkserver.pace import Rate
from dfs.chunkserver.sources import Block, Sources
from dfs.chunkserver.verify import verify
from dfs.core.block import restore_records
from dfs.core.buffers import Buffer
from dfs.core.errors import CorruptError, FragmentError
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.messages import READ_MAX_BYTES, RebuildFragment, RebuiltFragment
from dfs.wire.pool import Pool

RANGE_BYTES: Final = 4 * 1024 * 1024
"""Asked of a source at a time; and so of each of k, as far as one request may ask for."""


async def rebuild(
    disk: Disk, request: RebuildFragment, pool: Pool, workers: Workers
) -> RebuiltFragment:
    """Raises DfsError: nothing has changed then."""
    header = FragmentHeader(
        UUID(disk.identity.cluster), request.chunk, request.index, request.k, request.m
    )
    disk.health.check()
    rate = Rate(request.rate)
    async with disk.arrivals.make(header) as arrival:
        stored = await _held(disk, header, request.length, rate)
        if stored is not None:
            return RebuiltFragment(stored, 0)
        there = disk.catalog.get(request.chunk)
        if request.keep and there is not None and there.index != request.index:
            raise FragmentError(
                f"disk {disk.path} holds fragment {there.index} of chunk {request.chunk}, which is "
                f"not replaced by fragment {request.index} while older metadata are in use",
                hint="see dfs admin confirm-restore",
            )
        sources = Sources(
            pool, workers, request.chunk, Redundancy(request.k, request.m), request.sources,
            index=header.content_index, urgent=request.urgent,
        )  # fmt: skip
        await _fill(disk, arrival, sources, request, workers, rate)
        await arrival.seal(request.length)
        await disk.adopt(arrival)
        bad = tuple(sorted(sources.bad.items()))
        return RebuiltFragment(arrival.file.stored_bytes, sources.read_bytes, bad)


async def _held(disk: Disk, header: FragmentHeader, length: int, rate: Rate) -> int | None:
    """Bytes of the file of this very fragment, if it is there, sealed and good."""
    name = disk.catalog.get(header.chunk)
    if name is None or name.index != header.index or name.length is None:
        return None
    verdict = await verify(disk, header.chunk, header.index, length, rate)
    if verdict.reason:
        return None
    try:
        fragment = await disk.fragment(header.chunk)
    except FragmentError:
        return None
    try:
        return fragment.file.stored_bytes if fragment.file.header == header else None
    finally:
        fragment.unpin()


async def _fill(
    disk: Disk,
    arrival: Arrival,
    sources: Sources,
    request: RebuildFragment,
    workers: Workers,
    rate: Rate,
) -> None:
    """Write all records of the fragment."""
    length = request.length
    step = min(request.k * RANGE_BYTES, READ_MAX_BYTES)

    async def read() -> AsyncGenerator[list[Block], None]:
        offset = 0
        while offset < length:
            before = sources.read_bytes
            blocks = await sources.gather(offset, min(offset + step, length))
            yield blocks
            offset = blocks[-1].header.raw_end
            await rate.spend(sources.read_bytes - before)

    async def write(blocks: list[Block]) -> None:
        batch = await workers.run(_restore, blocks, sources)
        await disk.traffic.turn(len(batch.payload), urgent=request.urgent)
        await arrival.append(batch)

    await one_ahead(read(), write)


def _restore(blocks: Sequence[Block], sources: Sources) -> Batch:
    """The records of the wanted fragment."""
    index = sources.index
    assert index is not None
    buffers: list[Buffer] = []
    for there, group in groupby(blocks, lambda block: index in block.records):
        if there:
            buffers += [block.records[index] for block in group]
            continue
        lost = [(block.header, block.payloads) for block in group]
        try:
            buffers += restore_records(sources.chunk, lost, sources.redundancy, index)
        except CorruptError as error:
            raise FragmentError(
                f"chunk {sources.chunk}: {error.message}, though each piece matches its checksum",
                hint="it was damaged before it was stored, and cannot be rebuilt",
            ) from error
    first = blocks[0].header.block_index
    return Batch(first, len(blocks), memoryview(b"".join(buffers)))
