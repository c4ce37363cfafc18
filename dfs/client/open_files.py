"""All files that a client has open: counts handles, and tells the master which inodes to keep.

What is open in a session has to be opened again in the next one.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import trio

from dfs.client.chunk_writers import ChunkWriters
from dfs.client.meta import Meta
from dfs.client.new_files import NewFiles
from dfs.client.open_file import OpenFile
from dfs.client.reader import Reader
from dfs.client.resolver import Resolver
from dfs.client.retry import worth_retrying
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Cred

_RELEASED_MAX: Final = 10_000
_EXPECTED_MAX: Final = 10_000
_EXPECTED_S: Final = 2.0
"""So long what was heard of the extents of a file that is not open yet may be used."""
_GATHER_S: Final = 0.03
"""Files that are closed within so long are given back in one request."""
_REOPEN_AGAIN_S: Final = 1.0

log = logging.getLogger(__name__)


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
        self.new_files = meta.delegations.log.new_files = NewFiles(self)
        self.releases = 0
        """Inodes released so far."""
        self.on_commit: Callable[[Inode, int, int], None] | None = None
        """Told of each commit: the inode after it, the version before, and by how many changes."""
        self._released: OrderedDict[InodeId, int] = OrderedDict()
        """The last ones, and which release it was."""
        self._expected: OrderedDict[InodeId, tuple[int, float, Sequence[Extent]]] = OrderedDict()
        """Of files that may be opened soon: the version, until when it counts, all extents."""
        self._closed: list[OpenFile] = []
        """To be given back, by a task that is about to do so."""
        meta.session.on_replaced.append(self._session_replaced)

    def get(self, ino: InodeId) -> OpenFile | None:
        """The file, if this client has it open."""
        return self._open.get(ino)

    async def open(
        self,
        ino: InodeId,
        access: int,
        *,
        place: tuple[InodeId, bytes] | None = None,
        cred: Cred | None = None,
    ) -> OpenFile:
        """A handle on an inode. The master checks the permission. Give it back to `close`.

        `place`: as `Meta.open`.
        """
        async with _KeyLock(self._locks, ino):
            known = self._open.get(ino)
            since = known.version if known is not None else -1
            inode = await self.meta.open(ino, access, place=place, cred=cred)
            if known is not None and inode.version < since:
                known.learn(inode, since=since)
            return self.adopt(inode, access, cred=cred)

    def adopt(self, inode: Inode, access: int, *, cred: Cred | None = None) -> OpenFile:
        """A handle on an inode that an operation (Open, Create, Unnamed) has just opened."""
        file = self._open.get(inode.ino)
        if file is None:
            file = self._open[inode.ino] = OpenFile(self, inode)
            version, until, extents = self._expected.pop(inode.ino, (-1, 0.0, ()))
            if version == inode.version and until > trio.current_time():
                file.extents.seed(inode, extents)
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

    def expect(self, inode: Inode, extents: Sequence[Extent]) -> None:
        """The file may be opened soon, and these are all its extents, as was just said."""
        self._expected.pop(inode.ino, None)
        self._expected[inode.ino] = (inode.version, trio.current_time() + _EXPECTED_S, extents)
        if len(self._expected) > _EXPECTED_MAX:
            self._expected.popitem(last=False)

    async def close(self, file: OpenFile, *, discard: bool = False) -> None:
        """Publish what was written (or `discard` it), and give a handle back.

        Raises:
            DfsError: what was written could not be published, and is given up, but for what a
                program was told of that all is well.
        """
        try:
            if not discard:
                await file.flush()
        finally:
            # What follows its name goes on doing so, and gives the handle back then.
            if file.handles > 1 or file.new is None or not self.new_files.keep(file.new):
                file.handles -= 1
            if not file.handles:
                if file.writer is not None:
                    file.writer.discard()
                self._give_back(file)

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
            self._give_back(file)

    def _give_back(self, file: OpenFile) -> None:
        """Have the master told, in a moment, that a file is not open any more."""
        self._closed.append(file)
        if len(self._closed) == 1:
            try:
                self.nursery.start_soon(self._release_closed)
            except RuntimeError:
                # In a client that is closing, the session's end releases it.
                self._closed.clear()

    def forget_handle(self, file: OpenFile) -> None:
        """As `let_go`, of a file that the master has never had open for it."""
        file.handles -= 1
        if not file.handles and self._open.get(file.ino) is file:
            del self._open[file.ino]

    async def _release_closed(self) -> None:
        """Give back what was closed within a moment, unless somebody has opened it meanwhile."""
        await trio.sleep(_GATHER_S)
        closed, self._closed = dict.fromkeys(self._closed), []
        locks = {
            file: _KeyLock(self._locks, file.ino) for file in closed if file.ino not in self._locks
        }
        for lock in locks.values():
            lock.take()
        try:
            await self._release([file for file in locks if self._is_unused(file)])
        finally:
            for lock in locks.values():
                lock.let_go()
        for file in closed:
            if file not in locks:
                async with _KeyLock(self._locks, file.ino):
                    await self._release([file] if self._is_unused(file) else [])

    def _is_unused(self, file: OpenFile) -> bool:
        return not file.handles and self._open.get(file.ino) is file

    async def _release(self, files: list[OpenFile]) -> None:
        """Tell the master. Their locks are held."""
        for file in files:
            del self._open[file.ino]
        try:
            await self.meta.release(*(file.ino for file in files))
        except DfsError as error:
            # The session's end releases them.
            log.debug("%d inodes were not released: %s", len(files), error)
        # Counted when it is done: it may have been repeated up to now.
        for file in files:
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
        failures: list[DfsError] = []

        async def flush(file: OpenFile) -> None:
            try:
                await file.flush()
            except DfsError as error:
                failures.append(error)

        # All at once: each may wait as long as `on_unavailable` says.
        async with trio.open_nursery() as nursery:
            for file in list(self._open.values()):
                if file.dirty or (file.lost is not None and file.handles):
                    nursery.start_soon(flush, file)
        if failures:
            raise failures[0]

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
            self._lock.acquire_nowait()  # as nearly always: `acquire` would let all others run
        except trio.WouldBlock:
            try:
                await self._lock.acquire()
            except BaseException:
                self._leave()
                raise

    async def __aexit__(self, *_: object) -> None:
        self.let_go()

    def take(self) -> None:
        """As `async with`, where nobody has it or waits for it. `let_go` must follow."""
        self._lock.acquire_nowait()

    def let_go(self) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        lock, users = self._locks[self._key]
        if users == 1:
            del self._locks[self._key]
        else:
            self._locks[self._key] = (lock, users - 1)
