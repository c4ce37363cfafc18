"""What the kernel still believes of attributes that it was told, under libfuse 2.

There one time holds for all that the kernel is told. Without any, it asks again for each directory
of a path, and for the file twice: ten requests for a line of `ls -l`. A tick of its clock is enough
to spare them, but then it is mistaken where attributes change behind its back:

- by another name: the names of a file with hard links are inodes of their own to the kernel, and a
  change by one of them does not end what is believed of the others;
- by another mount: a file that is opened is read up to the size that is believed.

So where one of these happens, the kernel is made to ask again. Used by FUSE's threads.
"""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs_fuse.kernel_clock import TICK_NS

TOLD_S: Final = 0.001
"""What libfuse is to tell the kernel, which rounds it up to a tick"""
BELIEVED_S: Final = 2 * TICK_NS / 1e9 + 0.01
"""and looks at whole ticks only: over after this, also where the answer took its time."""

# As Linux has them.
_OPENAT2: Final = 437
_RESOLVE_CACHED: Final = 0x20
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_AT_HANDLE_FID: Final = 0x200
_STATX_INO: Final = 0x100
_STATX_BYTES: Final = 256
_STATX_INO_AT: Final = 32
_INO64_GEN: Final = 0x81
"""The kind of a FUSE inode's handle: the halves of its number, and its generation."""


class _Told:
    """What the kernel was told in some time."""

    __slots__ = ("names", "paths")

    def __init__(self) -> None:
        self.names: dict[InodeId, dict[str | None, tuple[float, int]]] = {}
        """Of each inode: by which names, when, and how many links it has."""
        self.paths: dict[str, tuple[float, InodeId, int]] = {}
        """Of each path: when, what is there, and its size."""


class KernelBeliefs:
    """Owned by the driver of what is mounted at `point`; its paths are in `encoding`.

    Args:
        point: as the kernel's table of mounts has it.
        forget: has the kernel ask for the attributes of an inode of its own before it believes
            them again; false where that cannot be.
        caller: the process whose request is being served; 0: not known.
        enabled: the kernel is told to believe anything at all.
    """

    def __init__(
        self,
        point: str,
        *,
        encoding: str,
        forget: Callable[[int], bool],
        caller: Callable[[], int],
        enabled: bool,
    ) -> None:
        self.told_s = TOLD_S if enabled else 0
        """For libfuse's options."""
        self._point = os.fsencode(point)
        self._encoding = encoding
        self.forget = forget
        self._caller = caller
        self._enabled = enabled
        self._lock = threading.Lock()
        """Of the change of generations."""
        self._told = self._told_before = _Told()
        self._next = 0.0
        self._library = ctypes.CDLL(None, use_errno=True)

    def told(self, inode: Inode, path: str | None) -> None:
        """The kernel is about to be told these attributes; None: by a descriptor."""
        if not self._enabled or inode.is_dir:
            return
        now = time.monotonic()
        if now >= self._next:
            self._begin(now)
        names = self._told.names.get(inode.ino)
        if names is None:
            names = self._told.names.setdefault(inode.ino, {})
        names[path] = (now, inode.nlink)
        if path is not None:
            self._told.paths[path] = (now, inode.ino, inode.size)

    def _begin(self, now: float) -> None:
        with self._lock:
            if now >= self._next:
                self._told_before, self._told = self._told, _Told()
                self._next = now + BELIEVED_S

    def drop(self, path: str | None) -> None:
        """A program has written to what is there, cut or removed it: the kernel knows how it is."""
        if path is not None:
            for told in (self._told, self._told_before):
                told.paths.pop(path, None)

    def renamed(self, old: str, new: str) -> None:
        """A program has renamed it: what the kernel believes has gone with it."""
        for told in (self._told, self._told_before):
            told.paths.pop(new, None)
            moved = told.paths.pop(old, None)
            if moved is not None:
                told.paths[new] = moved

    def change(self, ino: InodeId, *paths: str | None, links: int = 2) -> "Change":
        """It is about to be changed by these names; `links`: so many others matter.

        Call `done` of what is returned when it was.
        """
        return Change(self, ino, paths, links)

    def told_of(
        self, ino: InodeId, paths: tuple[str | None, ...], links: int
    ) -> list[tuple[str | None, float]]:
        """By which names but these it was told to have at least so many links, and when."""
        return [
            (name, when)
            for told in (self._told, self._told_before)
            for name, (when, known) in list(told.names.get(ino, {}).items())
            if known >= links and name not in paths
        ]

    def opened(self, inode: Inode, path: str) -> None:
        """So it is at an open by this name. Returns when the kernel believes no other size."""
        seen = self._told.paths.get(path) or self._told_before.paths.get(path)
        if seen is not None:
            when, ino, size = seen
            if (ino, size) != (inode.ino, inode.size):
                self.doubt(ino, path, when)

    def doubt(self, ino: InodeId, path: str | None, told_at: float) -> None:
        """Return when nothing is believed any more of what was told then."""
        if told_at + BELIEVED_S <= time.monotonic():
            return
        inode = self.inode(ino, path)
        if not inode or not self.forget(inode):
            time.sleep(max(0.0, told_at + BELIEVED_S - time.monotonic()))

    def inode(self, ino: InodeId, path: str | None) -> int:
        """The kernel's own number of what it knows at a path, which is `ino`; 0: not at hand.

        Nothing is asked of this mount: that could wait for the very request which is being served.
        """
        if path is None:
            return 0
        name = self._point + path.encode(self._encoding)
        fd = self._open(_AT_FDCWD, name)
        if fd < 0:
            fd = self._open_as_caller(name)
        if fd < 0:
            return 0
        call = self._library
        try:
            found = ctypes.create_string_buffer(_STATX_BYTES)
            if call.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_INO, found):
                return 0
            if ctypes.c_uint64.from_buffer(found, _STATX_INO_AT).value != ino:
                return 0
            handle, mount = _Handle(handle_bytes=ctypes.sizeof(ctypes.c_uint32) * 3), ctypes.c_int()
            for flags in (_AT_EMPTY_PATH | _AT_HANDLE_FID, _AT_EMPTY_PATH):
                if not call.name_to_handle_at(
                    fd, b"", ctypes.byref(handle), ctypes.byref(mount), flags
                ):
                    break
            else:
                return 0
        finally:
            os.close(fd)
        if handle.kind != _INO64_GEN:
            return 0
        return int(handle.words[0]) << 32 | int(handle.words[1])

    def _open(self, directory: int, name: bytes) -> int:
        """What the kernel has at hand by this name; negative: nothing."""
        how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
        size = ctypes.c_size_t(ctypes.sizeof(how))
        return int(self._library.syscall(_OPENAT2, directory, name, ctypes.byref(how), size))

    def _open_as_caller(self, name: bytes) -> int:
        """As `_open`, by the way that a program went which names paths from its working directory.

        The directories above that are not at hand: it may not have been at them for hours.
        """
        link = b"/proc/%d/cwd" % self._caller()
        try:
            # Of this mount only: to open another's may wait for its server.
            if not self._is_here(os.readlink(link)):
                return -1
            directory = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return -1
        try:
            # As it is called now: the program may have gone elsewhere meanwhile.
            way = os.readlink(b"/proc/self/fd/%d" % directory)
            return self._open(directory, os.path.relpath(name, way)) if self._is_here(way) else -1
        finally:
            os.close(directory)

    def _is_here(self, path: bytes) -> bool:
        return path == self._point or path.startswith(self._point + b"/")


class Change:
    """A change of a file under way."""

    def __init__(
        self, beliefs: KernelBeliefs, ino: InodeId, paths: tuple[str | None, ...], links: int
    ) -> None:
        self._beliefs = beliefs
        self._ino = ino
        self._paths = paths
        self._links = links
        self._inodes = {
            # Now, since the kernel has just been at it: in a moment it may not be at hand.
            (name, when): beliefs.inode(ino, name)
            for name, when in beliefs.told_of(ino, paths, links)
        }

    def done(self) -> None:
        """Returns when the kernel may hear of it by its other names."""
        for name, when in self._beliefs.told_of(self._ino, self._paths, self._links):
            inode = self._inodes.get((name, when), 0)
            if not inode or not self._beliefs.forget(inode):
                self._beliefs.doubt(self._ino, name, when)


class Forgetter:
    """Has the kernel ask for the attributes of an inode of its own: `library` is libfuse 2.

    Called in a thread of libfuse, within a request.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        library.fuse_get_session.restype = ctypes.c_void_p
        library.fuse_session_next_chan.restype = ctypes.c_void_p
        self._tell = library.fuse_lowlevel_notify_inval_inode
        self._tell.argtypes = (
            ctypes.c_void_p,
            ctypes.c_ulong,
            ctypes.c_longlong,
            ctypes.c_longlong,
        )

    def __call__(self, inode: int) -> bool:
        """False: it could not be told."""
        mounted = ctypes.c_void_p(self._library.fuse_get_context().contents.fuse)
        session = ctypes.c_void_p(self._library.fuse_get_session(mounted))
        channel = self._library.fuse_session_next_chan(session, None)
        return self._tell(channel, inode, -1, 0) in (0, -errno.ENOENT)


class _Handle(ctypes.Structure):
    """struct file_handle, with room for a FUSE inode's."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("words", ctypes.c_uint32 * 3),
    )
