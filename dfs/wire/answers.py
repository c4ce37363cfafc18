"""The answering side of a connection: run handlers, send what they answer.

Owned by a `Connection`, which reads frames and hands them in. An answer, or an error, is queued
for every request, except when its caller gave up.
"""

import logging
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import CoroutineType
from typing import Any, Final, Protocol

import msgspec
import trio
from outcome import Outcome
from trio.lowlevel import ParkingLot

from dfs.core.errors import DeadlineError, DfsError, ProtocolError
from dfs.wire.framing import MALFORMED, Frame, Kind, pack
from dfs.wire.handlers import FilePayload, HeldPayload, Later, Payload, Peer, ReplyResult, Route
from dfs.wire.messages import METHOD_NUMBERED, Message
from dfs.wire.outbox import Outbox
from dfs.wire.side import Side

_log = logging.getLogger(__name__)

_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)
_NEVER: Final = float("inf")

_encode: Final = msgspec.msgpack.Encoder().encode


class _Cancellable(Protocol):
    def cancel(self) -> None: ...


class Answers:
    """The requests of one connection that are being answered."""

    def __init__(
        self,
        outbox: Outbox,
        side: Side,
        peer: Peer,
    ) -> None:
        self._outbox = outbox
        self._routes = side.routes
        self._peer = peer
        self._role = side.hello.role
        self._limits = side.limits
        self._budget = side.budget
        self._complaints = side.complaints
        self._running: dict[int, _Cancellable] = {}
        self._active = 0
        self._slot = ParkingLot()
        self.nursery: trio.Nursery | None = None
        """Async handlers run here; set before the first request."""

    @property
    def busy(self) -> bool:
        """As many async handlers run as may: `wait_slot` before handing the next request in."""
        return self._active >= self._limits.requests

    async def wait_slot(self) -> None:
        while self.busy:
            await self._slot.park()

    def cancel(self, frame: Frame) -> None:
        """The caller of a request gave up."""
        work = self._running.pop(frame.request, None)
        if work is not None:
            work.cancel()

    def find(self, frame: Frame) -> tuple[Route, Message] | None:
        """The handler of a request, and its message; None if it has been refused."""
        route = self._routes.get(frame.method)
        if route is None:
            self._answer_error(frame.request, self._unknown(frame.method))
            return None
        try:
            return route, route.decode(frame.body)
        except MALFORMED as error:
            self._answer_error(frame.request, ProtocolError(f"malformed {route.name}: {error}"))
            return None

    def handle(
        self,
        route: Route,
        message: Message,
        frame: Frame,
        payload: memoryview,
        charge_bytes: int = 0,
    ) -> None:
        """Call the handler; answer now, or in a task. Gives the charge back when all is done.

        Does not yield.
        """
        try:
            result = route.handler(self._peer, message, payload)
            if type(result) is route.reply or type(result) is bytes:
                self._outbox.put(pack(_REPLY, 0, frame.request, self._body(result)))
            elif isinstance(result, CoroutineType):
                self._start(route, frame, result, charge_bytes)
                return
            elif type(result) is Later:
                self._active += 1
                self._running[frame.request] = result
                result.then(partial(self._answer_later, route, frame.request, result, charge_bytes))
                return
            else:
                self._answer(route, frame.request, result, None)
        except Exception as error:
            self._answer_error(frame.request, self._explain(route, error))
        if charge_bytes:
            self._budget.release(charge_bytes)

    def _start(
        self, route: Route, frame: Frame, work: Coroutine[Any, Any, object], charge_bytes: int
    ) -> None:
        timeout_s = frame.timeout_ms / 1000 if frame.timeout_ms else _NEVER
        scope = trio.CancelScope(deadline=trio.current_time() + timeout_s)
        self._running[frame.request] = scope
        self._active += 1
        assert self.nursery is not None
        self.nursery.start_soon(
            self._finish_later, route, frame.request, scope, work, charge_bytes, name=route.name
        )

    async def _finish_later(
        self,
        route: Route,
        request: int,
        scope: trio.CancelScope,
        work: Coroutine[Any, Any, object],
        charge_bytes: int,
    ) -> None:
        """Await an async handler and answer. Its slot is free when the answer has been sent."""

        done: Callable[[], None] = partial(self._done, charge_bytes)
        error: DfsError | None = None
        try:
            with scope:
                result = await work
                on_done, done = done, _nothing
                if self._running.get(request) is scope:
                    self._answer(route, request, result, on_done)
                else:
                    _let_go(result, on_done)
            if scope.cancelled_caught:
                error = DeadlineError(f"{route.name} was not done within its caller's time")
        except Exception as surprise:
            error = self._explain(route, surprise)
        finally:
            done()
            if self._running.get(request) is scope:
                del self._running[request]
                if error is not None:
                    self._answer_error(request, error)
        self._outbox.wake()

    def _answer_later(
        self,
        route: Route,
        request: int,
        later: Later,
        charge_bytes: int,
        outcome: "Outcome[ReplyResult]",
    ) -> None:
        """A `Later` has come. Its slot is free when the answer has been sent."""
        done: Callable[[], None] = partial(self._done, charge_bytes)
        try:
            result = outcome.unwrap()
            on_done, done = done, _nothing
            if self._running.get(request) is later:
                self._answer(route, request, result, on_done)
            else:
                _let_go(result, on_done)
        except Exception as error:
            if self._running.get(request) is later:
                self._answer_error(request, self._explain(route, error))
        finally:
            done()
            if self._running.get(request) is later:
                del self._running[request]
        if self._active:
            self._outbox.wake()
        else:
            self._outbox.flush()

    def _done(self, charge_bytes: int) -> None:
        """A request that was answered later needs its slot and its memory no more."""
        self._active -= 1
        if charge_bytes:
            self._budget.release(charge_bytes)
        if self._slot:
            self._slot.unpark()

    # ------------------------------------------------------------------ what is sent

    def _answer(
        self, route: Route, request: int, result: object, on_done: Callable[[], None] | None
    ) -> None:
        """Queue a reply. `on_done` and the payload's `close` are called, whatever happens."""
        payload: Payload = ()
        if type(result) is tuple and len(result) == 2:
            reply, payload = result
        else:
            reply = result
        try:
            if type(reply) is not route.reply and type(reply) is not bytes:
                raise TypeError(f"{route.name} must be answered by {route.reply.__name__}")
            body = self._body(reply)
            if isinstance(payload, FilePayload | HeldPayload):
                length = payload.length_bytes
            else:
                length = sum(map(len, payload)) if payload else 0
            if length > self._limits.payload_bytes:
                raise ValueError(f"a payload of {length} bytes is over the limit")
        except BaseException:
            _let_go(result, on_done)
            raise
        frame = pack(_REPLY, 0, request, body, 0, length)
        if length:
            if isinstance(payload, HeldPayload):
                payload, on_done = payload.buffers, partial(_let_go, result, on_done)
            self._outbox.put_payload(frame, payload, on_done)
            return
        self._outbox.put(frame)
        _let_go(result, on_done)

    def _body(self, reply: object) -> bytes:
        body = reply if type(reply) is bytes else _encode(reply)
        if len(body) > self._limits.body_bytes:
            raise ValueError(f"an answer of {len(body)} bytes is over the limit")
        return body

    def _answer_error(self, request: int, error: DfsError) -> None:
        self._outbox.put(pack(_ERROR, 0, request, _encode(error.to_wire())))

    def _unknown(self, method: int) -> ProtocolError:
        known = METHOD_NUMBERED.get(method)
        if known is None:
            return ProtocolError(
                f"method {method} is unknown to this {self._role}",
                hint="it may be older than its caller: upgrade it",
            )
        return ProtocolError(
            f"this is a {self._role}, which does not answer {known.request.__name__}",
            hint="check the address",
        )

    def _explain(self, route: Route, error: Exception) -> DfsError:
        """What the caller may know of an exception; a surprise goes to the log as a whole."""
        leaves = list(_leaves(error))
        first = leaves[0]
        if isinstance(first, DfsError) and all(isinstance(leaf, DfsError) for leaf in leaves):
            return first
        line = f"{route.name} from {self._peer.address} failed"
        subject = f"{route.name} {type(first).__name__}"
        self._complaints.log(_log, logging.ERROR, subject, line, error)
        return DfsError(f"{route.name} failed inside the {self._role}", hint="its log says why")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """An exception, or all those in a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _nothing() -> None:
    """Stands in for a duty that someone else has taken over."""


def _let_go(result: object, on_done: Callable[[], None] | None) -> None:
    """Let go of an answer that has been sent, is not, or has no payload to send."""
    try:
        if type(result) is tuple and len(result) == 2:
            payload = result[1]
            if isinstance(payload, FilePayload | HeldPayload) and payload.close is not None:
                payload.close()
    finally:
        if on_done is not None:
            on_done()
