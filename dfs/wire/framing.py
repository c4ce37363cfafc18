"""Bytes <-> frames, without I/O: `pack` makes frames, `FrameReader` finds them in a byte stream.

Every length is checked against a bound before anything is allocated for it. The layout is in
PROTOCOL.md; changing it means a new protocol version.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from dfs.core.errors import ProtocolError

MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a body may raise: text need not be UTF-8, and arrays may lie in arrays for ever."""

MAGIC: Final = b"\xd5dfs"
VERSION: Final = 1
"""Version of the frame layout; the hello's frame keeps this layout for ever."""

HEADER_BYTES: Final = 48
BUFFER_BYTES: Final = 64 * 1024
"""The most a busy reader receives at once; longer bodies get a buffer of their own for a while."""
_FIRST_BUFFER_BYTES: Final = 4 * 1024
"""The buffer of a reader that has little to do, as most of a server's connections."""

_FIELDS: Final = Struct("<4sBBHQIIIIQ")
_DIGEST: Final = Struct("<Q")
_HEADER: Final = Struct("<4sBBHQIIIIQQ")
_FIELD_BYTES: Final = _FIELDS.size
_U32_MAX: Final = 0xFFFF_FFFF


class Kind(IntEnum):
    """What a frame is. Numbers are never reused."""

    HELLO = 1
    REQUEST = 2
    REPLY = 3
    ERROR = 4
    CANCEL = 5
    PING = 6
    PONG = 7
    GOODBYE = 8


_KIND_MAX: Final = int(max(Kind))


class Frame(msgspec.Struct, gc=False):
    """One frame as it was found. `body` is valid until the reader's next `space()`."""

    kind: int
    method: int
    request: int
    timeout_ms: int
    body: memoryview
    payload_length: int
    """Bytes that follow; the reader's owner takes them with `take_payload`, then by itself."""


def pack(
    kind: int,
    method: int,
    request: int,
    body: bytes = b"",
    timeout_ms: int = 0,
    payload_length: int = 0,
) -> bytes:
    """Header and body of a frame; `payload_length` raw bytes have to follow it on the wire."""
    fields = _FIELDS.pack(
        MAGIC,
        VERSION,
        kind,
        method,
        request,
        timeout_ms,
        len(body),
        payload_length,
        0,
        xxh3_64_intdigest(body),
    )
    return fields + _DIGEST.pack(xxh3_64_intdigest(fields)) + body


def timeout_to_ms(timeout_s: float) -> int:
    """Seconds as the header carries them: at least 1 ms, at most 49 days (0 would mean: none)."""
    return max(1, int(min(timeout_s * 1000, _U32_MAX)))


class FrameReader:
    """Finds frames in a stream that is received into `space()`.

    Use: receive into `space()`, tell how much by `received()`, call `next()` until it gives
    None. After a frame with a `payload_length`, take exactly that many bytes off the stream
    (`take_payload`, then straight from the transport) before the next `next()`.

    Memory: 4 KiB, 64 KiB once it has been busy, and for a longer body at most twice what has
    really arrived of it.
    """

    def __init__(
        self,
        *,
        body_bytes_max: int,
        payload_bytes_max: int,
        buffer_bytes: int = _FIRST_BUFFER_BYTES,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self.payload_bytes_max = payload_bytes_max
        self._base = memoryview(bytearray(buffer_bytes))
        self._view = self._base
        self._start = 0
        self._end = 0
        self._filled = False
        """The buffer has been full: a larger one would save turns."""
        self._needed = HEADER_BYTES
        """Bytes the frame at `_start` has, as far as known."""

    @property
    def midway(self) -> bool:
        """Part of a frame has arrived and the rest has not."""
        return self._end > self._start

    def space(self) -> memoryview:
        """Where the next bytes go; never empty. Ends the life of bodies given out before."""
        start, end = self._start, self._end
        if start == end:
            if self._filled and len(self._base) < BUFFER_BYTES:
                self._base = memoryview(bytearray(min(4 * len(self._base), BUFFER_BYTES)))
            self._view = self._base
            self._filled = False
            self._start = self._end = 0
            return self._view
        if start:
            self._view[: end - start] = self._view[start:end]
            end -= start
            self._start, self._end = 0, end
        if end == len(self._view):
            grown = memoryview(bytearray(min(self._needed, 2 * end)))
            grown[:end] = self._view
            self._view = grown
        return self._view[end:]

    def received(self, count: int) -> None:
        """`count` bytes have been put at the front of `space()`."""
        self._end += count
        if self._end == len(self._view):
            self._filled = True

    def next(self) -> Frame | None:
        """The next frame whose header and body are complete.

        Raises ProtocolError (without saying who sent it) for bytes that are no frame: the
        stream is of no more use then.
        """
        start = self._start
        available = self._end - start
        view = self._view
        if available < HEADER_BYTES:
            self._needed = HEADER_BYTES
            if available and view[start : min(start + 4, self._end)] != MAGIC[:available]:
                raise ProtocolError(stranger(bytes(view[start : self._end])))
            return None
        (
            magic,
            version,
            kind,
            method,
            request,
            timeout_ms,
            body_length,
            payload_length,
            flags,
            body_digest,
            digest,
        ) = _HEADER.unpack_from(view, start)
        if magic != MAGIC:
            raise ProtocolError(stranger(bytes(view[start : min(self._end, start + 256)])))
        if xxh3_64_intdigest(view[start : start + _FIELD_BYTES]) != digest:
            raise ProtocolError("a frame header does not match its checksum")
        if version != VERSION or flags or not 0 < kind <= _KIND_MAX:
            raise ProtocolError(
                f"frame version {version}, kind {kind}, flags {flags:#x} is unknown"
            )
        if body_length > self.body_bytes_max:
            raise ProtocolError(
                f"a frame body of {body_length} bytes is over the limit of {self.body_bytes_max}"
            )
        if payload_length > self.payload_bytes_max:
            raise ProtocolError(
                f"a payload of {payload_length} bytes is over the limit of {self.payload_bytes_max}"
            )
        begin = start + HEADER_BYTES
        finish = begin + body_length
        if finish > self._end:
            self._needed = HEADER_BYTES + body_length
            return None
        body = view[begin:finish]
        if xxh3_64_intdigest(body) != body_digest:
            raise ProtocolError("a frame body does not match its checksum")
        self._start = finish
        return Frame(kind, method, request, timeout_ms, body, payload_length)

    def take_payload(self, target: memoryview) -> int:
        """Copy what has already arrived of a payload to the front of `target`; how much."""
        count = min(len(target), self._end - self._start)
        if count:
            target[:count] = self._view[self._start : self._start + count]
            self._start += count
            # Filled by a payload: the larger it is, the more of each is copied here.
            self._filled = False
        return count

    def skip_payload(self, length: int) -> int:
        """Drop what has already arrived of a payload nobody wants; how much is still to come."""
        count = min(length, self._end - self._start)
        self._start += count
        return length - count


def stranger(received: bytes) -> str:
    """What bytes that are no frame look like, as a sentence."""
    if received.startswith((b"HTTP/", b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"PRI ")):
        return "what came is HTTP"
    if received.startswith(b"SSH-"):
        return "what came is SSH"
    if received[:2] in (b"\x16\x03", b"\x15\x03"):
        return "what came is TLS"
    return f"what came is no frame: {received[:16]!r}"
