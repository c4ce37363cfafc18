"""The calling side of a connection: calls in flight, their replies, deadlines and cancellation.

A call is registered and queued in one scheduler step; it ends exactly once: by its reply, its
deadline, its caller's giving up, or the end of the connection. A task that waits for one is parked
in the same step; who waits for several at once gives each a function to be called. Owned by a
`Connection`. This is the hottest code on a client: it is written to do little for each call.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import trio
from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, ParkingLot, current_clock, current_task, reschedule

from dfs.core.buffers import Buffer
from dfs.core.errors import (
    DeadlineError,
    DfsError,
    ProtocolError,
    UnavailableError,
    WireError,
    from_wire,
)
from dfs.wire.framing import MALFORMED, Frame, Kind, pack, timeout_to_ms
from dfs.wire.limits import Limits
from dfs.wire.messages import METHODS, Message
from dfs.wire.outbox import Outbox, Outgoing

NO_PAYLOAD: Final = memoryview(b"")

_FLUSH: Final = 16
"""Requests of one tick that leave together."""

_REQUEST: Final = int(Kind.REQUEST)
_CANCEL: Final = int(Kind.CANCEL)
_PING: Final = int(Kind.PING)
_NEVER: Final = float("inf")

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_error: Final = msgspec.msgpack.Decoder(WireError).decode


class _Shape(msgspec.Struct, frozen=True):
    """How one method is called."""

    number: int
    name: str
    reply: type[Message]
    decode: Callable[[memoryview], Message]


_SHAPES: Final[dict[type[Message], _Shape]] = {
    method.request: _Shape(
        method.number,
        method.request.__name__,
        method.reply,
        msgspec.msgpack.Decoder(method.reply).decode,
    )
    for method in METHODS
}


Wake = Callable[[Outcome[Any]], None]
"""Told once how a call ended: with (reply, payload), or an error."""


class Call:
    """A call in flight: who waits, and what for."""

    __slots__ = ("calls", "deadline", "number", "outgoing", "shape", "timeout_s", "wake")

    def __init__(
        self,
        calls: "Calls",
        number: int,
        wake: Wake,
        shape: _Shape,
        deadline: float,
        timeout_s: float,
    ) -> None:
        self.calls = calls
        self.number = number
        self.wake = wake
        self.shape = shape
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.outgoing: Outgoing | None = None

    def abort(self, _: object) -> Abort:
        """The caller is cancelled, while it waits."""
        self.calls.give_up(self)
        return Abort.SUCCEEDED

    def give_up(self) -> None:
        """Nobody waits any more: `wake` is not called. Harmless when the call has ended."""
        self.calls.give_up(self)


class Calls:
    """All calls in flight from this side of one connection."""

    def __init__(self, outbox: Outbox, limits: Limits, address: str, version: str) -> None:
        """`address` and `version` of the other side, for messages."""
        self.heard_at = 0.0
        """When anything last came from the other side, or the first of the calls began."""
        self._outbox = outbox
        self._limits = limits
        self._address = address
        self._version = version
        self._clock = current_clock()
        self._in_flight: dict[int, Call] = {}
        self._most = limits.calls
        self._next = 1
        self._turn = ParkingLot()
        self._reason: DfsError | None = None
        self._watch_scope = trio.CancelScope()
        self._watch_at = _NEVER
        self._pinged_at = -_NEVER

    def __len__(self) -> int:
        return len(self._in_flight)

    # ------------------------------------------------------------------ beginning

    def begin(
        self,
        request: Message,
        reply_type: type[Message],
        payload: Sequence[Buffer],
        timeout_s: float,
        wake: Wake | None = None,
    ) -> Call | None:
        """Register and queue a call of the current task, which has to park at once.

        With `wake`, of whoever wants to be told by that. None if there is no room: `wait_turn`,
        then try again.
        """
        shape = _SHAPES[type(request)]
        if shape.reply is not reply_type:
            raise TypeError(f"{shape.name} is answered by {shape.reply.__name__}")
        in_flight, outbox = self._in_flight, self._outbox
        if len(in_flight) >= self._most or outbox.full:
            return None
        body = _encode(request)
        length = sum(map(len, payload)) if payload else 0
        if length > self._limits.payload_bytes or len(body) > self._limits.body_bytes:
            raise ValueError(f"{shape.name}: {len(body)} + {length} bytes are over the limit")
        number = self._next
        self._next = number + 1
        now = self._clock.current_time()
        deadline = now + timeout_s
        if wake is None:
            wake = partial(reschedule, current_task())
        call = Call(self, number, wake, shape, deadline, timeout_s)
        frame = pack(_REQUEST, shape.number, number, body, timeout_to_ms(timeout_s), length)
        if length:
            call.outgoing = outbox.put_payload(frame, payload)
        else:
            outbox.put(frame)
        watch_at = deadline
        if in_flight:
            # Others are at it too: what they say within this tick leaves together. When it is
            # much, some leaves early, so that the other side can work at it meanwhile.
            if number % _FLUSH:
                outbox.wake()
            else:
                outbox.flush()
        else:
            self.heard_at = now
            watch_at = min(deadline, now + self._limits.ping_s)
            outbox.flush()
        in_flight[number] = call
        if watch_at < self._watch_at:
            self._watch_at = self._watch_scope.deadline = watch_at
        return call

    async def wait_turn(self, request: Message, timeout_s: float) -> float:
        """Wait until a call may begin, or the connection has ended; the time that is left.

        Raises DeadlineError after `timeout_s`.
        """
        deadline = self._clock.current_time() + timeout_s
        with trio.CancelScope(deadline=deadline):
            while self._reason is None:
                if len(self._in_flight) >= self._most:
                    await self._turn.park()
                elif self._outbox.full:
                    await self._outbox.wait_room()
                else:
                    break
            return deadline - self._clock.current_time()
        self._next_turn()
        raise DeadlineError(
            f"{type(request).__name__} could not be sent to {self._address} within {timeout_s:g} s",
            hint="too many calls wait for this server",
        )

    def _next_turn(self) -> None:
        if self._turn and len(self._in_flight) < self._most:
            self._turn.unpark()

    # ------------------------------------------------------------------ ending

    def give_up(self, call: Call) -> bool:
        """The caller no longer waits: take the request back, or tell the other side.

        Whether it had waited till now.
        """
        if self._in_flight.pop(call.number, None) is None:
            return False
        self._next_turn()
        if call.outgoing is None or not self._outbox.discard(call.outgoing):
            self._outbox.put(pack(_CANCEL, 0, call.number))
            self._outbox.wake()
        return True

    def take_reply(self, frame: Frame) -> None:
        """A reply without payload has come."""
        call = self._in_flight.pop(frame.request, None)
        if call is None:
            return  # its caller gave up meanwhile
        if self._turn:
            self._next_turn()
        result: Outcome[object]
        try:
            result = Value((call.shape.decode(frame.body), NO_PAYLOAD))
        except MALFORMED as error:
            result = Error(self._malformed(call, error))
        call.wake(result)

    def expect_payload(self, frame: Frame) -> Callable[[memoryview], None] | None:
        """A reply has come whose payload is to follow: where to deliver it; None: nobody wants it.

        Decodes the body, which does not outlive the receiving of the payload.
        """
        call = self._in_flight.get(frame.request)
        if call is None:
            return None
        try:
            reply = call.shape.decode(frame.body)
        except MALFORMED as error:
            self._finish(call, Error(self._malformed(call, error)))
            return None
        return lambda payload: self._finish(call, Value((reply, payload)))

    def take_error(self, frame: Frame) -> None:
        """An error has come instead of a reply."""
        call = self._in_flight.get(frame.request)
        if call is None:
            return
        try:
            error = from_wire(_decode_error(frame.body))
        except MALFORMED as malformed:
            error = self._malformed(call, malformed)
        self._finish(call, Error(error))

    def end(self, reason: DfsError) -> None:
        """The connection has ended: fail all calls, these and later ones."""
        self._reason = reason
        # Who is told may cancel or give up others that are in flight here: each is looked up.
        for number in list(self._in_flight):
            call = self._in_flight.pop(number, None)
            if call is not None:
                call.wake(Error(self.gone()))
        self._turn.unpark_all()

    def gone(self) -> DfsError:
        """A new exception that says why the connection has ended."""
        reason = self._reason or UnavailableError(f"the connection to {self._address} is closed")
        kind = ProtocolError if isinstance(reason, ProtocolError) else UnavailableError
        return kind(reason.message, errno=reason.errno, hint=reason.hint, retry=True)

    def _finish(self, call: Call, result: Outcome[Any]) -> None:
        if self._in_flight.pop(call.number, None) is not None:
            self._next_turn()
            call.wake(result)

    def _malformed(self, call: Call, error: Exception) -> ProtocolError:
        return ProtocolError(
            f"{self._address} (dfs {self._version}) gave a malformed answer "
            f"to {call.shape.name}: {error}"
        )

    # ------------------------------------------------------------------ time

    async def watch(self) -> None:
        """Time out calls; ask a silent other side whether it lives.

        One timer for all calls, never later than the first deadline: calls that end in time, as
        nearly all do, cost it nothing. Raises UnavailableError when the other side seems dead.
        """
        while True:
            self._watch_at = self._next_watch()
            with trio.CancelScope(deadline=self._watch_at) as self._watch_scope:
                await trio.sleep_forever()
            now = self._clock.current_time()
            for call in [each for each in self._in_flight.values() if each.deadline <= now]:
                if not self.give_up(call):
                    continue  # by who was told of another's end
                error = DeadlineError(
                    f"{self._address} did not answer {call.shape.name} within {call.timeout_s:g} s",
                    hint="the server is overloaded, stopped, or cut off",
                )
                call.wake(Error(error))
            if self._in_flight:
                self._check_life(now)

    def _check_life(self, now: float) -> None:
        # The very sums of `_next_watch`: a rounded difference would have it wake up for nothing.
        if now >= self.heard_at + self._limits.dead_s:
            raise UnavailableError(
                f"{self._address} has given no sign of life for {now - self.heard_at:.0f} s",
                hint="the server is stopped or cut off",
            )
        if now >= self.heard_at + self._limits.ping_s and self._pinged_at <= self.heard_at:
            self._pinged_at = now
            self._outbox.put(pack(_PING, 0, 0))
            self._outbox.wake()

    def _next_watch(self) -> float:
        if not self._in_flight:
            return _NEVER
        pinged = self._pinged_at > self.heard_at
        quiet_s = self._limits.dead_s if pinged else self._limits.ping_s
        return min(self.heard_at + quiet_s, *(call.deadline for call in self._in_flight.values()))
