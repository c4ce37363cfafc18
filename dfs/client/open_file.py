"""Files that this client has open: one object per inode, shared by all its handles.

An `OpenFile` joins what is published (extents, read through the block cache) with what is
written and not committed yet, so that handles of one client see each other's writes at once.
`OpenFiles` counts handles and tells the master which inodes to keep while they are unlinked.
"""

from functools import partial
from typing import Final

import trio

from dfs.client.chunk_writers import ChunkWriters
from dfs.client.extent_map import ExtentMap
from dfs.client.fetcher import StaleExtentError
from dfs.client.interval_map import Span
from dfs.client.meta import Meta
from dfs.client.reader import Reader
from dfs.client.resolver import Resolver
from dfs.client.together import together
from dfs.client.writer import FileWriter
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId, InodeId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Cred, Open, SetAttr

READ_STEP_BYTES: Final = 4 * 1024 * 1024
"""Requests are cut at multiples of this in the file, which are block boundaries too."""
_READS_AT_ONCE: Final = 4

Part = bytes | memoryview


class OpenFile:
    """One inode in use. Created and counted by `OpenFiles`."""

    def __init__(self, files: "OpenFiles", inode: Inode) -> None:
        self.ino: InodeId = inode.ino
        self.inode = inode
        """As last heard of; `size` below knows better."""
        self.handles = 0
        self.access = 0
        """What the session has it open for (Access)."""
        self.extents = ExtentMap(inode.ino, files.meta, files.resolver)
        self.writer: FileWriter | None = None
        self._files = files
        self._opening_writer = trio.Lock()

    @property
    def size(self) -> int:
        """Bytes, counting what is written and not committed (but for appends)."""
        pending = self.writer.overlay.end if self.writer is not None else 0
        return max(self.inode.size, pending)

    @property
    def dirty(self) -> bool:
        return self.writer is not None and self.writer.dirty

    def learn(self, inode: Inode) -> None:
        """Take over a newer state of the inode."""
        if inode.version >= self.inode.version:
            self.inode = inode

    # ---------------------------------------------------------------- reading

    async def read(self, offset: int, length: int) -> list[Part]:
        """The bytes of [offset, offset + length) that are before the end, in parts.

        Raises:
            UnavailableError: they cannot be read now, nor within what `on_unavailable` allows.
            CorruptError: no disk has them any more.
        """
        if self.writer is not None and self.writer.appending:
            await self.writer.commit()
        for last_try in (False, True):
            end = min(offset + length, self.size)
            if offset >= end:
                return []
            while not self.extents.knows(offset, end):
                inode = await self.extents.ensure(offset, end)
                if inode is not None:
                    self.learn(inode)
            # No await up to here: the plan is of one moment.
            plan = self._plan(offset, end)
            try:
                return await self._carry_out(plan)
            except StaleExtentError:
                if last_try:
                    raise
                self.extents.forget()
        raise AssertionError

    def _plan(self, offset: int, end: int) -> "list[Part | Span[ChunkId]]":
        """Where each byte comes from: memory, chunks, or nowhere (zeros). Does not yield."""
        plan: list[Part | Span[ChunkId]] = []
        at = offset
        pending = self.writer.overlay.slices(offset, end) if self.writer is not None else []
        for span in pending:
            self._plan_published(plan, at, span.start)
            plan.append(bytes(span.value.data[span.skip : span.skip + span.end - span.start]))
            at = span.end
        self._plan_published(plan, at, end)
        return plan

    def _plan_published(self, plan: "list[Part | Span[ChunkId]]", offset: int, end: int) -> None:
        at = offset
        for span in self.extents.slices(offset, end):
            if span.start > at:
                plan.append(bytes(span.start - at))
            plan += _steps(span)
            at = span.end
        if at < end:
            plan.append(bytes(end - at))

    async def _carry_out(self, plan: "list[Part | Span[ChunkId]]") -> list[Part]:
        reader = self._files.reader
        wanted = [step for step in plan if isinstance(step, Span)]
        if len(wanted) == 1:
            span = wanted[0]
            found = await reader.read(span.value, span.skip, span.end - span.start)
            if len(plan) == 1:
                return list(found)
            got = {0: found}
        else:
            got = {}

            async def fetch(number: int, span: Span[ChunkId]) -> None:
                got[number] = await reader.read(span.value, span.skip, span.end - span.start)

            await together(
                [partial(fetch, number, span) for number, span in enumerate(wanted)],
                at_once=_READS_AT_ONCE,
            )
        parts: list[Part] = []
        number = 0
        for step in plan:
            if isinstance(step, Span):
                parts += got[number]
                number += 1
            else:
                parts.append(step)
        return parts

    def prefetch(self, offset: int, end: int) -> None:
        """Have published bytes of [offset, end) in the cache soon. Never waits, never fails."""
        end = min(end, self.inode.size)
        if offset < end and self.extents.knows(offset, end):
            for span in self.extents.slices(offset, end):
                for step in _steps(span):
                    self._files.reader.prefetch(
                        step.value, step.skip, step.skip + step.end - step.start
                    )

    # ---------------------------------------------------------------- writing

    async def _open_writer(self) -> FileWriter:
        async with self._opening_writer:
            if self.writer is None:
                files = self._files
                chunks = await files.writers.of(self.inode.policy)
                self.writer = FileWriter(
                    self.ino, files.meta, chunks, files.nursery, files.writers, self._committed
                )
            return self.writer

    def _committed(self, inode: Inode, extents: list[Extent], operations: int) -> None:
        self.extents.committed(inode, extents, operations)
        self.learn(inode)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that will never change. They are published by `flush`, or in a while."""
        writer = self.writer or await self._open_writer()
        await writer.write(offset, data)

    async def append(self, data: bytes) -> None:
        """Write at the end of the file, wherever it is when the bytes are published."""
        writer = self.writer or await self._open_writer()
        await writer.append(data)

    async def flush(self) -> None:
        """Publish what was written. Raises DfsError; the bytes are kept for another try."""
        if self.writer is not None:
            await self.writer.commit()

    async def sync(self) -> None:
        """Publish what was written, and return when it is on the disks."""
        if self.writer is not None:
            await self.writer.sync()
        await self._files.meta.sync()

    async def set_attr(self, change: SetAttr, *, cred: Cred | None = None) -> Inode:
        """chmod, chown, utimens, truncate: after what was written before."""
        await self.flush()
        inode = await self._files.meta.set_attr(change, cred=cred)
        if inode.version != self.extents.version:
            self.extents.forget(inode.version)
        self.inode = inode
        return inode


class OpenFiles:
    """All open files of a client, which owns it."""

    def __init__(
        self,
        meta: Meta,
        reader: Reader,
        resolver: Resolver,
        writers: ChunkWriters,
        nursery: trio.Nursery,
    ) -> None:
        self.meta = meta
        self.reader = reader
        self.resolver = resolver
        self.writers = writers
        self.nursery = nursery
        self._open: dict[InodeId, OpenFile] = {}
        self._locks: dict[InodeId, tuple[trio.Lock, int]] = {}
        meta.session.on_replaced.append(self._session_replaced)

    def get(self, ino: InodeId) -> OpenFile | None:
        """The file, if this client has it open."""
        return self._open.get(ino)

    async def open(self, ino: InodeId, access: int, *, cred: Cred | None = None) -> OpenFile:
        """A handle on an inode. The master checks the permission. Give it back to `close`."""
        async with _KeyLock(self._locks, ino):
            return self.adopt(await self.meta.open(ino, access, cred=cred), access)

    def adopt(self, inode: Inode, access: int) -> OpenFile:
        """A handle on an inode that an operation (Open, Create, Unnamed) has just opened."""
        file = self._open.get(inode.ino)
        if file is None:
            file = self._open[inode.ino] = OpenFile(self, inode)
        elif inode.version != file.extents.version and not file.dirty:
            # Close-to-open: see what others have done since.
            file.extents.forget(inode.version)
        file.learn(inode)
        file.access |= access
        file.handles += 1
        return file

    async def close(self, file: OpenFile, *, discard: bool = False) -> None:
        """Publish what was written (or `discard` it), and give a handle back.

        Raises:
            DfsError: what was written could not be published, and is given up.
        """
        try:
            if not discard:
                await file.flush()
        finally:
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + 5.0
                await self._give_back(file)

    async def _give_back(self, file: OpenFile) -> None:
        async with _KeyLock(self._locks, file.ino):
            file.handles -= 1
            if file.handles:
                return
            if file.writer is not None:
                file.writer.discard()
            if self._open.get(file.ino) is file:
                del self._open[file.ino]
            try:
                await self.meta.release(file.ino)
            except DfsError:
                # The session's end releases it.
                return

    async def flush(self) -> None:
        """Publish what all open files hold. Raises the first DfsError, after trying all."""
        failure: DfsError | None = None
        for file in list(self._open.values()):
            try:
                await file.flush()
            except DfsError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _session_replaced(self) -> None:
        """The new session has nothing open: open it all again."""
        if self._open:
            self.nursery.start_soon(self._reopen, list(self._open.values()))

    async def _reopen(self, files: list[OpenFile]) -> None:
        try:
            await self.meta.apply(*(Open(file.ino, file.access) for file in files))
        except DfsError:
            # They stay usable while they have a name.
            return


class _KeyLock:
    """One lock per key, kept while anyone uses it."""

    def __init__(self, locks: dict[InodeId, tuple[trio.Lock, int]], key: InodeId) -> None:
        self._locks = locks
        self._key = key
        self._lock, users = locks.get(key, (trio.Lock(), 0))
        locks[key] = (self._lock, users + 1)

    async def __aenter__(self) -> None:
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        lock, users = self._locks[self._key]
        if users == 1:
            del self._locks[self._key]
        else:
            self._locks[self._key] = (lock, users - 1)


def _steps(span: Span[ChunkId]) -> list[Span[ChunkId]]:
    """A span cut into requests."""
    steps = []
    at = span.start
    while at < span.end:
        stop = min(span.end, (at // READ_STEP_BYTES + 1) * READ_STEP_BYTES)
        steps.append(span.cut(at, stop))
        at = stop
    return steps
