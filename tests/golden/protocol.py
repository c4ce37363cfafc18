"""The parts of PROTOCOL.md that follow from the code, and the golden bytes of frames and messages.

`python -m tests.golden.protocol` brings both up to date after an addition. It only ever appends to
a message's golden bytes: what was once sent has to stay readable.
"""

import json
import types
import typing
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from dfs.core.errors import UnavailableError
from dfs.wire.framing import Kind, pack
from dfs.wire.hello import Hello, encode_hello
from dfs.wire.messages import METHODS, Append, Message, Method, ReadBackup, ReadRecords

DOCUMENT: Final = Path(__file__).parents[2] / "dfs" / "wire" / "PROTOCOL.md"
FRAMES: Final = Path(__file__).parent / "wire-frames.json"
MESSAGES: Final = Path(__file__).parent / "wire-messages.json"

_CHUNKSERVER_FROM: Final = 100


# ------------------------------------------------------------------ the method table


def method_table() -> str:
    """As it stands in PROTOCOL.md."""
    rows = [
        "| number | request | reply | answered by | safe to send again |",
        "| ---: | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        request, reply = method.request.__name__, method.reply.__name__
        if method.request is Append:
            request += " + payload"
        if method.request in (ReadRecords, ReadBackup):
            reply += " + payload"
        server = "chunk server" if method.number >= _CHUNKSERVER_FROM else "master"
        rows.append(f"| {method.number} | {request} | {reply} | {server} | {_repeats(method)} |")
    return "\n".join(rows)


def _repeats(method: Method) -> str:
    fields = method.request.__struct_fields__
    if not method.idempotent:
        return "no"
    if "sequence" in fields:
        return "yes, with the same `session` and `sequence`"
    if "nonce" in fields:
        return "yes, with the same `nonce`"
    return "yes"


def between(text: str, name: str) -> tuple[str, str, str]:
    """What stands before, in, and after the part of a document that is marked with `name`."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    inside, found_end, after = rest.partition(end)
    assert found, f"{name} is not marked in the document"
    assert found_end, f"{name} has no end in the document"
    return before + begin, inside, end + after


# ------------------------------------------------------------------ samples


def sample(kind: Any, seed: int = 1) -> Any:
    """A value of a type, every field filled, always the same."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return sample(arguments[0], seed)
    if origin in (typing.Union, types.UnionType):
        return sample(next(each for each in arguments if each is not type(None)), seed)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return tuple(sample(each, seed + at) for at, each in enumerate(arguments))
        several = typing.get_args(arguments[0]) or (arguments[0],)
        if typing.get_origin(arguments[0]) is tuple:
            several = (arguments[0],)
        return tuple(sample(each, seed + at) for at, each in enumerate(several))
    if origin is dict:
        return {sample(arguments[0], seed): sample(arguments[1], seed)}
    if isinstance(kind, typing.NewType):
        return sample(kind.__supertype__, seed)
    if issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        values = {
            name: sample(hints[name], seed + at) for at, name in enumerate(kind.__struct_fields__)
        }
        return kind(**values)
    if issubclass(kind, IntEnum):
        return next(iter(kind))
    simple = {bool: True, int: 1000 + seed, float: seed + 0.5, str: f"text {seed}"}
    return simple[kind] if kind in simple else f"bytes {seed}".encode()


def message_types() -> dict[str, type[Message]]:
    """Every request and reply of the method table, by name."""
    kinds = [kind for method in METHODS for kind in (method.request, method.reply)]
    return {kind.__name__: kind for kind in kinds}


def sample_frames() -> dict[str, bytes]:
    """One frame of each kind, as dfs sends it."""
    error = UnavailableError("disk 3 is down", hint="wait")
    return {
        "hello": pack(Kind.HELLO, 0, 0, encode_hello(Hello("client", "0.1.0", 1, 1, "c", b"t"))),
        "request GetInode(1), 30 s": pack(Kind.REQUEST, 22, 7, b"\x91\x01", 30_000),
        "request Append + payload": pack(
            Kind.REQUEST, 100, 8, b"\x97\x03\x04\x00\x01\x02\x00\x01", 5000, 6
        )
        + b"record",
        "reply Empty()": pack(Kind.REPLY, 0, 7, b"\x90"),
        "reply RecordsReply + payload": pack(Kind.REPLY, 0, 9, b"\x91\x01", 0, 3) + b"raw",
        "error": pack(Kind.ERROR, 0, 7, msgspec.msgpack.encode(error.to_wire())),
        "cancel": pack(Kind.CANCEL, 0, 7),
        "ping": pack(Kind.PING, 0, 0),
        "pong": pack(Kind.PONG, 0, 0),
        "goodbye": pack(Kind.GOODBYE, 0, 0),
    }


def golden_frames() -> dict[str, bytes]:
    return {name: bytes.fromhex(line) for name, line in json.loads(FRAMES.read_text()).items()}


def golden_messages() -> dict[str, list[bytes]]:
    """Name of a message -> its sample's bytes in each form it ever had, the oldest first."""
    kept = json.loads(MESSAGES.read_text())
    return {name: [bytes.fromhex(line) for line in lines] for name, lines in kept.items()}


def frame_table() -> str:
    """Golden frames as they stand in PROTOCOL.md."""
    lines = ["```"]
    for name, data in sample_frames().items():
        lines.append(name)
        lines.extend("  " + data[at : at + 16].hex(" ") for at in range(0, len(data), 16))
    return "\n".join([*lines, "```"])


PARTS: Final = {"methods": method_table, "golden frames": frame_table}


def update() -> None:
    """Write what is new to the golden files, and the document's parts."""
    if not FRAMES.exists():
        frames = {name: data.hex() for name, data in sample_frames().items()}
        FRAMES.write_text(json.dumps(frames, indent=2) + "\n")
    messages = golden_messages() if MESSAGES.exists() else {}
    for name, kind in message_types().items():
        data = msgspec.msgpack.encode(sample(kind))
        forms = messages.setdefault(name, [])
        if data not in forms[-1:]:
            forms.append(data)
    lines = {name: [data.hex() for data in messages[name]] for name in sorted(messages)}
    MESSAGES.write_text(json.dumps(lines, indent=2) + "\n")
    text = DOCUMENT.read_text()
    for name, render in PARTS.items():
        before, _, after = between(text, name)
        text = before + render() + after
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    update()
