"""Blocks and records: round trips, golden bytes, and that no damage passes."""

import os
import random
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfs.core import block
from dfs.core.block import (
    BLOCK_BYTES,
    BLOCKS_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    HEADER_BYTES,
    EncodedBlock,
    RecordHeader,
    decode_block,
    encode_block,
    parse_header,
    parse_records,
    restore_records,
)
from dfs.core.buffers import Buffer
from dfs.core.chunk import BLOCK_MAX_BYTES, CHUNK_MAX_BYTES
from dfs.core.errors import CorruptError
from dfs.core.redundancy import Redundancy

TEXT = b"".join(b"line %d of a text that compresses\n" % i for i in range(5000))
REDUNDANCIES = [
    Redundancy.parse(text) for text in ("rep:1", "rep:3", "ec:2+1", "ec:4+2", "ec:16+6")
]


def content_index(redundancy: Redundancy, index: int) -> int:
    return 0 if redundancy.k == 1 else index


def stored(encoded: EncodedBlock, index: int = 0) -> memoryview:
    return memoryview(b"".join(encoded.fragments[index]))


def restamp(record: Buffer, chunk: int, index: int, **changes: int) -> memoryview:
    """The record with header fields changed and the header's checksum made to fit."""
    names = (
        "magic version codec block_index raw_offset raw_length encoded_length payload_length "
        "raw_xxh3 payload_xxh3"
    ).split()
    fields = dict(zip(names, struct.unpack_from("<HBBIIIIIQQ", record), strict=True)) | changes
    head = struct.pack("<HBBIIIIIQQ", *fields.values())
    seed = (chunk << 5 | index) & (2**64 - 1)
    return memoryview(head + struct.pack("<Q", block.checksum(head, seed)) + record[HEADER_BYTES:])


# ------------------------------------------------------------------ round trips


@settings(deadline=None)
@given(
    st.sampled_from(REDUNDANCIES),
    st.sampled_from([None, -1, 3]),
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.builds(lambda piece, times: piece * times, st.binary(min_size=1), st.integers(1, 2000)),
    ).filter(lambda raw: len(raw) <= BLOCK_MAX_BYTES),
    st.integers(1, 2**64 - 1),
    st.randoms(use_true_random=False),
)
def test_a_block_comes_back_from_any_k_of_its_records(
    redundancy: Redundancy, level: int | None, raw: bytes, chunk: int, rng: random.Random
) -> None:
    encoded = encode_block(chunk, 7, 1000, raw, redundancy=redundancy, level=level)
    assert (encoded.block_index, encoded.raw_offset, encoded.raw_length) == (7, 1000, len(raw))
    assert len(encoded.fragments) == redundancy.width
    payloads = {}
    for index in rng.sample(range(redundancy.width), redundancy.k):
        content = content_index(redundancy, index)
        (record,) = parse_records(stored(encoded, index), chunk=chunk, content_index=content)
        payloads[content] = record.payload
    assert decode_block(record.header, payloads, redundancy) == raw
    if redundancy.k > 1:
        lost = rng.randrange(redundancy.width)
        again = restore_records(chunk, [(record.header, payloads)], redundancy, lost)
        assert b"".join(again) == stored(encoded, lost)


@settings(deadline=None)
@given(
    st.sampled_from([each for each in REDUNDANCIES if each.k > 1]),
    st.sampled_from([None, 3]),
    st.lists(st.integers(1, 9000), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_records_of_many_blocks_are_restored_together(
    redundancy: Redundancy, level: int | None, lengths: list[int], rng: random.Random
) -> None:
    """Whichever of their pieces are there, as many again."""
    lost = rng.randrange(redundancy.width)
    others = [index for index in range(redundancy.width) if index != lost]
    blocks, wanted, offset = [], [], 0
    chosen = rng.sample(others, redundancy.k)
    for number, length in enumerate(lengths):
        raw = rng.randbytes(length) if rng.random() < 0.5 else TEXT[:length]
        encoded = encode_block(9, number, offset, raw, redundancy=redundancy, level=level)
        offset += length
        wanted.append(stored(encoded, lost))
        if rng.random() < 0.3:
            chosen = rng.sample(others, redundancy.k)
        payloads = {index: memoryview(encoded.fragments[index][1]) for index in chosen}
        header = parse_header(encoded.fragments[chosen[0]][0], chunk=9, content_index=chosen[0])
        blocks.append((header, payloads))
    assert b"".join(restore_records(9, blocks, redundancy, lost)) == b"".join(wanted)
    header, payloads = blocks[-1]
    wrong = bytearray(payloads[chosen[0]])
    wrong[0] ^= 1
    blocks[-1] = header, {**payloads, chosen[0]: memoryview(wrong)}
    with pytest.raises(CorruptError):
        restore_records(9, blocks, redundancy, lost)


def test_replicas_share_one_list_of_identical_bytes() -> None:
    encoded = encode_block(1, 0, 0, TEXT[:BLOCK_BYTES], redundancy=Redundancy(1, 2), level=3)
    assert encoded.fragments[0] is encoded.fragments[1] is encoded.fragments[2]


def test_raw_bytes_that_do_not_compress_are_stored_as_they_are_without_a_copy() -> None:
    for length in (100, 4096, BLOCK_BYTES):
        raw = random.Random(1).randbytes(length)
        encoded = encode_block(1, 0, 0, raw, redundancy=Redundancy(1, 0), level=3)
        assert encoded.fragments[0][1] is raw
        assert parse_header(encoded.fragments[0][0], chunk=1, content_index=0).codec == CODEC_RAW


@pytest.mark.parametrize("length", [4096, 32 * 1024, BLOCK_BYTES])
def test_text_and_base64_are_compressed(length: int) -> None:
    import base64

    for raw in (TEXT[:length], base64.b64encode(random.Random(1).randbytes(length))[:length]):
        encoded = encode_block(1, 0, 0, raw, redundancy=Redundancy(1, 0), level=3)
        header = parse_header(encoded.fragments[0][0], chunk=1, content_index=0)
        assert header.codec == CODEC_ZSTD
        assert header.payload_length < length * 0.8


def test_no_compression_means_none() -> None:
    encoded = encode_block(1, 0, 0, TEXT[:4096], redundancy=Redundancy(1, 0), level=None)
    assert encoded.fragments[0][1] == TEXT[:4096]


def test_all_records_of_a_fragment_are_parsed_in_order() -> None:
    parts, offset = [], 0
    for index, length in enumerate((1, 5000, 17)):
        encoded = encode_block(
            9, index, offset, TEXT[:length], redundancy=Redundancy(4, 2), level=3
        )
        parts.append(bytes(stored(encoded, 5)))
        offset += length
    records = parse_records(memoryview(b"".join(parts)), chunk=9, content_index=5)
    assert [(r.header.block_index, r.header.raw_offset) for r in records] == [
        (0, 0),
        (1, 1),
        (2, 5001),
    ]
    assert [r.header.raw_end for r in records] == [1, 5001, 5018]
    assert [r.length for r in records] == [len(part) for part in parts]


@pytest.mark.parametrize(
    ("block_index", "raw_offset", "length"),
    [
        (0, 0, 0),
        (0, 0, BLOCK_MAX_BYTES + 1),
        (1, 0, 10),
        (-1, 0, 10),
        (BLOCKS_MAX, CHUNK_MAX_BYTES - 10, 10),
        (0, CHUNK_MAX_BYTES - 9, 10),
    ],
)
def test_a_block_no_chunk_can_have_is_refused(
    block_index: int, raw_offset: int, length: int
) -> None:
    with pytest.raises(ValueError, match="block"):
        encode_block(
            1, block_index, raw_offset, bytes(length), redundancy=Redundancy(1, 0), level=3
        )


# ------------------------------------------------------------------ golden bytes


def test_the_bytes_of_a_record_are_those_of_the_format_page() -> None:
    encoded = encode_block(0x0102030405, 2, 300, b"dfs", redundancy=Redundancy(1, 1), level=3)
    assert bytes(stored(encoded)).hex() == GOLDEN_RAW
    format_page = Path(block.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
    assert GOLDEN_RAW in "".join(format_page.split())
    header = parse_header(bytes.fromhex(GOLDEN_RAW), chunk=0x0102030405, content_index=0)
    assert header == RecordHeader(
        block_index=2, raw_offset=300, raw_length=3, encoded_length=3, payload_length=3,
        codec=CODEC_RAW, raw_xxh3=0x51F1F2EC1F6A1935, payload_xxh3=0x51F1F2EC1F6A1935,
    )  # fmt: skip


def test_the_bytes_of_an_erasure_coded_record_are_those_of_the_format_page() -> None:
    encoded = encode_block(7, 0, 0, b"distributed", redundancy=Redundancy(2, 1), level=None)
    assert [bytes(stored(encoded, i)).hex() for i in range(3)] == GOLDEN_EC


def test_compressed_records_of_the_past_stay_readable() -> None:
    record = bytes.fromhex(GOLDEN_ZSTD)
    (parsed,) = parse_records(memoryview(record), chunk=7, content_index=0)
    assert parsed.header.codec == CODEC_ZSTD
    assert decode_block(parsed.header, {0: parsed.payload}, Redundancy(1, 2)) == b"dfs " * 100


GOLDEN_RAW = (
    "0cdb0100020000002c01000003000000030000000300000035196a1fecf2f151"
    "35196a1fecf2f151f87c81fe7fceeeaa"
    "646673"
)
GOLDEN_EC = [
    "0cdb010000000000000000000b0000000b000000060000000cf8a5279e90f481"
    "35ca8a1ed772eaf47098da1b0161708f"
    "646973747269",
    "0cdb010000000000000000000b0000000b000000060000000cf8a5279e90f481"
    "e21c4dbdb9f0288b680340b202c80532"
    "627574656400",
    "0cdb010000000000000000000b0000000b000000060000000cf8a5279e90f481"
    "8a4c29e5f48b11bc9b0f5cca37db83e4"
    "e7629b19eeba",
]
GOLDEN_ZSTD = (
    "0cdb0101000000000000000090010000150000001500000021e44afb0280a283"
    "f7aafc3e2f146f9001f4de0eb335bc6a"
    "28b52ffd6090005d00002064667320010089ab8e08"
)


# ------------------------------------------------------------------ damage


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_every_flipped_bit_is_noticed(data: st.DataObject) -> None:
    redundancy = data.draw(st.sampled_from(REDUNDANCIES))
    record = bytearray(
        stored(encode_block(5, 0, 0, TEXT[:3000], redundancy=redundancy, level=3), redundancy.m)
    )
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError, match="chunk 5"):
        parse_records(
            memoryview(record), chunk=5, content_index=content_index(redundancy, redundancy.m)
        )


def test_every_truncation_is_noticed() -> None:
    record = stored(encode_block(5, 0, 0, b"0123456789", redundancy=Redundancy(1, 0), level=3))
    assert parse_records(record[:0], chunk=5, content_index=0) == []
    for length in range(1, len(record)):
        with pytest.raises(CorruptError, match="cut short"):
            parse_records(record[:length], chunk=5, content_index=0)


def test_a_record_of_another_chunk_or_fragment_is_noticed() -> None:
    encoded = encode_block(5, 0, 0, TEXT[:3000], redundancy=Redundancy(4, 2), level=3)
    for chunk, index in ((6, 2), (5, 3)):
        with pytest.raises(CorruptError, match="of another chunk or fragment"):
            parse_records(stored(encoded, 2), chunk=chunk, content_index=index)


def test_the_message_names_the_chunk_and_the_position() -> None:
    good = bytes(stored(encode_block(5, 0, 0, b"abc", redundancy=Redundancy(1, 0), level=3)))
    with pytest.raises(CorruptError, match=r"chunk 5: no record starts here \(byte 51\)"):
        parse_records(memoryview(good + bytes(100)), chunk=5, content_index=0)


def test_payloads_are_not_verified_on_request() -> None:
    record = bytearray(stored(encode_block(5, 0, 0, b"abc", redundancy=Redundancy(1, 0), level=3)))
    record[-1] ^= 1
    (parsed,) = parse_records(memoryview(record), chunk=5, content_index=0, verify_payload=False)
    assert bytes(parsed.payload) == b"abb"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 is unknown"),
        ({"codec": 2}, "impossible"),
        ({"raw_length": 0}, "impossible"),
        ({"raw_length": BLOCK_MAX_BYTES + 1}, "impossible"),
        ({"encoded_length": 9}, "impossible"),
        ({"payload_length": 0}, "impossible"),
        ({"payload_length": 11}, "impossible"),
        ({"codec": CODEC_ZSTD}, "impossible"),
        ({"raw_offset": CHUNK_MAX_BYTES - 9}, "impossible"),
        ({"raw_offset": 2**32 - 1}, "impossible"),
        ({"block_index": 1}, "impossible"),
        ({"block_index": 2**32 - 1, "raw_offset": 2**26 - 10}, "impossible"),
    ],
)
def test_a_header_with_a_good_checksum_and_wrong_numbers_is_refused(
    changes: dict[str, int], message: str
) -> None:
    record = stored(encode_block(5, 0, 0, b"0123456789", redundancy=Redundancy(1, 0), level=3))
    with pytest.raises(CorruptError, match=message):
        parse_records(restamp(record, 5, 0, **changes), chunk=5, content_index=0)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
@example(b"")
def test_garbage_is_refused_and_never_crashes(garbage: bytes) -> None:
    try:
        assert parse_records(memoryview(garbage), chunk=1, content_index=0) == []
    except CorruptError:
        assert garbage
    else:
        assert not garbage


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "codec": st.integers(0, 255),
            "block_index": st.integers(0, 2**32 - 1),
            "raw_offset": st.integers(0, 2**32 - 1),
            "raw_length": st.integers(0, 2**32 - 1),
            "encoded_length": st.integers(0, 2**32 - 1),
            "payload_length": st.integers(0, 2**32 - 1),
            "raw_xxh3": st.integers(0, 2**64 - 1),
            "payload_xxh3": st.integers(0, 2**64 - 1),
        },
    ),
    st.sampled_from(REDUNDANCIES),
)
def test_forged_headers_decode_to_the_right_bytes_or_are_refused(
    changes: dict[str, int], redundancy: Redundancy
) -> None:
    raw = b"0123456789" * 30
    encoded = encode_block(5, 0, 0, raw, redundancy=redundancy, level=3)
    payloads = {}
    try:
        for index in range(redundancy.k):
            record = restamp(bytes(stored(encoded, index)), 5, index, **changes)
            (parsed,) = parse_records(record, chunk=5, content_index=index)
            payloads[index] = parsed.payload
        assert decode_block(parsed.header, payloads, redundancy) == raw
    except CorruptError:
        assert changes


@pytest.mark.parametrize("lie", [10**9, 300, 100])
def test_a_frame_that_promises_more_than_the_block_holds_costs_no_memory(lie: int) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(lie if lie < 10**6 else 200))
    if lie == 10**9:
        frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10**6))
    header = RecordHeader(0, 0, 200, len(frame), len(frame), CODEC_ZSTD, 0, 0)
    with pytest.raises(CorruptError, match="promise another length|damaged"):
        decode_block(header, {0: memoryview(frame)}, Redundancy(1, 0))


def test_decoding_with_too_few_or_wrong_payloads_is_refused() -> None:
    encoded = encode_block(5, 0, 0, TEXT[:3000], redundancy=Redundancy(4, 2), level=3)
    records = {i: parse_records(stored(encoded, i), chunk=5, content_index=i)[0] for i in range(6)}
    header = records[0].header
    payloads = {i: record.payload for i, record in records.items()}
    with pytest.raises(CorruptError, match="too few"):
        decode_block(header, {i: payloads[i] for i in (0, 1, 5)}, Redundancy(4, 2))
    with pytest.raises(CorruptError, match="is not ec:2\\+1"):
        decode_block(header, payloads, Redundancy(2, 1))
    with pytest.raises(CorruptError):
        decode_block(header, payloads | {0: payloads[1]}, Redundancy(4, 2))
    with pytest.raises(CorruptError, match="no payload of the right length"):
        one = encode_block(5, 0, 0, TEXT[:3000], redundancy=Redundancy(1, 0), level=3)
        (record,) = parse_records(stored(one), chunk=5, content_index=0)
        decode_block(record.header, {0: record.payload[:-1]}, Redundancy(1, 0))


def test_encoding_from_many_threads_at_once_gives_the_same_bytes() -> None:
    from concurrent.futures import ThreadPoolExecutor

    raws = [TEXT[i * 10 : i * 10 + 50_000] for i in range(40)] + [os.urandom(50_000)]

    def encode(raw: bytes) -> list[bytes]:
        parts = encode_block(1, 0, 0, raw, redundancy=Redundancy(4, 2), level=3).fragments
        return [bytes(b"".join(part)) for part in parts]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encode, raws)) == [encode(raw) for raw in raws]
