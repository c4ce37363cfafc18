"""What waits to be sent on one connection, in order, and the task that sends it.

Small frames are joined in one buffer, so that those of one scheduler tick leave in one system
call; large payloads are queued as they are and never copied; file payloads go by sendfile.
A connection owns one outbox and runs its `run`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio
from trio.lowlevel import Abort, ParkingLot

from dfs.core.buffers import Buffer
from dfs.core.errors import CorruptError, DfsError, DiskError, UnavailableError
from dfs.wire.handlers import FilePayload
from dfs.wire.transport import Transport

JOIN_BYTES_MAX: Final = 16 * 1024
"""Payloads up to this size are copied behind their frame; larger ones are sent where they lie."""

_BATCH_BYTES: Final = 8 * 1024 * 1024
_NOW_MAX: Final = 64
"""Buffers that are sent in one call by who puts them in."""
_FILE_COST_BYTES: Final = 64 * 1024
"""What an open file counts for in the bytes queued, as its payload takes no memory."""


class Outgoing:
    """A frame with a large payload on its way: `buffers`, then `file`."""

    __slots__ = ("begun", "buffers", "file", "on_done", "size")

    def __init__(
        self,
        buffers: Sequence[Buffer],
        size: int,
        file: FilePayload | None,
        on_done: Callable[[], None] | None,
    ) -> None:
        self.buffers = buffers
        self.size = size
        self.file = file
        self.on_done = on_done
        self.begun = False

    def finish(self) -> None:
        """Let go of everything, sent or not. Harmless when repeated."""
        file, on_done = self.file, self.on_done
        self.buffers, self.file, self.on_done = (), None, None
        try:
            if file is not None and file.close is not None:
                file.close()
        finally:
            if on_done is not None:
                on_done()


class Outbox:
    """The queue and its sender. Putting in never waits; `full` says when to hold off."""

    def __init__(self, transport: Transport, *, limit_bytes: int) -> None:
        self._transport = transport
        self._limit = limit_bytes
        self._queue: deque[Outgoing] = deque()
        self._queued = 0
        self._tail = bytearray()
        """Small frames, after all of `_queue`."""
        self._sending = False
        self._sender: trio.lowlevel.Task | None = None
        self._error: DfsError | None = None
        self._closed = False
        self._room = ParkingLot()

    @property
    def full(self) -> bool:
        """More than the limit waits to be sent: put nothing in that can wait (`wait_room`)."""
        return self._queued + len(self._tail) > self._limit

    def put(self, frame: bytes) -> None:
        """Queue a small frame. It leaves at the next `flush` or `wake`."""
        self._tail += frame

    def put_payload(
        self,
        frame: bytes,
        payload: Sequence[Buffer] | FilePayload,
        on_done: Callable[[], None] | None = None,
    ) -> Outgoing | None:
        """Queue a frame with its payload, by reference if large; None if it was copied.

        `on_done` is called once when it has been sent or never will be.
        """
        if isinstance(payload, FilePayload):
            item = Outgoing((frame,), _FILE_COST_BYTES, payload, on_done)
        else:
            size = len(frame) + sum(map(len, payload))
            if size <= JOIN_BYTES_MAX:
                self._tail += frame
                for buffer in payload:
                    self._tail += buffer
                if on_done is not None:
                    on_done()
                return None
            item = Outgoing((frame, *payload), size, None, on_done)
        if self._closed:
            item.finish()
            return item
        self._seal_tail()
        self._queue.append(item)
        self._queued += item.size
        return item

    def discard(self, item: Outgoing) -> bool:
        """Take an item back; False when its first bytes have already been sent."""
        if item.begun:
            return False
        self._queued -= item.size
        item.size = 0
        item.finish()
        return True

    def flush(self) -> None:
        """Send at once what goes without waiting; the sender does the rest."""
        if self._sending or self._closed:
            return
        try:
            if self._queue:
                self._send_now()
            elif self._tail:
                sent = self._transport.try_send((self._tail,))
                if sent == len(self._tail):
                    self._tail.clear()
                else:
                    del self._tail[:sent]
        except DfsError as error:
            self._error = error
        if self._queue or self._tail:
            self.wake()
        elif self._room:
            self._room.unpark_all()

    def _send_now(self) -> None:
        """Send what goes without waiting of the frames that come before a file."""
        self._seal_tail()
        queue = self._queue
        buffers: list[Buffer] = []
        for item in queue:
            if item.file is not None or len(buffers) >= _NOW_MAX:
                break
            buffers.extend(item.buffers)
        sent = self._transport.try_send(buffers) if buffers else 0
        while sent:
            item = queue[0]
            size = sum(map(len, item.buffers))
            if sent < size:
                item.begun = True
                item.buffers = _rest(item.buffers, sent)
                return
            sent -= size
            queue.popleft()
            self._queued -= item.size
            item.begun = True
            item.finish()

    def wake(self) -> None:
        """Have the sender send all, one scheduler tick from now."""
        sender = self._sender
        if sender is not None:
            self._sender = None
            trio.lowlevel.reschedule(sender)

    async def wait_room(self) -> None:
        """Wait until the outbox is not full."""
        while self.full:
            self.wake()
            await self._room.park()

    async def run(self) -> None:
        """Send, for ever. Raises the DfsError that broke the transport."""
        while True:
            if self._error is not None:
                raise self._error
            if self._queue or self._tail:
                self._sending = True
                try:
                    await self._send_batch()
                except BaseException:
                    # A frame may have been cut off: nothing that follows would make sense.
                    self._closed = True
                    raise
                self._sending = False
                if self._room and not self.full:
                    self._room.unpark_all()
            else:
                self._sender = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)

    def close(self) -> None:
        """Nothing is sent any more: let go of all payloads, wake who waits for room."""
        self._closed = True
        self._error = self._error or UnavailableError("the connection is closed")
        queue, self._queue = self._queue, deque()
        self._tail.clear()
        self._queued = 0
        for item in queue:
            item.finish()
        self._room.unpark_all()

    def _abort(self, _: object) -> Abort:
        self._sender = None
        return Abort.SUCCEEDED

    def _seal_tail(self) -> None:
        if self._tail:
            tail, self._tail = self._tail, bytearray()
            self._queue.append(Outgoing((tail,), len(tail), None, None))
            self._queued += len(tail)

    async def _send_file(self, file: FilePayload) -> None:
        try:
            for offset, length in file.ranges:
                await self._transport.send_file(file.fd, offset, length)
        except (CorruptError, DiskError) as error:
            if file.on_error is not None:
                file.on_error(error)
            raise

    async def _send_batch(self) -> None:
        self._seal_tail()
        batch: list[Outgoing] = []
        buffers: list[Buffer] = []
        total = 0
        while self._queue and total < _BATCH_BYTES:
            item = self._queue.popleft()
            item.begun = True
            batch.append(item)
            buffers.extend(item.buffers)
            total += item.size
            if item.file is not None:
                break
        try:
            if buffers:
                await self._transport.send(buffers)
            file = batch[-1].file
            if file is not None:
                await self._send_file(file)
        finally:
            self._queued -= total
            for item in batch:
                item.finish()


def _rest(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of buffers when so many bytes of them have been sent."""
    rest: list[Buffer] = []
    for buffer in buffers:
        if sent >= len(buffer):
            sent -= len(buffer)
        else:
            rest.append(memoryview(buffer)[sent:] if sent else buffer)
            sent = 0
    return rest
