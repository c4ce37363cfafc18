"""Small files of an upload: read in batches, packed into blocks, created hundreds at a time."""

import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import local_files
from dfs.client.chunk_writer import ChunkWriter
from dfs.client.local_files import LocalEntry
from dfs.client.ticket import Ticket
from dfs.core.block import BLOCK_BYTES
from dfs.core.buffers import Buffer
from dfs.core.errors import NoSpaceError, SessionError, WireError, from_wire
from dfs.core.ids import PolicyId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Put

if TYPE_CHECKING:
    from dfs.client.upload import Upload

SMALL_BYTES: Final = 1024 * 1024
"""Files up to this size are held in memory and created with their content."""
_BATCH_FILES: Final = 256
_BATCH_BYTES: Final = 4 * 1024 * 1024
_BATCHES_AT_ONCE: Final = 4
_RETRIES: Final = 3

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    files: list[tuple[LocalEntry, Inode]] = field(default_factory=list)
    size: int = 0


class SmallFiles:
    """Takes entries one by one; batches run in the upload's nursery."""

    def __init__(self, job: "Upload", nursery: trio.Nursery) -> None:
        self.failure: Exception | None = None
        """What ended the upload."""
        self._job = job
        self._nursery = nursery
        self._batches: dict[PolicyId, _Batch] = {}
        self._limit = trio.Semaphore(_BATCHES_AT_ONCE)
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def add(self, entry: LocalEntry, parent: Inode) -> None:
        """Take a file; waits while enough of them are under way."""
        assert entry.status is not None
        policy = self._job.policy_in(parent)
        batch = self._batches.setdefault(policy, _Batch())
        batch.files.append((entry, parent))
        batch.size += entry.status.st_size
        if len(batch.files) >= _BATCH_FILES or batch.size >= _BATCH_BYTES:
            await self._send(policy)

    async def finish(self) -> None:
        """Send what is left and wait for all."""
        for policy in list(self._batches):
            await self._send(policy)
        while self._running:
            await self._idle.park()

    async def _send(self, policy: PolicyId) -> None:
        batch = self._batches.pop(policy)
        await self._limit.acquire()
        self._running += 1
        self._nursery.start_soon(self._run, policy, batch)

    async def _run(self, policy: PolicyId, batch: _Batch) -> None:
        try:
            await self._upload(policy, batch.files)
        except Exception as error:
            self.failure = self.failure or error
            self._nursery.cancel_scope.cancel()
        finally:
            self._running -= 1
            self._limit.release()
            self._idle.unpark_all()

    async def _upload(self, policy: PolicyId, files: list[tuple[LocalEntry, Inode]]) -> None:
        job = self._job
        found = await job.client.workers.run(local_files.read_whole, [entry for entry, _ in files])
        ready: list[tuple[LocalEntry, Inode, bytes]] = []
        for (entry, parent), data in zip(files, found, strict=True):
            if isinstance(data, OSError):
                job.fail(entry.path, data)
            else:
                ready.append((entry, parent, data))
        writer = await job.client.writers.of(policy)
        for _ in range(_RETRIES):
            ready = await self._store(writer, ready)
            if not ready:
                return
        raise SessionError("the session with the master expired again and again")

    async def _store(
        self, writer: ChunkWriter, files: list[tuple[LocalEntry, Inode, bytes]]
    ) -> list[tuple[LocalEntry, Inode, bytes]]:
        """Write and create files. Gives back those whose chunks died with the session."""
        job = self._job
        pieces: list[Buffer] = []
        for _, _, data in files:
            pieces += _pieces(data)
        ticket = await writer.submit(pieces)
        try:
            await ticket.wait()
            ops = []
            position = 0
            for entry, parent, data in files:
                count = -(-len(data) // BLOCK_BYTES)
                ops.append(_put(entry, parent, data, ticket, position, job.policy))
                position += count
            try:
                results = await job.client.meta.apply(*ops)
                if any(result.error and _stale(result.error) for result in results):
                    ticket.abandon()
            except SessionError as error:
                if job.client.meta.session.closed:
                    raise
                log.info("%d small files are written again: %s", len(files), error)
                ticket.abandon()
                return files
        finally:
            ticket.settle()
        again = []
        for (entry, parent, data), result in zip(files, results, strict=True):
            if result.error is None:
                assert result.inode is not None
                job.done(entry, result.inode)
                job.progress.bytes_done += len(data)
                continue
            error_of_one = from_wire(result.error)
            if _stale(result.error) and data:
                again.append((entry, parent, data))
            elif isinstance(error_of_one, NoSpaceError):
                raise error_of_one
            else:
                job.fail(entry.path, error_of_one)
        job.tell()
        return again


def _stale(error: WireError) -> bool:
    """Whether the master knows the chunks not as this session's."""
    return from_wire(error).errno == errno.ESTALE


def _pieces(data: bytes) -> list[Buffer]:
    if len(data) <= BLOCK_BYTES:
        return [data] if data else []
    view = memoryview(data)
    return [view[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]


def _put(
    entry: LocalEntry,
    parent: Inode,
    data: bytes,
    ticket: Ticket,
    position: int,
    policy: PolicyId,
) -> Put:
    assert entry.status is not None
    extents: list[Extent] = []
    for start in range(0, len(data), BLOCK_BYTES):
        chunk, offset = ticket.places[position]
        position += 1
        length = min(BLOCK_BYTES, len(data) - start)
        last = extents[-1] if extents else None
        if last and last.chunk == chunk and last.chunk_offset + last.length == offset:
            extents[-1] = Extent(last.file_offset, last.length + length, chunk, last.chunk_offset)
        else:
            extents.append(Extent(start, length, chunk, offset))
    return Put(
        parent.ino,
        entry.name,
        entry.status.st_mode & 0o7777,
        len(data),
        tuple(extents),
        mtime_ns=entry.status.st_mtime_ns,
        policy=policy,
    )
