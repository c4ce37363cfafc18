"""Blocks and records: how raw bytes of a chunk become what a disk stores, and back (FORMAT.md).

A block (up to `BLOCK_BYTES` raw, by custom) is compressed where that pays, split into the pieces
of its redundancy, and each piece is stored as one record: a header of `HEADER_BYTES`, then the
piece as payload. Writers encode, chunk servers verify what arrives, readers verify and decode, so
corruption anywhere between the two ends is noticed.

Everything here is pure and may be called from any thread. zstandard and xxhash live here only
(and xxhash in `dfs.wire.framing`).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import Struct
from typing import Final

import msgspec
import xxhash
import zstandard

from dfs.core import erasure
from dfs.core.buffers import Buffer
from dfs.core.chunk import BLOCK_MAX_BYTES, CHUNK_MAX_BYTES
from dfs.core.errors import CorruptError
from dfs.core.ids import ChunkId
from dfs.core.redundancy import Redundancy

BLOCK_BYTES: Final = 128 * 1024
"""Raw bytes writers put into a block."""

BLOCKS_MAX: Final = 1 << 20
"""Blocks a chunk holds at most: a writer of tiny blocks seals the chunk when it gets there."""

HEADER_BYTES: Final = 48
CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1

_MAGIC: Final = 0xDB0C
_VERSION: Final = 1
_HEADER: Final = Struct("<HBBIIIIIQQQ")
_HEADER_FIELDS: Final = Struct("<HBBIIIIIQQ")
_CHECKSUM: Final = Struct("<Q")
_CHECKED_BYTES: Final = _HEADER_FIELDS.size
_INDEX_BITS: Final = 5
"""Bits of a content index (at most k + m - 1 = 21) in the seed of a header's checksum."""

_RESTORED_TOGETHER: Final = 16
"""Blocks: fewer take more calls, more take memory that is new each time, and not in a cache."""
_PROBE_FROM_BYTES: Final = 32 * 1024
_PROBE_SAMPLE_BYTES: Final = 1024
_PROBE_SAMPLES: Final = 4

checksum = xxhash.xxh3_64_intdigest
"""XXH3 of a buffer, 64 bits: `checksum(buffer)` or `checksum(buffer, seed)`."""


class RecordHeader(msgspec.Struct, frozen=True, gc=False):
    """What a record says of itself. All its lengths are in bytes and have been bounds-checked."""

    block_index: int
    """Place of the block in its chunk, from 0, without gaps."""
    raw_offset: int
    """Where the block's first raw byte lies in the chunk."""
    raw_length: int
    encoded_length: int
    """The whole block after compression, before it is split into pieces."""
    payload_length: int
    """This record's piece."""
    codec: int
    raw_xxh3: int
    payload_xxh3: int

    @property
    def raw_end(self) -> int:
        return self.raw_offset + self.raw_length


class Record(msgspec.Struct, frozen=True, gc=False):
    header: RecordHeader
    payload: memoryview

    @property
    def length(self) -> int:
        """Bytes the record takes in a fragment."""
        return HEADER_BYTES + self.header.payload_length

    @property
    def intact(self) -> bool:
        """Whether the payload matches its checksum."""
        return checksum(self.payload) == self.header.payload_xxh3


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A block ready to be appended."""

    raw_offset: int
    raw_length: int
    block_index: int
    fragments: list[list[Buffer]]
    """[header, payload] by fragment index. With k = 1 all entries are one and the same list."""


class _Coders(threading.local):
    """zstd contexts: reused, because making one costs more than a small block; one set a thread."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_coders = _Coders()


def encode_block(
    chunk: ChunkId,
    block_index: int,
    raw_offset: int,
    raw: Buffer,
    *,
    redundancy: Redundancy,
    level: int | None,
) -> EncodedBlock:
    """Compress (zstd `level`, or None), checksum and split `raw` into records for all fragments.

    With k = 1 and raw that does not compress, the payload is `raw` itself: leave it unchanged
    until the records are sent.

    Raises:
        ValueError: empty or too long, or outside the chunk.
    """
    raw_length = len(raw)
    if not 0 < raw_length <= BLOCK_MAX_BYTES:
        raise ValueError(f"a block of {raw_length} bytes: 1 to {BLOCK_MAX_BYTES} are allowed")
    if not (0 <= block_index < BLOCKS_MAX and block_index <= raw_offset):
        raise ValueError(f"block {block_index} at {raw_offset}: no chunk has such a block")
    if raw_offset + raw_length > CHUNK_MAX_BYTES:
        raise ValueError(
            f"a block of {raw_length} bytes at {raw_offset} ends beyond the chunk's "
            f"{CHUNK_MAX_BYTES} bytes"
        )
    codec, encoded = CODEC_RAW, raw
    if level is not None and (smaller := compress(raw, level)) is not None:
        codec, encoded = CODEC_ZSTD, smaller
    encoded_length = len(encoded)
    raw_xxh3 = checksum(raw)

    def record(content_index: int, payload: Buffer, payload_xxh3: int) -> list[Buffer]:
        header = RecordHeader(
            block_index, raw_offset, raw_length, encoded_length,
            len(payload), codec, raw_xxh3, payload_xxh3,
        )  # fmt: skip
        return [_pack_header(chunk, content_index, header), payload]

    k, m = redundancy.k, redundancy.m
    fragments: list[list[Buffer]]
    if k == 1:
        payload_xxh3 = raw_xxh3 if codec == CODEC_RAW else checksum(encoded)
        fragments = [record(0, encoded, payload_xxh3)] * (m + 1)
    else:
        pieces = erasure.encode(encoded, k, m)
        fragments = [record(index, piece, checksum(piece)) for index, piece in enumerate(pieces)]
    return EncodedBlock(raw_offset, raw_length, block_index, fragments)


def parse_header(
    buffer: Buffer, *, chunk: ChunkId, content_index: int, position: int = 0
) -> RecordHeader:
    """The record header at `position` of `buffer`.

    `content_index` is the fragment's index, or 0 with k = 1 (all copies hold the same bytes).

    Raises:
        CorruptError: it is cut short, damaged, of another chunk or fragment, or breaks a bound.
    """
    if position + HEADER_BYTES > len(buffer):
        raise _corrupt(chunk, position, "the record header is cut short")
    (
        magic, version, codec, block_index, raw_offset, raw_length,
        encoded_length, payload_length, raw_xxh3, payload_xxh3, header_xxh3,
    ) = _HEADER.unpack_from(buffer, position)  # fmt: skip
    if magic != _MAGIC:
        raise _corrupt(chunk, position, "no record starts here")
    checked = buffer[position : position + _CHECKED_BYTES]
    if checksum(checked, _seed(chunk, content_index)) != header_xxh3:
        raise _corrupt(
            chunk, position, "the record header is damaged, or of another chunk or fragment"
        )
    if version != _VERSION:
        raise _corrupt(chunk, position, f"record version {version} is unknown to this program")
    if not (
        (encoded_length < raw_length if codec == CODEC_ZSTD else encoded_length == raw_length)
        and codec <= CODEC_ZSTD
        and 0 < payload_length <= encoded_length
        and raw_length <= BLOCK_MAX_BYTES
        and raw_offset + raw_length <= CHUNK_MAX_BYTES
        and block_index < BLOCKS_MAX
        and block_index <= raw_offset
    ):
        raise _corrupt(chunk, position, "the record header holds impossible numbers")
    return RecordHeader(
        block_index, raw_offset, raw_length, encoded_length,
        payload_length, codec, raw_xxh3, payload_xxh3,
    )  # fmt: skip


def parse_record(
    buffer: memoryview, position: int, *, chunk: ChunkId, content_index: int, verify_payload: bool
) -> Record:
    """The record at `position` of `buffer`; its payload is a view, not a copy.

    Raises:
        CorruptError: as `parse_header`, or the payload is cut short or damaged.
    """
    header = parse_header(buffer, chunk=chunk, content_index=content_index, position=position)
    return take_record(buffer, position, header, chunk=chunk, verify_payload=verify_payload)


def take_record(
    buffer: memoryview,
    position: int,
    header: RecordHeader,
    *,
    chunk: ChunkId,
    verify_payload: bool = True,
) -> Record:
    """The record at `position` of `buffer`, whose `header` has been parsed.

    Raises:
        CorruptError: the payload is cut short or damaged.
    """
    start = position + HEADER_BYTES
    payload = buffer[start : start + header.payload_length]
    if len(payload) != header.payload_length:
        raise _corrupt(chunk, position, "the record is cut short")
    if verify_payload and checksum(payload) != header.payload_xxh3:
        raise _corrupt(chunk, position, f"block {header.block_index} does not match its checksum")
    return Record(header, payload)


def parse_records(
    buffer: memoryview, *, chunk: ChunkId, content_index: int, verify_payload: bool = True
) -> list[Record]:
    """All records of `buffer`, which ends with the last one.

    Raises:
        CorruptError: any is damaged or cut short; names the chunk and the position in `buffer`.
    """
    records: list[Record] = []
    position, end = 0, len(buffer)
    while position < end:
        record = parse_record(
            buffer, position,
            chunk=chunk, content_index=content_index, verify_payload=verify_payload,
        )  # fmt: skip
        records.append(record)
        position += HEADER_BYTES + record.header.payload_length
    return records


def decode_block(
    header: RecordHeader, payloads: Mapping[int, memoryview], redundancy: Redundancy
) -> bytes | memoryview:
    """The raw bytes of a block, from verified payloads (content index -> payload) of its records.

    `header` may be the header of any one of the records: they differ in nothing used here.

    Raises:
        CorruptError: too few payloads, or together they are not what was written.
    """
    encoded = _join(header, payloads, redundancy)
    if redundancy.k == 1 and header.codec == CODEC_RAW and header.raw_xxh3 == header.payload_xxh3:
        return encoded  # the payload is verified, and it is the whole
    return _expand(header, encoded)


def restore_records(
    chunk: ChunkId,
    blocks: Sequence[tuple[RecordHeader, Mapping[int, memoryview]]],
    redundancy: Redundancy,
    index: int,
) -> list[Buffer]:
    """Header and payload of each record of a lost fragment `index` (k > 1), as the writer made it.

    Takes what `decode_block` takes, of many blocks, and checks each against its raw checksum too:
    a wrong combination of good pieces must not become a good record.

    Raises:
        CorruptError: as `decode_block`.
    """
    restored: list[Buffer] = []
    for chosen, group in groupby(blocks, lambda block: tuple(sorted(block[1])[: redundancy.k])):
        alike = list(group)
        for start in range(0, len(alike), _RESTORED_TOGETHER):
            some = alike[start : start + _RESTORED_TOGETHER]
            restored += _restore(chunk, some, chosen, redundancy, index)
    return restored


def _restore(
    chunk: ChunkId,
    blocks: Sequence[tuple[RecordHeader, Mapping[int, memoryview]]],
    chosen: Sequence[int],
    redundancy: Redundancy,
    index: int,
) -> list[Buffer]:
    """The same, of blocks of which the same pieces are there."""
    k, m = redundancy.k, redundancy.m
    for header, payloads in blocks:
        size = erasure.piece_length(header.encoded_length, k)
        if header.payload_length != size or any(len(payloads[i]) != size for i in chosen):
            raise _not_of(header, redundancy)
    missing = [each for each in dict.fromkeys((*range(k), index)) if each not in chosen]
    given = {each: [payloads[each] for _, payloads in blocks] for each in chosen}
    rebuilt = erasure.rebuild(given, missing, k, m) if missing else {}
    restored: list[Buffer] = []
    start = 0
    for header, payloads in blocks:
        end = start + header.payload_length
        pieces = {each: payloads[each] for each in chosen}
        pieces |= {each: rebuilt[each][start:end] for each in missing}
        _check_pieces(header, [pieces[each] for each in range(k)])
        piece = pieces[index]
        again = msgspec.structs.replace(header, payload_xxh3=checksum(piece))
        restored += (_pack_header(chunk, index, again), piece)
        start = end
    return restored


def _check_pieces(header: RecordHeader, pieces: Sequence[memoryview]) -> None:
    """Raises CorruptError where the pieces of the data are not the block's, padded with zeros."""
    length = header.encoded_length
    padding = b"".join([piece[max(0, length - start) :] for start, piece in _placed(pieces)])
    if any(padding):
        raise _not_its(header)
    if header.codec != CODEC_RAW:
        _expand(header, memoryview(b"".join(pieces))[:length])
        return
    digest = xxhash.xxh3_64()
    for start, piece in _placed(pieces):
        digest.update(piece[: max(0, length - start)])
    if digest.intdigest() != header.raw_xxh3:
        raise _not_its(header)


def _placed(pieces: Sequence[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """Each with where it begins."""
    start = 0
    for piece in pieces:
        yield start, piece
        start += len(piece)


def _join(
    header: RecordHeader, payloads: Mapping[int, memoryview], redundancy: Redundancy
) -> bytes | memoryview:
    """The encoded bytes of a block."""
    k = redundancy.k
    if header.payload_length != erasure.piece_length(header.encoded_length, k):
        raise _not_of(header, redundancy)
    if k > 1:
        return erasure.decode(payloads, header.encoded_length, k, redundancy.m)
    if 0 not in payloads or len(payloads[0]) != header.encoded_length:
        raise CorruptError(f"block {header.block_index}: no payload of the right length")
    return payloads[0]


def _expand(header: RecordHeader, encoded: bytes | memoryview) -> bytes | memoryview:
    """The raw bytes, checked against their checksum."""
    raw = (
        encoded
        if header.codec == CODEC_RAW
        else decompress(encoded, header.raw_length, f"block {header.block_index}")
    )
    if checksum(raw) != header.raw_xxh3:
        raise _not_its(header)
    return raw


def _not_of(header: RecordHeader, redundancy: Redundancy) -> CorruptError:
    return CorruptError(
        f"block {header.block_index}: a payload of {header.payload_length} bytes is not "
        f"{redundancy} of {header.encoded_length}"
    )


def _not_its(header: RecordHeader) -> CorruptError:
    return CorruptError(
        f"block {header.block_index}: its decoded bytes do not match their checksum"
    )


def _pack_header(chunk: ChunkId, content_index: int, header: RecordHeader) -> bytes:
    fields = _HEADER_FIELDS.pack(
        _MAGIC, _VERSION, header.codec, header.block_index, header.raw_offset, header.raw_length,
        header.encoded_length, header.payload_length, header.raw_xxh3, header.payload_xxh3,
    )  # fmt: skip
    return fields + _CHECKSUM.pack(checksum(fields, _seed(chunk, content_index)))


def _seed(chunk: ChunkId, content_index: int) -> int:
    return (chunk << _INDEX_BITS | content_index) & 0xFFFF_FFFF_FFFF_FFFF


def _corrupt(chunk: ChunkId, position: int, what: str) -> CorruptError:
    return CorruptError(f"chunk {chunk}: {what} (byte {position})")


def compress(raw: Buffer, level: int) -> bytes | None:
    """zstd of `raw`, or None where it saves less than a sixteenth: reading raw is cheaper."""
    compressors = _coders.compressors
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstandard.ZstdCompressor(level=level)
    length = len(raw)
    if length >= _PROBE_FROM_BYTES and not _promising(raw):
        return None
    encoded = compressor.compress(raw)
    return encoded if len(encoded) < length - length // 16 else None


def _promising(raw: Buffer) -> bool:
    """Whether a few samples shrink at all: media and encrypted data fail, at a fifth of the cost.

    Level 1 and not a faster one: it codes entropy too, and so sees through base64 and the like.
    """
    compressors = _coders.compressors
    probe = compressors.get(1)
    if probe is None:
        probe = compressors[1] = zstandard.ZstdCompressor(level=1)
    step = (len(raw) - _PROBE_SAMPLE_BYTES) // (_PROBE_SAMPLES - 1)
    samples = b"".join(
        [raw[at : at + _PROBE_SAMPLE_BYTES] for at in range(0, step * _PROBE_SAMPLES, step)]
    )
    return len(probe.compress(samples)) < len(samples) - len(samples) // 64


def decompress(encoded: Buffer, raw_length: int, name: str) -> bytes:
    """What `compress` was given. Never takes more than `raw_length` bytes of memory.

    Raises:
        CorruptError: damaged, or of another length; says so of `name`.
    """
    try:
        if zstandard.frame_content_size(encoded) == raw_length:
            return _coders.decompressor.decompress(
                encoded, max_output_size=raw_length, allow_extra_data=False
            )
        what = "its compressed bytes promise another length"
    except zstandard.ZstdError as error:
        what = f"its compressed bytes are damaged ({error})"
    raise CorruptError(f"{name}: {what}")
