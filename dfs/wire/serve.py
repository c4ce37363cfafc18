"""Serving: accept connections from listeners and answer what they ask, for ever.

Nothing that arrives over the network ends `serve`: a bad peer loses its connection and gets one
line in the log per minute.
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, Protocol

import trio

from dfs.core.errors import BusyError, DfsError, UnavailableError
from dfs.wire.connection import Connection
from dfs.wire.handlers import Handler
from dfs.wire.handshake import receive_greeting, refuse
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.messages import Message
from dfs.wire.side import Side, make_side
from dfs.wire.transport import TcpTransport, Transport

_log = logging.getLogger(__name__)

_RETRY_ACCEPT_S: Final = 0.1
_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class TransportListener(Protocol):
    """What accepts transports; `dfs.wire.memory` has one."""

    async def accept_transport(self) -> Transport:
        """The next one. Raises trio.ClosedResourceError when it is closed."""

    async def aclose(self) -> None: ...


Listener = trio.SocketListener | TransportListener


async def serve(
    listeners: Listener | Sequence[Listener],
    handlers: Mapping[type[Message], Handler],
    *,
    hello: Hello,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer requests until cancelled; then say goodbye to all peers. Closes the listeners."""
    if not isinstance(listeners, Sequence):
        listeners = [listeners]
    server = _Server(make_side(hello, handlers, limits))
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(server.accept, listener, nursery)
            task_status.started()
    finally:
        with trio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()
    raise trio.ClosedResourceError("all listeners were closed")


class _Server:
    """What the connections of one `serve` share."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.limits = side.limits
        self.connections = 0

    async def accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            try:
                if isinstance(listener, trio.SocketListener):
                    transport: Transport = TcpTransport.from_stream(await listener.accept())
                else:
                    transport = await listener.accept_transport()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    line = f"cannot accept connections: {error}"
                    self.side.complaints.log(_log, logging.WARNING, "accept", line)
                    await trio.sleep(_RETRY_ACCEPT_S)
                continue
            nursery.start_soon(self.attend, transport)

    async def attend(self, transport: Transport) -> None:
        """One connection from hello to end. Raises nothing but Cancelled."""
        self.connections += 1
        try:
            connection = await self._welcome(transport)
            if connection is not None:
                await connection.run()
                if connection.why is not None:
                    self._complain(transport, connection.why)
        except DfsError as error:
            self._complain(transport, error)
        except Exception:
            _log.exception("the connection from %s failed", transport.peer)
        finally:
            self.connections -= 1
            with trio.CancelScope(shield=True):
                await transport.aclose()

    async def _welcome(self, transport: Transport) -> Connection | None:
        with trio.move_on_after(self.limits.hello_s):
            if self.connections > self.limits.connections:
                role, most = self.side.hello.role, self.limits.connections
                error = BusyError(
                    f"this {role} has {most} connections, its most",
                    hint="retry later, or raise its limit",
                )
                await refuse(transport, error)
                raise error
            theirs, reader = await receive_greeting(transport, self.side.hello, self.limits)
            return Connection(
                transport, address=transport.peer, peer=theirs, reader=reader, side=self.side
            )
        # Half-open, or cut off: it happens to honest peers too.
        line = f"no hello within {self.limits.hello_s:g} s from {transport.peer}"
        self._log_once(transport, logging.INFO, line)
        return None

    def _complain(self, transport: Transport, error: DfsError) -> None:
        if isinstance(error, UnavailableError):
            _log.debug("%s", error)  # peers come and go
        else:
            line = f"dropped the connection from {transport.peer}: {error}"
            self._log_once(transport, logging.WARNING, line)

    def _log_once(self, transport: Transport, level: int, line: str) -> None:
        host = transport.peer.rpartition(":")[0] or transport.peer
        self.side.complaints.log(_log, level, f"{level} {host}", line)
