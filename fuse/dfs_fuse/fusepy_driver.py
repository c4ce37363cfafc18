"""The driver on fusepy: libfuse 2 by paths, its threads, and trio in another thread. Always there.

Paths become inodes by the names the vfs believes for a moment, attributes come from the same
place, small writes are gathered and sequential reads buffered (`fast_path`), all in the FUSE
thread; the rest goes over the `bridge`. What libfuse 2's path API cannot carry is in
docs/posix.md. fusepy is imported when something is mounted: without libfuse it cannot be.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from dfs.core.errors import DfsError, FileSystemError, refuse
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import SetAttr, XattrMode
from dfs_fuse.bridge import Bridge
from dfs_fuse.caller import Caller
from dfs_fuse.complaints import Complaints
from dfs_fuse.fast_path import GATHER_S, ReadBuffers, WriteGatherer
from dfs_fuse.handles import FileHandle
from dfs_fuse.hidden_names import HiddenNames
from dfs_fuse.interrupts import is_interrupted
from dfs_fuse.kernel_beliefs import Forgetter, KernelBeliefs
from dfs_fuse.options import MountOptions
from dfs_fuse.path_pages import PathPages
from dfs_fuse.statistics import BLOCK_BYTES, NAME_MAX_BYTES, attributes, file_counts
from dfs_fuse.thread_states import ThreadStates
from dfs_fuse.vfs import Vfs

ENCODING: Final = "latin-1"
"""Every byte is a character of it, so names of any bytes go through fusepy's strings."""
_INTERRUPT_SIGNAL: Final = 12
"""SIGUSR2: libfuse wakes a thread with it whose program was interrupted."""
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_STALE_MAX: Final = 8
"""So often an open looks again when others keep replacing the file."""


def serve(bridge: Bridge, vfs: Vfs, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount, call `ready` when the kernel has answered, block until unmounted.

    Call it in the main thread: libfuse takes SIGINT, SIGTERM and SIGHUP, and unmounts.

    Raises:
        RuntimeError: libfuse could not mount; it has said why on standard error.
        DfsError: it has been unmounted, and not all that was written could go over.
    """
    import fuse  # noqa: PLC0415 - loads libfuse

    library = fuse._libfuse
    kernel = KernelBeliefs(
        options.point,
        encoding=ENCODING,
        forget=Forgetter(library),
        caller=lambda: int(fuse.fuse_get_context()[2]),
        enabled=vfs.attr_cache_s > 0,
    )
    operations = _Served(bridge, vfs, kernel, ready, fuse.fuse_get_context)

    def interrupted() -> bool:
        pid = fuse.fuse_get_context()[2]
        # 0: in another namespace, where only the kernel can look.
        return is_interrupted(pid) if pid else bool(library.fuse_interrupted())

    bridge.interrupted = interrupted
    os.umask(0)
    words = dict.fromkeys(options.fuse_options)
    flags: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        flags[name] = value if equals else True
    stop = threading.Event()
    settler = threading.Thread(target=operations.settle_now_and_then, args=(stop,), daemon=True)
    settler.start()
    try:
        fuse.FUSE(
            operations,
            os.fsencode(options.point).decode(ENCODING),
            raw_fi=True,
            encoding=ENCODING,
            foreground=True,
            nothreads=False,
            use_ino=True,
            attr_timeout=kernel.told_s,
            entry_timeout=kernel.told_s,
            big_writes=True,
            intr=True,
            intr_signal=_INTERRUPT_SIGNAL,
            **flags,
        )
    finally:
        stop.set()
        settler.join()
    if operations.lost is not None:
        raise DfsError(f"not all that was written is stored: {operations.lost}")


_Listed = tuple[str, dict[str, int] | None, int]
"""A name, its st_ino and st_mode, and no position: libfuse 2 takes a directory as a whole."""


class _Operations:
    """What fusepy calls, from any of libfuse's threads: the object itself, with a name."""

    use_ns = True
    flag_nullpath_ok = 1
    flag_utime_omit_ok = 1

    def __init__(
        self,
        bridge: Bridge,
        vfs: Vfs,
        kernel: KernelBeliefs,
        ready: Callable[[], None],
        context: Callable[[], tuple[int, int, int]],
    ) -> None:
        self._bridge = bridge
        self._vfs = vfs
        self._ready = ready
        self._context = context
        self._hidden = HiddenNames()
        self._gatherer = WriteGatherer(bridge, vfs)
        self._buffers = ReadBuffers()
        self._pages = PathPages()
        self._complaints = Complaints()
        self._kernel = kernel
        self.lost: OSError | None = None
        """Why something that was written did not go over at the end."""

    def __call__(self, name: str, *args: Any) -> Any:
        started = time.perf_counter_ns()
        failed = True
        try:
            result = getattr(self, name)(*args)
            failed = False
            return result
        except Exception as error:
            number = self._complaints.number(name, error)
            raise OSError(number, os.strerror(number)) from None
        finally:
            self._vfs.profile.done(name, started, failed=failed)

    def settle_now_and_then(self, stop: threading.Event) -> None:
        """Runs in a thread of its own until `stop` is set: no written byte stays here for long."""
        while not stop.wait(GATHER_S / 2):
            self._gatherer.settle_old(self._not_written)
        try:
            self._gatherer.settle_all()
        except OSError as error:
            self._not_written(error)
            self.lost = error

    def _not_written(self, error: OSError) -> None:
        self._complaints.number("write", error)

    def init(self, path: str) -> None:
        self._ready()

    # ---------------------------------------------------------------- paths and callers

    def _caller(self) -> Caller:
        return Caller(*self._context())

    def _ino(self, path: str) -> InodeId:
        """The inode at a path, as it is believed or found. Raises ENOENT, ENOTDIR."""
        vfs = self._vfs
        ino = vfs.root
        names = [name for name in path.encode(ENCODING).split(b"/") if name]
        for number, name in enumerate(names):
            child = vfs.cached_child(ino, name)
            if child is None:
                return self._walk(ino, names[number:])
            ino = child
        return ino

    def _walk(self, ino: InodeId, names: list[bytes]) -> InodeId:
        if HiddenNames.matches(names[-1]):
            hidden = self._hidden.find(names[-1])
            if hidden is None:
                raise refuse(errno.ENOENT, names[-1].decode(ENCODING))
            return hidden
        if len(names) == 1 and self._vfs.is_absent(ino, names[0]):
            raise refuse(errno.ENOENT, names[0].decode(ENCODING))
        return self._bridge.run(self._vfs.walk, ino, names, self._caller())

    def _parent(self, path: str) -> tuple[InodeId, bytes]:
        directory, _, name = path.rpartition("/")
        return self._ino(directory), name.encode(ENCODING)

    def _settled(self, path: str) -> InodeId:
        """As `_ino`, with all that was written to it gone over."""
        ino = self._ino(path)
        self._gatherer.settle(ino)
        return ino

    # ---------------------------------------------------------------- looking

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        if fi is not None:
            ino = self._vfs.handle(fi.fh).ino
        else:
            assert path is not None
            ino = self._ino(path)
        try:
            inode = self._inode(ino)
            self._kernel.told(inode, path)
            if inode.nlink > 1 and not inode.is_dir:
                # It may have been changed by another name before that was noted.
                inode = self._inode(ino)
        except FileSystemError as error:
            if error.errno != errno.ENOENT or path is None or fi is not None:
                raise
            # Believed a moment too long: whoever replaced it has put another there.
            parent, name = self._parent(path)
            inode = self._bridge.run(self._vfs.lookup, parent, name, self._caller())
        return attributes(inode)

    def _inode(self, ino: InodeId) -> Inode:
        self._gatherer.settle(ino)
        return self._vfs.cached(ino) or self._bridge.run(self._vfs.getattr, ino)

    def readlink(self, path: str) -> str:
        return self._bridge.run(self._vfs.readlink, self._ino(path)).decode(ENCODING)

    def statfs(self, path: str) -> dict[str, int]:
        counts = file_counts(self._bridge.run(self._vfs.statfs))
        return {
            "f_bsize": BLOCK_BYTES,
            "f_frsize": BLOCK_BYTES,
            "f_blocks": counts.blocks,
            "f_bfree": counts.free_blocks,
            "f_bavail": counts.free_blocks,
            "f_files": counts.files,
            "f_ffree": counts.free_files,
            "f_favail": counts.free_files,
            "f_namemax": NAME_MAX_BYTES,
        }

    # ---------------------------------------------------------------- changing the tree

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        self._bridge.run(self._vfs.mknod, *self._parent(path), mode, rdev, self._caller())

    def mkdir(self, path: str, mode: int) -> None:
        parent, name = self._parent(path)
        self._bridge.run(self._vfs.mkdir, parent, name, stat.S_IMODE(mode), self._caller())

    def symlink(self, path: str, target: str) -> None:
        parent, name = self._parent(path)
        self._bridge.run(self._vfs.symlink, parent, name, target.encode(ENCODING), self._caller())

    def link(self, path: str, existing: str) -> None:
        ino = self._ino(existing)
        change = self._kernel.change(ino, links=1)
        self._bridge.run(self._vfs.link, ino, *self._parent(path), self._caller())
        change.done()

    def unlink(self, path: str) -> None:
        hidden = path.rpartition("/")[2].encode(ENCODING)
        if HiddenNames.matches(hidden):
            # Its directory may be gone.
            self._hidden.remove(hidden)
            return
        parent, name = self._parent(path)
        change = self._kernel.change(self._vfs.last_child(parent, name), path)
        if not self._vfs.unlink_here(parent, name, self._caller()):
            self._bridge.run(self._vfs.unlink, parent, name, self._caller())
        self._kernel.drop(path)
        self._pages.removed(path)
        change.done()

    def rmdir(self, path: str) -> None:
        self._bridge.run(self._vfs.rmdir, *self._parent(path), self._caller())

    def rename(self, old: str, new: str) -> None:
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        if HiddenNames.matches(new_name):
            ino = self._ino(old)
            hidden = self._kernel.change(ino, old)
            self._bridge.run(self._vfs.unlink, old_parent, old_name, self._caller())
            self._hidden.put(new_name, ino)
            self._pages.removed(old)
            hidden.done()
            return
        changes = [
            self._kernel.change(self._vfs.last_child(*place), old, new)
            for place in ((old_parent, old_name), (new_parent, new_name))
        ]
        try:
            change = (old_parent, old_name, new_parent, new_name, 0, self._caller())
            if not self._vfs.rename_here(*change):
                self._bridge.run(self._vfs.rename, *change)
        finally:
            self._pages.renamed(old, new)
            self._kernel.renamed(old, new)
        for each in changes:
            each.done()

    # ---------------------------------------------------------------- attributes

    def chmod(self, path: str, mode: int) -> None:
        self._setattr(path, SetAttr(self._settled(path), mode=stat.S_IMODE(mode)))

    def chown(self, path: str, uid: int, gid: int) -> None:
        change = SetAttr(
            self._settled(path), uid=None if uid == -1 else uid, gid=None if gid == -1 else gid
        )
        self._setattr(path, change)

    def truncate(self, path: str | None, length: int, fi: Any = None) -> None:
        if fi is not None:
            ino = self._vfs.handle(fi.fh).ino
            self._gatherer.settle(ino)
        else:
            assert path is not None
            ino = self._settled(path)
        self._setattr(path, SetAttr(ino, size=length))

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        atime, mtime = times or (_UTIME_NOW, _UTIME_NOW)
        special = (_UTIME_NOW, _UTIME_OMIT)
        change = SetAttr(
            self._settled(path),
            atime_ns=None if atime in special else atime,
            mtime_ns=None if mtime in special else mtime,
            atime_now=atime == _UTIME_NOW,
            mtime_now=mtime == _UTIME_NOW,
        )
        self._setattr(path, change)

    def _setattr(self, path: str | None, change: SetAttr) -> None:
        seen = self._kernel.change(change.ino, path)
        self._bridge.run(self._vfs.setattr, change, self._caller())
        self._kernel.drop(path)
        seen.done()

    # ---------------------------------------------------------------- files

    def open(self, path: str, fi: Any) -> int:
        for _ in range(_STALE_MAX):
            ino = self._settled(path)
            try:
                handle = self._bridge.run(self._vfs.open, ino, fi.flags, self._caller())
            except FileSystemError as error:
                if error.errno != errno.ESTALE:
                    raise
                # It has been replaced since: look again.
                continue
            self._kernel.opened(handle.file.inode, path)
            return self._opened(path, handle, fi)
        raise refuse(errno.ENOENT, path)

    def create(self, path: str, mode: int, fi: Any) -> int:
        parent, name = self._parent(path)
        mode = stat.S_IMODE(mode)
        wanted = (parent, name, mode, fi.flags, self._caller())
        handle = self._vfs.create_here(*wanted) or self._bridge.run(self._vfs.create, *wanted)
        return self._opened(path, handle, fi)

    def _opened(self, path: str, handle: FileHandle, fi: Any) -> int:
        fi.fh = handle.number
        fi.keep_cache = self._pages.opened(path, handle.ino, handle.number) and handle.keep_cache
        if not handle.writable and self._pages.mixed(path, handle.ino):
            # Others still read what was replaced: do without pages, which are common to both.
            fi.keep_cache = 0
            fi.direct_io = 1
        if handle.readable:
            self._buffers.open(handle.number)
        return 0

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        handle = self._vfs.handle(fi.fh)
        self._gatherer.settle(handle.ino)

        def fetch(start: int, length: int) -> bytes:
            return self._bridge.run(self._read, handle, start, length)

        return self._buffers.read(handle, offset, size, fetch, self._bridge.wait)

    async def _read(self, handle: FileHandle, offset: int, size: int) -> bytes:
        # fusepy copies from bytes only.
        return bytes(await self._vfs.read(handle, offset, size))

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        handle = self._vfs.handle(fi.fh)
        change = self._kernel.change(handle.ino, path)
        if fi.writepage and handle.append:
            # Pages of a mapping, which the kernel writes back through whatever handle is open.
            self._gatherer.settle(handle.ino)
            self._bridge.run(self._vfs.write_in_place, handle, offset, data)
        elif self._gatherer.holds(handle.ino) or not self._vfs.write_here(handle, offset, data):
            self._gatherer.write(handle, offset, data)
        self._kernel.drop(path)
        change.done()
        return len(data)

    def flush(self, path: str | None, fi: Any) -> None:
        handle = self._vfs.handle(fi.fh)
        if self._gatherer.holds(handle.ino) or not self._vfs.flush_here(handle):
            self._gatherer.settle_then(handle, self._vfs.flush)

    def fsync(self, path: str | None, datasync: int, fi: Any) -> None:
        self._gatherer.settle_then(self._vfs.handle(fi.fh), self._vfs.fsync)

    def release(self, path: str | None, fi: Any) -> None:
        handle = self._vfs.handle(fi.fh)
        self._buffers.close(fi.fh)
        self._pages.closed(fi.fh)
        try:
            self._gatherer.settle(handle.ino)
        finally:
            self._gatherer.drop(handle)
            # No program waits for it: close(2) has ended with the flush.
            if not self._vfs.release_here(handle):
                self._bridge.post(self._release, handle)

    async def _release(self, handle: FileHandle) -> None:
        try:
            await self._vfs.release(handle)
        except OSError as error:
            self._complaints.number("release", error)

    # ---------------------------------------------------------------- directories

    def opendir(self, path: str) -> int:
        return self._bridge.run(self._vfs.opendir, self._ino(path), self._caller()).number

    def readdir(self, path: str | None, fh: int) -> Iterator[_Listed]:
        handle = self._vfs.directory(fh)
        yield ".", {"st_ino": handle.ino, "st_mode": stat.S_IFDIR}, 0
        yield "..", None, 0
        position = 0
        while entries := self._bridge.run(self._vfs.readdir, handle, position):
            for each in entries:
                inode = each.inode
                kind = {"st_ino": inode.ino, "st_mode": inode.mode}
                yield each.name.decode(ENCODING), kind, 0
            position += len(entries)

    def releasedir(self, path: str | None, fh: int) -> None:
        self._bridge.post(self._vfs.releasedir, self._vfs.directory(fh))

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> None:
        handle = self._vfs.directory(fh)
        if handle.ino == self._vfs.root:
            # Of the root: all that this mount holds. `dfs umount` asks for it.
            self._gatherer.settle_all()
        self._bridge.run(self._vfs.fsyncdir, handle.ino)

    # ---------------------------------------------------------------- extended attributes

    def getxattr(self, path: str, name: str) -> bytes:
        ino = self._ino(path)
        if ino != self._vfs.root and self._vfs.has_no_xattrs(ino):
            # The kernel asks for security.capability before every write.
            number = errno.EOPNOTSUPP if name.startswith("system.") else errno.ENODATA
            raise OSError(number, os.strerror(number))
        return self._bridge.run(self._vfs.getxattr, ino, name.encode(ENCODING))

    def listxattr(self, path: str) -> list[str]:
        ino = self._ino(path)
        if self._vfs.has_no_xattrs(ino):
            return []
        return [name.decode(ENCODING) for name in self._bridge.run(self._vfs.listxattr, ino)]

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        mode = XattrMode(flags)
        ino = self._ino(path)
        arguments = (name.encode(ENCODING), value, mode, self._caller())
        change = self._kernel.change(ino, path)
        self._bridge.run(self._vfs.setxattr, ino, *arguments)
        change.done()

    def removexattr(self, path: str, name: str) -> None:
        ino = self._ino(path)
        change = self._kernel.change(ino, path)
        self._bridge.run(self._vfs.removexattr, ino, name.encode(ENCODING), self._caller())
        change.done()


class _Served(_Operations):
    """As libfuse's own threads call it, and no others."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._threads = ThreadStates()

    def __call__(self, name: str, *args: Any) -> Any:
        self._threads.keep()
        return super().__call__(name, *args)
