"""Frames survive any splitting; anything else is refused, at bounded cost."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dfs.core.errors import ProtocolError
from dfs.wire.framing import (
    BUFFER_BYTES,
    HEADER_BYTES,
    MAGIC,
    Frame,
    FrameReader,
    Kind,
    pack,
    timeout_to_ms,
)

BODY_MAX = 300_000
PAYLOAD_MAX = 100_000


def reader(buffer_bytes: int = 4096) -> FrameReader:
    return FrameReader(
        body_bytes_max=BODY_MAX, payload_bytes_max=PAYLOAD_MAX, buffer_bytes=buffer_bytes
    )


Found = tuple[int, int, int, int, bytes, bytes]


def feed(to: FrameReader, data: bytes, cuts: list[int]) -> list[Found]:
    """What a reader finds in `data`, received in pieces that end at `cuts`."""
    found: list[Found] = []
    open_frame: tuple[Frame, bytes] | None = None
    payload: memoryview | None = None
    filled = 0

    def drain() -> None:
        nonlocal open_frame, payload, filled
        while payload is None and (frame := to.next()) is not None:
            body = bytes(frame.body)
            payload = memoryview(bytearray(frame.payload_length))
            filled = to.take_payload(payload)
            open_frame = (frame, body)
            close()

    def close() -> None:
        nonlocal open_frame, payload
        if payload is not None and open_frame is not None and filled == len(payload):
            frame, body = open_frame
            found.append(
                (frame.kind, frame.method, frame.request, frame.timeout_ms, body, bytes(payload))
            )
            open_frame = payload = None

    begin = 0
    for end in [*sorted(cuts), len(data)]:
        piece = memoryview(data)[begin:end]
        begin = end
        while piece:
            space = to.space() if payload is None else payload[filled:]
            assert len(space) > 0
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            piece = piece[count:]
            if payload is None:
                to.received(count)
            else:
                filled += count
                close()
            drain()
    return found


u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, (1 << 64) - 1)
frames = st.tuples(
    st.sampled_from([int(kind) for kind in Kind]),
    u16,
    u64,
    u32,
    st.binary(max_size=200) | st.integers(0, 9000).map(lambda n: b"b" * n),
    st.just(b"") | st.binary(max_size=200) | st.integers(0, 9000).map(lambda n: b"p" * n),
)


def encode(frame: Found) -> bytes:
    kind, method, request, timeout_ms, body, payload = frame
    return pack(kind, method, request, body, timeout_ms, len(payload)) + payload


@given(st.lists(frames, max_size=8), st.data())
def test_frames_are_found_however_the_stream_is_split(sent: list[Found], data: st.DataObject):
    stream = b"".join(map(encode, sent))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assert (
        feed(reader(buffer_bytes=data.draw(st.sampled_from([48, 100, 4096]))), stream, cuts) == sent
    )


@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_a_truncated_stream_gives_the_whole_frames_and_no_more(
    sent: list[Found], data: st.DataObject
):
    stream = b"".join(map(encode, sent))
    end = data.draw(st.integers(0, len(stream) - 1))
    found = feed(reader(), stream[:end], [])
    assert found == sent[: len(found)]
    assert len(found) < len(sent)


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_is_refused_or_waited_on_and_never_found(garbage: bytes, cuts: list[int]):
    if MAGIC.startswith(garbage[:4]):
        return
    with pytest.raises(ProtocolError):
        feed(reader(), garbage, [cut for cut in cuts if cut < len(garbage)])


@given(frames, st.data())
def test_any_changed_bit_of_header_or_body_is_noticed(frame: Found, data: st.DataObject):
    stream = bytearray(encode((*frame[:5], b"")))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        feed(reader(), bytes(stream), [])


def header(**changes: int | bytes) -> bytes:
    """A header with a right checksum and wrong contents."""
    fields: dict[str, int | bytes] = {
        "magic": MAGIC, "version": 1, "kind": 2, "method": 20, "request": 1, "timeout_ms": 1000,
        "body": 0, "payload": 0, "flags": 0, "digest": xxh3_64_intdigest(b""),
    }  # fmt: skip
    packed = struct.pack("<4sBBHQIIIIQ", *{**fields, **changes}.values())
    return packed + struct.pack("<Q", xxh3_64_intdigest(packed))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "version 2"),
        ({"version": 0}, "version 0"),
        ({"kind": 0}, "kind 0"),
        ({"kind": 9}, "kind 9"),
        ({"flags": 1}, "flags 0x1"),
        ({"body": BODY_MAX + 1}, "over the limit"),
        ({"body": 0xFFFF_FFFF}, "over the limit"),
        ({"payload": PAYLOAD_MAX + 1}, "over the limit"),
        ({"payload": 0xFFFF_FFFF}, "over the limit"),
    ],
)
def test_a_header_that_breaks_the_rules_is_refused(changes: dict[str, int], complaint: str):
    assert feed(reader(), header(), [])
    with pytest.raises(ProtocolError, match=complaint):
        feed(reader(), header(**changes), [])


@pytest.mark.parametrize(
    ("bytes_sent", "who"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"\x00\x01hello", "x01hello"),
    ],
)
def test_a_stranger_is_named_by_its_first_bytes(bytes_sent: bytes, who: str):
    with pytest.raises(ProtocolError, match=who):
        feed(reader(), bytes_sent, [])


def test_the_announced_length_of_a_body_costs_nothing_until_it_arrives():
    found = reader()
    head = header(body=BODY_MAX)
    space = found.space()
    space[: len(head)] = head
    found.received(len(head))
    assert found.next() is None
    held = HEADER_BYTES
    while held < BODY_MAX:
        space = found.space()
        assert held + len(space) <= max(BUFFER_BYTES, 2 * held, HEADER_BYTES)
        found.received(len(space))
        held += len(space)
        if held < BODY_MAX + HEADER_BYTES:
            assert found.next() is None


def test_a_reader_returns_to_its_small_buffer_after_a_long_body():
    found = reader()
    assert feed(found, pack(3, 0, 1, b"x" * 200_000), [1, 100_000])
    assert len(found.space()) < BUFFER_BYTES
    feed(found, pack(3, 0, 1, b"x" * 200_000), [1, 100_000])
    assert len(found.space()) <= BUFFER_BYTES


def test_a_busy_reader_gets_a_larger_buffer():
    found = reader()
    assert len(found.space()) == 4096
    for _ in range(3):
        feed(found, pack(3, 0, 1, b"x" * 100) * 1000, [])
    assert len(found.space()) == BUFFER_BYTES


def test_an_unwanted_payload_is_skipped():
    found = reader()
    stream = pack(3, 0, 1, b"body", 0, 1000) + b"p" * 300
    found.space()[: len(stream)] = stream
    found.received(len(stream))
    assert found.next() is not None
    assert found.skip_payload(1000) == 700
    assert not found.midway


@pytest.mark.parametrize(
    ("seconds", "ms"), [(0.0, 1), (0.0004, 1), (1.5, 1500), (1e12, 0xFFFF_FFFF)]
)
def test_a_timeout_is_never_none_and_never_too_long_for_the_header(seconds: float, ms: int):
    assert timeout_to_ms(seconds) == ms
