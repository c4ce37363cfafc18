"""The first frame of each side: who speaks, which protocol versions, which cluster.

The body of a hello keeps its first fields for ever, so that any two versions of dfs can at
least tell each other why they do not understand each other.
"""

import hmac
from typing import Final

import msgspec

from dfs import __version__
from dfs.core.errors import DfsError, ProtocolError
from dfs.wire.framing import MALFORMED

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
ROLES: Final = ("client", "chunkserver", "master", "admin")
HELLO_BYTES_MAX: Final = 4096


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """What a side says of itself before anything else."""

    role: str
    """One of ROLES; unknown ones (of a newer dfs) are let in as they are."""
    version: str = __version__
    """Of the software, for people."""
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    cluster: str = ""
    """The cluster's UUID, or "" for: whatever cluster this is."""
    token: bytes = b""
    """The cluster's shared secret; b"" where none is set."""

    def __repr__(self) -> str:
        return f"Hello({self.role} {self.version}, cluster {self.cluster or 'any'})"


_DECODER: Final = msgspec.msgpack.Decoder(Hello)


def encode_hello(hello: Hello) -> bytes:
    """The body of a hello frame."""
    return msgspec.msgpack.encode(hello)


def decode_hello(body: bytes | memoryview) -> Hello:
    """Raises ProtocolError when the body is not a hello."""
    try:
        return _DECODER.decode(body)
    except MALFORMED as error:
        raise ProtocolError(f"its hello is malformed: {error}") from error


def negotiate(ours: Hello, theirs: Hello) -> int:
    """The protocol version both sides speak.

    Raises ProtocolError, worded for the other side to read (it is sent to them).
    """
    version = min(ours.protocol_max, theirs.protocol_max)
    if version >= max(ours.protocol_min, theirs.protocol_min):
        return version
    what = (
        f"dfs {ours.version} ({ours.role}) speaks protocol {_range(ours)}, "
        f"dfs {theirs.version} ({theirs.role}) speaks {_range(theirs)}"
    )
    older = ours if ours.protocol_max < theirs.protocol_min else theirs
    raise ProtocolError(what, hint=f"upgrade the {older.role}, which runs dfs {older.version}")


def check_admission(ours: Hello, theirs: Hello) -> None:
    """The checks of the side that accepts: versions, token, cluster.

    Raises DfsError, worded for the other side to read.
    """
    negotiate(ours, theirs)
    if ours.token and not hmac.compare_digest(ours.token, theirs.token):
        raise DfsError(
            "the cluster's token is missing or wrong",
            errno=13,
            hint="give the token that the servers were started with",
        )
    if ours.cluster and theirs.cluster and ours.cluster != theirs.cluster:
        raise ProtocolError(
            f"this {ours.role} belongs to cluster {ours.cluster}, not to {theirs.cluster}",
            hint="check the address, or the data directory that was given",
        )


def _range(hello: Hello) -> str:
    low, high = hello.protocol_min, hello.protocol_max
    return str(low) if low == high else f"{low} to {high}"
