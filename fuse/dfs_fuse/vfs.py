"""The file system under the drivers: inodes, handles, and what may be believed without asking.

Everything is by inode number; no FUSE library, no paths. All methods raise `DfsError`s, which are
`OSError`s with the errno POSIX asks for. Owned by `mount`, called by a driver in trio's thread;
only `cached` and `cached_child` may be called from other threads.

Consistency: close-to-open between mounts. An open asks the master (whether the name still means
that inode, and how the inode is now), a close publishes what was written. In between, attributes
and names are believed for `attr_cache_s`. This mount sees its own changes at once: every change
goes to the master first, and its answer into `NodeCache`; what is written and not published yet
is overlaid by the open file.
"""

import errno
import os
import time
from collections import OrderedDict, deque
from typing import Any, Final

import trio

from dfs.client.open_file import OpenFile, Part
from dfs.core.errors import DfsError, FileSystemError, refuse
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import Cred, SetAttr
from dfs_fuse.caller import Caller
from dfs_fuse.directories import Directories
from dfs_fuse.handles import FileHandle, access_of
from dfs_fuse.nodes import NAMES_MAX
from dfs_fuse.tree import Tree
from dfs_fuse.xattrs import ExtendedAttributes

_SMALL_BYTES: Final = 128 * 1024
"""A file up to this size is fetched as a whole when it is opened to be read."""
_REPLACED_MAX: Final = 16
"""So often an open follows a name that others keep giving to new files."""
_FRESH_S: Final = 0.02
"""A name that the master gave so short a time ago is not asked for again by an open."""


class Vfs(Tree, Directories, ExtendedAttributes):
    """All of it; here is what has to do with files. See the module."""

    def __init__(self, *args: Any, by_path: bool = False, **settings: Any) -> None:
        """As `Nodes`. `by_path`: the kernel has pages of a file for each of its names."""
        super().__init__(*args, **settings)
        self._by_path = by_path
        self._handles: dict[int, FileHandle] = {}
        self._seen: OrderedDict[InodeId, int] = OrderedDict()
        """The version of each file that the kernel's pages are of."""
        self._files.on_commit = self._committed
        self._closed: deque[OpenFile] = deque()
        """Files made here that are closed, and not yet given back: see `release_here`."""
        self._delegations.log.before_sending = self._let_go_of_closed

    def _committed(self, inode: Inode, since: int, operations: int) -> None:
        """This client's bytes are in the file now: see `OpenFiles.on_commit`."""
        self.cache.learn(inode)
        known = self._seen.get(inode.ino) == since and inode.version == since + operations
        if known and not (self._by_path and inode.nlink > 1):
            self._seen[inode.ino] = inode.version
        else:
            self.distrust_pages(inode.ino)

    def distrust_pages(self, ino: InodeId) -> None:
        """The kernel may have pages of the file that are of who knows which version."""
        self._seen.pop(ino, None)

    def _keeps_pages(self, inode: Inode) -> bool:
        """Whether the kernel's pages are of this version; from now on they are."""
        if self._by_path and inode.nlink > 1:
            self.distrust_pages(inode.ino)
            return False
        known = self._seen.get(inode.ino) == inode.version
        self._seen.pop(inode.ino, None)
        self._seen[inode.ino] = inode.version
        if len(self._seen) > NAMES_MAX:
            self._seen.popitem(last=False)
        return known

    async def setattr(self, change: SetAttr, caller: Caller) -> Inode:
        """chmod, chown, truncate, utimens: after what was written before.

        The kernel has checked that the caller may, and done what Linux does to set-id bits. It
        also clears those bits itself, for callers who may write and not chmod. So the master is
        asked as root.
        """
        self._check_writable()
        cred = Cred(0, caller.gid)
        file = self._files.get(change.ino)
        try:
            if file is None:
                return self._learn(await self._meta.set_attr(change, cred=cred))
            since = file.version
            inode = self._learn(await file.set_attr(change, cred=cred))
            if change.size is not None:
                self._committed(inode, since, 1)
            return inode
        except BaseException:
            self.cache.forget(change.ino)
            raise

    # ---------------------------------------------------------------- files

    def handle(self, number: int) -> FileHandle:
        """An open file by its number. Raises EBADF."""
        try:
            return self._handles[number]
        except KeyError:
            raise refuse(errno.EBADF, f"file handle {number}") from None

    async def open(self, ino: InodeId, flags: int, caller: Caller) -> FileHandle:
        """Open a regular file, truncated where `flags` have O_TRUNC.

        Raises:
            FileSystemError: ESTALE if the name by which the kernel found it means another inode
                now; the kernel then looks again, and so does who resolves paths.
        """
        cred = self._credentials.of(caller)
        access = access_of(flags)
        if self.read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._check_writable()
        place = self._place_to_check(ino)
        asked = time.monotonic()
        try:
            file = await self._files.open(ino, access, place=place, cred=cred)
        except FileSystemError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self._disbelieve(ino)
                raise refuse(errno.ESTALE, f"inode {ino}") from error
            raise
        try:
            if file.inode.nlink == 0 and not self._is_open(ino):
                self._disbelieve(ino)
                raise refuse(errno.ESTALE, f"inode {ino}")
            if place is None:
                self._learn(file.inode)
            else:
                self._found(*place, file.inode, asked)
            if flags & os.O_TRUNC:
                # Also of an empty file: its times change.
                since = file.version
                self._committed(await file.set_attr(SetAttr(ino, size=0), cred=cred), since, 1)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._files.close(file)
            raise
        handle = self._new_handle(file, flags, cred)
        handle.keep_cache = self._keeps_pages(file.inode)
        if handle.readable and 0 < file.inode.size <= _SMALL_BYTES and not handle.keep_cache:
            self._note_read()
            # Its neighbours are in the same blocks: where they were read, it is there.
            if not file.is_cached(0, file.inode.size):
                self._nursery.start_soon(self._fetch_small, file)
        return handle

    async def open_following(self, ino: InodeId, flags: int, caller: Caller) -> FileHandle:
        """As `open`, for a driver by inodes: the kernel looks again only once after ESTALE.

        Where a file that is gone was to be read, the one that has its name now is opened instead;
        the handle says which. So a file that others keep replacing by rename is always there.
        """
        wanted = ino
        for _ in range(_REPLACED_MAX):
            found = self._names.get(ino, self._lost.get(ino))
            try:
                return await self.open(ino, flags, caller)
            except FileSystemError as error:
                only_read = flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY
                if error.errno != errno.ESTALE or found is None or not only_read:
                    raise
                if self._is_open(wanted):
                    # Another program's open of it has just succeeded: so may this one.
                    ino = wanted
                    continue
                if not await self._is_gone(wanted):
                    raise
                inode = await self.lookup(found[0], found[1], caller)
                if not inode.is_file:
                    raise
                ino = inode.ino
        raise refuse(errno.ESTALE, f"inode {wanted}")

    def _is_open(self, ino: InodeId) -> bool:
        """Whether a program has it open here; an open that is under way does not count."""
        # FUSE's threads open and close files meanwhile.
        return any(handle.ino == ino for handle in list(self._handles.values()))

    async def _is_gone(self, ino: InodeId) -> bool:
        """Whether no name leads to it any more."""
        try:
            return (await self._meta.get_inode(ino)).nlink == 0
        except FileSystemError as error:
            if error.errno != errno.ENOENT:
                raise
            return True

    def _place_to_check(self, ino: InodeId) -> tuple[InodeId, bytes] | None:
        """The name by which the inode was found, unless it certainly still has that.

        None too of a file that is open here: its name may have gone since, and the open may be of
        a descriptor (/proc/self/fd).
        """
        found = self._names.get(ino)
        file = self._files.get(ino)
        # One that has just been closed may still be given back.
        if found is None or (file is not None and file.handles):
            return None
        parent, name, when = found
        if self._delegations.child(parent, name) == ino:
            # Nobody else can have given the name to another.
            return None
        return None if time.monotonic() - when < _FRESH_S else (parent, name)

    def _disbelieve(self, ino: InodeId) -> None:
        found = self._lose_place(ino)
        if found is not None:
            if self.cache.child(found[0], found[1]) == ino:
                self.cache.forget_name(found[0], found[1])
        self.cache.forget(ino)

    async def _fetch_small(self, file: OpenFile) -> None:
        """A read will follow: have the bytes on their way already."""
        try:
            await file.read(0, _SMALL_BYTES)
        except DfsError:
            # The read itself says so.
            return

    async def create(
        self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller
    ) -> FileHandle:
        """Make and open a regular file; without O_EXCL also one that is there."""
        self._check_writable()
        handle = self.create_here(parent, name, mode, flags, caller)
        if handle is not None:
            return handle
        cred = self._credentials.of(caller)
        access = access_of(flags)
        releases = self._files.releases
        inode = await self._meta.create(
            parent,
            name,
            mode,
            exclusive=bool(flags & os.O_EXCL),
            open=True,
            access=access,
            cred=cred,
        )
        file = await self._files.adopt_or_open(inode, access, releases, cred=cred)
        self._delegations.note_change(parent)
        self._added(parent, name, inode)
        if inode.version or inode.size:
            # It was there: how its directory is, nobody knows.
            self.cache.forget(parent)
        if flags & os.O_TRUNC and file.size_with_appends:
            try:
                await file.set_attr(SetAttr(inode.ino, size=0), cred=cred)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._files.close(file)
                raise
        handle = self._new_handle(file, flags, cred)
        self._keeps_pages(file.inode)
        return handle

    def create_here(
        self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller
    ) -> FileHandle | None:
        """As `create`, in a directory of this mount. None: it is not. From any thread."""
        if self.read_only:
            return None
        cred = self._credentials.of(caller)
        inode = self._delegations.create(parent, name, mode, cred)
        if inode is None:
            return None
        self.cache.learn(inode, own=True)
        if not self._delegations.made_here(parent, inode.ino):
            # The directory was given back since, and its files shared before this one was known.
            self.cache.share((inode.ino,))
        self._note_name(parent, name, inode.ino)
        file = self._files.adopt(inode, access_of(flags), cred=cred)
        self._keeps_pages(inode)
        return self._new_handle(file, flags, cred)

    def release_here(self, handle: FileHandle) -> bool:
        """As `release`, for a file that nobody else has seen. False: it is not. From any thread.

        It is given back when its making is told, if not before.
        """
        file = handle.file
        if file.writer is not None or not self._delegations.log.waits(file.ino):
            return False
        self._handles.pop(handle.number, None)
        self._closed.append(file)
        return True

    def _let_go_of_closed(self) -> None:
        for _ in range(len(self._closed)):
            file = self._closed.popleft()
            new = file.new
            if file.handles > 1 or not file.dirty:
                self._files.let_go(file)
            elif new is None or not self._delegations.log.close_new(new):
                # When its bytes are published.
                self._closed.append(file)

    def _new_handle(self, file: OpenFile, flags: int, cred: Cred) -> FileHandle:
        handle = FileHandle(next(self._numbers), file, cred, flags)
        self._handles[handle.number] = handle
        return handle

    async def read(self, handle: FileHandle, offset: int, size: int) -> Part:
        """Up to `size` bytes; fewer only at the end of the file."""
        # Before there is anything to wait for: those that come at once do not end in their order.
        ahead = handle.ahead.after(offset, offset + size)
        parts = await handle.file.read(offset, size)
        if ahead is not None:
            handle.file.prefetch(*ahead)
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts)

    async def write(self, handle: FileHandle, offset: int, data: bytes) -> int:
        """Take bytes; they are on disks after `fsync`, and seen by other mounts after `flush`.

        A handle opened with O_APPEND writes at the end of the file, whatever `offset` says.
        """
        await self.write_parts(handle, deque([(offset, data)]))
        return len(data)

    def write_here(self, handle: FileHandle, offset: int, data: bytes) -> bool:
        """As `write`, to a small file that nobody else has seen. False: it is none.

        From any thread. The bytes are published with the file, so that a close need not wait.
        """
        file = handle.file
        if handle.append:
            if handle.may_be_cut(offset, len(data)):
                return False
            offset = file.size
        return file.write_new(offset, data, time.time_ns())

    def flush_here(self, handle: FileHandle) -> bool:
        """As `flush`, where there is nothing to wait for, and nothing to say. From any thread."""
        file, log = handle.file, self._delegations.log
        allowed = self._files.new_files.allowed
        if file.dirty and (file.new is None or log.crowded or not allowed):
            return False
        return not log.has_lost

    async def write_parts(self, handle: FileHandle, parts: deque[tuple[int, bytes]]) -> None:
        """As `write`, for several that came one after the other.

        What has been taken is removed from `parts`, also where it fails in the middle.
        """
        file = handle.file
        while parts:
            offset, data = parts[0]
            if handle.append:
                await file.append(data, more=handle.may_be_cut(offset, len(data)))
            else:
                await file.write(offset, data)
            file.wrote(time.time_ns(), handle.cred)
            parts.popleft()

    async def write_in_place(self, handle: FileHandle, offset: int, data: bytes) -> int:
        """As `write`, at `offset` also where the handle appends: pages of a mapping."""
        await handle.file.write(offset, data)
        handle.file.wrote(time.time_ns(), handle.cred)
        return len(data)

    async def flush(self, handle: FileHandle) -> None:
        """A descriptor is closed: publish. Raises what went wrong with earlier writes."""
        await handle.file.flush()
        self._delegations.log.check(handle.ino)

    async def fsync(self, handle: FileHandle) -> None:
        """Publish, and return when all of the file is on disks.

        The kernel lets no write of the file be under way here meanwhile.
        """
        handle.file.finish_append()
        await handle.file.go_on_alone()
        await self._delegations.log.settled((handle.ino,))
        await handle.file.sync()
        self._delegations.log.check(handle.ino)

    async def release(self, handle: FileHandle) -> None:
        """The last descriptor is gone. What cannot be published now is lost: `flush` said so."""
        if self.release_here(handle):
            return
        self._handles.pop(handle.number, None)
        # Given up in the middle, as an unmount would, it would be lost, and nobody told.
        with trio.CancelScope(shield=True):
            await self._files.close(handle.file)

    # ---------------------------------------------------------------- directories
