"""What a program that answers requests hands to the wire: handlers, and what they may return.

A handler that is a plain function runs at once in the loop that reads the connection, its reply
leaves together with the others of that read: the fastest way, for work of microseconds. Where
something else has to be done first, it returns a `Later`. An `async def` handler runs in a task of
its own, cancelled when its caller gives up, the deadline passes or the connection breaks. All
answer with the reply of the method table, alone or with a raw payload, or raise DfsError; any other
exception is logged here and shows there as EIO.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec
from outcome import Outcome
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

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


@dataclass(frozen=True, slots=True)
class HeldPayload:
    """Buffers whose memory is counted by who gives them; `close` is called as a FilePayload's."""

    buffers: Sequence[Buffer]
    close: Callable[[], None]

    @property
    def length_bytes(self) -> int:
        return sum(map(len, self.buffers))


Payload: TypeAlias = Sequence[Buffer] | FilePayload | HeldPayload
"""Raw bytes after a reply. Buffers must not be changed any more: they are sent later, uncopied."""

ReplyResult: TypeAlias = Message | bytes | tuple[Message, Payload]
"""`bytes` are the body of the reply, encoded already."""


class Later:
    """An answer that comes by `settle`, once: for work that is told of when it is done.

    That costs a third of a task that waits for it. It cannot be cancelled.
    """

    __slots__ = ("_outcome", "_tell")

    def __init__(self) -> None:
        self._outcome: Outcome[ReplyResult] | None = None
        self._tell: Callable[[Outcome[ReplyResult]], None] | None = None

    def settle(self, outcome: "Outcome[ReplyResult]") -> None:
        """This is the answer."""
        if self._tell is not None:
            self._tell(outcome)
        else:
            self._outcome = outcome

    def then(self, tell: "Callable[[Outcome[ReplyResult]], None]") -> None:
        """`tell` is told the answer; at once if it is there."""
        if self._outcome is not None:
            tell(self._outcome)
        else:
            self._tell = tell

    def cancel(self) -> None:
        """Nobody wants the answer any more: what has begun goes on."""

    def __await__(self) -> "Generator[Any, Any, ReplyResult]":
        return self._wait().__await__()

    async def _wait(self) -> "ReplyResult":
        if self._outcome is not None:
            return self._outcome.unwrap()
        self._tell = partial(reschedule, current_task())
        return cast("ReplyResult", await wait_task_rescheduled(lambda _: Abort.FAILED))


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
