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
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

import trio
from msgspec.structs import replace as changed

from dfs.client.client import Client
from dfs.client.open_file import OpenFile, Part
from dfs.core.errors import DfsError, FileSystemError, refuse
from dfs.core.ids import InodeId
from dfs.core.inode import Inode, InodeFlag
from dfs.wire.messages import Cred, DirEntry, FsStats, SetAttr, XattrMode
from dfs_fuse.caller import Caller, Credentials
from dfs_fuse.handles import DirHandle, FileHandle, access_of
from dfs_fuse.node_cache import NodeCache
from dfs_fuse.profile import Profile

_READDIR_PAGE: Final = 1000
_SMALL_BYTES: Final = 128 * 1024
"""A file up to this size is fetched as a whole when it is opened to be read."""
_VERSIONS_MAX: Final = 30_000
_RENAME_EXCHANGE: Final = 2
_LOST_MAX: Final = 1000
_REPLACED_MAX: Final = 16
"""So often an open follows a name that others keep giving to new files."""
_FRESH_S: Final = 0.02
"""A name that the master gave so short a time ago is not asked for again by an open."""


class Vfs:
    """See the module.

    Attributes:
        root: the inode that is mounted.
        about: what the drivers answer to getxattr `user.dfs.mount` on the root.
        profile: counts and times, kept by the drivers.
    """

    def __init__(
        self,
        client: Client,
        nursery: trio.Nursery,
        *,
        root: InodeId,
        read_only: bool = False,
        attr_cache_s: float = 1.0,
        by_path: bool = False,
    ) -> None:
        self.root = root
        self.read_only = read_only
        self.attr_cache_s = attr_cache_s
        self.about = b""
        self.profile = Profile()
        self.client = client
        self.cache = NodeCache(attr_cache_s)
        self._meta = client.meta
        self._files = client.files
        self._nursery = nursery
        self._credentials = Credentials()
        self._by_path = by_path
        """The kernel has pages of a file for each of its names."""
        self._numbers = count(1)
        self._handles: dict[int, FileHandle] = {}
        self._directories: dict[int, DirHandle] = {}
        self._seen: OrderedDict[InodeId, int] = OrderedDict()
        """The version of each file that the kernel's pages are of."""
        self._names: OrderedDict[InodeId, tuple[InodeId, bytes, float]] = OrderedDict()
        """How each inode was last found, and when; in pyfuse3 an open names no name."""
        self._lost: OrderedDict[InodeId, tuple[InodeId, bytes, float]] = OrderedDict()
        """The same of inodes that an open has found to be something else by now."""
        self._removed_directories: OrderedDict[InodeId, Inode] = OrderedDict()
        """Those this mount removed: they may be open, or the working directory of a process."""
        client.files.on_commit = self._committed

    # ---------------------------------------------------------------- what is believed

    def cached(self, ino: InodeId) -> Inode | None:
        """Attributes that need no question to the master. From any thread."""
        file = self._files.get(ino)
        if file is not None and file.dirty:
            return None
        return self.cache.attributes(ino)

    def cached_child(self, parent: InodeId, name: bytes) -> InodeId | None:
        """The inode of a name, if that needs no question. From any thread."""
        return self.cache.child(parent, name)

    def _learn(self, inode: Inode) -> Inode:
        self.cache.learn(inode)
        file = self._files.get(inode.ino)
        if file is not None:
            file.refresh(inode)
        return inode

    def _found(self, parent: InodeId, name: bytes, inode: Inode) -> Inode:
        """`name` in `parent` is `inode`, as the master has just said."""
        self._learn(inode)
        self.cache.learn_name(parent, name, inode.ino)
        self._names[inode.ino] = (parent, name, time.monotonic())
        self._names.move_to_end(inode.ino)
        if len(self._names) > _VERSIONS_MAX:
            self._names.popitem(last=False)
        return inode

    def _added(self, parent: InodeId, name: bytes, inode: Inode) -> Inode:
        """This mount has just put a new `name` into `parent`."""
        directory = self.cache.attributes(parent)
        if directory is not None:
            # The same change, at the same time: as the master has it now.
            self.cache.adjust(
                changed(
                    directory,
                    size=directory.size + 1,
                    nlink=directory.nlink + inode.is_dir,
                    mtime_ns=inode.ctime_ns,
                    ctime_ns=inode.ctime_ns,
                )
            )
        return self._found(parent, name, inode)

    def _removed(self, parent: InodeId, name: bytes, time_ns: int, subdirectories: int) -> None:
        """This mount has just taken `name` out of `parent`, at that time by the master's clock."""
        self._replaced(parent, name)
        directory = self.cache.attributes(parent)
        if directory is None or not time_ns:
            self.cache.forget(parent)
        else:
            self.cache.adjust(
                changed(
                    directory,
                    size=directory.size - 1,
                    nlink=directory.nlink - subdirectories,
                    mtime_ns=time_ns,
                    ctime_ns=time_ns,
                )
            )

    def _replaced(self, parent: InodeId, name: bytes) -> None:
        """`name` in `parent` may be nothing now, or another inode."""
        ino = self.cache.last_child(parent, name)
        if ino is not None:
            self.cache.forget(ino)
        self.cache.forget_name(parent, name)

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
        self._seen[inode.ino] = inode.version
        self._seen.move_to_end(inode.ino)
        if len(self._seen) > _VERSIONS_MAX:
            self._seen.popitem(last=False)
        return known

    # ---------------------------------------------------------------- looking

    async def lookup(self, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        """Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        found = self.cache.child(parent, name)
        if found is not None:
            try:
                return await self.getattr(found)
            except FileSystemError as error:
                if error.errno != errno.ENOENT:
                    raise
                # Somebody else has replaced it within the moment that names are believed.
                self.cache.forget_name(parent, name)
        cred = self._searcher(caller)
        inode = self._found(parent, name, await self._meta.lookup(parent, name, cred=cred))
        file = self._files.get(inode.ino)
        return inode if file is None or not file.dirty else await self._overlaid(file, inode)

    async def walk(self, start: InodeId, names: Sequence[bytes], caller: Caller) -> InodeId:
        """The inode at the end of a path, symlinks not followed: a driver by paths asks."""
        ino = start
        for name in names:
            ino = (await self.lookup(ino, name, caller)).ino
        return ino

    def _searcher(self, caller: Caller) -> Cred:
        """Whose right to search a directory the master checks: the kernel has checked already."""
        return Cred(0, caller.gid)

    async def getattr(self, ino: InodeId) -> Inode:
        """The inode as this mount has it: with what was written and not published yet."""
        inode = self.cache.attributes(ino)
        file = self._files.get(ino)
        if inode is None:
            try:
                inode = self._learn(await self._meta.get_inode(ino))
            except FileSystemError as error:
                removed = self._removed_directories.get(ino)
                if error.errno != errno.ENOENT or removed is None:
                    raise
                return removed
        return inode if file is None or not file.dirty else await self._overlaid(file, inode)

    async def _overlaid(self, file: OpenFile, inode: Inode) -> Inode:
        """`inode` with the size and times that unpublished writes give it."""
        if inode.mode & (stat.S_ISUID | stat.S_ISGID):
            # Publishing may clear them; what it does is the master's to say.
            await file.flush()
            return self._learn(
                file.inode if not file.dirty else await self._meta.get_inode(file.ino)
            )
        written_ns = file.written_ns or inode.mtime_ns
        return changed(
            inode,
            size=max(inode.size, file.size_with_appends),
            mtime_ns=written_ns,
            ctime_ns=max(written_ns, inode.ctime_ns),
        )

    async def readlink(self, ino: InodeId) -> bytes:
        inode = await self.getattr(ino)
        if not inode.is_symlink:
            raise refuse(errno.EINVAL, f"inode {ino}")
        return inode.target

    async def statfs(self) -> FsStats:
        return await self._meta.statfs()

    # ---------------------------------------------------------------- changing the tree

    async def mknod(
        self, parent: InodeId, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        inode = await self._meta.mknod(parent, name, mode, rdev, cred=cred)
        return self._added(parent, name, inode)

    async def mkdir(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.mkdir(parent, name, mode, cred=cred))

    async def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.symlink(parent, name, target, cred=cred))

    async def link(self, ino: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.hard_link(ino, parent, name, cred=cred))

    async def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        await self._remove(self._meta.unlink, parent, name, caller, subdirectories=0)

    async def rmdir(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        removed = self.cache.lookup(parent, name)
        await self._remove(self._meta.rmdir, parent, name, caller, subdirectories=1)
        self._remember_removed(removed)

    async def _remove(
        self,
        remove: Callable[..., Awaitable[int]],
        parent: InodeId,
        name: bytes,
        caller: Caller,
        *,
        subdirectories: int,
    ) -> None:
        try:
            time_ns = await remove(parent, name, cred=self._credentials.of(caller))
        except BaseException:
            self._replaced(parent, name)
            self.cache.forget(parent)
            raise
        self._removed(parent, name, time_ns, subdirectories)

    async def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """`flags` as renameat2(2) has them: NOREPLACE and EXCHANGE, else EINVAL."""
        self._check_writable()
        cred = self._credentials.of(caller)
        moved = self.cache.child(parent, name)
        exchanged = self.cache.child(new_parent, new_name)
        try:
            victim = None if exchanged is None else self.cache.attributes(exchanged)
            await self._meta.rename(parent, name, new_parent, new_name, flags, cred=cred)
            self._renamed(moved, new_parent, new_name)
            if flags & _RENAME_EXCHANGE:
                self._renamed(exchanged, parent, name)
            elif moved != exchanged:
                self._remember_removed(victim)
        except BaseException:
            self._shuffled((parent, name), (new_parent, new_name))
            raise
        self._shuffled(
            (parent, name),
            (new_parent, new_name),
            moved=True,
            exchanged=bool(flags & _RENAME_EXCHANGE),
        )

    def _shuffled(
        self,
        old: tuple[InodeId, bytes],
        new: tuple[InodeId, bytes],
        *,
        moved: bool = False,
        exchanged: bool = False,
    ) -> None:
        """A rename has ended: nothing is believed, but which names are affected is kept."""
        first, second = self.cache.last_child(*old), self.cache.last_child(*new)
        for directory, entry in (old, new):
            self._replaced(directory, entry)
            self.cache.forget(directory)
        if moved and not exchanged:
            second = None
        for place, ino in ((new if moved else old, first), (old if moved else new, second)):
            if ino is not None:
                self.cache.note_name(*place, ino)

    def _renamed(self, ino: InodeId | None, parent: InodeId, name: bytes) -> None:
        """The kernel knows the inode by this name from now on, and does not look it up."""
        if ino is not None and ino in self._names:
            self._names[ino] = (parent, name, time.monotonic())

    def _remember_removed(self, inode: Inode | None) -> None:
        """Where it is a directory that has just gone: what fstat says of it from now on."""
        if inode is not None and inode.is_dir:
            self._removed_directories[inode.ino] = changed(inode, nlink=0)
            if len(self._removed_directories) > _LOST_MAX:
                self._removed_directories.popitem(last=False)

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

    def _check_writable(self) -> None:
        if self.read_only:
            raise refuse(errno.EROFS, "this mount")

    def is_dirty(self, ino: InodeId) -> bool:
        """Whether this mount has written to it what is not published yet."""
        file = self._files.get(ino)
        return file is not None and file.dirty

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
        check = self._start_check(ino)
        try:
            file = await self._files.open(ino, access, cred=cred)
        except FileSystemError as error:
            if error.errno == errno.ENOENT:
                self._disbelieve(ino)
                raise refuse(errno.ESTALE, f"inode {ino}") from error
            raise
        try:
            if check is not None:
                await check.done.wait()
            if (check is not None and check.stale) or (
                file.inode.nlink == 0 and not self._is_open(ino)
            ):
                self._disbelieve(ino)
                raise refuse(errno.ESTALE, f"inode {ino}")
            self._learn(file.inode)
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
                if self._is_open(wanted) or not await self._is_gone(wanted):
                    raise
                inode = await self.lookup(found[0], found[1], caller)
                if not inode.is_file:
                    raise
                ino = inode.ino
        raise refuse(errno.ESTALE, f"inode {wanted}")

    def _is_open(self, ino: InodeId) -> bool:
        """Whether a program has it open here; an open that is under way does not count."""
        return any(handle.ino == ino for handle in self._handles.values())

    async def _is_gone(self, ino: InodeId) -> bool:
        """Whether no name leads to it any more."""
        try:
            return (await self._meta.get_inode(ino)).nlink == 0
        except FileSystemError as error:
            if error.errno != errno.ENOENT:
                raise
            return True

    def _start_check(self, ino: InodeId) -> "_NameCheck | None":
        """Ask whether the inode still has the name it was found by, unless that is just known.

        Not of a file that is open here: its name may have gone since, and the open may be of a
        descriptor (/proc/self/fd).
        """
        found = self._names.get(ino)
        if found is None or self._files.get(ino) is not None:
            return None
        parent, name, when = found
        if time.monotonic() - when < _FRESH_S:
            return None
        check = _NameCheck()
        self._nursery.start_soon(self._check_name, check, ino, parent, name)
        return check

    async def _check_name(
        self, check: "_NameCheck", ino: InodeId, parent: InodeId, name: bytes
    ) -> None:
        try:
            inode = await self._meta.lookup(parent, name, cred=Cred(0, 0))
            check.stale = inode.ino != ino
            self._found(parent, name, inode)
        except FileSystemError as error:
            check.stale = error.errno in (errno.ENOENT, errno.ENOTDIR)
        except DfsError:
            # The open itself finds out what is wrong.
            check.stale = False
        finally:
            check.done.set()

    def _disbelieve(self, ino: InodeId) -> None:
        found = self._names.pop(ino, None)
        if found is not None:
            self._lost[ino] = found
            if len(self._lost) > _LOST_MAX:
                self._lost.popitem(last=False)
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

    def _new_handle(self, file: OpenFile, flags: int, cred: Cred) -> FileHandle:
        handle = FileHandle(next(self._numbers), file, cred, flags)
        self._handles[handle.number] = handle
        return handle

    async def read(self, handle: FileHandle, offset: int, size: int) -> Part:
        """Up to `size` bytes; fewer only at the end of the file."""
        parts = await handle.file.read(offset, size)
        ahead = handle.ahead.after(offset, offset + size)
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

    async def write_parts(self, handle: FileHandle, parts: deque[tuple[int, bytes]]) -> None:
        """As `write`, for several that came one after the other.

        What has been taken is removed from `parts`, also where it fails in the middle.
        """
        file = handle.file
        while parts:
            offset, data = parts[0]
            if handle.append:
                await file.append(data)
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

    async def fsync(self, handle: FileHandle) -> None:
        """Publish, and return when all of the file is on disks."""
        await handle.file.sync()

    async def release(self, handle: FileHandle) -> None:
        """The last descriptor is gone. What cannot be published now is lost: `flush` said so."""
        self._handles.pop(handle.number, None)
        # Given up in the middle, as an unmount would, it would be lost, and nobody told.
        with trio.CancelScope(shield=True):
            await self._files.close(handle.file)

    # ---------------------------------------------------------------- directories

    def directory(self, number: int) -> DirHandle:
        """An open directory by its number. Raises EBADF."""
        try:
            return self._directories[number]
        except KeyError:
            raise refuse(errno.EBADF, f"directory handle {number}") from None

    async def opendir(self, ino: InodeId, caller: Caller) -> DirHandle:
        # The kernel has checked the right to list it; from now on it may be listed, as POSIX says.
        handle = DirHandle(next(self._numbers), ino, Cred(0, caller.gid))
        self._directories[handle.number] = handle
        return handle

    async def readdir(self, handle: DirHandle, position: int) -> list[DirEntry]:
        """Entries from a position on (0: the first), none at the end; without "." and "..".

        Entries that stay are seen once, whatever else changes meanwhile.
        """
        if position == 0:
            handle.names.clear()
            handle.page, handle.page_start, handle.complete = [], 0, False
        skip = position - handle.page_start
        if 0 <= skip < len(handle.page):
            return handle.page[skip:]
        if position > len(handle.names):
            raise refuse(errno.EINVAL, f"position {position} of a directory")
        if handle.complete and position == len(handle.names):
            return []
        after = handle.names[position - 1] if position else b""
        reply = await self._meta.readdir(
            handle.ino, after=after, limit=_READDIR_PAGE, cred=handle.cred
        )
        # Names further on stay: a program may go there again.
        names = [entry.name for entry in reply.entries]
        handle.names[position : position + len(names)] = names
        handle.page, handle.page_start = list(reply.entries), position
        handle.complete = not reply.more
        for entry in reply.entries:
            file = self._files.get(entry.inode.ino)
            if file is None or not file.dirty:
                self._found(handle.ino, entry.name, entry.inode)
        return handle.page

    async def releasedir(self, handle: DirHandle) -> None:
        self._directories.pop(handle.number, None)

    async def fsyncdir(self, ino: InodeId) -> None:
        """Return when the directory's changes are on disk; of the root: all this mount holds."""
        if ino == self.root:
            await self.client.sync()
        else:
            await self._meta.sync()

    # ---------------------------------------------------------------- extended attributes

    def has_no_xattrs(self, ino: InodeId) -> bool:
        """Whether the inode certainly has none. From any thread; the kernel asks at every write."""
        inode = self.cache.attributes(ino)
        return inode is not None and not inode.flags & InodeFlag.XATTRS

    async def getxattr(self, ino: InodeId, name: bytes) -> bytes:
        """Raises ENODATA, EOPNOTSUPP for a namespace that is not supported."""
        if ino == self.root and name == b"user.dfs.mount":
            return self.about
        if name.startswith(b"system."):
            raise refuse(errno.EOPNOTSUPP, name.decode(errors="backslashreplace"))
        if not (await self.getattr(ino)).flags & InodeFlag.XATTRS:
            raise refuse(errno.ENODATA, f"inode {ino}")
        return await self._meta.get_xattr(ino, name, cred=Cred(0, 0))

    async def listxattr(self, ino: InodeId) -> tuple[bytes, ...]:
        if not (await self.getattr(ino)).flags & InodeFlag.XATTRS:
            return ()
        return await self._meta.list_xattr(ino)

    async def setxattr(
        self, ino: InodeId, name: bytes, value: bytes, mode: XattrMode, caller: Caller
    ) -> None:
        self._check_writable()
        cred = self._credentials.of(caller)
        try:
            await self._meta.set_xattr(ino, name, value, mode, cred=cred)
        finally:
            self.cache.forget(ino)

    async def removexattr(self, ino: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        try:
            await self._meta.remove_xattr(ino, name, cred=self._credentials.of(caller))
        finally:
            self.cache.forget(ino)


class _NameCheck:
    """Whether a name still means an inode, while it is being asked."""

    __slots__ = ("done", "stale")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.stale = False
