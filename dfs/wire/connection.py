"""One connection after its hello: the object both sides call over, and the loop that reads it.

A `Connection` owns its transport. `run` starts the tasks that receive, send and keep time, and
one for each async handler. All state is touched in the scheduler's thread only, and every step
between two awaits is atomic.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast

import trio
from trio.lowlevel import wait_task_rescheduled

from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError, ProtocolError, UnavailableError
from dfs.wire.answers import Answers
from dfs.wire.calls import NO_PAYLOAD, Call, Calls, Wake
from dfs.wire.framing import Frame, FrameReader, Kind, pack
from dfs.wire.handlers import Peer, Route
from dfs.wire.hello import Hello
from dfs.wire.messages import Message
from dfs.wire.outbox import Outbox
from dfs.wire.side import Side
from dfs.wire.transport import Transport

_log = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)

_FLUSH: Final = 32
"""Answers that leave together; then the other side can go on while this one does the rest."""
_AT_ONCE_BYTES: Final = 256 * 1024
"""Payloads up to this size are most often there as a whole when their frame is."""
_TURN: Final = 128
"""Requests answered in a row before other tasks get their turn."""

_REQUEST: Final = int(Kind.REQUEST)
_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)
_CANCEL: Final = int(Kind.CANCEL)
_PING: Final = int(Kind.PING)
_PONG: Final = int(Kind.PONG)
_GOODBYE: Final = int(Kind.GOODBYE)


class Connection:
    """Both ends of a connection are alike: either may call what the other has handlers for."""

    def __init__(
        self,
        transport: Transport,
        *,
        address: str,
        peer: Hello,
        reader: FrameReader,
        side: Side,
    ) -> None:
        """`reader` has read the other side's hello and may hold what came behind it."""
        self.address = address
        """Of the other side: as it was dialled, or as it was accepted."""
        self.peer = peer
        """The other side's hello."""
        self.why: DfsError | None = None
        """What ended the connection; None while it is open."""
        self._transport = transport
        self._reader = reader
        self._limits = side.limits
        self._budget = side.budget
        self._memory = side.memory
        self._scope = trio.CancelScope()
        self._outbox = Outbox(transport, limit_bytes=side.limits.queued_bytes)
        self._calls = Calls(self._outbox, side.limits, address, peer.version)
        self._answers = Answers(self._outbox, side, Peer(address, peer, self))

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Connection to {self.address}, {state}, {self.load} calls, {self.peer!r}>"

    @property
    def closed(self) -> bool:
        """It is broken or closed: every call fails at once."""
        return self.why is not None

    @property
    def load(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    # ------------------------------------------------------------------ calling

    async def call(
        self,
        request: Message,
        reply_type: type[R],
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
    ) -> R:
        """Ask, and give the reply; `reply_type` is that of the method table.

        `payload` follows the request as it lies in memory: it must not be changed any more, even
        when the call fails. Cancelling tells the other side.

        Raises what the handler raised; DeadlineError after `timeout_s`; UnavailableError when the
        connection breaks, the request may then have been carried out or not.
        """
        if self.why is None:
            call = self._calls.begin(request, reply_type, payload, timeout_s)
            if call is not None:
                # One frame less on the stack than by call_raw: this is the hottest path of all.
                return cast("tuple[R, memoryview]", await wait_task_rescheduled(call.abort))[0]
        reply, _ = await self.call_raw(request, reply_type, payload=payload, timeout_s=timeout_s)
        return reply

    async def call_raw(
        self,
        request: Message,
        reply_type: type[R],
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
    ) -> tuple[R, memoryview]:
        """As `call`, and the reply's raw payload (empty if it has none)."""
        while self.why is None:
            call = self._calls.begin(request, reply_type, payload, timeout_s)
            if call is not None:
                return cast("tuple[R, memoryview]", await wait_task_rescheduled(call.abort))
            timeout_s = await self._calls.wait_turn(request, timeout_s)
        await trio.lowlevel.checkpoint()
        raise self._calls.gone()

    def post(
        self,
        request: Message,
        reply_type: type[R],
        wake: Wake,
        *,
        payload: Sequence[Buffer] = (),
        timeout_s: float,
    ) -> Call | None:
        """Begin a call for who waits for several at once: `wake` is told what `call_raw` returns.

        None where it would have to wait for its turn, or the connection has ended. Does not yield.
        """
        if self.why is not None:
            return None
        return self._calls.begin(request, reply_type, payload, timeout_s, wake)

    # ------------------------------------------------------------------ life

    async def run(
        self, *, task_status: trio.TaskStatus["Connection"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the connection until it breaks or is closed; then every call has failed.

        Raises nothing but Cancelled: `why` says what ended it.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._answers.nursery = nursery
                    for loop in (self._outbox.run, self._calls.watch, self._receive):
                        nursery.start_soon(self._guard, loop)
                    task_status.started(self)
        finally:
            self._say_goodbye()
            with trio.CancelScope(shield=True):
                await self._transport.aclose()

    async def aclose(self) -> None:
        """Say goodbye and close; calls in flight fail with UnavailableError. May be repeated."""
        self._say_goodbye()
        await trio.lowlevel.checkpoint()

    def _say_goodbye(self) -> None:
        if self.why is None:
            self._outbox.put(pack(_GOODBYE, 0, 0))
            self._outbox.flush()
            self._end(UnavailableError(f"the connection to {self.address} was closed"))

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except DfsError as error:
            self._end(error)
        except Exception:
            _log.exception("the connection to %s failed", self.address)
            self._end(UnavailableError(f"the connection to {self.address} failed"))

    def _end(self, reason: DfsError) -> None:
        """Fail all calls, stop all tasks. Does not yield."""
        if self.why is None:
            self.why = reason
            self._scope.cancel()
            self._outbox.close()
            self._calls.end(reason)

    # ------------------------------------------------------------------ receiving

    async def _receive(self) -> None:
        reader, outbox, calls, answers = self._reader, self._outbox, self._calls, self._answers
        turns = 0
        while True:
            while (frame := reader.next()) is not None:
                kind = frame.kind
                if kind == _REPLY:
                    if frame.payload_length:
                        await self._take_payload_reply(frame)
                    else:
                        calls.take_reply(frame)
                elif kind == _REQUEST:
                    found = answers.find(frame)
                    if frame.payload_length:
                        await self._take_payload_request(frame, found)
                    elif found is not None:
                        answers.handle(*found, frame, NO_PAYLOAD)
                    turns += 1
                    if not turns % _FLUSH:
                        outbox.flush()
                    if turns >= _TURN or outbox.full or answers.busy:
                        turns = 0
                        outbox.flush()
                        await outbox.wait_room()
                        if answers.busy:
                            await self._reassure_while(answers.wait_slot)
                        await trio.lowlevel.checkpoint()
                else:
                    self._take_other(frame)
            turns = 0
            outbox.flush()
            reader.received(await self._receive_into(reader.space()))

    async def _receive_into(self, space: memoryview, *, fill: bool = False) -> int:
        count = await self._transport.receive_into(space, fill=fill)
        if not count:
            raise UnavailableError(f"{self.address} closed the connection")
        self._calls.heard_at = trio.current_time()
        return count

    def _take_other(self, frame: Frame) -> None:
        kind = frame.kind
        if frame.payload_length:
            raise ProtocolError(f"{self.address} sent a payload where none belongs")
        if kind == _ERROR:
            self._calls.take_error(frame)
        elif kind == _CANCEL:
            self._answers.cancel(frame)
        elif kind == _PING:
            # Who has not fetched what waits for him hears from us as soon as he does.
            if not self._outbox.full:
                self._outbox.put(pack(_PONG, 0, 0))
        elif kind == _GOODBYE:
            raise UnavailableError(f"{self.address} is shutting down")
        elif kind != _PONG:
            raise ProtocolError(f"{self.address} said hello twice")

    async def _take_payload_reply(self, frame: Frame) -> None:
        deliver = self._calls.expect_payload(frame)
        if deliver is None:
            await self._skip_payload(frame.payload_length)
        else:
            deliver(await self._take_payload(frame.payload_length))

    async def _take_payload_request(
        self, frame: Frame, found: tuple[Route, Message] | None
    ) -> None:
        length = frame.payload_length
        if found is None:
            await self._skip_payload(length)
            return
        if not self._budget.try_acquire(length):
            self._outbox.flush()
            await self._reassure_while(lambda: self._budget.acquire(length))
        try:
            payload = await self._take_payload(length, self._limits.payload_s)
        except BaseException:
            self._budget.release(length)
            raise
        self._answers.handle(*found, frame, payload, length)

    async def _reassure_while(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait, not reading meanwhile; let the other side know that this one lives."""

        async def reassure() -> None:
            with scope:
                while True:
                    await trio.sleep(self._limits.ping_s)
                    self._outbox.put(pack(_PONG, 0, 0))
                    self._outbox.flush()

        scope = trio.CancelScope()
        assert self._answers.nursery is not None
        self._answers.nursery.start_soon(reassure)
        try:
            await wait()
        finally:
            scope.cancel()

    async def _take_payload(self, length: int, within_s: float = math.inf) -> memoryview:
        """The payload of the frame just read, received where it will stay."""
        target = self._memory.take(length)
        rest = target[self._reader.take_payload(target) :]
        if rest and length <= _AT_ONCE_BYTES:
            count = self._transport.try_receive(rest)
            if count:
                self._calls.heard_at = trio.current_time()
                rest = rest[count:]
        if rest:
            end = trio.current_time() + within_s
            with self._stall_scope() as scope:
                while rest:
                    rest = rest[await self._receive_into(rest, fill=True) :]
                    scope.deadline = min(end, self._calls.heard_at + self._limits.stall_s)
            if rest:
                if trio.current_time() >= end:
                    raise UnavailableError(
                        f"{self.address} has not sent {length} bytes within {within_s:g} s"
                    )
                raise self._stalled()
        return target

    async def _skip_payload(self, length: int) -> None:
        """Read past a payload that nobody wants, keeping none of it."""
        rest = self._reader.skip_payload(length)
        with self._stall_scope() as scope:
            while rest:
                rest -= await self._receive_into(self._reader.space()[:rest])
                scope.deadline = self._calls.heard_at + self._limits.stall_s
        if rest:
            raise self._stalled()

    def _stall_scope(self) -> trio.CancelScope:
        self._outbox.flush()
        return trio.CancelScope(deadline=trio.current_time() + self._limits.stall_s)

    def _stalled(self) -> UnavailableError:
        return UnavailableError(
            f"{self.address} stopped in the middle of a payload for {self._limits.stall_s:g} s"
        )
