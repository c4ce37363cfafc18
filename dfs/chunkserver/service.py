"""Answers to clients and the master: the wire requests of a chunk server, by disk.

A read of a fragment that is open and in the page cache is answered at once, in the loop that
reads the connection; an append to one that has nobody to wait for when its thread says so; all else
in a task of its own. Few records are copied, many sent as a file.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final
from uuid import UUID

import trio
from outcome import Error, Outcome, Value

from dfs import __version__
from dfs.chunkserver.copies import Copies
from dfs.chunkserver.disk import Disk
from dfs.chunkserver.fragment import Fragment
from dfs.chunkserver.fragment_file import Batch, Reached
from dfs.chunkserver.fragment_format import FragmentHeader, possible
from dfs.chunkserver.listing import list_fragments
from dfs.chunkserver.page_cache import drop, is_cached, read, read_cached, warm
from dfs.core.errors import DfsError, DiskError, FragmentError, ProtocolError
from dfs.core.ids import DiskId, ServerId
from dfs.wire.handlers import FilePayload, Handler, HeldPayload, Later, Peer, ReplyResult
from dfs.wire.messages import (
    READ_MAX_BYTES,
    Append,
    Appended,
    DeleteFragments,
    Empty,
    FragmentsReply,
    FragmentStatus,
    ListFragments,
    Message,
    ReadRecords,
    RecordsReply,
    SealFragment,
    ServerStatus,
    ServerStatusReply,
    StatFragment,
    SyncFragments,
)

COPY_MAX_BYTES: Final = 256 * 1024
"""Records up to this size are copied into memory and leave with their reply in one system call;
for more, sendfile costs less."""

REQUEST_CHUNKS_MAX: Final = 65536
"""Chunks one SyncFragments or DeleteFragments may name."""

_NO_RECORDS: Final = RecordsReply(0)


class ChunkService:
    """The disks of one server, and `handlers` for `dfs.wire.serve`."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self.disks = tuple(disks)
        self.server: ServerId = 0
        """The master's number for this server; 0: not registered yet."""
        self._by_number: dict[DiskId, Disk] = {}
        self._copies = Copies()
        self._started_at = trio.current_time()
        self.renumber()

    def add(self, disk: Disk) -> None:
        """Serve one more disk."""
        self.disks = (*self.disks, disk)
        self.renumber()

    def renumber(self) -> None:
        """Take over the numbers of the disks, after the master gave them."""
        self._by_number = {disk.number: disk for disk in self.disks if disk.number}

    def disk(self, number: DiskId) -> Disk:
        """Raises DiskError where it is not one of this server's."""
        disk = self._by_number.get(number)
        if disk is None:
            raise DiskError(
                f"this chunk server has no disk {number}",
                hint="it moved to another server, or this one has not registered yet",
            )
        return disk

    @property
    def handlers(self) -> Mapping[type[Message], Handler]:
        return {
            Append: self.append,
            ReadRecords: self.read,
            SyncFragments: self.sync,
            SealFragment: self.seal,
            DeleteFragments: self.delete,
            StatFragment: self.stat,
            ListFragments: self.list_fragments,
            ServerStatus: self.status,
        }

    def append(
        self, _: Peer, request: Append, payload: memoryview
    ) -> Later | Awaitable[ReplyResult]:
        disk = self.disk(request.disk)
        if request.first_block < 0:
            raise ProtocolError(f"there is no block {request.first_block}")
        batch = Batch(request.first_block, request.blocks, payload)
        if not request.background:
            later = Later()

            def ended(outcome: "Outcome[Reached]") -> None:
                if isinstance(outcome, Error):
                    later.settle(outcome)
                else:
                    reached = outcome.unwrap()
                    answer = Appended(reached.next_block, reached.length, request.sync)
                    later.settle(Value(answer))

            place = (request.index, request.k, request.m)
            if disk.begin_append(request.chunk, place, batch, ended, sync=request.sync):
                return later
        return self._append(disk, request, batch)

    async def _append(self, disk: Disk, request: Append, batch: Batch) -> Appended:
        if not possible(request.k, request.m, request.index) or not is_chunk(request.chunk):
            raise ProtocolError(
                f"there is no fragment {request.index} of {request.k}+{request.m} "
                f"of chunk {request.chunk}"
            )
        header = FragmentHeader(
            UUID(disk.identity.cluster), request.chunk, request.index, request.k, request.m
        )
        if request.background:
            await disk.traffic.turn(len(batch.payload))
            reached = await disk.append(header, batch, sync=request.sync, upkeep=True)
        else:
            disk.traffic.begin()
            try:
                reached = await disk.append(header, batch, sync=request.sync)
            finally:
                disk.traffic.end()
        return Appended(reached.next_block, reached.length, request.sync)

    def read(
        self, _: Peer, request: ReadRecords, payload: memoryview
    ) -> ReplyResult | Awaitable[ReplyResult]:
        disk = self.disk(request.disk)
        if request.offset < 0 or not 0 <= request.length <= READ_MAX_BYTES:
            raise ProtocolError(
                f"cannot read {request.length} bytes at {request.offset}: "
                f"0 to {READ_MAX_BYTES} at once are allowed"
            )
        if request.background:
            return self._read_slowly(disk, request)
        fragment = disk.peek(request.chunk)
        if fragment is not None:
            try:
                start, size, records = fragment.file.locate(request.offset, request.length)
                if not size:
                    return _NO_RECORDS
                copy = self._copies.take(size) if size <= COPY_MAX_BYTES else None
                if copy is not None:
                    if _fill_at_once(fragment.file.fd, start, *copy):
                        disk.traffic.touch()
                        return RecordsReply(records), copy[1]
                elif is_cached(fragment.file.fd, start, size):
                    disk.traffic.touch()
                    fragment.pin()
                    return _records(disk, fragment, start, size, records)
            except (FragmentError, OSError):
                pass  # the slow way looks closer
        return self._read_first(disk, request)

    async def _read_first(self, disk: Disk, request: ReadRecords) -> ReplyResult:
        disk.traffic.begin()
        try:
            return await self._read_slowly(disk, request)
        finally:
            disk.traffic.end()

    async def _read_slowly(self, disk: Disk, request: ReadRecords) -> ReplyResult:
        fragment = await disk.fragment(request.chunk)
        try:
            start, size, records = fragment.file.locate(request.offset, request.length)
            if not size:
                return _NO_RECORDS
            if request.background:
                await disk.traffic.turn(size, urgent=request.urgent)
            copy = self._copies.take(size) if size <= COPY_MAX_BYTES else None
            if copy is not None:
                await _fill(disk, fragment, request, start, *copy)
                return RecordsReply(records), copy[1]
            cached = is_cached(fragment.file.fd, start, size)
            if not cached:
                await disk.health.run_read(warm, fragment.file.fd, start, size)
            fragment.pin()
            once = request.background and not cached
            return _records(disk, fragment, start, size, records, once=once)
        except FragmentError:
            await disk.look_again(fragment)
            raise
        except DfsError:
            raise
        except OSError as error:
            raise disk.health.judge_read(error) from error
        finally:
            fragment.unpin()

    async def sync(self, _: Peer, request: SyncFragments, payload: memoryview) -> Empty:
        disk = self.disk(request.disk)
        _check_count(len(request.chunks))
        lengths = request.lengths or (0,) * len(request.chunks)
        if len(lengths) != len(request.chunks):
            raise ProtocolError(f"{len(lengths)} lengths of {len(request.chunks)} fragments")
        disk.traffic.begin()
        try:
            await disk.sync(dict(zip(request.chunks, lengths, strict=True)))
        finally:
            disk.traffic.end()
        return Empty()

    async def seal(self, _: Peer, request: SealFragment, payload: memoryview) -> FragmentStatus:
        disk = self.disk(request.disk)
        if request.length < 0:
            raise ProtocolError(f"a fragment cannot be sealed at {request.length}")
        return await disk.seal(request.chunk, request.length)

    async def delete(self, _: Peer, request: DeleteFragments, payload: memoryview) -> Empty:
        disk = self.disk(request.disk)
        _check_count(len(request.chunks))
        await disk.delete(request.chunks)
        return Empty()

    async def stat(self, _: Peer, request: StatFragment, payload: memoryview) -> FragmentStatus:
        disk = self.disk(request.disk)
        fragment = await disk.fragment(request.chunk)
        try:
            fragment.file.check_present(fragment.file.stored_bytes)
            return fragment.file.status()
        except FragmentError:
            await disk.look_again(fragment)
            raise
        finally:
            fragment.unpin()

    async def list_fragments(
        self, _: Peer, request: ListFragments, payload: memoryview
    ) -> FragmentsReply:
        return await list_fragments(self.disk(request.disk), request.after, request.limit)

    def status(self, _: Peer, request: ServerStatus, payload: memoryview) -> ServerStatusReply:
        return ServerStatusReply(
            server=self.server,
            version=__version__,
            uptime_s=trio.current_time() - self._started_at,
            disks=tuple(disk.report() for disk in self.disks),
        )


def _fill_at_once(fd: int, start: int, target: memoryview, held: HeldPayload) -> bool:
    """Fill a copy with what is in the page cache; let go of it where that is not all."""
    filled = False
    try:
        filled = read_cached(fd, start, target)
    finally:
        if not filled:
            held.close()
    return filled


async def _fill(
    disk: Disk,
    fragment: Fragment,
    request: ReadRecords,
    start: int,
    target: memoryview,
    held: HeldPayload,
) -> None:
    """Fill a copy, from the disk if need be; let go of it where that cannot be."""
    file = fragment.file
    try:
        if not read_cached(file.fd, start, target):
            if not await disk.health.run_read(read, file.fd, start, target):
                file.check_present(start + len(target))
                raise FragmentError(f"chunk {request.chunk} on {disk.path} was cut meanwhile")
            if request.background:
                drop(file.fd, start, len(target))
    except BaseException:
        held.close()
        raise


def _records(
    disk: Disk, fragment: Fragment, start: int, size: int, records: int, *, once: bool = False
) -> ReplyResult:
    """The answer to a read; takes over a pin, which goes when the bytes have been sent.

    `once`: they need not stay in the page cache then.
    """

    def judge(error: DfsError) -> None:
        if isinstance(error, DiskError):  # a file cut short is noticed at the next use
            disk.health.judge_read(error)

    def drop_and_unpin() -> None:
        drop(fragment.file.fd, start, size)
        fragment.unpin()

    close = drop_and_unpin if once else fragment.unpin
    payload = FilePayload(fragment.file.fd, ((start, size),), close=close, on_error=judge)
    return RecordsReply(records), payload


def is_chunk(chunk: int) -> bool:
    return 0 < chunk < 1 << 64


def _check_count(count: int) -> None:
    if count > REQUEST_CHUNKS_MAX:
        raise ProtocolError(f"{count} chunks in one request; {REQUEST_CHUNKS_MAX} are allowed")
