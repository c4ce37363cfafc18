"""`rmtree`: remove a directory and all that is in it, many names in one request.

Several directories are worked on at a time, the deepest known first, each a page at a time; a
directory goes when all in it is gone. What cannot be removed is a failure in the summary, and so
are the directories above it.
"""

import errno
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from dfs.client.meta import Meta
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.client.remote_paths import about, join, name_it, show, split
from dfs.client.together import together
from dfs.core.errors import DfsError, FileSystemError, from_wire, refuse
from dfs.core.ids import InodeId
from dfs.wire.messages import DirEntry, OpResult, Rmdir, Unlink

_PAGE: Final = 2048
_OPS: Final = 256
"""Names in one request: the master serves nobody else meanwhile, for a few ms."""
_REQUESTS_AT_ONCE: Final = 4
"""For one directory."""
_DIRECTORIES_AT_ONCE: Final = 8


@dataclass(slots=True, eq=False)
class _Directory:
    above: "_Directory | None"
    """None for the root of the removal."""
    parent: InodeId
    name: bytes
    ino: InodeId
    path: bytes
    left: int = 1
    """Directories below it that are not done, and one while it is being listed."""
    spoiled: bool = False
    """Something in it stays, so it stays too."""


async def rmtree(meta: Meta, path: bytes, *, progress: ProgressCallback | None = None) -> Summary:
    """Remove the directory at `path` with everything below it.

    Raises:
        FileSystemError: there is none, it is no directory, or it is the root.
        UnavailableError: the master does not answer; some names may be gone.
    """
    with about(path):
        above, name = split(path)
        parent = await meta.resolve(above)
        inode = await meta.lookup(parent.ino, name)
        if not inode.is_dir:
            raise refuse(errno.ENOTDIR, show(path))
    job = _Removal(meta, progress)
    await job.run(_Directory(None, parent.ino, name, inode.ino, path))
    return job.summary


class _Removal:
    def __init__(self, meta: Meta, callback: ProgressCallback | None) -> None:
        self.summary = Summary()
        self._meta = meta
        self._progress = Progress()
        self._callback = callback
        self._pending: list[_Directory] = []
        self._working = 0
        self._more = trio.lowlevel.ParkingLot()

    async def run(self, root: _Directory) -> None:
        self._pending.append(root)
        await together([self._worker] * _DIRECTORIES_AT_ONCE)

    async def _worker(self) -> None:
        while True:
            while not self._pending:
                if not self._working:
                    self._more.unpark_all()
                    return
                await self._more.park()
            directory = self._pending.pop()
            self._working += 1
            try:
                await self._empty(directory)
                await self._done(directory)
            finally:
                self._working -= 1
                if not self._working:
                    self._more.unpark_all()

    async def _empty(self, directory: _Directory) -> None:
        """Remove what is in it, but for directories with something in them: they are pending."""
        after = b""
        while True:
            try:
                page = await self._meta.readdir(directory.ino, after=after, limit=_PAGE)
            except FileSystemError as error:
                self._fail(directory.path, error)
                directory.spoiled = True
                return
            files: list[DirEntry] = []
            empty: list[_Directory] = []
            for entry in page.entries:
                if not entry.inode.is_dir:
                    files.append(entry)
                    continue
                path = join(directory.path, entry.name)
                below = _Directory(directory, directory.ino, entry.name, entry.inode.ino, path)
                if entry.inode.size:
                    directory.left += 1
                    self._pending.append(below)
                else:
                    empty.append(below)
            self._more.unpark_all()
            tasks = [
                partial(self._unlink, directory, files[start : start + _OPS])
                for start in range(0, len(files), _OPS)
            ]
            tasks += [
                partial(self._remove, empty[start : start + _OPS])
                for start in range(0, len(empty), _OPS)
            ]
            await together(tasks, at_once=_REQUESTS_AT_ONCE)
            if not page.more:
                return
            after = page.entries[-1].name

    async def _done(self, directory: _Directory) -> None:
        """It is listed, or a directory in it is done: remove those that have nothing left."""
        at: _Directory | None = directory
        while at is not None:
            at.left -= 1
            if at.left:
                return
            if not at.spoiled:
                await self._remove([at])
            elif at.above is not None:
                at.above.spoiled = True
            at = at.above

    async def _unlink(self, directory: _Directory, entries: list[DirEntry]) -> None:
        results = await self._meta.apply(*(Unlink(directory.ino, e.name) for e in entries))
        for entry, result in zip(entries, results, strict=True):
            if self._gone(result, join(directory.path, entry.name), directory):
                if entry.inode.is_symlink:
                    self.summary.symlinks += 1
                else:
                    self.summary.files += 1
                    self.summary.bytes += entry.inode.size
                    self._progress.bytes_done += entry.inode.size
        self._tell(len(entries))

    async def _remove(self, directories: list[_Directory]) -> None:
        results = await self._meta.apply(*(Rmdir(d.parent, d.name) for d in directories))
        for directory, result in zip(directories, results, strict=True):
            if self._gone(result, directory.path, directory.above):
                self.summary.directories += 1
        self._tell(len(directories))

    def _gone(self, result: OpResult, path: bytes, above: _Directory | None) -> bool:
        if result.error is None or result.error.errno == errno.ENOENT:
            return result.error is None
        self._fail(path, from_wire(result.error))
        if above is not None:
            above.spoiled = True
        return False

    def _fail(self, path: bytes, error: DfsError) -> None:
        reason = str(name_it(error, path)).removeprefix(f"{show(path)}: ")
        self.summary.failures.append(Failure(show(path), reason))

    def _tell(self, count: int) -> None:
        self._progress.files_done += count
        if self._callback is not None:
            self._callback(self._progress)
