"""The driver on pyfuse3: libfuse 3 by inodes, in trio's own thread. pyfuse3 lives here only.

Requests come as inode numbers and file handles and go to `Vfs` as they are; only the mounted
directory is 1 for the kernel, whatever it is for the cluster. Inodes live in the cluster and not
in this process, so the kernel's `forget` needs no answer.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from dfs.core.errors import FileSystemError, refuse
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import SetAttr, XattrMode
from dfs_fuse.caller import Caller
from dfs_fuse.complaints import Complaints
from dfs_fuse.handles import FileHandle
from dfs_fuse.interrupts import Interrupts
from dfs_fuse.kernel_clock import means_now
from dfs_fuse.kernel_sizes import KernelSizes
from dfs_fuse.options import MountOptions
from dfs_fuse.request_pump import RequestPump
from dfs_fuse.stand_ins import StandIns
from dfs_fuse.statistics import BLOCK_BYTES, NAME_MAX_BYTES, blocks, file_counts
from dfs_fuse.vfs import Vfs

T = TypeVar("T")

KERNEL_ROOT: Final = 1
_TASKS_MIN: Final = 4
_TASKS_MAX: Final = 200
"""Requests at a time; more wait in the kernel. Each has a buffer for a write, of 1 MiB at most."""
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_DOTS: Final = 2
"""Entries before the first of a directory's own: "." and ".."."""

log = logging.getLogger(__name__)


async def serve(vfs: Vfs, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount, call `ready` when the kernel has answered, serve until unmounted.

    Cancelled, it unmounts: what programs have open there fails from then on.
    """
    interrupts = Interrupts()
    operations = _Operations(vfs, interrupts, ready)
    pyfuse3.trio = RequestPump()  # type: ignore[attr-defined]
    pyfuse3.init(operations, options.point, set(options.fuse_options))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupts.watch)
            await pyfuse3.main(_TASKS_MIN, _TASKS_MAX)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


class _Operations(pyfuse3.Operations):  # type: ignore[misc]
    """What pyfuse3 calls. Nothing leaves a method but its result and FUSEError."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    """With it the kernel never looks at a file's size again: other mounts would not be seen."""
    enable_acl = False

    def __init__(self, vfs: Vfs, interrupts: Interrupts, ready: Callable[[], None]) -> None:
        super().__init__()
        self._vfs = vfs
        self._interrupts = interrupts
        self._ready = ready
        self._complaints = Complaints()
        self._openers: dict[int, int] = {}
        """The process that opened each file handle."""
        self._sizes = KernelSizes()
        self._stand_ins = StandIns()

    def init(self) -> None:
        self._ready()

    async def _do(
        self, name: str, pid: int, function: Callable[..., Awaitable[T]], *args: Any
    ) -> T:
        started = time.perf_counter_ns()
        failed = True
        try:
            with self._interrupts.cancelling(pid) as scope:
                result = await function(*args)
                failed = False
                return result
            assert scope.cancelled_caught
            raise FUSEError(errno.EINTR)
        except OSError as error:
            raise FUSEError(self._complaints.number(name, error)) from None
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self._complaints.number(name, error)) from None
        finally:
            self._vfs.profile.done(name, started, failed=failed)

    def _at_once(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """As `_do`, for what never waits: None or False says that it has to be done by waiting."""
        started = time.perf_counter_ns()
        try:
            result = function(*args)
        except OSError as error:
            self._vfs.profile.done(name, started, failed=True)
            raise FUSEError(self._complaints.number(name, error)) from None
        if result:
            self._vfs.profile.done(name, started)
        return result

    # ---------------------------------------------------------------- numbers and attributes

    def _ino(self, number: int) -> InodeId:
        """The cluster's number of the kernel's inode."""
        if number == KERNEL_ROOT:
            return self._vfs.root
        return self._stand_ins.ino(number)

    def _entry(self, inode: Inode, asked: float | None = None) -> EntryAttributes:
        """What the kernel is told, which asked for it then, or just now."""
        ttl_s = self._vfs.attr_cache_s
        entry = EntryAttributes()
        entry.st_ino = KERNEL_ROOT if inode.ino == self._vfs.root else inode.ino
        entry.generation = 0
        entry.entry_timeout = ttl_s
        # A write clears set-id bits, and the kernel does not ask after a write how the mode is.
        entry.attr_timeout = 0 if inode.mode & _SET_ID and inode.is_file else ttl_s
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = blocks(inode)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        if inode.is_file:
            self._sizes.told(inode.ino, inode.size, asked, version=inode.version)
        return entry

    # ---------------------------------------------------------------- looking

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        believed = self._vfs.cached_child(self._ino(parent), name)
        inode = None if believed is None else self._vfs.cached(believed)
        if inode is not None:
            self._vfs.profile.count("lookup")
            return self._entry(inode)
        if self._vfs.is_absent(self._ino(parent), name):
            self._vfs.profile.count("lookup")
            raise FUSEError(errno.ENOENT)
        asked = time.monotonic()
        inode = await self._do(
            "lookup", ctx.pid, self._lookup, self._ino(parent), name, _caller(ctx)
        )
        return self._entry(inode, asked)

    async def _lookup(self, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        if name == b"..":
            return await self._vfs.getattr((await self._vfs.getattr(parent)).parent)
        if name == b".":
            return await self._vfs.getattr(parent)
        return await self._vfs.lookup(parent, name, caller)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        believed = self._vfs.cached(self._ino(inode))
        if believed is not None:
            self._vfs.profile.count("getattr")
            return self._entry(believed)
        asked = time.monotonic()
        function = _of_inode(self._vfs.getattr)
        return self._entry(await self._do("getattr", ctx.pid, function, self._ino(inode)), asked)

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        atime_now = fields.update_atime and means_now(attr.st_atime_ns)
        mtime_now = fields.update_mtime and means_now(attr.st_mtime_ns)
        change = SetAttr(
            self._ino(inode),
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime and not atime_now else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime and not mtime_now else None,
            atime_now=atime_now,
            mtime_now=mtime_now,
        )
        result = await self._do(
            "setattr", ctx.pid, _of_inode(self._vfs.setattr), change, _caller(ctx)
        )
        if fields.update_size:
            self._sizes.changed(result.ino, result.size)
        return self._entry(result)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._do("readlink", ctx.pid, self._vfs.readlink, self._ino(inode))

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # With default_permissions the kernel has checked already.
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        counts = file_counts(await self._do("statfs", ctx.pid, self._vfs.statfs))
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = counts.blocks
        data.f_bfree = data.f_bavail = counts.free_blocks
        data.f_files = counts.files
        data.f_ffree = data.f_favail = counts.free_files
        data.f_namemax = NAME_MAX_BYTES
        return data

    # ---------------------------------------------------------------- changing the tree

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        wanted = (self._ino(parent), name, mode, rdev, _caller(ctx))
        return self._entry(await self._do("mknod", ctx.pid, self._vfs.mknod, *wanted))

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        wanted = (self._ino(parent), name, stat.S_IMODE(mode), _caller(ctx))
        return self._entry(await self._do("mkdir", ctx.pid, self._vfs.mkdir, *wanted))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        wanted = (self._ino(parent), name, target, _caller(ctx))
        return self._entry(await self._do("symlink", ctx.pid, self._vfs.symlink, *wanted))

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        asked = time.monotonic()
        wanted = (self._ino(inode), self._ino(new_parent), new_name, _caller(ctx))
        return self._entry(await self._do("link", ctx.pid, self._vfs.link, *wanted), asked)

    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        here = (self._ino(parent), name, _caller(ctx))
        if self._at_once("unlink", self._vfs.unlink_here, *here):
            return
        await self._do("unlink", ctx.pid, self._vfs.unlink, *here)

    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._do("rmdir", ctx.pid, self._vfs.rmdir, self._ino(parent), name, _caller(ctx))

    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old, new = self._ino(parent_old), self._ino(parent_new)
        wanted = (old, name_old, new, name_new, flags, _caller(ctx))
        if not self._at_once("rename", self._vfs.rename_here, *wanted):
            await self._do("rename", ctx.pid, self._vfs.rename, *wanted)

    # ---------------------------------------------------------------- files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        handle = await self._do("open", ctx.pid, self._open, inode, flags, _caller(ctx))
        if handle.flags & os.O_TRUNC:
            self._sizes.changed(handle.ino, 0)
        known = not handle.append or self._sizes.opened(handle.ino)
        if not (handle.keep_cache and known) and not self._believes(handle):
            # The kernel may believe an older size for a moment yet, and would cut reads at it.
            _forget_attributes(inode)
        return self._opened(handle, ctx)

    def _believes(self, handle: FileHandle) -> bool:
        """Whether the kernel has just been told how the file is that it opens to read."""
        file = handle.file
        if handle.writable or file.dirty or self._stand_ins.has(handle.number):
            return False
        return self._sizes.knows(file.ino, file.inode.size, file.inode.version)

    async def _open(self, inode: int, flags: int, caller: Caller) -> FileHandle:
        while True:
            handle = await self._vfs.open_following(self._ino(inode), flags, caller)
            if handle.ino == self._ino(inode) or self._stand_ins.put(inode, handle.ino):
                break
            # Another open was quicker to find what stands in.
            await self._vfs.release(handle)
        if self._stand_ins.opened(inode, handle.number):
            # The kernel's pages are by its own inodes: of this one, and of what stands in for it.
            handle.keep_cache = False
            self._vfs.distrust_pages(handle.ino)
        return handle

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        wanted = (self._ino(parent), name, stat.S_IMODE(mode), flags, _caller(ctx))
        handle = self._at_once("create", self._vfs.create_here, *wanted)
        if handle is None:
            handle = await self._do("create", ctx.pid, self._vfs.create, *wanted)
        return self._opened(handle, ctx), self._entry(handle.file.inode)

    def _opened(self, handle: FileHandle, ctx: RequestContext) -> FileInfo:
        self._openers[handle.number] = ctx.pid
        return FileInfo(
            fh=handle.number,
            keep_cache=handle.keep_cache,
        )

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        pid = self._openers.get(fh, 0)
        return await self._do("read", pid, self._read, fh, off, size)

    async def _read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        handle = self._vfs.handle(fh)
        data = await self._vfs.read(handle, off, size)
        if len(data) < size:
            self._sizes.ended(handle.ino, off + len(data))
        return data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._at_once("write", self._written_here, fh, off, buf)
        if handle is not None:
            return len(buf)
        pid = self._openers.get(fh, 0)
        return await self._do("write", pid, self._write, fh, off, buf)

    def _written_here(self, fh: int, off: int, buf: bytes) -> FileHandle | None:
        """The handle, where nothing has to be waited for."""
        handle = self._vfs.handle(fh)
        if handle.file.writer is not None or self._is_page(handle, off):
            return None
        if not self._vfs.write_here(handle, off, buf):
            return None
        self._sizes.writing(handle.ino)
        self._sizes.wrote(handle.ino, off + len(buf), append=handle.append)
        return handle

    def _is_page(self, handle: FileHandle, off: int) -> bool:
        """Whether these are pages of a mapping: the kernel writes them through any open handle."""
        return handle.append and self._sizes.is_page(handle.ino, off)

    async def _write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._vfs.handle(fh)
        page = self._is_page(handle, off)
        write = self._vfs.write_in_place if page else self._vfs.write
        end = None
        self._sizes.writing(handle.ino)
        try:
            written = await write(handle, off, buf)
            end = off + written
        finally:
            self._sizes.wrote(handle.ino, end, append=handle.append and not page)
        return written

    async def flush(self, fh: int) -> None:
        if self._vfs.flush_here(self._vfs.handle(fh)):
            self._vfs.profile.count("flush")
            return
        await self._do("flush", self._openers.get(fh, 0), self._flush, fh)

    async def _flush(self, fh: int) -> None:
        await self._vfs.flush(self._vfs.handle(fh))

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._do("fsync", self._openers.get(fh, 0), self._fsync, fh)

    async def _fsync(self, fh: int) -> None:
        await self._vfs.fsync(self._vfs.handle(fh))

    async def release(self, fh: int) -> None:
        self._openers.pop(fh, None)
        if not self._stand_ins.has(fh) and self._at_once("release", self._released_here, fh):
            return
        try:
            await self._do("release", 0, self._release, fh)
        finally:
            self._stand_ins.closed(fh)

    def _released_here(self, fh: int) -> bool:
        return self._vfs.release_here(self._vfs.handle(fh))

    async def _release(self, fh: int) -> None:
        await self._vfs.release(self._vfs.handle(fh))

    # ---------------------------------------------------------------- directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = await self._do(
            "opendir", ctx.pid, self._vfs.opendir, self._ino(inode), _caller(ctx)
        )
        return handle.number

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self._do("readdir", 0, self._readdir, fh, start_id, token)

    async def _readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        asked = time.monotonic()
        handle = self._vfs.directory(fh)
        for position, dots in enumerate((b".", b"..")):
            # The kernel takes no more of these two than that they are directories.
            if start_id <= position and not pyfuse3.readdir_reply(
                token, dots, self._entry(await self._vfs.getattr(handle.ino)), position + 1
            ):
                return
        position = max(0, start_id - _DOTS)
        while True:
            entries = await self._vfs.readdir(handle, position)
            if not entries:
                return
            for each in entries:
                position += 1
                inode = each.inode
                if self._vfs.is_dirty(inode.ino):
                    inode = await self._vfs.getattr(inode.ino)
                entry = self._entry(inode, asked)
                if not pyfuse3.readdir_reply(token, each.name, entry, position + _DOTS):
                    return

    async def releasedir(self, fh: int) -> None:
        await self._do("releasedir", 0, self._releasedir, fh)

    async def _releasedir(self, fh: int) -> None:
        await self._vfs.releasedir(self._vfs.directory(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._do("fsyncdir", 0, self._fsyncdir, fh)

    async def _fsyncdir(self, fh: int) -> None:
        await self._vfs.fsyncdir(self._vfs.directory(fh).ino)

    # ---------------------------------------------------------------- extended attributes

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if inode != KERNEL_ROOT and self._vfs.has_no_xattrs(self._ino(inode)):
            # The kernel asks before every write, `ls -l` for every file.
            self._vfs.profile.count("getxattr")
            raise FUSEError(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        return await self._do("getxattr", ctx.pid, self._vfs.getxattr, self._ino(inode), name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._do("listxattr", ctx.pid, self._vfs.listxattr, self._ino(inode))

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        # pyfuse3 has asked for the attribute first where the flags are CREATE or REPLACE.
        wanted = (self._ino(inode), name, value, XattrMode.ANY, _caller(ctx))
        await self._do("setxattr", ctx.pid, self._vfs.setxattr, *wanted)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        wanted = (self._ino(inode), name, _caller(ctx))
        await self._do("removexattr", ctx.pid, self._vfs.removexattr, *wanted)


def _of_inode(function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Says ESTALE of an inode that is gone, upon which the kernel looks its name up again."""

    async def ask(*args: Any) -> T:
        try:
            return await function(*args)
        except FileSystemError as error:
            if error.errno != errno.ENOENT:
                raise
            raise refuse(errno.ESTALE, "an inode that is gone") from error

    return ask


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _forget_attributes(inode: int) -> None:
    """Have the kernel ask for attributes before it uses them again."""
    try:
        pyfuse3.invalidate_inode(inode, attr_only=True)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the kernel has none
            log.debug("inode %d: %s", inode, error)
