"""The frame of a fragment file as bytes: file header, index footer, file name (FORMAT.md).

Pure: bytes in, values out. The records between header and footer are `dfs.core.block`'s.
"""

import operator
import re
import sys
from array import array
from bisect import bisect_left, bisect_right
from struct import Struct
from typing import Final
from uuid import UUID

import msgspec

from dfs.core.block import BLOCKS_MAX, HEADER_BYTES, RecordHeader, checksum
from dfs.core.chunk import CHUNK_MAX_BYTES
from dfs.core.errors import CorruptError
from dfs.core.ids import ChunkId
from dfs.core.redundancy import DATA_MAX, PARITY_MAX, REPLICAS_MAX

FILE_HEADER_BYTES: Final = 64
TAIL_BYTES: Final = 40

_FILE_MAGIC: Final = b"DFSFRAG\0"
_INDEX_MAGIC: Final = b"DFSINDEX"
_FILE_VERSION: Final = 1
_INDEX_VERSION: Final = 1
_FILE: Final = Struct("<8sHBBB3xQ16s16x")
_TAIL: Final = Struct("<8sH2xIIIQ")
_CHECKSUM: Final = Struct("<Q")
_CHUNK_ID_MAX: Final = (1 << 64) - 1
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{2})(?:\.open|-([0-9a-f]{8})\.sealed)", re.ASCII)


class FragmentHeader(msgspec.Struct, frozen=True):
    """Whose bytes a fragment file holds."""

    cluster: UUID
    chunk: ChunkId
    index: int
    k: int
    m: int

    @property
    def content_index(self) -> int:
        """What the records' checksums are seeded with: all copies of a block are identical."""
        return 0 if self.k == 1 else self.index

    def encode(self) -> bytes:
        fields = _FILE.pack(
            _FILE_MAGIC, _FILE_VERSION, self.index, self.k, self.m, self.chunk, self.cluster.bytes
        )
        return fields + _CHECKSUM.pack(checksum(fields))


def possible(k: int, m: int, index: int) -> bool:
    """Whether there is a redundancy (k, m) and it has a fragment `index`."""
    if k == 1:
        return 0 <= m < REPLICAS_MAX and 0 <= index <= m
    return 2 <= k <= DATA_MAX and 1 <= m <= PARITY_MAX and 0 <= index < k + m


def decode_file_header(data: bytes) -> FragmentHeader:
    """Raises CorruptError where `data` does not start with a file header this program knows."""
    if len(data) < FILE_HEADER_BYTES:
        raise CorruptError("the fragment file ends within its header")
    magic, version, index, k, m, chunk, cluster = _FILE.unpack_from(data)
    if magic != _FILE_MAGIC:
        raise CorruptError("the file is no fragment file")
    (stamp,) = _CHECKSUM.unpack_from(data, _FILE.size)
    if checksum(data[: _FILE.size]) != stamp:
        raise CorruptError("the fragment file's header is damaged")
    if version != _FILE_VERSION:
        raise CorruptError(f"fragment file version {version} is unknown to this program")
    if not possible(k, m, index):
        raise CorruptError(f"the fragment file claims to be fragment {index} of {k}+{m}")
    return FragmentHeader(UUID(bytes=cluster), chunk, index, k, m)


class BlockIndex:
    """Where the blocks of one fragment lie: block i covers raw bytes up to `raw_ends[i]` of the
    chunk, its record takes file bytes up to `file_ends[i]`, each from the end of the one before.

    One thread may add while others look up: a block counts once its raw end is there, which is
    added last.
    """

    __slots__ = ("file_ends", "raw_ends")

    def __init__(self) -> None:
        self.raw_ends = array("I")
        self.file_ends = array("I")

    def __len__(self) -> int:
        return len(self.raw_ends)

    @property
    def length(self) -> int:
        """Raw bytes covered."""
        return self.raw_ends[-1] if self.raw_ends else 0

    @property
    def file_end(self) -> int:
        """Where the next record goes in the file."""
        count = len(self.raw_ends)
        return self.file_ends[count - 1] if count else FILE_HEADER_BYTES

    def add(self, header: RecordHeader) -> None:
        """Add the next block. The caller has checked that it is the next (`follows`)."""
        self.file_ends.append(self.file_end + HEADER_BYTES + header.payload_length)
        self.raw_ends.append(header.raw_end)

    def follows(self, header: RecordHeader) -> bool:
        return header.block_index == len(self) and header.raw_offset == self.length

    def start_of(self, block: int) -> int:
        """Where the record of `block` starts in the file."""
        return self.file_ends[block - 1] if block else FILE_HEADER_BYTES

    def locate(self, offset: int, length: int, limit_bytes: int) -> tuple[int, int, int]:
        """(file offset, bytes, records) of the records that overlap raw [offset, offset + length).

        They are always one run. It is cut to `limit_bytes`, but not to less than one record.
        (0, 0, 0) where there are none.
        """
        count = len(self.raw_ends)
        first = bisect_right(self.raw_ends, offset, 0, count)
        if first >= count or length <= 0:
            return 0, 0, 0
        last = min(bisect_left(self.raw_ends, offset + length, first, count), count - 1)
        start = self.start_of(first)
        if self.file_ends[last] - start > limit_bytes:
            fitting = bisect_right(self.file_ends, start + limit_bytes, first, last)
            last = max(first, fitting - 1)
        return start, self.file_ends[last] - start, last - first + 1

    def blocks_within(self, length: int) -> int:
        """How many blocks it takes to cover the first `length` raw bytes (of those there are)."""
        return bisect_left(self.raw_ends, length) + 1 if length > 0 else 0

    def first(self, blocks: int) -> "BlockIndex":
        """A new index of the first `blocks` blocks: this one may be in use by a reader."""
        index = BlockIndex()
        index.raw_ends = self.raw_ends[:blocks]
        index.file_ends = self.file_ends[:blocks]
        return index


def encode_footer(index: BlockIndex, header: FragmentHeader) -> bytes:
    """The index footer of a sealed fragment."""
    entries = _little(index.raw_ends) + _little(index.file_ends)
    fields = _TAIL.pack(
        _INDEX_MAGIC, _INDEX_VERSION, len(index), index.length, index.file_end, checksum(entries)
    )
    return entries + fields + _CHECKSUM.pack(checksum(fields, _seed(header)))


def footer_bytes(blocks: int) -> int:
    return blocks * 8 + TAIL_BYTES


def decode_tail(tail: bytes, header: FragmentHeader, file_size: int) -> int:
    """The number of blocks, from the last `TAIL_BYTES` of a file of `file_size` bytes.

    Raises:
        CorruptError: there is no intact footer of this fragment.
    """
    magic, version, blocks, _, records_end, _ = _unpack_tail(tail, header)
    if magic != _INDEX_MAGIC or version != _INDEX_VERSION:
        raise CorruptError(f"index version {version} is unknown to this program")
    if blocks > BLOCKS_MAX or records_end + footer_bytes(blocks) != file_size:
        raise CorruptError("the index does not fit the file")
    return int(blocks)


def decode_footer(footer: bytes, header: FragmentHeader) -> BlockIndex:
    """The index, from a whole footer whose tail `decode_tail` has accepted.

    Raises:
        CorruptError: it is damaged or does not add up.
    """
    tail = footer[-TAIL_BYTES:]
    _, _, blocks, length, records_end, entries_xxh3 = _unpack_tail(tail, header)
    entries = footer[:-TAIL_BYTES]
    if len(entries) != blocks * 8 or checksum(entries) != entries_xxh3:
        raise CorruptError("the index is damaged")
    index = BlockIndex()
    index.raw_ends = _from_little(entries[: blocks * 4])
    index.file_ends = _from_little(entries[blocks * 4 :])
    if (
        index.length != length
        or length > CHUNK_MAX_BYTES
        or index.file_end != records_end
        or not _rises(index.raw_ends, 0)
        or not _rises(index.file_ends, FILE_HEADER_BYTES + HEADER_BYTES)
    ):
        raise CorruptError("the index does not add up")
    return index


def _unpack_tail(tail: bytes, header: FragmentHeader) -> tuple[bytes, int, int, int, int, int]:
    if len(tail) != TAIL_BYTES:
        raise CorruptError("the file is too short for an index")
    (stamp,) = _CHECKSUM.unpack_from(tail, _TAIL.size)
    if checksum(tail[: _TAIL.size], _seed(header)) != stamp:
        raise CorruptError("there is no index, or it is damaged or of another fragment")
    magic, version, blocks, length, records_end, entries_xxh3 = _TAIL.unpack_from(tail)
    return magic, version, blocks, length, records_end, entries_xxh3


def _seed(header: FragmentHeader) -> int:
    return (header.chunk << 5 | header.index) & _CHUNK_ID_MAX


def _rises(ends: "array[int]", above: int) -> bool:
    return not ends or (ends[0] > above and all(map(operator.lt, ends, ends[1:])))


def _little(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_little(data: bytes) -> "array[int]":
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


# ------------------------------------------------------------------ names


class FragmentName(msgspec.Struct, frozen=True):
    """What a fragment file's name says, so that a start needs to open none of them."""

    chunk: ChunkId
    index: int
    length: int | None
    """Raw bytes of the chunk covered; None while open."""

    def __str__(self) -> str:
        stem = f"{self.chunk:016x}-{self.index:02x}"
        return f"{stem}.open" if self.length is None else f"{stem}-{self.length:08x}.sealed"


def parse_name(name: str) -> FragmentName | None:
    """None where it is not the name of a fragment file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    length = None if match[3] is None else int(match[3], 16)
    return FragmentName(int(match[1], 16), int(match[2], 16), length)


DIRECTORIES: Final = 256
"""Sub-directories the fragments of a disk are spread over."""


def directory_of(chunk: ChunkId) -> str:
    """The sub-directory of a chunk's fragment: two hexadecimal digits."""
    return f"{checksum(chunk.to_bytes(8, 'little')) % DIRECTORIES:02x}"
