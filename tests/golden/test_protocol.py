"""PROTOCOL.md says what the code does, and bytes once sent stay readable."""

import struct

import msgspec
import pytest

from dfs.core import errors
from dfs.wire import framing, hello
from dfs.wire.framing import FrameReader, Kind
from dfs.wire.limits import MIB, Limits
from dfs.wire.messages import METHODS
from tests.golden.protocol import (
    DOCUMENT,
    PARTS,
    between,
    golden_frames,
    golden_messages,
    message_types,
    sample,
    sample_frames,
)

HOW = "run `python -m tests.golden.protocol`"


@pytest.mark.parametrize("part", list(PARTS))
def test_the_document_is_up_to_date(part: str):
    _, inside, _ = between(DOCUMENT.read_text(), part)
    assert inside == PARTS[part](), HOW


def test_the_document_names_every_kind_error_code_and_version():
    text = DOCUMENT.read_text()
    for kind in Kind:
        assert f"| {kind.value} | {kind.name} |" in text
    for code, error in errors._BY_CODE.items():
        assert f"| {code} | {error.__name__} |" in text
    assert f"protocol version {hello.PROTOCOL_MAX}" in text
    assert framing.MAGIC.hex(" ") in text
    assert f"{framing.HEADER_BYTES} bytes" in text


def test_the_document_names_the_bounds_that_hold():
    text = " ".join(DOCUMENT.read_text().split())
    limits = Limits()
    for said in (
        f"bodies up to {limits.body_bytes // MIB} MiB (of a hello: {hello.HELLO_BYTES_MAX >> 10} K",
        f"payloads up to {limits.payload_bytes // MIB} MiB",
        f"hello has to arrive within {limits.hello_s:g} s",
        f"go on arriving ({limits.stall_s:g} s)",
        f"at most {limits.held_bytes // MIB} MiB of payloads",
        f"and {limits.connections} connections",
        f"{limits.calls} calls in flight",
        f"more than {limits.queued_bytes // MIB} MiB not yet sent",
        f"runs {limits.requests} async handlers",
        f"waited {limits.ping_s:g} s without hearing",
        f"after {limits.dead_s:g} s of silence",
    ):
        assert said in text


def test_numbers_of_methods_are_unique():
    numbers = [method.number for method in METHODS]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 1 << 16 for number in numbers)


def test_frames_are_packed_as_they_always_were():
    assert sample_frames() == golden_frames()


@pytest.mark.parametrize("name", list(golden_frames()))
def test_a_golden_frame_is_found(name: str):
    data = golden_frames()[name]
    reader = FrameReader(body_bytes_max=MIB, payload_bytes_max=MIB)
    reader.space()[: len(data)] = data
    reader.received(len(data))
    frame = reader.next()
    assert frame is not None
    assert Kind(frame.kind).name.lower() == name.split(maxsplit=1)[0]
    payload = memoryview(bytearray(frame.payload_length))
    assert reader.take_payload(payload) == len(payload)
    assert data.endswith(bytes(frame.body) + bytes(payload))
    assert not reader.midway


def test_the_header_is_laid_out_as_documented():
    data = golden_frames()["request Append + payload"]
    fields = struct.unpack("<4sBBHQIIIIQQ", data[:48])
    assert fields[:9] == (b"\xd5dfs", 1, 2, 100, 8, 5000, 8, 6, 0)
    assert data[48:] == b"\x97\x03\x04\x00\x01\x02\x00\x01" + b"record"


@pytest.mark.parametrize("name", list(message_types()))
def test_a_message_is_encoded_as_its_newest_golden_form(name: str):
    newest = golden_messages().get(name, [b""])[-1]
    assert msgspec.msgpack.encode(sample(message_types()[name])) == newest, HOW


@pytest.mark.parametrize("name", list(golden_messages()))
def test_a_message_is_read_in_every_form_it_ever_had(name: str):
    kind = message_types()[name]
    for form in golden_messages()[name]:
        msgspec.msgpack.decode(form, type=kind)


@pytest.mark.parametrize("name", list(message_types()))
def test_a_message_may_get_fields_that_this_version_does_not_know(name: str):
    kind = message_types()[name]
    fields = msgspec.msgpack.decode(golden_messages()[name][-1])
    longer = msgspec.msgpack.encode([*fields, "a field of the future"])
    assert msgspec.msgpack.decode(longer, type=kind) == sample(kind)
