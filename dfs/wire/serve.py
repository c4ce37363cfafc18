"""Serving: accept connections from listeners and answer what they ask, for ever.

Nothing that arrives over the network ends `serve`: a bad peer loses its connection and gets one
line in the log per minute.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, Protocol

import trio

from dfs.core.errors import BusyError, DfsError, ProtocolError, UnavailableError
from dfs.wire.connection import Connection
from dfs.wire.handlers import Handler, Routes, make_routes
from dfs.wire.handshake import receive_greeting, refuse
from dfs.wire.hello import Hello
from dfs.wire.limits import ByteBudget, Limits
from dfs.wire.messages import Message
from dfs.wire.payloads import PayloadMemory
from dfs.wire.transport import TcpTransport, Transport

_log = logging.getLogger(__name__)

_LOG_INTERVAL_S: Final = 60.0
_LOG_PEERS_MAX: Final = 1024
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
    server = _Server(make_routes(handlers), hello, limits or Limits())
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

    def __init__(self, routes: Routes, hello: Hello, limits: Limits) -> None:
        self.routes = routes
        self.hello = hello
        self.limits = limits
        self.budget = ByteBudget(limits.held_bytes)
        self.memory = PayloadMemory()
        self.connections = 0
        self.complaints = _Complaints()

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
                    self.complaints.log("accept", f"cannot accept connections: {error}")
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
                error = BusyError(
                    f"this {self.hello.role} has {self.limits.connections} connections, its most",
                    hint="retry later, or raise its limit",
                )
                await refuse(transport, error)
                raise error
            theirs, reader = await receive_greeting(transport, self.hello, self.limits)
            return Connection(
                transport,
                address=transport.peer,
                peer=theirs,
                reader=reader,
                routes=self.routes,
                role=self.hello.role,
                limits=self.limits,
                budget=self.budget,
                memory=self.memory,
            )
        raise ProtocolError(f"there was no hello within {self.limits.hello_s:g} s")

    def _complain(self, transport: Transport, error: DfsError) -> None:
        if isinstance(error, UnavailableError):
            _log.debug("%s", error)  # peers come and go
        else:
            host = transport.peer.rpartition(":")[0] or transport.peer
            self.complaints.log(host, f"dropped the connection from {transport.peer}: {error}")


class _Complaints:
    """Logs at most one line per subject and interval."""

    def __init__(self) -> None:
        self._logged_at: OrderedDict[str, float] = OrderedDict()

    def log(self, subject: str, line: str) -> None:
        now = trio.current_time()
        last = self._logged_at.get(subject)
        if last is not None and now - last < _LOG_INTERVAL_S:
            return
        self._logged_at[subject] = now
        self._logged_at.move_to_end(subject)
        if len(self._logged_at) > _LOG_PEERS_MAX:
            self._logged_at.popitem(last=False)
        _log.warning("%s", line)
