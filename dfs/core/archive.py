"""A backup of the metadata as a stream of bytes (FORMAT.md): written, checked and read in blocks.

    description | rows | rows | ... | end

Each block has a checksum of its own, and one of all blocks up to it: a stream that was cut,
mixed up or put together of two is noticed at the first wrong block. Pure; knows nothing of what
keys and values mean.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Final

import msgspec

from dfs.core.block import checksum, compress, decompress
from dfs.core.buffers import Buffer
from dfs.core.errors import ConfigError, CorruptError

MAGIC: Final = b"DFSB"
VERSION: Final = 1
HEADER_BYTES: Final = 48
BLOCK_BYTES: Final = 256 * 1024
"""Raw bytes at which a block of rows ends."""
RAW_MAX_BYTES: Final = 16 * 1024 * 1024
"""Of one block."""
LEVEL: Final = 3

_HEADER: Final = Struct("<4sBBBxIIIIQQ")
_CHECKSUM: Final = Struct("<Q")
_CODEC_RAW, _CODEC_ZSTD = 0, 1

_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[bytes]).decode


class Kind(IntEnum):
    DESCRIPTION = 1
    ROWS = 2
    END = 3


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is of. A msgpack map: names are never reused, unknown ones are ignored."""

    cluster: str
    """The cluster's UUID."""
    created_ns: int
    """By the clock of the master's machine."""
    dfs: str
    """The version that made it."""
    schema: int
    """Of the rows."""
    position: int
    """How far the master's log reached."""
    rows: int
    """About how many rows follow."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    rows: int


_decode_description = msgspec.msgpack.Decoder(Description).decode
_decode_end = msgspec.msgpack.Decoder(End).decode


class Block(msgspec.Struct, frozen=True):
    """A block whose checksums are right."""

    kind: Kind
    rows: int
    raw_length: int
    codec: int
    payload: bytes
    number: int

    def raw(self) -> bytes:
        """Raises CorruptError."""
        if self.codec == _CODEC_RAW:
            return self.payload
        return decompress(self.payload, self.raw_length, f"block {self.number} of the backup")

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a block of rows. Raises CorruptError."""
        try:
            flat = _decode_rows(self.raw())
        except msgspec.DecodeError as error:
            raise CorruptError(
                f"block {self.number} of the backup holds no rows: {error}"
            ) from error
        if len(flat) != 2 * self.rows:
            raise CorruptError(f"block {self.number} of the backup has another number of rows")
        return zip(flat[::2], flat[1::2], strict=True)


class ArchiveWriter:
    """Writes an archive to `write`, in blocks."""

    def __init__(self, write: Callable[[bytes], object], description: Description) -> None:
        self._write = write
        self._chain = 0
        self._number = 0
        self._rows = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._put(Kind.DESCRIPTION, _encode(description), 0)

    def add(self, key: bytes, value: bytes) -> None:
        self._pending += (key, value)
        self._pending_bytes += len(key) + len(value)
        if self._pending_bytes >= BLOCK_BYTES:
            self._flush()

    def finish(self) -> None:
        """The end: without it, what was written counts as cut short."""
        self._flush()
        self._put(Kind.END, _encode(End(rows=self._rows)), 0)

    def _flush(self) -> None:
        if self._pending:
            rows = len(self._pending) // 2
            self._rows += rows
            self._put(Kind.ROWS, _encode(self._pending), rows)
            self._pending, self._pending_bytes = [], 0

    def _put(self, kind: Kind, raw: bytes, rows: int) -> None:
        packed = compress(raw, LEVEL)
        codec, payload = (_CODEC_RAW, raw) if packed is None else (_CODEC_ZSTD, packed)
        self._chain = _chained(self._chain, payload)
        head = _HEADER.pack(
            MAGIC, VERSION, kind, codec, self._number, rows, len(raw), len(payload),
            checksum(payload), self._chain,
        )  # fmt: skip
        self._write(head + _CHECKSUM.pack(checksum(head)) + payload)
        self._number += 1


def _chained(chain: int, payload: Buffer) -> int:
    """The checksum of all up to a block, from that of all before it."""
    return checksum(payload, chain)


class ArchiveReader:
    """Takes an archive as it comes, in pieces of any size, and hands out its blocks."""

    def __init__(self) -> None:
        self.description: Description | None = None
        self.rows = 0
        """In blocks so far."""
        self.ended = False
        self._buffer = bytearray()
        self._chain = 0
        self._number = 0

    def feed(self, data: Buffer) -> list[Block]:
        """The blocks that are whole with these bytes; all their checksums have been verified.

        Raises:
            ConfigError: this is no backup, or one of a newer version.
            CorruptError: it is damaged.
        """
        self._buffer += data
        blocks = []
        at = 0
        while (block := self._parse(at)) is not None:
            at += HEADER_BYTES + len(block.payload)
            self._take(block)
            blocks.append(block)
        del self._buffer[:at]
        return blocks

    def finish(self) -> None:
        """There are no more bytes. Raises CorruptError where there should be."""
        if not self.ended:
            raise CorruptError(
                f"the backup is cut short: it ends in block {self._number}, "
                "and its last block is missing"
            )

    def _parse(self, at: int) -> Block | None:
        buffer = self._buffer
        start = bytes(buffer[at : at + 5])
        if start[:4] != MAGIC[: len(start[:4])] and not self._number:
            raise ConfigError("this is no backup of dfs metadata")
        if len(buffer) - at < HEADER_BYTES:
            if self.ended and len(buffer) > at:
                raise self._corrupt("something follows its end")
            return None
        head = bytes(buffer[at : at + HEADER_BYTES - _CHECKSUM.size])
        (sum_of_head,) = _CHECKSUM.unpack_from(buffer, at + len(head))
        if start[4] > VERSION and start[:4] == MAGIC:
            raise ConfigError(
                f"the backup has version {start[4]}, this dfs reads versions up to {VERSION}",
                hint="restore it with the version of dfs that made it",
            )
        if checksum(head) != sum_of_head:
            raise self._corrupt("its header is damaged")
        magic, _, kind, codec, number, rows, raw_length, length, sum_of_payload, chain = (
            _HEADER.unpack(head)
        )
        if magic != MAGIC or number != self._number or self.ended:
            raise self._corrupt("it is not the block that follows")
        if (
            not 0 < raw_length <= RAW_MAX_BYTES
            or not 0 < length <= raw_length
            or codec not in (_CODEC_RAW, _CODEC_ZSTD)
            or kind not in set(Kind)
        ):
            raise self._corrupt("its header holds impossible values")
        payload_at = at + HEADER_BYTES
        if len(buffer) < payload_at + length:
            return None
        payload = bytes(buffer[payload_at : payload_at + length])
        if checksum(payload) != sum_of_payload:
            raise self._corrupt("it does not match its checksum")
        if _chained(self._chain, payload) != chain:
            raise self._corrupt("it does not belong to what is before it")
        return Block(Kind(kind), rows, raw_length, codec, payload, number)

    def _take(self, block: Block) -> None:
        self._chain = _chained(self._chain, block.payload)
        if (block.kind is Kind.DESCRIPTION) != (block.number == 0):
            raise self._corrupt("it is out of place")
        self._number += 1
        self.rows += block.rows
        try:
            if block.kind is Kind.DESCRIPTION:
                self.description = _decode_description(block.raw())
            elif block.kind is Kind.END:
                self.ended = True
                if _decode_end(block.raw()).rows != self.rows:
                    raise self._corrupt("it promises another number of rows")
        except msgspec.DecodeError as error:
            raise self._corrupt(f"it cannot be read ({error})") from error

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"the backup is damaged in block {self._number}: {what}",
            hint="use another backup, or another copy of this one",
        )
