"""Messages from a process that works beside the master, over its standard output.

Each is four bytes of length, big-endian, and a msgpack array.
"""

from collections.abc import AsyncGenerator
from typing import BinaryIO, Final, TypeVar

import msgspec
import trio

T = TypeVar("T")

_LENGTH_BYTES: Final = 4
_READ_BYTES: Final = 65536

_encode = msgspec.msgpack.Encoder().encode


def write_message(out: BinaryIO, message: msgspec.Struct) -> None:
    """Raises BrokenPipeError where nobody reads any more."""
    body = _encode(message)
    out.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
    out.flush()


async def read_messages(
    stream: trio.abc.ReceiveStream, decoder: msgspec.msgpack.Decoder[T]
) -> AsyncGenerator[T, None]:
    """All messages until the end of the stream; half a one at the end is left out."""
    buffer = bytearray()
    while data := await stream.receive_some(_READ_BYTES):
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES
            end += int.from_bytes(buffer[start:end], "big")
            if len(buffer) < end:
                break
            yield decoder.decode(buffer[start + _LENGTH_BYTES : end])
            start = end
        del buffer[:start]
