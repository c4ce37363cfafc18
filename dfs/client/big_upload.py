"""Larger files of an upload, and streams: written to an unnamed inode, named when complete."""

import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from dfs.client import local_files
from dfs.client.local_files import LocalEntry
from dfs.client.open_file import OpenFile
from dfs.client.progress import Share
from dfs.core.errors import DfsError, FileSystemError, SessionError
from dfs.core.inode import Inode
from dfs.wire.messages import Access, Link, SetAttr, Unnamed

if TYPE_CHECKING:
    from dfs.client.upload import Upload

ReadStream: TypeAlias = Callable[[], Awaitable[bytes]]
"""Gives the next bytes; b"" at the end."""

_STEP_BYTES: Final = 4 * 1024 * 1024
_FILES_AT_ONCE: Final = 3
_READ_AHEAD: Final = 2
_TRIES: Final = 2

log = logging.getLogger(__name__)


class BigFiles:
    """Takes entries one by one; files run in the upload's nursery, a few at a time."""

    def __init__(self, job: "Upload", nursery: trio.Nursery) -> None:
        self.failure: Exception | None = None
        """What ended the upload."""
        self._job = job
        self._nursery = nursery
        self._limit = trio.Semaphore(_FILES_AT_ONCE)
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def add(self, entry: LocalEntry, parent: Inode) -> None:
        """Take a file; waits while enough of them are under way."""
        await self._limit.acquire()
        self._running += 1
        self._nursery.start_soon(self._run, entry, parent)

    async def finish(self) -> None:
        """Wait for all."""
        while self._running:
            await self._idle.park()

    async def _run(self, entry: LocalEntry, parent: Inode) -> None:
        try:
            await self._upload(entry, parent)
        except FileSystemError as error:
            self._job.fail(entry.path, error)
        except DfsError as error:
            self._end(error)
        except OSError as error:
            self._job.fail(entry.path, error)
        except Exception as error:
            self._end(error)
        finally:
            self._running -= 1
            self._limit.release()
            self._idle.unpark_all()

    def _end(self, error: Exception) -> None:
        self.failure = self.failure or error
        self._nursery.cancel_scope.cancel()

    async def _upload(self, entry: LocalEntry, parent: Inode) -> None:
        job = self._job
        for attempt in range(1, _TRIES + 1):
            share = Share(job.progress, job.tell)
            session = job.client.meta.session.current_id
            try:
                inode = await self._try(entry, parent, share)
            except BaseException as error:
                share.undo()
                # An inode without a name dies with the session: start over.
                replaced = session not in (job.client.meta.session.current_id, 0)
                lost = isinstance(error, SessionError) or (
                    replaced and isinstance(error, FileSystemError)
                )
                if not lost or attempt == _TRIES or job.client.meta.session.closed:
                    raise
                log.info("%r is uploaded again: %s", entry.path, error)
            else:
                job.done(entry, inode)
                assert entry.status is not None
                share.complete(entry.status.st_size)
                return

    async def _try(self, entry: LocalEntry, parent: Inode, share: Share) -> Inode:
        job = self._job
        assert entry.status is not None
        run = job.client.workers.run
        fd = await run(local_files.open_to_read, entry)
        try:
            file = await _unnamed(job, parent, entry.status.st_mode & 0o7777)
            try:
                await self._copy(fd, file, entry.status, share)
                local_files.check_unchanged(fd, entry.status)
                await file.flush()
                times = SetAttr(
                    file.ino,
                    size=entry.status.st_size if file.size < entry.status.st_size else None,
                    mtime_ns=entry.status.st_mtime_ns,
                )
                await job.client.meta.set_attr(times)
                return await _name(job, file, parent, entry.name)
            finally:
                await job.client.files.close(file, discard=True)
        finally:
            os.close(fd)

    async def _copy(self, fd: int, file: OpenFile, status: os.stat_result, share: Share) -> None:
        """All data of a local file; reading is a little ahead of writing."""
        send, receive = trio.open_memory_channel[tuple[int, bytes]](_READ_AHEAD)
        run = self._job.client.workers.run
        failure: Exception | None = None

        async def read() -> None:
            nonlocal failure
            offset = 0
            try:
                async with send:
                    while offset < status.st_size:
                        length = min(_STEP_BYTES, status.st_size - offset)
                        start, data = await run(local_files.read_step, fd, offset, length)
                        if not data:
                            return
                        await send.send((start, data))
                        offset = start + len(data)
            except OSError as error:
                failure = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                async for offset, data in receive:
                    await file.write(offset, data[: status.st_size - offset])
                    share.moved(len(data))
            except DfsError as error:
                failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def store_stream(
    job: "Upload", read: ReadStream, parent: Inode, name: bytes, mode: int
) -> int:
    """Store a stream under a name that it gets when it is complete; its size.

    Raises DfsError, and what `read` raises.
    """
    file = await _unnamed(job, parent, mode)
    try:
        offset = 0
        while data := await read():
            await file.write(offset, data)
            offset += len(data)
            job.moved(len(data))
        await file.flush()
        await _name(job, file, parent, name)
        return offset
    finally:
        await job.client.files.close(file, discard=True)


async def _unnamed(job: "Upload", parent: Inode, mode: int) -> OpenFile:
    """A new inode without a name, open for writing."""
    meta = job.client.meta
    inode = await meta.do(Unnamed(parent.ino, mode))
    assert inode is not None
    file = job.client.files.adopt(inode, Access.READ | Access.WRITE)
    if job.policy and inode.policy != job.policy:
        try:
            file.inode = await meta.set_policy(inode.ino, job.policy)
        except BaseException:
            await job.client.files.close(file, discard=True)
            raise
    return file


async def _name(job: "Upload", file: OpenFile, parent: Inode, name: bytes) -> Inode:
    """Give the complete file its name, in place of what has it."""
    inode = await job.client.meta.do(Link(file.ino, parent.ino, name, replace=True))
    assert inode is not None
    return inode
