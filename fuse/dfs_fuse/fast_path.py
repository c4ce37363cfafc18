"""What FUSE's threads do without a hop into trio: gather small writes, serve reads from a buffer.

A hop costs 100 to 180 us, a request of libfuse 2 moves 128 KiB at most. So the bytes of several
writes go over together, and a sequential read brings more than was asked for. What POSIX promises
within a mount holds: whoever looks at a file settles what is gathered for it first, and a buffered
read is used only while the file's `epoch` is the one it was read at.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from dfs.core.ids import InodeId
from dfs_fuse.bridge import Bridge
from dfs_fuse.handles import FileHandle
from dfs_fuse.vfs import Vfs

GATHER_BYTES: Final = 1024 * 1024
GATHER_PARTS: Final = 256
GATHER_ALL_BYTES: Final = 16 * 1024 * 1024
"""With so much gathered for all files, what is written goes over at once."""
GATHER_S: Final = 1.0
"""How long a write is kept here at most."""
_BUFFER_FIRST_BYTES: Final = 256 * 1024
_BUFFER_MAX_BYTES: Final = 1024 * 1024
_BUFFERS_BYTES: Final = 16 * 1024 * 1024
"""What the buffers of all handles hold together; those used longest ago go first."""
_BUFFER_SLACK_BYTES: Final = 256 * 1024
"""So far from where the last read ended, a read still follows it."""
_LARGE_BYTES: Final = 64 * 1024
"""A first read of so much is the kernel's read-ahead, and not a look at the header."""

Parts = deque[tuple[int, bytes]]


class _Gathered:
    """Writes through one handle of an inode that have not gone over yet."""

    __slots__ = ("handle", "lock", "parts", "since", "size", "users")

    def __init__(self, handle: FileHandle) -> None:
        self.handle = handle
        self.lock = threading.Lock()
        """Held while the bytes go over, so that they arrive in order."""
        self.parts: Parts = deque()
        self.size = 0
        self.since = 0.0
        self.users = 0


class _Turn:
    """A lock that is held from here on, until the first `end`, in whatever thread."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.Lock) -> None:
        lock.acquire()
        self._lock: threading.Lock | None = lock

    def end(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


class WriteGatherer:
    """Owned by the driver; used by FUSE's threads."""

    def __init__(self, bridge: Bridge, vfs: Vfs) -> None:
        self._bridge = bridge
        self._vfs = vfs
        self._gathered: dict[InodeId, _Gathered] = {}
        self._guard = threading.Lock()
        """Of the table and the sum; never held across a hop."""
        self._bytes = 0

    def write(self, handle: FileHandle, offset: int, data: bytes) -> None:
        """Take bytes to be written through `handle`.

        Raises:
            OSError: earlier bytes could not be written; they are kept, `data` was not taken.
        """
        with self._guard:
            gathered = self._gathered.get(handle.ino)
            if gathered is None:
                gathered = self._gathered[handle.ino] = _Gathered(handle)
            gathered.users += 1
        try:
            with gathered.lock:
                full = gathered.size >= GATHER_BYTES or len(gathered.parts) >= GATHER_PARTS
                # The rest of a write whose beginning has gone over is waited for there.
                at_once = self._bytes >= GATHER_ALL_BYTES or handle.file.unfinished
                if gathered.parts and (full or at_once or gathered.handle is not handle):
                    self._send(gathered)
                if at_once:
                    parts = deque([(offset, data)])
                    self._bridge.run(self._vfs.write_parts, handle, parts)
                    return
                gathered.handle = handle
                if not gathered.parts:
                    gathered.since = time.monotonic()
                gathered.parts.append((offset, data))
                self._count(gathered, gathered.size + len(data))
        finally:
            self._leave(handle.ino, gathered)

    def settle(self, ino: InodeId) -> None:
        """Have all that was written to the inode go over. Raises OSError as the write would."""
        gathered = self._enter(ino)
        if gathered is None:
            return
        try:
            with gathered.lock:
                if gathered.parts:
                    self._send(gathered)
        finally:
            self._leave(ino, gathered)

    def settle_then(
        self, handle: FileHandle, last: Callable[[FileHandle], Awaitable[None]]
    ) -> None:
        """`settle`, and then `last(handle)`, in one hop. Raises as both do."""
        gathered = self._enter(handle.ino)
        if gathered is None:
            self._bridge.run(last, handle)
            return
        try:
            turn = _Turn(gathered.lock)
            try:
                self._bridge.run(self._send_then, gathered, turn, handle, last)
            finally:
                turn.end()
        finally:
            self._leave(handle.ino, gathered)

    async def _send_then(
        self,
        gathered: _Gathered,
        turn: "_Turn",
        handle: FileHandle,
        last: Callable[[FileHandle], Awaitable[None]],
    ) -> None:
        """In trio's thread: others may write to the file again while `last` is at it."""
        try:
            await self._vfs.write_parts(gathered.handle, gathered.parts)
        finally:
            self._count(gathered, sum(len(data) for _, data in gathered.parts))
        turn.end()
        await last(handle)

    def drop(self, handle: FileHandle) -> None:
        """The handle's last descriptor is gone: what could not be written is lost."""
        gathered = self._enter(handle.ino)
        if gathered is None:
            return
        try:
            # Through another handle a write may be about to use it.
            with gathered.lock:
                if gathered.handle is handle:
                    gathered.parts.clear()
                    self._count(gathered, 0)
        finally:
            self._leave(handle.ino, gathered)

    def holds(self, ino: InodeId) -> bool:
        """Whether something waits here to go over."""
        return ino in self._gathered

    def settle_old(self, complain: Callable[[OSError], None]) -> None:
        """Have go over what has been here for a while. For a thread of its own, now and then."""
        before = time.monotonic() - GATHER_S
        for ino, gathered in list(self._gathered.items()):
            if gathered.parts and gathered.since < before:
                try:
                    self.settle(ino)
                except OSError as error:
                    complain(error)

    def settle_all(self) -> None:
        """Have everything go over. Raises the first OSError, after trying all."""
        failure: OSError | None = None
        for ino in list(self._gathered):
            try:
                self.settle(ino)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _send(self, gathered: _Gathered) -> None:
        try:
            self._bridge.run(self._vfs.write_parts, gathered.handle, gathered.parts)
        finally:
            self._count(gathered, sum(len(data) for _, data in gathered.parts))

    def _count(self, gathered: _Gathered, size: int) -> None:
        with self._guard:
            self._bytes += size - gathered.size
        gathered.size = size

    def _enter(self, ino: InodeId) -> _Gathered | None:
        """What is gathered for the inode, to be used until `_leave`; None: nothing is."""
        if not self.holds(ino):
            return None
        with self._guard:
            gathered = self._gathered.get(ino)
            if gathered is not None:
                gathered.users += 1
            return gathered

    def _leave(self, ino: InodeId, gathered: _Gathered) -> None:
        with self._guard:
            gathered.users -= 1
            if not gathered.users and not gathered.parts and self._gathered.get(ino) is gathered:
                del self._gathered[ino]


@dataclass(slots=True)
class _Slab:
    """Bytes of a file, read when its epoch was `epoch`."""

    epoch: int
    start: int
    data: bytes
    ends: bool
    """The file ended there."""

    def part(self, epoch: int, offset: int, size: int) -> bytes | None:
        """The bytes of [offset, offset + size), fewer only at the end of the file."""
        skip = offset - self.start
        if epoch != self.epoch or skip < 0:
            return None
        if skip + size > len(self.data) and not (self.ends and skip <= len(self.data)):
            return None
        return self.data[skip : skip + size]


class _Flight:
    """A slab on its way."""

    __slots__ = ("done", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.done = threading.Event()


class ReadBuffer:
    """The bytes after the last ones read through a handle.

    The kernel reads ahead in several threads: those that want what is on its way wait for it.
    Random reads go their own ways, at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Of what follows; never held across a hop."""
        self._slabs: tuple[_Slab, ...] = ()
        self._flight: _Flight | None = None
        self._next = 0
        self._window = 0

    def read(
        self,
        handle: FileHandle,
        offset: int,
        size: int,
        fetch: Callable[[int, int], bytes],
        wait: Callable[[threading.Event], None],
    ) -> bytes:
        """Up to `size` bytes at `offset`, fewer only at the end of the file.

        `fetch(offset, size)` gets bytes from the vfs; `wait` waits for an event, and raises where
        the program is interrupted. Raises as those two.
        """
        while True:
            with self._lock:
                found = self._find(handle.file.epoch, offset, size)
                if found is not None:
                    return found
                flight = self._flight
                if flight is None:
                    window = self._follow(offset, size)
                    if window > size:
                        flight = self._flight = _Flight(offset, offset + window)
                        break
                elif flight.start <= offset < flight.end:
                    pass
                else:
                    flight = None
            if flight is None:
                return fetch(offset, size)
            wait(flight.done)
        epoch = handle.file.epoch
        slab = None
        try:
            data = fetch(offset, window)
            slab = _Slab(epoch, offset, data, ends=len(data) < window)
        finally:
            with self._lock:
                if slab is not None:
                    # The one before too: the kernel's requests come in any order.
                    self._slabs = (slab, *self._slabs[:1])
                self._flight = None
            flight.done.set()
        return data[:size]

    @property
    def held_bytes(self) -> int:
        """Memory it takes."""
        return sum(len(slab.data) for slab in self._slabs)

    def drop(self) -> None:
        """Hold nothing: others need the memory."""
        with self._lock:
            self._slabs = ()

    def _find(self, epoch: int, offset: int, size: int) -> bytes | None:
        for slab in self._slabs:
            part = slab.part(epoch, offset, size)
            if part is not None:
                self._next = max(self._next, offset + size)
                return part
        return None

    def _follow(self, offset: int, size: int) -> int:
        """How many bytes to fetch at `offset`: more than asked for, the longer reads follow."""
        if abs(offset - self._next) <= _BUFFER_SLACK_BYTES and (offset or size >= _LARGE_BYTES):
            self._window = min(max(_BUFFER_FIRST_BYTES, self._window * 2), _BUFFER_MAX_BYTES)
        else:
            self._window = 0
        self._next = offset + size
        return max(size, self._window)


class ReadBuffers:
    """Those of all handles, in bounded memory. Owned by the driver; used by FUSE's threads."""

    def __init__(self) -> None:
        self._buffers: dict[int, ReadBuffer] = {}
        self._lock = threading.Lock()
        """Of what follows."""
        self._held: OrderedDict[int, int] = OrderedDict()
        """Bytes by handle, the one that fetched last at the end."""
        self._held_bytes = 0

    def open(self, number: int) -> None:
        """The handle of that number may be read from now on."""
        self._buffers[number] = ReadBuffer()

    def close(self, number: int) -> None:
        """No reads follow."""
        if self._buffers.pop(number, None) is not None:
            self._hold(number, 0)

    def read(
        self,
        handle: FileHandle,
        offset: int,
        size: int,
        fetch: Callable[[int, int], bytes],
        wait: Callable[[threading.Event], None],
    ) -> bytes:
        """See `ReadBuffer.read`."""
        buffer = self._buffers[handle.number]
        before = buffer.held_bytes
        data = buffer.read(handle, offset, size, fetch, wait)
        if buffer.held_bytes != before:
            self._hold(handle.number, buffer.held_bytes)
        return data

    def _hold(self, number: int, size: int) -> None:
        with self._lock:
            self._held_bytes -= self._held.pop(number, 0)
            if size and number in self._buffers:
                self._held[number] = size
                self._held_bytes += size
            while self._held_bytes > _BUFFERS_BYTES:
                oldest, held = self._held.popitem(last=False)
                self._held_bytes -= held
                buffer = self._buffers.get(oldest)
                if buffer is not None:
                    buffer.drop()
