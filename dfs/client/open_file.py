"""Files that this client has open: one object per inode, shared by all its handles.

An `OpenFile` joins what is published (extents, read through the block cache) with what is
written and not committed yet, so that handles of one client see each other's writes at once.
`OpenFiles` counts handles and tells the master which inodes to keep while they are unlinked.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
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
from dfs.client.retry import worth_retrying
from dfs.client.together import together
from dfs.client.writer import FileWriter
from dfs.core.errors import DfsError, FileSystemError, LostChangesError, from_wire
from dfs.core.ids import ChunkId, InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Access, Cred, SetAttr

READ_STEP_BYTES: Final = 4 * 1024 * 1024
"""Requests are cut at multiples of this in the file, which are block boundaries too."""
_READS_AT_ONCE: Final = 4
_RELEASED_MAX: Final = 10_000
_STALE_MAX: Final = 5
"""So often a read starts anew because others overwrote the file meanwhile."""
_REOPEN_AGAIN_S: Final = 1.0

Part = bytes | memoryview

log = logging.getLogger(__name__)


class OpenFile:
    """One inode in use. Created and counted by `OpenFiles`."""

    def __init__(self, files: "OpenFiles", inode: Inode) -> None:
        self.ino: InodeId = inode.ino
        self.inode = inode
        """As last heard of; `size` below knows better."""
        self.handles = 0
        self.access = 0
        """What the session has it open for (Access)."""
        self.grants: dict[Cred | None, int] = {}
        """The same, by who asked for it."""
        self.lost: DfsError | None = None
        """Why the master would not have it open in a new session."""
        self.epoch = 0
        """Goes up whenever the bytes may read differently than before."""
        self.written_ns = 0
        """When `wrote` was last told of a write; 0: the time of publishing is the file's."""
        self.losses = files.meta.barrier.losses
        """Of the master, as far as they were told here or before."""
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
    def size_with_appends(self) -> int:
        """`size`, with appends where they go unless others append at the same time."""
        return self.size + (self.writer.appended_bytes if self.writer is not None else 0)

    @property
    def unfinished(self) -> bool:
        """More of the last append may follow. From any thread."""
        return self.writer is not None and self.writer.unfinished

    @property
    def placing(self) -> bool:
        """The inode may count appends already that `size_with_appends` adds to it."""
        return self.writer is not None and self.writer.placing

    @property
    def dirty(self) -> bool:
        return self.writer is not None and self.writer.dirty

    @property
    def version(self) -> int:
        """The inode's, as last heard of."""
        return self.inode.version

    def learn(self, inode: Inode, *, since: int = -1) -> None:
        """Take over a newer state of the inode.

        `since` is the version that was known before the master was asked. An older one in the
        answer says that a power cut took the last changes from the master.
        """
        if inode.version >= self.inode.version or inode.version < since:
            self.inode = inode

    def refresh(self, inode: Inode) -> None:
        """The master's answer to a question: others may have changed the file since."""
        if inode.version > self.inode.version:
            self.epoch += 1
            if inode.version != self.extents.version:
                self.extents.forget(inode.version)
            self.learn(inode)

    # ---------------------------------------------------------------- reading

    async def read(self, offset: int, length: int) -> list[Part]:
        """The bytes of [offset, offset + length) that are before the end, in parts.

        Raises:
            UnavailableError: they cannot be read now, nor within what `on_unavailable` allows.
            CorruptError: no disk has them any more.
        """
        if self.writer is not None and self.writer.appending:
            await self.writer.commit()
        for tries in range(1, _STALE_MAX + 1):
            end = min(offset + length, self.size)
            if offset >= end:
                return []
            while not self.extents.knows(offset, end):
                since = self.version
                inode = await self.extents.ensure(offset, end)
                if inode is not None:
                    if inode.version > self.version:
                        self.epoch += 1
                    self.learn(inode, since=since)
            # No await up to here: the plan is of one moment.
            plan = self._plan(offset, end)
            try:
                return await self._carry_out(plan)
            except StaleExtentError:
                if tries == _STALE_MAX:
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

    def _check(self) -> None:
        """Raises DfsError if it was open for writing, and is not any more."""
        if self.lost is not None and self.access & Access.WRITE:
            raise from_wire(self.lost.to_wire())

    async def _open_writer(self) -> FileWriter:
        async with self._opening_writer:
            if self.writer is None:
                files = self._files
                chunks = await files.writers.of(self.inode.policy)
                self.writer = FileWriter(
                    self.ino, files.meta, chunks, files.nursery, files.writers, self
                )
            return self.writer

    def committed(
        self, inode: Inode, extents: list[Extent] | None, operations: int, since: int
    ) -> None:
        """See `writer.Owner`."""
        if extents is None or inode.version < since + operations:
            self.extents.forget(inode.version)
        else:
            self.extents.committed(inode, extents, operations)
        if inode.version != since + operations:
            # Others have changed it too.
            self.epoch += 1
        if self._files.on_commit is not None:
            self._files.on_commit(inode, since, operations)
        # A commit that does not come after what was known: the master has lost that.
        self.learn(inode, since=since + operations if extents is not None else since)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that will never change. They are published by `flush`, or in a while."""
        self._check()
        writer = self.writer or await self._open_writer()
        if writer.appending and offset + len(data) > self.inode.size:
            # It may lie in what was appended before it.
            await writer.commit()
        self.epoch += 1
        try:
            await writer.write(offset, data)
        finally:
            # It may have waited before it took them: what was read meanwhile is of before.
            self.epoch += 1

    async def append(self, data: bytes, *, more: bool = False) -> None:
        """Write at the end of the file, wherever it is when the bytes are published.

        With `more` the next append may be a part of the same write: see `FileWriter.append`.
        """
        self._check()
        writer = self.writer or await self._open_writer()
        self.epoch += 1
        try:
            await writer.append(data, more=more)
        finally:
            self.epoch += 1

    def finish_append(self) -> None:
        """No more of the last append follows."""
        if self.writer is not None:
            self.writer.finish_append()

    def wrote(self, time_ns: int, cred: Cred) -> None:
        """What was just written happened at `time_ns`, and is published with the rights of `cred`.

        So that the times a mount shows before publishing are those it shows after.
        """
        self.written_ns = time_ns
        if self.writer is not None:
            self.writer.mtime_ns = time_ns
            self.writer.cred = cred

    async def flush(self) -> None:
        """Publish what was written. Raises DfsError; the bytes are kept for another try."""
        self._check()
        if self.writer is not None:
            await self.writer.commit()

    async def sync(self) -> None:
        """Publish what was written, and return when it is on the disks.

        Raises LostChangesError, once, where the master has lost what was published before.
        """
        self._check()
        barrier = self._files.meta.barrier
        answered: dict[int, int] | None = barrier.answered()
        if self.writer is None or not await self.writer.sync():
            answered = None
        try:
            await barrier.wait(self.losses, answered)
        except LostChangesError:
            self.losses = barrier.losses
            self.extents.forget()
            raise

    async def set_attr(self, change: SetAttr, *, cred: Cred | None = None) -> Inode:
        """chmod, chown, utimens, truncate: after what was written before."""
        await self.flush()
        since = self.version
        inode = await self._files.meta.set_attr(change, cred=cred)
        self.changed(inode, since=since)
        return inode

    def changed(self, inode: Inode, *, since: int) -> None:
        """`inode` is how the file is after a change that was no commit; `since` as for `learn`."""
        self.epoch += 1
        if inode.version != self.extents.version:
            self.extents.forget(inode.version)
        # A change of our own that came after may have been answered before.
        self.learn(inode, since=since)


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
        self.releases = 0
        """Inodes released so far."""
        self.on_commit: Callable[[Inode, int, int], None] | None = None
        """Told of each commit: the inode after it, the version before, and by how many changes."""
        self._released: OrderedDict[InodeId, int] = OrderedDict()
        """The last ones, and which release it was."""
        meta.session.on_replaced.append(self._session_replaced)

    def get(self, ino: InodeId) -> OpenFile | None:
        """The file, if this client has it open."""
        return self._open.get(ino)

    async def open(self, ino: InodeId, access: int, *, cred: Cred | None = None) -> OpenFile:
        """A handle on an inode. The master checks the permission. Give it back to `close`."""
        async with _KeyLock(self._locks, ino):
            known = self._open.get(ino)
            since = known.version if known is not None else -1
            inode = await self.meta.open(ino, access, cred=cred)
            if known is not None and inode.version < since:
                known.learn(inode, since=since)
            return self.adopt(inode, access, cred=cred)

    def adopt(self, inode: Inode, access: int, *, cred: Cred | None = None) -> OpenFile:
        """A handle on an inode that an operation (Open, Create, Unnamed) has just opened."""
        file = self._open.get(inode.ino)
        if file is None:
            file = self._open[inode.ino] = OpenFile(self, inode)
        elif inode.version != file.extents.version:
            # Close-to-open: see what others have done since.
            file.epoch += 1
            file.extents.forget(inode.version)
        file.learn(inode)
        file.access |= access
        file.grants[cred] = file.grants.get(cred, 0) | access
        file.lost = None
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
            file.handles -= 1
            if not file.handles:
                if file.writer is not None:
                    file.writer.discard()
                # In a client that is closing, the session's end releases it.
                with suppress(RuntimeError):
                    self.nursery.start_soon(self._release, file)

    def let_go(self, file: OpenFile) -> None:
        """As `close`, of a file to which nothing was written; does not wait."""
        file.handles -= 1
        if file.handles:
            return
        ino = file.ino
        if ino not in self._locks and self.meta.delegations.release(ino, self.meta.cred):
            del self._open[ino]
            self._note_release(ino)
        else:
            with suppress(RuntimeError):
                self.nursery.start_soon(self._release, file)

    async def _release(self, file: OpenFile) -> None:
        """Tell the master, unless somebody has opened the file meanwhile."""
        async with _KeyLock(self._locks, file.ino):
            if file.handles or self._open.get(file.ino) is not file:
                return
            del self._open[file.ino]
            try:
                await self.meta.release(file.ino)
            except DfsError as error:
                # The session's end releases it.
                log.debug("inode %d was not released: %s", file.ino, error)
            # Counted when it is done: it may have been repeated up to now.
            self._note_release(file.ino)

    def _note_release(self, ino: InodeId) -> None:
        self.releases += 1
        self._released[ino] = self.releases
        self._released.move_to_end(ino)
        if len(self._released) > _RELEASED_MAX:
            self._released.popitem(last=False)

    async def adopt_or_open(
        self, inode: Inode, access: int, releases: int, *, cred: Cred | None = None
    ) -> OpenFile:
        """`adopt` what a Create gave that was sent when `releases` was as given.

        If it gave a file that was there, and that this client has released meanwhile or is
        about to, the release may come second: the file is opened again.
        """
        if inode.ino in self._locks or self._released.get(inode.ino, 0) > releases:
            return await self.open(inode.ino, access, cred=cred)
        return self.adopt(inode, access, cred=cred)

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
        # Other threads adopt files meanwhile.
        for file in list(self._open.values()):
            self.nursery.start_soon(self._reopen, file, self.meta.session.current_id)

    async def _reopen(self, file: OpenFile, session: SessionId) -> None:
        """Open a file under a session that is new, until it is done or refused."""
        while self.meta.session.current_id in (session, 0):
            async with _KeyLock(self._locks, file.ino):
                if not file.handles or self._open.get(file.ino) is not file:
                    return
                try:
                    for cred, access in list(file.grants.items()):
                        await self._open_again(file, access, cred)
                except DfsError as error:
                    if not worth_retrying(error):
                        log.warning("inode %d cannot be opened again: %s", file.ino, error)
                        file.lost = error
                        return
                    log.info("inode %d is not open yet in session %d: %s", file.ino, session, error)
                else:
                    file.lost = None
                    return
            await trio.sleep(_REOPEN_AGAIN_S)

    async def _open_again(self, file: OpenFile, access: int, cred: Cred | None) -> None:
        try:
            await self.meta.open(file.ino, access, cred=cred)
        except FileSystemError as error:
            if error.errno == errno.EACCES:
                # Who may no longer write to it may at least go on reading.
                await self.meta.open(file.ino, 0, cred=cred)
            raise


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
