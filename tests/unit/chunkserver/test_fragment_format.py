"""File header, index footer and names: golden bytes, round trips, and that no damage passes."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.chunkserver.fragment_format import (
    FILE_HEADER_BYTES,
    TAIL_BYTES,
    BlockIndex,
    FragmentHeader,
    FragmentName,
    decode_file_header,
    decode_footer,
    decode_tail,
    directory_of,
    encode_footer,
    footer_bytes,
    parse_name,
    possible,
)
from dfs.core.block import RecordHeader
from dfs.core.errors import CorruptError

FORMAT = Path(__file__).resolve().parents[3] / "dfs" / "core" / "FORMAT.md"
PAGE = "".join(FORMAT.read_text(encoding="utf-8").split())
HEADER = FragmentHeader(UUID("00112233-4455-4677-8899-aabbccddeeff"), 0x0102030405, 5, 4, 2)


def make_index(blocks: list[tuple[int, int]]) -> BlockIndex:
    """From (raw length, payload length) of each block."""
    index = BlockIndex()
    for raw, payload in blocks:
        index.add(RecordHeader(len(index), index.length, raw, payload, payload, 0, 0, 0))
    return index


BLOCKS = st.lists(st.tuples(st.integers(1, 1 << 16), st.integers(1, 1 << 16)), max_size=40)

# ------------------------------------------------------------------ golden bytes


def test_the_file_header_has_the_bytes_of_the_format_page() -> None:
    golden = (
        "4446534652414700"  # magic
        "0100" "05" "04" "02" "000000"  # version, index, k, m
        "0504030201000000"  # chunk
        "00112233445546778899aabbccddeeff"  # cluster
        "00000000000000000000000000000000"
        "f1f6ae9d605a87ab"
    )  # fmt: skip
    assert HEADER.encode().hex() == golden
    assert golden in PAGE
    assert decode_file_header(bytes.fromhex(golden)) == HEADER


def test_the_footer_has_the_bytes_of_the_format_page() -> None:
    index = make_index([(300, 100), (5, 2)])
    golden = (
        "2c010000" "31010000"  # raw ends: 300, 305
        "d4000000" "06010000"  # file ends: 64 + 48 + 100, + 48 + 2
        "444653494e444558"  # magic
        "0100" "0000" "02000000" "31010000" "06010000"  # version, blocks, length, records' end
        "7f9682ba3218f500" "89209003e4d0f235"
    )  # fmt: skip
    assert encode_footer(index, HEADER).hex() == golden
    assert golden in PAGE


def test_names_are_those_of_the_format_page() -> None:
    assert str(FragmentName(0x1F, 3, None)) == "000000000000001f-03.open"
    assert str(FragmentName(0x1F, 3, 1 << 26)) == "000000000000001f-03-04000000.sealed"
    assert [directory_of(chunk) for chunk in (1, 2, 3, 1 << 63)] == DIRECTORIES


DIRECTORIES = ["2e", "43", "7d", "5f"]

# ------------------------------------------------------------------ round trips


@given(st.integers(1, 2**64 - 1), st.integers(0, 255), st.none() | st.integers(0, 1 << 26))
def test_names_are_read_back(chunk: int, index: int, length: int | None) -> None:
    name = FragmentName(chunk, index, length)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "x", "000000000000001f-03", "000000000000001F-03.open", "000000000000001f-03.open\n",
     "000000000000001f-03.sealed", "000000000000001f-03-0400000.sealed", "lost+found"],
)  # fmt: skip
def test_other_names_are_no_fragments(name: str) -> None:
    assert parse_name(name) is None


@given(BLOCKS)
def test_an_index_is_read_back(blocks: list[tuple[int, int]]) -> None:
    index = make_index(blocks)
    footer = encode_footer(index, HEADER)
    assert len(footer) == footer_bytes(len(index))
    assert decode_tail(footer[-TAIL_BYTES:], HEADER, index.file_end + len(footer)) == len(blocks)
    again = decode_footer(footer, HEADER)
    assert (again.raw_ends, again.file_ends) == (index.raw_ends, index.file_ends)


@given(BLOCKS, st.integers(0, 1 << 22), st.integers(0, 1 << 22), st.integers(1, 1 << 18))
def test_locate_finds_the_records_that_overlap(
    blocks: list[tuple[int, int]], offset: int, length: int, limit: int
) -> None:
    index = make_index(blocks)
    raw, at, expected = 0, FILE_HEADER_BYTES, []
    for raw_length, payload in blocks:
        if raw < offset + length and raw + raw_length > offset and length:
            expected.append((at, 48 + payload))
        raw += raw_length
        at += 48 + payload
    while len(expected) > 1 and sum(size for _, size in expected) > limit:
        expected.pop()
    start = expected[0][0] if expected else 0
    size = sum(each for _, each in expected)
    assert index.locate(offset, length, limit) == (start, size, len(expected))


@given(BLOCKS.filter(bool), st.data())
def test_a_cut_index_is_that_of_the_first_blocks(
    blocks: list[tuple[int, int]], data: st.DataObject
) -> None:
    index = make_index(blocks)
    length = data.draw(st.integers(0, index.length))
    count = index.blocks_within(length)
    first = index.first(count)
    assert first.length >= length
    assert count == 0 or index.first(count - 1).length < length
    assert first.file_end == index.start_of(count)


# ------------------------------------------------------------------ damage


@given(st.integers(0, FILE_HEADER_BYTES * 8 - 1))
def test_every_flipped_bit_of_a_file_header_is_noticed(bit: int) -> None:
    data = bytearray(HEADER.encode())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        decode_file_header(bytes(data))


@given(st.binary(max_size=200))
def test_garbage_is_no_file_header(garbage: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_file_header(garbage)
    with pytest.raises(CorruptError):
        decode_file_header(HEADER.encode()[: len(garbage) % FILE_HEADER_BYTES])


@given(BLOCKS, st.data())
def test_every_flipped_bit_of_a_footer_is_noticed(
    blocks: list[tuple[int, int]], data: st.DataObject
) -> None:
    index = make_index(blocks)
    footer = bytearray(encode_footer(index, HEADER))
    size = index.file_end + len(footer)
    bit = data.draw(st.integers(0, len(footer) * 8 - 1))
    footer[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        decode_tail(bytes(footer[-TAIL_BYTES:]), HEADER, size)
        decode_footer(bytes(footer), HEADER)


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_garbage_is_no_footer(garbage: bytes, size: int) -> None:
    with pytest.raises(CorruptError):
        decode_tail(garbage[-TAIL_BYTES:], HEADER, size)
    with pytest.raises(CorruptError):
        decode_footer(garbage, HEADER)


def test_the_footer_of_another_fragment_is_noticed() -> None:
    index = make_index([(300, 100)])
    footer = encode_footer(index, HEADER)
    other = FragmentHeader(HEADER.cluster, HEADER.chunk, 4, 4, 2)
    with pytest.raises(CorruptError, match="of another fragment"):
        decode_tail(footer[-TAIL_BYTES:], other, index.file_end + len(footer))


def test_an_index_that_does_not_add_up_is_refused() -> None:
    for raw_ends, file_ends in (([5, 5], [200, 300]), ([5, 6], [300, 200]), ([5], [100])):
        index = BlockIndex()
        index.raw_ends.extend(raw_ends)
        index.file_ends.extend(file_ends)
        with pytest.raises(CorruptError, match="does not add up"):
            decode_footer(encode_footer(index, HEADER), HEADER)


def test_a_footer_that_does_not_fit_the_file_is_refused() -> None:
    index = make_index([(300, 100)])
    footer = encode_footer(index, HEADER)
    with pytest.raises(CorruptError, match="does not fit"):
        decode_tail(footer[-TAIL_BYTES:], HEADER, index.file_end + len(footer) + 1)


@pytest.mark.parametrize(
    ("k", "m", "index", "answer"),
    [(1, 0, 0, True), (1, 8, 8, True), (1, 9, 0, False), (1, 2, 3, False), (4, 2, 5, True),
     (4, 2, 6, False), (4, 0, 0, False), (16, 6, 21, True), (17, 1, 0, False), (0, 3, 0, False),
     (4, 2, -1, False)],
)  # fmt: skip
def test_only_redundancies_that_exist_are_possible(
    k: int, m: int, index: int, answer: bool
) -> None:
    assert possible(k, m, index) is answer
