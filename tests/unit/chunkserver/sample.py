"""Sample fragments: blocks of reproducible bytes, encoded as a client would."""

from collections.abc import Sequence
from random import Random
from uuid import UUID

from dfs.chunkserver.fragment_file import Batch
from dfs.chunkserver.fragment_format import FragmentHeader
from dfs.core.block import encode_block, parse_records
from dfs.core.redundancy import Redundancy

CLUSTER = UUID("11111111-2222-4333-8444-555555555555")
WHOLE = Redundancy(1, 2)
CODED = Redundancy(4, 2)


def header(chunk: int = 7, index: int = 0, redundancy: Redundancy = WHOLE) -> FragmentHeader:
    return FragmentHeader(CLUSTER, chunk, index, redundancy.k, redundancy.m)


def raw_block(chunk: int, number: int, length: int) -> bytes:
    """The bytes of a block: half of them compress."""
    random = Random(chunk * 1_000_003 + number)
    return random.randbytes(length // 2) + bytes([number % 251]) * (length - length // 2)


def encode(
    lengths: Sequence[int],
    *,
    of: FragmentHeader | None = None,
    first_block: int = 0,
    offset: int = 0,
    level: int | None = 3,
) -> list[bytes]:
    """The records of consecutive blocks of these raw lengths, for one fragment."""
    of = of or header()
    records = []
    for number, length in enumerate(lengths, first_block):
        block = encode_block(
            of.chunk,
            number,
            offset,
            raw_block(of.chunk, number, length),
            redundancy=Redundancy(of.k, of.m),
            level=level,
        )
        records.append(b"".join(block.fragments[of.index]))
        offset += length
    return records


def batch(records: Sequence[bytes], first_block: int = 0) -> Batch:
    return Batch(first_block, len(records), memoryview(b"".join(records)))


def raw_of(data: bytes | memoryview, of: FragmentHeader) -> list[tuple[int, bytes]]:
    """(raw offset, payload) of the records in `data`, verified; only for level None and k = 1."""
    found = parse_records(memoryview(data), chunk=of.chunk, content_index=of.content_index)
    return [(record.header.raw_offset, bytes(record.payload)) for record in found]
