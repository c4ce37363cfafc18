"""The unpublished bytes of one file: buffered, sent to the disks, then committed to the master.

Life of written bytes: buffered (`write_buffer`) -> submitted to the policy's chunk writer ->
acknowledged by the disks -> committed. The raw bytes are held until they are committed, so whatever
fails in between is written again from memory, and reads of this client see them at once.
"""

import errno
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from dfs.client import published
from dfs.client.append_queue import AppendQueue, Attempt
from dfs.client.chunk_writer import RUN_BYTES, ChunkWriter
from dfs.client.holding import holding
from dfs.client.interval_map import IntervalMap
from dfs.client.meta import Meta
from dfs.client.open_chunk import OpenChunk
from dfs.client.pieces import Piece, appended_extents, extents_of, shifted
from dfs.client.ticket import Ticket
from dfs.client.write_buffer import WriteBuffer
from dfs.client.writer_sides import Holder, Owner
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import DfsError, FileSystemError, SessionError, refuse
from dfs.core.ids import FILE_SIZE_MAX_BYTES, InodeId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Commit, Cred

APPENDED_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of appends, so many are committed together."""
COMMIT_BYTES: Final = 16 * 1024 * 1024
"""With so much held, a commit is started in the background."""
HELD_MAX_BYTES: Final = 64 * 1024 * 1024
"""With so much held by a file, nothing more is taken before a commit."""
_SUBMIT_PIECES: Final = RUN_BYTES // BLOCK_BYTES
"""So many are submitted together; fewer wait for more, or for a commit."""
_EXTENTS_MAX: Final = 1000
_REWRITES_MAX: Final = 3

log = logging.getLogger(__name__)


class _Round:
    """One commit. Everybody who asks before it begins waits for the same."""

    __slots__ = ("done", "error", "partial", "sync", "synced")

    def __init__(self) -> None:
        self.partial = False
        self.sync = False
        """Somebody waits for it to be on the disks."""
        self.synced = False
        """What it made of the file is on the master's."""
        self.done = trio.Event()
        self.error: DfsError | None = None


class FileWriter:
    """Owned by an OpenFile, which is told of commits. They run as tasks of `nursery`, so that
    a caller who is cancelled leaves none behind whose outcome nobody knows.
    """

    def __init__(
        self,
        ino: InodeId,
        meta: Meta,
        chunks: ChunkWriter,
        nursery: trio.Nursery,
        holder: Holder,
        owner: Owner,
    ) -> None:
        self.cred: Cred | None = None
        """Whose rights commits use; None: the client's."""
        self.mtime_ns: int | None = None
        """What commits set the file's time to; None: to when the master publishes them."""
        self._ino = ino
        self._meta = meta
        self._chunks = chunks
        self._nursery = nursery
        self._holder = holder
        self._owner = owner
        self._buffer = WriteBuffer(partial(holder.held, self))
        self._submitting = trio.Lock()
        self._committing = holder.committing(ino)
        self._rounds = 0
        """Commits under way or asked for."""
        self._next_round: _Round | None = None
        """Asked for, and not begun."""
        self._appends = AppendQueue()
        self._attempt: Attempt | None = None
        """For the first of `_appends`."""
        self._discards = 0

    @property
    def dirty(self) -> bool:
        """There is something to commit."""
        return bool(self._buffer.pieces or self._appends)

    @property
    def dirty_since(self) -> float | None:
        """When the first of it was written."""
        return self._buffer.dirty_since

    @property
    def overlay(self) -> IntervalMap[Piece]:
        """What lies where in the file and is not committed, but for appends."""
        return self._buffer.overlay

    @property
    def held_bytes(self) -> int:
        """What all of it takes."""
        return self._buffer.held_bytes

    @property
    def appended_bytes(self) -> int:
        """Bytes whose place in the file is not known yet."""
        return self._appends.length

    @property
    def appending(self) -> bool:
        """There are bytes whose place in the file is not known yet."""
        return bool(self._appends)

    @property
    def placing(self) -> bool:
        """What the master says of the file may count appended bytes already."""
        attempt = self._attempt
        return attempt is not None and attempt.in_doubt and self._owner.version != attempt.since

    @property
    def unfinished(self) -> bool:
        """More of the last append may follow."""
        return self._appends.unfinished

    # ---------------------------------------------------------------- writing

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take `data` for [offset, ...); it must never change. May wait for earlier writes.

        Raises:
            FileSystemError: (EFBIG) it would end past the greatest file.
            DfsError: earlier bytes could not be written. They are kept, and tried again; these
                may or may not have been taken, so write them again.
        """
        if offset + len(data) > FILE_SIZE_MAX_BYTES:
            # Once taken, they would keep all the others from being committed.
            raise refuse(errno.EFBIG, f"{len(data)} bytes at {offset}")
        await self._make_room()
        buffer = self._buffer
        buffer.take(offset, memoryview(data))
        if len(buffer.pending) >= _SUBMIT_PIECES:
            await self._drain()
        if buffer.held_bytes - buffer.growing_bytes >= COMMIT_BYTES:
            self.start_commit()

    async def _make_room(self) -> None:
        while self.held_bytes >= HELD_MAX_BYTES:
            await self.commit(partial=self.appending)
        await self._holder.make_room()

    def take_over(self, data: bytearray, time_ns: int, cred: Cred) -> None:
        """Take the first bytes of a file, which nobody changes any more. Does not yield."""
        self._buffer.take(0, memoryview(data))
        self.mtime_ns = time_ns
        self.cred = cred

    async def _drain(self, *, sync: bool = False) -> None:
        """Submit what is pending, in order. Cancelled, the rest stays pending.

        What another task is submitting is waited for: it may be anybody's bytes, and has no ticket
        yet. With `sync`, the last of it to be acknowledged when it is on the disks; and the task
        of a commit sends it itself.
        """
        buffer = self._buffer
        if not buffer.pending and not self._submitting.locked():
            return
        async with holding(self._submitting):
            while buffer.pending:
                group = buffer.take_pending(_SUBMIT_PIECES)
                try:
                    raws = [memoryview(piece.data) for piece in group]
                    last = sync and not buffer.pending
                    ticket = await self._chunks.submit(raws, sync=last, start=False)
                except BaseException:
                    buffer.put_back(group)
                    raise
                if buffer.pending or not sync:
                    self._chunks.start()
                if not buffer.pieces.intersection(group):
                    ticket.settle()  # given up meanwhile
                for position, piece in enumerate(group):
                    piece.ticket = ticket
                    piece.position = position
        if sync:
            await self._chunks.push()

    async def append(self, data: bytes, *, more: bool = False) -> None:
        """Take `data` for the end of the file, wherever that is when it is committed.

        With `more` the next append may be of the same write, and belong behind it: the two stand
        together in the file, unless the write is of more than APPENDED_MAX_BYTES.

        Raises:
            DfsError: earlier bytes could not be written. `data` was not taken.
        """
        if not data:
            return
        queue = self._appends
        if not queue.unfinished or queue.last_length >= APPENDED_MAX_BYTES:
            # Room may come of a commit of this file, so half a write is not kept waiting for it.
            while queue.length >= APPENDED_MAX_BYTES:
                queue.finish()
                await self.commit()
            await self._make_room()
        queue.put(data, more=more)
        self._buffer.hold(len(data))
        if queue.length >= APPENDED_MAX_BYTES:
            self.start_commit(partial=True)

    def finish_append(self) -> None:
        """The last append is whole."""
        self._appends.finish()

    # ---------------------------------------------------------------- committing

    def start_commit(self, *, partial: bool = False) -> None:
        """Commit in the background. Failures show at the next commit somebody waits for."""
        if self.dirty and not self._rounds:
            self._ask(partial)

    def _ask(self, partial: bool, sync: bool = False) -> _Round:
        """The commit that publishes what is written now."""
        if partial:
            self._buffer.release_all()
        found = self._next_round
        if found is None:
            found = _Round()
            try:
                self._nursery.start_soon(self._run, found)
            except RuntimeError:
                raise _closed() from None
            self._next_round = found
            self._rounds += 1
        found.partial = found.partial or partial
        found.sync = found.sync or sync
        return found

    async def _run(self, commit: _Round) -> None:
        try:
            async with holding(self._committing):
                self._next_round = None
                commit.synced = await self._publish(commit.partial, commit.sync)
        except DfsError as error:
            log.info("inode %d: not committed yet: %s", self._ino, error)
            commit.error = error
        except BaseException:
            commit.error = _closed()
            raise
        finally:
            if self._next_round is commit:
                self._next_round = None
            self._rounds -= 1
            commit.done.set()

    async def commit(self, *, partial: bool = True) -> None:
        """Publish all that was written before this call; without `partial` not what is buffered.

        Cancelling the caller does not stop it.

        Raises:
            DfsError: nothing is lost by that: what was not published is held, and the next
                commit tries again.
        """
        if self.dirty:
            await self._done(self._ask(partial))

    async def _done(self, commit: _Round) -> bool:
        """Wait for a commit; whether it is on the master's disk. Raises its error."""
        await commit.done.wait()
        if commit.error is not None:
            raise commit.error.again()
        return commit.synced

    async def _publish(self, partial: bool, sync: bool) -> bool:
        """Commit; whether it is on the master's disk, which takes `sync`."""
        # What failed before this commit was asked for is no reason for it to fail.
        self._buffer.take_back(p for p in self._buffer.pieces if p.failed)
        for rewrites in range(_REWRITES_MAX + 1):
            try:
                await self._drain(sync=sync)
                synced = await self._commit_pieces(sync and not self._appends)
                break
            except DfsError as error:
                # The chunks died with the session; the bytes are still here.
                if not self._worth_rewriting(error) or rewrites == _REWRITES_MAX:
                    raise
                log.info("inode %d: writing again: %s", self._ino, error)
        if partial and self._appends:
            synced = await self._commit_appended(sync)
        return synced

    async def _commit_pieces(self, sync: bool) -> bool:
        pieces = {piece for piece in self._buffer.pieces if piece.ticket is not None}
        tickets = {piece.ticket: None for piece in pieces if piece.ticket is not None}
        await self._wait(tickets, pieces)
        spans = [span for span in self.overlay if span.value in pieces]
        extents = extents_of(spans)
        inode: Inode | None = None
        synced = False
        if extents:
            ops = [
                Commit(
                    self._ino, tuple(extents[start : start + _EXTENTS_MAX]), mtime_ns=self.mtime_ns
                )
                for start in range(0, len(extents), _EXTENTS_MAX)
            ]
            since = self._owner.version
            try:
                # Each in a request of its own, so that the master serves others in between.
                for op in ops:
                    inode, synced = await self._do(op, sync and op is ops[-1])
            except DfsError as error:
                if self._worth_rewriting(error):
                    for ticket in tickets:
                        ticket.abandon()
                    self._buffer.take_back(pieces)
                raise
        # From here on without an await, so that readers see the bytes in one place or the other.
        self.overlay.remove(pieces.__contains__)
        self._buffer.drop(pieces)
        for ticket in tickets:
            self._settle(ticket)
        if inode is not None:
            self._owner.committed(inode, extents, len(ops), since)
        return synced

    async def _do(self, op: Commit, sync: bool) -> tuple[Inode | None, bool]:
        if sync:
            return await self._meta.do_durably(op, cred=self.cred)
        return await self._meta.do(op, cred=self.cred), False

    def _settle(self, ticket: Ticket) -> None:
        """The extents of its pieces are committed."""
        for chunk, end in ticket.ends.items():
            self._holder.unsynced.note(self._ino, chunk, end)
        ticket.settle()

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
            self._buffer.take_back(piece for piece in pieces if piece.failed)
            raise failure

    async def _commit_appended(self, sync: bool) -> bool:
        """Write what was appended, and let the master say where it goes.

        All appended bytes of one commit stand together in the file.
        """
        rewrites = 0
        synced = False
        while self._appends:
            attempt = self._attempt or await self._submit_appended(sync)
            if attempt is None:
                continue
            try:
                await attempt.ticket.wait()
            except DfsError:
                attempt.ticket.settle()
                if self._attempt is attempt:
                    self._attempt = None
                raise
            extents = appended_extents(attempt.ticket, attempt.length)
            since = self._owner.version
            inode = (
                await published.find(self._meta, self._ino, extents, attempt.mark)
                if attempt.in_doubt
                else None
            )
            placed: list[Extent] | None = None
            synced = False
            if inode is None:
                # Cancelled, or with no answer in time, it may take effect or not.
                attempt.in_doubt = True
                attempt.since = since
                op = Commit(
                    self._ino, tuple(extents), mtime_ns=self.mtime_ns, append=True,
                    mark=attempt.mark,
                )  # fmt: skip
                try:
                    inode, synced = await self._do(op, sync)
                except DfsError as error:
                    if not self._worth_rewriting(error):
                        attempt.in_doubt = not isinstance(error, FileSystemError)
                        raise
                    # Its reply may have been lost, and then the session.
                    inode = await published.find(self._meta, self._ino, extents, attempt.mark)
                    if inode is None:
                        attempt.ticket.abandon()
                        if self._attempt is attempt:
                            self._attempt = None
                        if rewrites == _REWRITES_MAX:
                            raise
                        rewrites += 1
                        continue
                else:
                    assert inode is not None
                    placed = shifted(extents, inode.size - attempt.length)
            if self._attempt is attempt:
                self._attempt = None
                self._settle(attempt.ticket)
                self._appends.drop(attempt.count)
                self._buffer.hold(-attempt.length)
            self._owner.committed(inode, placed, 1, since)
        return synced

    async def _submit_appended(self, sync: bool) -> Attempt | None:
        """None: it was given up meanwhile."""
        await self._appends.settle()
        parts, discards = self._appends.parts(), self._discards
        if not parts:
            return None
        data = memoryview(b"".join(parts))
        ticket = await self._chunks.submit(
            [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)],
            sync=sync,
            start=not sync,
        )
        attempt = Attempt(ticket, self._holder.mark(), len(parts), len(data))
        if discards == self._discards:
            self._attempt = attempt
        else:
            ticket.settle()  # given up meanwhile
        if sync:
            await self._chunks.push()
        return attempt

    async def sync(self) -> bool:
        """Commit, and make durable on the disks all that this client committed to the file.

        Whether the commit is on the master's disk too; where it is not, a barrier brings it there.
        """
        synced = self.dirty and await self._done(self._ask(partial=True, sync=True))
        unsynced = self._holder.unsynced
        for ends in (unsynced.of(self._ino), unsynced.of_any()):
            for chunk, end in ends.items():
                if chunk.synced_length < end:
                    await self._sync_chunk(chunk)
        return synced

    async def _sync_chunk(self, chunk: OpenChunk) -> None:
        """Raises DfsError where that cannot be, and the file has bytes there."""
        unsynced = self._holder.unsynced
        if chunk in unsynced.failed and not await self._is_in(chunk):
            return
        try:
            await self._chunks.sync_chunk(chunk)
        except DfsError:
            unsynced.failed.add(chunk)
            if await self._is_in(chunk):
                raise

    async def _is_in(self, chunk: OpenChunk) -> bool:
        return await published.refers_to(self._meta, self._ino, chunk.chunk)

    def discard(self) -> None:
        """Give up all that is not committed. A commit under way may still take effect."""
        self._discards += 1
        self._buffer.discard()
        self._buffer.hold(-self._appends.length)
        if self._attempt is not None:
            self._attempt.ticket.settle()
            self._attempt = None
        self._appends.clear()


def _closed() -> DfsError:
    return SessionError("the client is closed")
