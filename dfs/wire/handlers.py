"""What a program that answers requests hands to the wire: handlers, and what they may return.

A handler that is a plain function runs at once in the loop that reads the connection, its reply
leaves together with the others of that read: the fastest way, for work of microseconds. An
`async def` handler runs in a task of its own, cancelled when its caller gives up, the deadline
passes or the connection breaks. Both answer with the reply of the method table, alone or with a
raw payload, or raise DfsError; any other exception is logged here and shows there as EIO.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError
from dfs.wire.hello import Hello
from dfs.wire.messages import METHOD_OF, Message

if TYPE_CHECKING:
    from dfs.wire.connection import Connection


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A payload sent straight from a file, by sendfile, without passing through this process.

    The bytes must be in the file when the handler returns. `close` is called exactly once, when
    they are sent or never will be.
    """

    fd: int
    ranges: Sequence[tuple[int, int]]
    """(offset, length) in bytes, sent in this order."""
    close: Callable[[], None] | None = None
    on_error: Callable[[DfsError], None] | None = None
    """Called with a CorruptError when the file is shorter than said, with a DiskError when it
    cannot be read; the connection is then closed, as the bytes promised cannot be sent."""

    @property
    def length_bytes(self) -> int:
        return sum(length for _, length in self.ranges)


Payload: TypeAlias = Sequence[Buffer] | FilePayload
"""Raw bytes after a reply. Buffers must not be changed any more: they are sent later, uncopied."""

ReplyResult: TypeAlias = Message | bytes | tuple[Message, Payload]
"""`bytes` are the body of the reply, encoded already."""


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """Who sent a request. One object for the life of a connection, so it may key a dict."""

    address: str
    hello: Hello
    connection: "Connection | None" = None
    """To call back over; None in tests that call handlers directly."""


Handler: TypeAlias = Callable[[Peer, Any, memoryview], ReplyResult | Awaitable[ReplyResult]]
"""Gets who asks, the request as typed by the method table, and its raw payload (often empty)."""


class Route(msgspec.Struct, frozen=True):
    """A handler ready to be run."""

    name: str
    handler: Handler
    decode: Callable[[memoryview], Message]
    reply: type[Message]


Routes: TypeAlias = Mapping[int, Route]
"""By method number."""


def make_routes(handlers: Mapping[type[Message], Handler]) -> dict[int, Route]:
    """Raises ValueError for a type that is no request of the method table."""
    routes = {}
    for request, handler in handlers.items():
        method = METHOD_OF.get(request)
        if method is None:
            raise ValueError(f"{request.__name__} is not in the method table")
        decode = msgspec.msgpack.Decoder(request).decode
        routes[method.number] = Route(request.__name__, handler, decode, method.reply)
    return routes
