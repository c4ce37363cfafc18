"""What one source has of a range: its records verified, and decoded where each is a whole block.

Pure; all of it may run in any thread.
"""

from typing import Final

from dfs.client.block_cache import Block
from dfs.core.block import (
    CODEC_RAW,
    HEADER_BYTES,
    Record,
    RecordHeader,
    decode_block,
    parse_header,
    take_record,
)
from dfs.core.chunk import Chunk
from dfs.core.errors import CorruptError
from dfs.core.redundancy import Redundancy

INLINE_BYTES: Final = 256 * 1024
"""Answers up to this size are verified by who receives them; a hop to a thread would cost more."""


class Slab:
    """Blocks that share memory: `size` bytes of it."""

    __slots__ = ("blocks", "size")

    def __init__(self, blocks: list[Block], size: int) -> None:
        self.blocks = blocks
        self.size = size


class Answer:
    """The good records of one answer; with k = 1 also what they decode to."""

    __slots__ = ("problem", "records", "slabs")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.slabs: list[Slab] = []
        self.problem: CorruptError | None = None
        """What is wrong with the others."""


def verify(payload: memoryview, chunk: Chunk, index: int) -> Answer:
    """The good records of a payload; with k = 1 decoded. Runs in any thread."""
    answer = Answer()
    redundancy = Redundancy(chunk.k, chunk.m)
    whole = chunk.k == 1
    raw_blocks: list[Block] = []
    position, end = 0, len(payload)
    while position < end:
        try:
            header = parse_header(
                payload, chunk=chunk.chunk, content_index=index, position=position
            )
        except CorruptError as error:
            # Where the next record starts is not known.
            answer.problem = error
            break
        try:
            record = take_record(payload, position, header, chunk=chunk.chunk)
            if whole:
                raw = decode_block(header, {0: record.payload}, redundancy)
                if header.codec == CODEC_RAW:
                    raw_blocks.append((header.raw_offset, record.payload))
                else:
                    block = (header.raw_offset, memoryview(raw))
                    answer.slabs.append(Slab([block], header.raw_length))
            answer.records.append(record)
        except CorruptError as error:
            answer.problem = error
        position += HEADER_BYTES + header.payload_length
    if raw_blocks:
        answer.slabs.append(Slab(raw_blocks, end))
    return answer


def is_cheap(payload: memoryview, chunk: Chunk, index: int) -> bool:
    """Whether to verify it takes less than a hop to a thread, as far as the first record tells."""
    if len(payload) <= INLINE_BYTES:
        return True
    try:
        header = parse_header(payload, chunk=chunk.chunk, content_index=index)
    except CorruptError:
        return True
    return header.codec == CODEC_RAW or chunk.k > 1


def uncovered(headers: list[RecordHeader], offset: int, end: int) -> tuple[int, int] | None:
    """The hull of what blocks leave uncovered of [offset, end); None when nothing."""
    first: int | None = None
    last = offset
    at = offset
    for header in sorted(headers, key=lambda header: header.raw_offset):
        if header.raw_offset >= end:
            break
        if header.raw_offset > at:
            first = at if first is None else first
            last = header.raw_offset
        at = max(at, header.raw_end)
    if at < end:
        first = at if first is None else first
        last = end
    return None if first is None else (first, last)
