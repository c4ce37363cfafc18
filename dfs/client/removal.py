"""`rmtree`: remove a directory and all that is in it, many names in one request.

Walks depth first, a page of a directory at a time, so memory is bounded by the tree's depth.
What cannot be removed is a failure in the summary, and so are the directories above it.
"""

import errno
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dfs.client.meta import Meta
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.client.remote_paths import about, join, name_it, show, split
from dfs.client.together import together
from dfs.core.errors import DfsError, from_wire, refuse
from dfs.core.ids import InodeId
from dfs.wire.messages import DirEntry, OpResult, Rmdir, Unlink

_PAGE: Final = 2048
_OPS: Final = 256
"""Names in one request: the master serves nobody else meanwhile, for a few ms."""
_REQUESTS_AT_ONCE: Final = 4


@dataclass(slots=True)
class _Directory:
    parent: InodeId
    name: bytes
    ino: InodeId
    path: bytes
    after: bytes = b""
    listed: bool = False
    below: list["_Directory"] = field(default_factory=list)
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
    await job.run(_Directory(parent.ino, name, inode.ino, path))
    return job.summary


class _Removal:
    def __init__(self, meta: Meta, callback: ProgressCallback | None) -> None:
        self.summary = Summary()
        self._meta = meta
        self._progress = Progress()
        self._callback = callback

    async def run(self, root: _Directory) -> None:
        stack = [root]
        while stack:
            top = stack[-1]
            if top.below:
                stack.append(top.below.pop())
            elif not top.listed:
                await self._remove_page(top)
            else:
                stack.pop()
                if not top.spoiled:
                    await self._remove([top], stack[-1] if stack else None)
                elif stack:
                    stack[-1].spoiled = True

    async def _remove_page(self, directory: _Directory) -> None:
        """Remove what the next page lists, but for directories with something in them."""
        try:
            page = await self._meta.readdir(directory.ino, after=directory.after, limit=_PAGE)
        except DfsError as error:
            if error.retry or error.errno == errno.EIO:
                raise
            self._fail(directory.path, error)
            directory.listed = directory.spoiled = True
            return
        directory.listed = not page.more
        if page.entries:
            directory.after = page.entries[-1].name
        files: list[DirEntry] = []
        empty: list[_Directory] = []
        for entry in page.entries:
            if not entry.inode.is_dir:
                files.append(entry)
                continue
            below = _Directory(
                directory.ino, entry.name, entry.inode.ino, join(directory.path, entry.name)
            )
            (directory.below if entry.inode.size else empty).append(below)
        tasks = [
            partial(self._unlink, directory, files[start : start + _OPS])
            for start in range(0, len(files), _OPS)
        ]
        tasks += [
            partial(self._remove, empty[start : start + _OPS], directory)
            for start in range(0, len(empty), _OPS)
        ]
        await together(tasks, at_once=_REQUESTS_AT_ONCE)

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

    async def _remove(self, directories: list[_Directory], above: _Directory | None) -> None:
        results = await self._meta.apply(*(Rmdir(d.parent, d.name) for d in directories))
        for directory, result in zip(directories, results, strict=True):
            if self._gone(result, directory.path, above):
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
