"""What one program brings to all its connections: its hello, its handlers, its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfs.wire.complaints import Complaints
from dfs.wire.handlers import Handler, Routes, make_routes
from dfs.wire.hello import Hello
from dfs.wire.limits import ByteBudget, Limits
from dfs.wire.messages import Message
from dfs.wire.payloads import PayloadMemory


@dataclass(frozen=True, slots=True)
class Side:
    """Shared by the connections of one server, or of one pool."""

    hello: Hello
    routes: Routes
    limits: Limits
    budget: ByteBudget
    """Payloads of requests that are being handled are taken from it."""
    memory: PayloadMemory
    complaints: Complaints = field(default_factory=Complaints)


def make_side(
    hello: Hello,
    handlers: Mapping[type[Message], Handler] | None = None,
    limits: Limits | None = None,
) -> Side:
    """Raises ValueError when a handler's type is no request of the method table."""
    limits = limits or Limits()
    return Side(
        hello,
        make_routes(handlers or {}),
        limits,
        ByteBudget(limits.held_bytes),
        PayloadMemory(limits.kept_bytes),
    )
