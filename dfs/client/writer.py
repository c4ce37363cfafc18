"""The unpublished bytes of one file: buffered, sent to the disks, then committed to the master.

Life of written bytes: buffered (until a block is full, or a flush) -> pending -> submitted to the
policy's chunk writer -> acknowledged by the disks -> committed. The raw bytes are held until they
are committed, so whatever fails in between is written again from memory, and reads of this client
see them at once. Blocks are cut at multiples of BLOCK_BYTES of the file.

Invariant: between two awaits, every byte written and not committed is in `overlay`, and every
piece in `overlay` is buffered, pending, or has a ticket.
"""

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio

from dfs.client.chunk_writer import ChunkWriter, Ticket
from dfs.client.interval_map import IntervalMap, Span
from dfs.client.meta import Meta, unwrap
from dfs.client.open_chunk import OpenChunk
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import DfsError, SessionError
from dfs.core.ids import InodeId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Commit, Cred

BUFFERED_MAX_BYTES: Final = 8 * 1024 * 1024
BUFFERED_MAX_PIECES: Final = 256
"""Blocks of a file that may wait to be filled."""
COMMIT_BYTES: Final = 16 * 1024 * 1024
"""With so much held, a commit is started in the background."""
HELD_MAX_BYTES: Final = 64 * 1024 * 1024
"""With so much held by a file, writing waits for a commit."""
_SUBMIT_BYTES: Final = 1024 * 1024
_EXTENTS_MAX: Final = 1000
_REWRITES_MAX: Final = 3

log = logging.getLogger(__name__)


class Piece:
    """Bytes of a file that become one extent (or several, where later writes cover parts)."""

    __slots__ = ("data", "position", "start", "ticket")

    def __init__(self, start: int, data: bytes | bytearray | memoryview) -> None:
        self.start = start
        self.data = data
        self.ticket: Ticket | None = None
        self.position = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Holder(Protocol):
    """What the bytes held by all writers of a client are counted with."""

    def held(self, writer: "FileWriter", change: int) -> None: ...


class FileWriter:
    """Owned by an OpenFile, which is told of commits by `on_commit(inode, extents, operations)`."""

    def __init__(
        self,
        ino: InodeId,
        meta: Meta,
        chunks: ChunkWriter,
        nursery: trio.Nursery,
        holder: Holder,
        on_commit: Callable[[Inode, list[Extent], int], None],
    ) -> None:
        self.overlay: IntervalMap[Piece] = IntervalMap()
        self.held_bytes = 0
        self.dirty_since: float | None = None
        self.cred: Cred | None = None
        """Whose rights commits use; None: the client's."""
        self._ino = ino
        self._meta = meta
        self._chunks = chunks
        self._nursery = nursery
        self._holder = holder
        self._on_commit = on_commit
        self._pieces: set[Piece] = set()
        self._buffered: dict[int, Piece] = {}
        """By block of the file. These may still grow."""
        self._buffered_bytes = 0
        self._pending: deque[Piece] = deque()
        self._submitting = trio.Lock()
        self._committing = trio.Lock()
        self._background = False
        self._unsynced: dict[OpenChunk, None] = {}
        self._appended: deque[bytes] = deque()
        self._appended_bytes = 0

    @property
    def dirty(self) -> bool:
        """There is something to commit."""
        return bool(self._pieces or self._appended)

    @property
    def appending(self) -> bool:
        """There are bytes whose place in the file is not known yet."""
        return bool(self._appended)

    # ---------------------------------------------------------------- writing

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take `data` for [offset, ...); it must never change. May wait for earlier writes.

        Raises:
            DfsError: earlier bytes could not be written. They are kept, and tried again.
        """
        self._take(offset, memoryview(data))
        await self._drain()
        if self.held_bytes >= HELD_MAX_BYTES:
            await self.commit(partial=False)
        elif self.held_bytes - self._buffered_bytes >= COMMIT_BYTES:
            self.start_commit()

    def _take(self, offset: int, view: memoryview) -> None:
        """Put bytes into blocks. Does not yield."""
        at, end = offset, offset + len(view)
        while at < end:
            block = at // BLOCK_BYTES
            stop = min(end, (block + 1) * BLOCK_BYTES)
            part = view[at - offset : stop - offset]
            if len(part) == BLOCK_BYTES:
                self._forget_buffered(block)
                piece = Piece(at, part)
                self._add(piece)
                self._pending.append(piece)
                self.overlay.set(at, stop, piece)
            else:
                self._buffer(block, at, part)
            at = stop
        if self._buffered_bytes > BUFFERED_MAX_BYTES or len(self._buffered) > BUFFERED_MAX_PIECES:
            self._release_buffered()

    def _buffer(self, block: int, at: int, part: memoryview) -> None:
        piece = self._buffered.get(block)
        if piece is not None and not piece.start <= at <= piece.end:
            self._release(block)
            piece = None
        if piece is None:
            piece = Piece(at, bytearray(part))
            self._add(piece)
            self._buffered[block] = piece
            self._buffered_bytes += len(part)
        else:
            assert isinstance(piece.data, bytearray)
            before = len(piece.data)
            skip = at - piece.start
            piece.data[skip : skip + len(part)] = part
            grown = len(piece.data) - before
            self._buffered_bytes += grown
            self._hold(grown)
        self.overlay.set(at, at + len(part), piece, at - piece.start)
        if piece.end == (block + 1) * BLOCK_BYTES:
            self._release(block)

    def _release(self, block: int) -> None:
        """A buffered piece grows no more."""
        piece = self._buffered.pop(block)
        self._buffered_bytes -= len(piece.data)
        self._pending.append(piece)

    def _release_buffered(self) -> None:
        for block in list(self._buffered):
            self._release(block)

    def _forget_buffered(self, block: int) -> None:
        """The whole block is written anew: what was buffered of it need not be sent."""
        piece = self._buffered.pop(block, None)
        if piece is not None:
            self._buffered_bytes -= len(piece.data)
            self._drop([piece])

    def _add(self, piece: Piece) -> None:
        self._pieces.add(piece)
        self._hold(len(piece.data))
        if self.dirty_since is None:
            self.dirty_since = trio.current_time()

    def _hold(self, change: int) -> None:
        self.held_bytes += change
        self._holder.held(self, change)

    def _drop(self, pieces: Iterable[Piece]) -> None:
        """These need not be held any longer."""
        for piece in pieces:
            if piece in self._pieces:
                self._pieces.discard(piece)
                self._hold(-len(piece.data))
        if not self._pieces:
            self.dirty_since = None

    async def _drain(self) -> None:
        """Submit what is pending, in order. Cancelled, the rest stays pending."""
        if not self._pending:
            return
        async with self._submitting:
            while self._pending:
                group: list[Piece] = []
                size = 0
                while self._pending and size < _SUBMIT_BYTES:
                    group.append(self._pending.popleft())
                    size += len(group[-1].data)
                try:
                    ticket = await self._chunks.submit([memoryview(p.data) for p in group])
                except BaseException:
                    self._pending.extendleft(reversed(group))
                    raise
                for position, piece in enumerate(group):
                    piece.ticket = ticket
                    piece.position = position

    async def append(self, data: bytes) -> None:
        """Take `data` for the end of the file, wherever that is when it is committed."""
        if not data:
            return
        self._appended.append(data)
        self._appended_bytes += len(data)
        self._hold(len(data))
        if self.dirty_since is None:
            self.dirty_since = trio.current_time()
        if self._appended_bytes >= BUFFERED_MAX_BYTES:
            await self.commit()

    # ---------------------------------------------------------------- committing

    def start_commit(self, *, partial: bool = False) -> None:
        """Commit in the background. Failures show at the next commit somebody waits for."""
        if not self._background:
            self._background = True
            self._nursery.start_soon(self._commit_in_background, partial)

    async def _commit_in_background(self, partial: bool) -> None:
        try:
            await self.commit(partial=partial)
        except DfsError as error:
            log.info("inode %d: not committed yet: %s", self._ino, error)
        finally:
            self._background = False

    async def commit(self, *, partial: bool = True) -> None:
        """Publish all that was written before this call; without `partial` not what is buffered.

        Raises:
            DfsError: nothing is lost by that: what was not published is held, and the next
                commit tries again.
        """
        if not self.dirty:
            return
        if partial:
            self._release_buffered()
        async with self._committing:
            for rewrites in range(_REWRITES_MAX + 1):
                try:
                    await self._drain()
                    await self._commit_pieces()
                    break
                except DfsError as error:
                    # The chunks died with the session; the bytes are still here.
                    if not self._worth_rewriting(error) or rewrites == _REWRITES_MAX:
                        raise
                    log.info("inode %d: writing again: %s", self._ino, error)
            if partial and self._appended:
                await self._commit_appended()

    async def _commit_pieces(self) -> None:
        pieces = {piece for piece in self._pieces if piece.ticket is not None}
        tickets = {piece.ticket: None for piece in pieces if piece.ticket is not None}
        await self._wait(tickets, pieces)
        spans = [span for span in self.overlay if span.value in pieces]
        extents = _extents(spans)
        inode: Inode | None = None
        if extents:
            ops = [
                Commit(self._ino, tuple(extents[start : start + _EXTENTS_MAX]))
                for start in range(0, len(extents), _EXTENTS_MAX)
            ]
            try:
                results = await self._meta.apply(*ops, cred=self.cred)
                inodes = [unwrap(result) for result in results]
            except DfsError as error:
                if self._worth_rewriting(error):
                    self._take_back(pieces)
                raise
            inode = inodes[-1]
        # From here on without an await, so that readers see the bytes in one place or the other.
        self.overlay.remove(pieces.__contains__)
        self._drop(pieces)
        for ticket in tickets:
            self._unsynced.update(dict.fromkeys(ticket.chunks))
            ticket.settle()
        if inode is not None:
            self._on_commit(inode, extents, len(ops))

    def _worth_rewriting(self, error: DfsError) -> bool:
        """Whether the chunks that the extents name are not this session's any more."""
        stale = isinstance(error, SessionError) or error.errno == errno.ESTALE
        return stale and not self._meta.session.closed

    async def _wait(self, tickets: Iterable[Ticket], pieces: Iterable[Piece]) -> None:
        """Until all is acknowledged. What could not be written is pending again."""
        failure: DfsError | None = None
        for ticket in tickets:
            try:
                await ticket.wait()
            except DfsError as error:
                failure = error
        if failure is not None:
            self._take_back(p for p in pieces if p.ticket is not None and p.ticket.error)
            raise failure

    def _take_back(self, pieces: Iterable[Piece]) -> None:
        """Submit these again: their extents are of no use."""
        again = sorted(pieces, key=lambda piece: piece.start)
        for piece in again:
            if piece.ticket is not None:
                piece.ticket.settle()
                piece.ticket = None
        self._pending.extendleft(reversed(again))

    async def _commit_appended(self) -> None:
        """Write what was appended, and let the master say where it goes.

        All appended bytes of one commit stand together in the file.
        """
        count = len(self._appended)
        data = b"".join(self._appended)
        for attempt in range(_REWRITES_MAX + 1):
            ticket = await self._chunks.submit(
                [
                    memoryview(data)[start : start + BLOCK_BYTES]
                    for start in range(0, len(data), BLOCK_BYTES)
                ]
            )
            try:
                await ticket.wait()
                extents = _appended_extents(ticket, len(data))
                op = Commit(self._ino, tuple(extents), append=True)
                try:
                    inode = await self._meta.do(op, cred=self.cred)
                except DfsError as error:
                    if not self._worth_rewriting(error):
                        raise
                    # Its reply may have been lost, and then the session.
                    inode = await self._find(extents[0])
                    if inode is None:
                        if attempt == _REWRITES_MAX:
                            raise
                        continue
                self._unsynced.update(dict.fromkeys(ticket.chunks))
            finally:
                ticket.settle()
            break
        for _ in range(count):
            self._appended.popleft()
        self._appended_bytes -= len(data)
        self._hold(-len(data))
        if not self._pieces:
            self.dirty_since = None
        if inode is not None:
            self._on_commit(inode, [], 1)

    async def _find(self, extent: Extent) -> Inode | None:
        """The inode, if the file refers to the bytes of `extent` somewhere."""
        after = 0
        while True:
            reply = await self._meta.extents(self._ino, after)
            for found in reply.extents:
                if (
                    found.chunk == extent.chunk
                    and found.chunk_offset <= extent.chunk_offset
                    and extent.chunk_offset < found.chunk_offset + found.length
                ):
                    return reply.inode
            if not reply.more or not reply.extents:
                return None
            after = reply.extents[-1].end

    async def sync(self) -> None:
        """Commit, and make durable all that this writer ever committed."""
        await self.commit()
        for chunk in list(self._unsynced):
            await self._chunks.sync_chunk(chunk)
            self._unsynced.pop(chunk, None)

    def discard(self) -> None:
        """Give up all that is not committed."""
        for piece in self._pieces:
            if piece.ticket is not None:
                piece.ticket.settle()
        self.overlay.wipe()
        self._buffered.clear()
        self._buffered_bytes = 0
        self._pending.clear()
        self._drop(list(self._pieces))
        self._hold(-self._appended_bytes)
        self._appended.clear()
        self._appended_bytes = 0


def _extents(spans: Iterable[Span[Piece]]) -> list[Extent]:
    """Where spans of acknowledged pieces lie; what continues each other is one extent."""
    extents: list[Extent] = []
    for span in spans:
        piece = span.value
        assert piece.ticket is not None
        chunk, offset = piece.ticket.places[piece.position]
        _push(extents, Extent(span.start, span.end - span.start, chunk, offset + span.skip))
    return extents


def _appended_extents(ticket: Ticket, length: int) -> list[Extent]:
    extents: list[Extent] = []
    for position, (chunk, offset) in enumerate(ticket.places):
        start = position * BLOCK_BYTES
        _push(extents, Extent(start, min(BLOCK_BYTES, length - start), chunk, offset))
    return extents


def _push(extents: list[Extent], extent: Extent) -> None:
    if extents:
        last = extents[-1]
        if (
            last.end == extent.file_offset
            and last.chunk == extent.chunk
            and last.chunk_offset + last.length == extent.chunk_offset
        ):
            extents[-1] = Extent(
                last.file_offset, last.length + extent.length, last.chunk, last.chunk_offset
            )
            return
    extents.append(extent)
