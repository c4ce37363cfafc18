"""Opening a connection: transport, hello, and the tasks that keep it going."""

from collections.abc import Mapping

import trio

from dfs.core.errors import DeadlineError
from dfs.wire.connection import Connection
from dfs.wire.handlers import Handler
from dfs.wire.handshake import greet
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.messages import Message
from dfs.wire.side import Side, make_side
from dfs.wire.transport import Connector, connect_tcp


async def connect(
    address: str,
    *,
    nursery: trio.Nursery,
    hello: Hello,
    timeout_s: float,
    handlers: Mapping[type[Message], Handler] | None = None,
    limits: Limits | None = None,
    connector: Connector = connect_tcp,
) -> Connection:
    """Connect to a dfs server at `address`; the connection's tasks run in `nursery`.

    `handlers` answer what the other side calls. Raises UnavailableError, ProtocolError or the
    reason the other side gives; DeadlineError after `timeout_s`. Close it with `aclose`.
    """
    side = make_side(hello, handlers, limits)
    return await connect_side(address, side, nursery, connector=connector, timeout_s=timeout_s)


async def connect_side(
    address: str,
    side: Side,
    nursery: trio.Nursery,
    *,
    connector: Connector,
    timeout_s: float,
) -> Connection:
    """As `connect`, for one of the connections that share a `Side`."""
    with trio.CancelScope(deadline=trio.current_time() + timeout_s):
        transport = await connector(address)
        try:
            theirs, reader = await greet(transport, address, side.hello, side.limits)
            connection = Connection(
                transport, address=address, peer=theirs, reader=reader, side=side
            )
            await nursery.start(connection.run)
        except BaseException:
            with trio.CancelScope(shield=True):
                await transport.aclose()
            raise
        return connection
    raise DeadlineError(
        f"{address} did not answer within {timeout_s:g} s",
        hint="check that the server runs, and the address and firewall",
    )
