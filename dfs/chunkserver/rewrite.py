"""Rewrites live bytes of sealed chunks into a new one: see `RewriteChunk`.

    source chunks -> blocks, a range at a time -> decoded -> pieces of live bytes, in order
                  -> cut into new blocks -> encoded -> appended to all targets -> sealed

While one range is encoded and written, the next is read; more is never in memory. The new blocks
follow from the request and the source chunks alone: the same request makes the same ones again.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from dfs.chunkserver.ahead import one_ahead
from dfs.chunkserver.pace import Rate
from dfs.chunkserver.sources import Block, Sources
from dfs.chunkserver.targets import Targets
from dfs.core.block import BLOCK_BYTES, EncodedBlock, decode_block, encode_block
from dfs.core.buffers import Buffer
from dfs.core.errors import CorruptError, FragmentError
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.messages import RewriteChunk, RewritePart, RewrittenChunk
from dfs.wire.pool import Pool

RANGE_BYTES: Final = 4 * 1024 * 1024
"""Raw bytes gathered at a time."""
GAP_BYTES: Final = 256 * 1024
"""Dead bytes up to so many are read along: cheaper than another request."""
PACK_BYTES: Final = 64 * 1024
"""Shorter pieces share blocks; longer ones are blocks of their own, as clients have it."""


async def rewrite(request: RewriteChunk, pool: Pool, workers: Workers) -> RewrittenChunk:
    """Raises DfsError; what was written by then is of no use, and the master's to delete."""
    targets = Targets(pool, request.chunk, Redundancy(request.k, request.m), request.targets)
    readers = [
        _Reader(
            Sources(pool, workers, each.chunk, Redundancy(each.k, each.m), each.sources),
            each.parts,
            workers,
        )
        for each in request.contents
    ]
    writer = _Writer(request, targets, workers)
    await _transfer(readers, writer, Rate(request.rate))
    live = sum(part.length for each in request.contents for part in each.parts)
    if writer.length != live:
        raise AssertionError(f"{writer.length} bytes were written of {live}")
    await targets.seal(writer.length)
    bad = [
        (reader.sources.chunk, disk, reason)
        for reader in readers
        for disk, reason in sorted(reader.sources.bad.items())
    ]
    return RewrittenChunk(writer.length, targets.lost, targets.stored_bytes, tuple(bad))


async def _transfer(readers: Sequence["_Reader"], writer: "_Writer", rate: Rate) -> None:
    """Read all that is live, and write it; one range ahead."""

    async def read() -> AsyncGenerator[list[memoryview], None]:
        for reader in readers:
            while not reader.done:
                before = reader.sources.read_bytes
                yield await reader.read()
                await rate.spend(reader.sources.read_bytes - before)

    await one_ahead(read(), writer.write)
    await writer.finish()


class _Reader:
    """Goes through the live parts of one source chunk."""

    def __init__(self, sources: Sources, parts: Sequence[RewritePart], workers: Workers) -> None:
        self.sources = sources
        self._parts = parts
        self._next = 0
        """The first part that was not read to its end,"""
        self._position = 0
        """up to this raw byte of the chunk."""
        self._workers = workers

    @property
    def done(self) -> bool:
        return self._next == len(self._parts)

    async def read(self) -> list[memoryview]:
        """The live bytes of the next range; it ends where a block does, so that none is cut.

        Raises:
            FragmentError: they cannot be had.
        """
        blocks = await self.sources.gather(*self._range())
        pieces = await self._workers.run(self._extract, blocks)
        self._position = blocks[-1].header.raw_end
        while not self.done and _end(self._parts[self._next]) <= self._position:
            self._next += 1
        return pieces

    def _range(self) -> tuple[int, int]:
        parts, first = self._parts, self._next
        start = max(self._position, parts[first].offset)
        limit = start + RANGE_BYTES
        end = min(_end(parts[first]), limit)
        for number in range(first + 1, len(parts)):
            part = parts[number]
            if part.offset >= limit or part.offset - end > GAP_BYTES:
                break
            end = min(_end(part), limit)
        return start, end

    def _extract(self, blocks: Sequence[Block]) -> list[memoryview]:
        """Decode what is live; runs in a thread."""
        pieces: list[memoryview] = []
        parts, number = self._parts, self._next
        for block in blocks:
            header = block.header
            raw: memoryview | None = None
            while number < len(parts) and parts[number].offset < header.raw_end:
                part = parts[number]
                begin = max(part.offset, header.raw_offset, self._position)
                end = min(_end(part), header.raw_end)
                if begin < end:
                    raw = raw or self._decode(block)
                    piece = raw[begin - header.raw_offset : end - header.raw_offset]
                    if len(piece) < PACK_BYTES:
                        # It may wait for others of its block: not with all that was around it.
                        piece = memoryview(bytes(piece))
                    pieces.append(piece)
                if _end(part) > header.raw_end:
                    break
                number += 1
        return pieces

    def _decode(self, block: Block) -> memoryview:
        try:
            raw = decode_block(block.header, block.payloads, self.sources.redundancy)
        except CorruptError as error:
            raise FragmentError(
                f"chunk {self.sources.chunk}: {error.message}, though each piece matches its "
                "checksum",
                hint="it was damaged before it was stored, and cannot be rewritten",
            ) from error
        return memoryview(raw)


class _Writer:
    """Cuts, encodes and appends."""

    def __init__(self, request: RewriteChunk, targets: Targets, workers: Workers) -> None:
        self.length = 0
        """Raw bytes written."""
        self._request = request
        self._targets = targets
        self._workers = workers
        self._cutter = Cutter()
        self._blocks = 0

    async def write(self, pieces: Sequence[memoryview]) -> None:
        await self._append(self._cutter.cut(pieces))

    async def finish(self) -> None:
        await self._append(self._cutter.rest())

    async def _append(self, raws: Sequence[list[memoryview]]) -> None:
        if raws:
            encoded = await self._workers.run(self._encode, raws)
            await self._targets.append(encoded)
            self._blocks += len(encoded)
            self.length = encoded[-1].raw_offset + encoded[-1].raw_length

    def _encode(self, raws: Sequence[list[memoryview]]) -> list[EncodedBlock]:
        request = self._request
        encoded = []
        offset = self.length
        for index, pieces in enumerate(raws, self._blocks):
            raw: Buffer = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            encoded.append(
                encode_block(
                    request.chunk,
                    index,
                    offset,
                    raw,
                    redundancy=Redundancy(request.k, request.m),
                    level=request.compression,
                )
            )
            offset += len(raw)
        return encoded


class Cutter:
    """Cuts a stream of pieces into blocks, each of one or more pieces; the order stays."""

    def __init__(self) -> None:
        self._packed: list[memoryview] = []
        self._size = 0

    def cut(self, pieces: Sequence[memoryview]) -> list[list[memoryview]]:
        """The blocks that these pieces complete."""
        blocks: list[list[memoryview]] = []
        for piece in pieces:
            size = len(piece)
            if self._size + size > BLOCK_BYTES or size >= PACK_BYTES:
                blocks += self.rest()
            if size < PACK_BYTES:
                self._packed.append(piece)
                self._size += size
            else:
                blocks += [
                    [piece[start : start + BLOCK_BYTES]] for start in range(0, size, BLOCK_BYTES)
                ]
        return blocks

    def rest(self) -> list[list[memoryview]]:
        """The block that waits for more, if there is one."""
        packed, self._packed = self._packed, []
        self._size = 0
        return [packed] if packed else []


def _end(part: RewritePart) -> int:
    return part.offset + part.length
