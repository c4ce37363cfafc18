"""The namespace by path: what `os` and `shutil` offer for a local one. Base of `Client`.

Paths are absolute, `str` or `bytes`; names in results are bytes. Every method raises
FileSystemError with the POSIX errno when it is refused, and UnavailableError when the master
does not answer in time.
"""

import errno
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from dfs.client import remote_paths
from dfs.client.meta import Meta, unwrap
from dfs.client.open_files import OpenFiles
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.client.remote_paths import AnyPath, about, encode, name_it, show, split
from dfs.client.together import together
from dfs.core.errors import FileSystemError
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import (
    READDIR_MAX,
    Access,
    AnyOp,
    CloneRange,
    DirEntry,
    FsStats,
    SetAttr,
    XattrMode,
)

_COPIES_AT_ONCE: Final = 32


class PathOperations:
    """See the module."""

    meta: Meta
    files: OpenFiles

    # ---------------------------------------------------------------- looking

    async def stat(self, path: AnyPath, *, follow: bool = True) -> Inode:
        """The inode at `path`; of a symlink itself without `follow`."""
        raw = encode(path)
        with about(raw):
            return await self.meta.resolve(raw, follow=follow)

    async def exists(self, path: AnyPath, *, follow: bool = True) -> bool:
        """Whether there is something (that the caller may see) at `path`."""
        try:
            await self.stat(path, follow=follow)
        except FileSystemError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def scandir(self, path: AnyPath) -> AsyncIterator[DirEntry]:
        """The entries of a directory with their inodes, in order of name."""
        return _Listing(self.meta, encode(path))

    def walk(self, path: AnyPath) -> AsyncIterator[tuple[bytes, list[DirEntry]]]:
        """Each directory from `path` down with its entries, parents before children.

        Remove directories from the list to leave them out, as with `os.walk`.
        """
        return _Walk(self.meta, encode(path))

    async def readlink(self, path: AnyPath) -> bytes:
        """The target of a symlink."""
        inode = await self.stat(path, follow=False)
        if not inode.is_symlink:
            raise FileSystemError(f"{show(encode(path))}: not a symlink", errno=errno.EINVAL)
        return inode.target

    async def statfs(self) -> FsStats:
        """Capacity and counts of the whole cluster."""
        return await self.meta.statfs()

    # ---------------------------------------------------------------- changing the tree

    async def _parent(self, path: bytes) -> tuple[Inode, bytes]:
        """The directory that holds the last name of `path`, and that name."""
        directory, name = split(path)
        return await self.meta.resolve(directory), name

    async def mkdir(
        self, path: AnyPath, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False
    ) -> Inode:
        """Make a directory; with `parents` those above it too. What is there with `exist_ok`."""
        raw = encode(path)
        with about(raw):
            if not raw.strip(b"/"):
                if exist_ok:
                    return await self.meta.resolve(raw)
                raise FileSystemError(f"{show(raw)}: File exists", errno=errno.EEXIST)
            try:
                parent, name = await self._parent(raw)
            except FileSystemError as error:
                if error.errno != errno.ENOENT or not parents:
                    raise
                parent = await self.mkdir(split(raw)[0], mode, parents=True, exist_ok=True)
                name = split(raw)[1]
            try:
                return await self.meta.mkdir(parent.ino, name, mode)
            except FileSystemError as error:
                if error.errno != errno.EEXIST or not exist_ok:
                    raise
                inode = await self.meta.resolve(raw)
                if not inode.is_dir:
                    raise
                return inode

    async def unlink(self, path: AnyPath) -> None:
        """Remove a name that is no directory."""
        raw = encode(path)
        with about(raw):
            parent, name = await self._parent(raw)
            await self.meta.unlink(parent.ino, name)

    async def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        raw = encode(path)
        with about(raw):
            parent, name = await self._parent(raw)
            await self.meta.rmdir(parent.ino, name)

    async def rename(self, source: AnyPath, destination: AnyPath, *, flags: int = 0) -> None:
        """Move atomically, replacing what rename(2) would; `flags` are RenameFlag values."""
        old, new = encode(source), encode(destination)
        with about(old):
            old_parent, old_name = await self._parent(old)
        with about(new):
            new_parent, new_name = await self._parent(new)
        with about(old):
            await self.meta.rename(old_parent.ino, old_name, new_parent.ino, new_name, flags)

    async def link(self, existing: AnyPath, new: AnyPath) -> Inode:
        """Another name for a file. A symlink itself is linked, not what it points to."""
        inode = await self.stat(existing, follow=False)
        raw = encode(new)
        with about(raw):
            parent, name = await self._parent(raw)
            return await self.meta.hard_link(inode.ino, parent.ino, name)

    async def symlink(self, target: str | bytes, path: AnyPath) -> Inode:
        """Make a symlink at `path` that says `target`, whatever that is."""
        raw = encode(path)
        with about(raw):
            parent, name = await self._parent(raw)
            wanted = (
                target.encode("utf-8", "surrogateescape") if isinstance(target, str) else target
            )
            return await self.meta.symlink(parent.ino, name, wanted)

    # ---------------------------------------------------------------- attributes

    async def _set_attr(self, path: AnyPath, change: SetAttr, *, follow: bool) -> Inode:
        """`change` with the inode at `path` in place of its own."""
        raw = encode(path)
        with about(raw):
            inode = await self.meta.resolve(raw, follow=follow)
            fields = [getattr(change, name) for name in change.__struct_fields__]
            fields[0] = inode.ino
            return await self.meta.set_attr(SetAttr(*fields))

    async def chmod(self, path: AnyPath, mode: int, *, follow: bool = True) -> Inode:
        return await self._set_attr(path, SetAttr(0, mode=mode), follow=follow)

    async def chown(
        self, path: AnyPath, uid: int | None, gid: int | None, *, follow: bool = True
    ) -> Inode:
        """None leaves the owner or group as it is."""
        return await self._set_attr(path, SetAttr(0, uid=uid, gid=gid), follow=follow)

    async def utime(
        self,
        path: AnyPath,
        times_ns: tuple[int, int] | None = None,
        *,
        follow: bool = True,
    ) -> Inode:
        """Set (access, modification) times; None: to now, by the master's clock."""
        if times_ns is None:
            change = SetAttr(0, atime_now=True, mtime_now=True)
        else:
            change = SetAttr(0, atime_ns=times_ns[0], mtime_ns=times_ns[1])
        return await self._set_attr(path, change, follow=follow)

    async def truncate(self, path: AnyPath, size: int) -> Inode:
        """Cut or extend a file. An open one: use `File.truncate`."""
        return await self._set_attr(path, SetAttr(0, size=size), follow=True)

    async def getxattr(self, path: AnyPath, name: str | bytes, *, follow: bool = True) -> bytes:
        inode = await self.stat(path, follow=follow)
        with about(encode(path)):
            return await self.meta.get_xattr(inode.ino, _name(name))

    async def setxattr(
        self,
        path: AnyPath,
        name: str | bytes,
        value: bytes,
        mode: XattrMode = XattrMode.ANY,
        *,
        follow: bool = True,
    ) -> None:
        inode = await self.stat(path, follow=follow)
        with about(encode(path)):
            await self.meta.set_xattr(inode.ino, _name(name), value, mode)

    async def listxattr(self, path: AnyPath, *, follow: bool = True) -> tuple[bytes, ...]:
        inode = await self.stat(path, follow=follow)
        with about(encode(path)):
            return await self.meta.list_xattr(inode.ino)

    async def removexattr(self, path: AnyPath, name: str | bytes, *, follow: bool = True) -> None:
        inode = await self.stat(path, follow=follow)
        with about(encode(path)):
            await self.meta.remove_xattr(inode.ino, _name(name))

    # ---------------------------------------------------------------- copying inside

    async def copy(
        self,
        source: AnyPath,
        destination: AnyPath,
        *,
        recursive: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Summary:
        """Copy a file, or with `recursive` a tree, by sharing its bytes: none of them moves.

        `destination` is the new path itself. A file that is there gets the new content, a
        directory is merged into. With `recursive` symlinks are copied, else followed. Modes
        are kept, owners are the caller's, times are new. What this client has written to a file
        is published before it is copied. Failures inside a tree are in the summary.
        """
        old, new = encode(source), encode(destination)
        with about(old):
            origin = await self.meta.resolve(old, follow=not recursive)
        if origin.is_dir and not recursive:
            raise FileSystemError(f"{show(old)}: Is a directory", errno=errno.EISDIR)
        job = _Copy(self, Summary(), Progress(), progress)
        with about(new):
            parent, name = await self._parent(new)
            made = await job.one(origin, parent, name, old)
        if origin.is_dir:
            await job.tree(origin, made, old)
        return job.summary


class _Listing(AsyncIterator[DirEntry]):
    """`scandir`, a page at a time. No generator: leaving it early leaves nothing open."""

    def __init__(self, meta: Meta, path: bytes) -> None:
        self._meta = meta
        self._path = path
        self._ino: InodeId = 0
        self._entries: deque[DirEntry] = deque()
        self._after = b""
        self._more = True

    async def __anext__(self) -> DirEntry:
        while not self._entries:
            if not self._more:
                raise StopAsyncIteration
            with about(self._path):
                if not self._ino:
                    self._ino = (await self._meta.resolve(self._path)).ino
                page = await self._meta.readdir(self._ino, after=self._after, limit=READDIR_MAX)
            self._entries.extend(page.entries)
            self._more = page.more
            if page.entries:
                self._after = page.entries[-1].name
        return self._entries.popleft()


class _Walk(AsyncIterator[tuple[bytes, list[DirEntry]]]):
    """`walk`, depth first."""

    def __init__(self, meta: Meta, path: bytes) -> None:
        self._meta = meta
        self._pending = [path]
        self._last: tuple[bytes, list[DirEntry]] | None = None

    async def __anext__(self) -> tuple[bytes, list[DirEntry]]:
        if self._last is not None:
            path, entries = self._last
            below = [entry.name for entry in entries if entry.inode.is_dir]
            self._pending += [remote_paths.join(path, name) for name in reversed(below)]
        if not self._pending:
            raise StopAsyncIteration
        path = self._pending.pop()
        self._last = path, [entry async for entry in _Listing(self._meta, path)]
        return self._last


class _Copy:
    """One `copy` under way."""

    def __init__(
        self,
        client: PathOperations,
        summary: Summary,
        progress: Progress,
        callback: ProgressCallback | None,
    ) -> None:
        self.summary = summary
        self._meta = client.meta
        self._files = client.files
        self._progress = progress
        self._callback = callback

    async def tree(self, origin: Inode, made: Inode, path: bytes) -> None:
        """Copy what is in directory `origin` into `made`."""
        after = b""
        while True:
            page = await self._meta.readdir(origin.ino, after=after)
            await together(
                [partial(self._entry, entry, origin, made, path) for entry in page.entries],
                at_once=_COPIES_AT_ONCE,
            )
            if not page.more:
                return
            after = page.entries[-1].name

    async def _entry(self, entry: DirEntry, origin: Inode, made: Inode, path: bytes) -> None:
        below = remote_paths.join(path, entry.name)
        try:
            new = await self.one(entry.inode, made, entry.name, below)
            if entry.inode.is_dir and entry.inode.ino != made.ino:
                await self.tree(entry.inode, new, below)
        except FileSystemError as error:
            reason = str(name_it(error, below)).removeprefix(f"{show(below)}: ")
            self.summary.failures.append(Failure(show(below), reason))

    async def one(self, origin: Inode, parent: Inode, name: bytes, path: bytes) -> Inode:
        """Copy one inode, without what is in it; the new one."""
        mode = origin.mode & 0o7777
        if origin.is_dir:
            inode = await self._directory(parent, name, mode)
            self.summary.directories += 1
        elif origin.is_symlink:
            inode = await self._meta.symlink(parent.ino, name, origin.target)
            self.summary.symlinks += 1
        elif origin.is_file:
            opened = self._files.get(origin.ino)
            if opened is not None:
                await opened.flush()
                origin = opened.inode
            inode = await self._file(origin, parent, name, mode)
            self.summary.files += 1
            self.summary.bytes += origin.size
            self._progress.bytes_done += origin.size
        else:
            inode = await self._meta.mknod(parent.ino, name, origin.mode, origin.rdev)
        self._progress.files_done += 1
        if self._callback is not None:
            self._callback(self._progress)
        return inode

    async def _directory(self, parent: Inode, name: bytes, mode: int) -> Inode:
        try:
            return await self._meta.mkdir(parent.ino, name, mode)
        except FileSystemError as error:
            if error.errno != errno.EEXIST:
                raise
        inode = await self._meta.lookup(parent.ino, name)
        if not inode.is_dir:
            raise FileSystemError("is in the way and no directory", errno=errno.ENOTDIR)
        return inode

    async def _file(self, origin: Inode, parent: Inode, name: bytes, mode: int) -> Inode:
        releases = self._files.releases
        made = await self._meta.create(parent.ino, name, mode, exclusive=False, open=True)
        # Its handles here, if there are any, have to go on with what it holds then.
        access = Access.READ | Access.WRITE
        file = await self._files.adopt_or_open(made, access, releases)
        try:
            if made.ino == origin.ino:
                raise FileSystemError("is the same file as its copy", errno=errno.EINVAL)
            await file.flush()
            ops: list[AnyOp] = []
            if file.size:
                ops.append(SetAttr(made.ino, size=0))
            if origin.size:
                ops.append(CloneRange(origin.ino, 0, made.ino, 0, 0))
            since = file.version
            for result in await self._meta.apply(*ops):
                made = unwrap(result) or made
            file.changed(made, since=since)
        finally:
            await self._files.close(file)
        return made


def _name(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name
