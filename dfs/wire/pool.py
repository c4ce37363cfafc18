"""Calls by address: connections are opened on demand, shared, and opened again after they break.

An address that cannot be reached is left alone for a while that doubles with each failure (up to
a bound, and jittered): calls to it fail at once meanwhile, so that callers go elsewhere.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import TypeVar

import trio

from dfs.core.buffers import Buffer
from dfs.core.errors import DeadlineError, DfsError, UnavailableError
from dfs.wire.calls import Call, Wake
from dfs.wire.connection import Connection
from dfs.wire.dial import connect_side
from dfs.wire.handlers import Handler
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.messages import Message
from dfs.wire.side import make_side
from dfs.wire.transport import Connector, connect_tcp

R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to leave an address alone after its n-th failure in a row."""

    first_s: float = 0.1
    most_s: float = 5.0
    connect_s: float = 5.0
    """For a connection to be made, hello included."""

    def delay_s(self, failures: int, random: Random) -> float:
        whole = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * random.uniform(0.5, 1.0)


@dataclass(slots=True, eq=False)
class _Lane:
    """One of the connections to an address, or the attempt to have it."""

    connection: Connection | None = None
    opening: trio.Event | None = None

    @property
    def is_open(self) -> bool:
        return self.connection is not None and not self.connection.closed


@dataclass(slots=True, eq=False)
class _Place:
    """What is known of an address."""

    address: str
    lanes: list[_Lane]
    failures: int = 0
    retry_at: float = 0.0
    error: DfsError | None = None
    counter: int = field(default=0)


class Pool:
    """An async context manager; leaving it closes all connections."""

    def __init__(
        self,
        *,
        hello: Hello,
        connector: Connector = connect_tcp,
        random: Random | None = None,
        width: int = 1,
        handlers: Mapping[type[Message], Handler] | None = None,
        limits: Limits | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """`width`: connections per address. `random` jitters the back-off.

        `handlers` answer what servers call back.
        """
        self._side = make_side(hello, handlers, limits)
        self._connector = connector
        self._random = random or Random()
        self._width = width
        self._backoff = backoff or Backoff()
        self._places: dict[str, _Place] = {}
        self._manager: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> "Pool":
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._manager is not None
        # A cancelled body must not keep the nursery from being left.
        with trio.CancelScope(shield=True):
            await self.aclose()
        await self._manager.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Close all connections; calls in flight and later ones fail. May be repeated."""
        nursery, self._nursery = self._nursery, None
        for place in self._places.values():
            for lane in place.lanes:
                if lane.connection is not None:
                    await lane.connection.aclose()
        if nursery is not None:
            nursery.cancel_scope.cancel()

    async def call(
        self,
        address: str,
        request: Message,
        reply_type: type[R],
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
        patient: bool = False,
    ) -> R:
        """As `Connection.call`, over a connection to `address`.

        A call makes at most one attempt to connect, and none while the address is left alone
        after a failure: it raises UnavailableError at once then. A `patient` call waits and
        tries again until `timeout_s` is over. A request that was sent is never sent again.
        """
        connection = self._ready(address)
        if connection is None:
            begun = trio.current_time()
            connection = await self._open(address, timeout_s, patient)
            timeout_s -= trio.current_time() - begun
        return await connection.call(request, reply_type, payload=payload, timeout_s=timeout_s)

    async def call_raw(
        self,
        address: str,
        request: Message,
        reply_type: type[R],
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
        patient: bool = False,
    ) -> tuple[R, memoryview]:
        """As `call`, and the reply's raw payload."""
        connection = self._ready(address)
        if connection is None:
            begun = trio.current_time()
            connection = await self._open(address, timeout_s, patient)
            timeout_s -= trio.current_time() - begun
        return await connection.call_raw(request, reply_type, payload=payload, timeout_s=timeout_s)

    def post(
        self,
        address: str,
        request: Message,
        reply_type: type[R],
        wake: Wake,
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
    ) -> Call | None:
        """As `Connection.post`; None too where no connection to `address` is open now."""
        connection = self._ready(address)
        if connection is None:
            return None
        return connection.post(request, reply_type, wake, payload=payload, timeout_s=timeout_s)

    def forgive(self, address: str) -> None:
        """Forget failures of an address: it is known to be back."""
        place = self._places.get(address)
        if place is not None:
            place.failures = 0
            place.retry_at = 0.0

    def is_down(self, address: str) -> bool:
        """The last attempt failed, and the next one is not due yet."""
        place = self._places.get(address)
        return place is not None and place.failures > 0 and place.retry_at > trio.current_time()

    # ------------------------------------------------------------------ connections

    def _ready(self, address: str) -> Connection | None:
        """An open connection, the lanes in turn; None if the next lane should be opened."""
        place = self._places.get(address)
        if place is None:
            return None
        place.counter += 1
        lane = place.lanes[place.counter % self._width]
        if lane.is_open:
            return lane.connection
        if lane.opening is not None or place.retry_at > trio.current_time():
            return next((each.connection for each in place.lanes if each.is_open), None)
        return None

    async def _open(self, address: str, timeout_s: float, patient: bool) -> Connection:
        place = self._places.get(address)
        if place is None:
            place = _Place(address, [_Lane() for _ in range(self._width)])
            self._places[address] = place
        deadline = trio.current_time() + timeout_s
        lane = place.lanes[place.counter % self._width]
        with trio.CancelScope(deadline=deadline):
            while True:
                if self._nursery is None:
                    raise UnavailableError("the connection pool is closed", retry=False)
                if lane.connection is not None and not lane.connection.closed:
                    return lane.connection
                if lane.opening is not None:
                    await lane.opening.wait()
                    if lane.connection is None and not patient:
                        raise self._down(place)
                    continue
                wait_s = place.retry_at - trio.current_time()
                if wait_s > 0:
                    if not patient:
                        raise self._down(place)
                    await trio.sleep(wait_s)
                    continue
                lane.opening = trio.Event()
                self._nursery.start_soon(self._connect, place, lane, self._nursery)
        if place.error is not None:
            raise self._down(place)
        raise DeadlineError(
            f"{address} did not answer within {timeout_s:g} s",
            hint="check that the server runs, and the address and firewall",
        )

    async def _connect(self, place: _Place, lane: _Lane, nursery: trio.Nursery) -> None:
        """Fill a lane. In a task of its own: the first caller's deadline is not the others'."""
        opening = lane.opening
        assert opening is not None
        lane.connection = None
        try:
            lane.connection = await connect_side(
                place.address,
                self._side,
                nursery,
                connector=self._connector,
                timeout_s=self._backoff.connect_s,
            )
        except DfsError as error:
            place.failures += 1
            place.error = error
            delay_s = self._backoff.delay_s(place.failures, self._random)
            place.retry_at = trio.current_time() + delay_s
        else:
            place.failures = 0
            place.retry_at = 0.0
            place.error = None
        finally:
            lane.opening = None
            opening.set()

    def _down(self, place: _Place) -> DfsError:
        error = place.error
        if error is None:
            return UnavailableError(f"{place.address} cannot be reached")
        return type(error)(error.message, errno=error.errno, hint=error.hint, retry=error.retry)
