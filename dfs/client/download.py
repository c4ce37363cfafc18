"""Downloads: files and trees of the cluster to local ones.

Directories are listed together with the extents of their files; the bytes of many small files
come in a few requests, ordered by where they lie, so that a block shared by many is fetched
once. Larger files are fetched with several requests in flight. A file is written under a
temporary name in its directory and renamed when it is complete; what is not a regular file
(/dev/null, a pipe) is written to in order.

Kept: content, holes, modes, modification and access times, symlinks, hard links, empty
directories. What cannot be fetched or written is a failure in the summary; the others go on.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import local_files
from dfs.client.big_download import BigFiles
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.client.remote_paths import AnyPath, about, encode, show
from dfs.client.small_download import SMALL_BYTES, SmallFiles
from dfs.client.together import together
from dfs.core.errors import DfsError, UnavailableError
from dfs.core.ids import InodeId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import DirEntry

if TYPE_CHECKING:
    from dfs.client.client import Client

_PAGE: Final = 1024
_DIRECTORIES_AT_ONCE: Final = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """One regular file to be downloaded."""

    path: bytes
    """Where to."""
    remote: bytes
    inode: Inode
    extents: tuple[Extent, ...] | None
    """All of them, where they are known already."""


class Download:
    """One download under way: what its parts share."""

    def __init__(self, client: "Client", callback: ProgressCallback | None) -> None:
        self.client = client
        self.summary = Summary()
        self.progress = Progress(bytes_total=0, files_total=0)
        self._callback = callback

    def expect(self, inode: Inode) -> None:
        """Count something that will be `done` or `fail`."""
        assert self.progress.files_total is not None
        assert self.progress.bytes_total is not None
        self.progress.files_total += 1
        if inode.is_file:
            self.progress.bytes_total += inode.size

    def moved(self, count: int) -> None:
        """So many bytes have come."""
        self.progress.bytes_done += count
        self.tell()

    def done(self, wanted: Wanted) -> None:
        """A file is complete."""
        self.summary.files += 1
        self.summary.bytes += wanted.inode.size
        self.progress.files_done += 1

    def fail(self, path: bytes, error: OSError | str) -> None:
        """A path, local or remote, that could not be handled, and why."""
        if isinstance(error, DfsError):
            text = str(error).removeprefix(f"{show(path)}: ")
        else:
            text = error if isinstance(error, str) else local_files.reason(error)
        self.summary.failures.append(Failure(show(path), text))
        self.progress.files_done += 1
        self.tell()

    def tell(self) -> None:
        if self._callback is not None:
            self._callback(self.progress)


@dataclass(slots=True)
class _Directory:
    path: bytes
    remote: bytes
    inode: Inode


@dataclass(slots=True)
class _Tree:
    """Walks directories of the cluster and sorts what is in them."""

    job: Download
    small: SmallFiles
    big: BigFiles
    pending: list[_Directory] = field(default_factory=list)
    finished: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    first_names: dict[InodeId, bytes] = field(default_factory=dict)
    links: list[tuple[InodeId, Wanted]] = field(default_factory=list)
    named: set[bytes] = field(default_factory=set)
    """New paths of sources that are no directories."""
    _working: int = 0
    _more: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Download all pending directories with what is below them."""
        await together([self._worker] * _DIRECTORIES_AT_ONCE)

    async def _worker(self) -> None:
        while True:
            while not self.pending:
                if not self._working:
                    self._more.unpark_all()
                    return
                await self._more.park()
            directory = self.pending.pop()
            self._working += 1
            try:
                await self._directory(directory)
            finally:
                self._working -= 1
                if not self._working:
                    self._more.unpark_all()

    async def _directory(self, directory: _Directory) -> None:
        after = b""
        meta = self.job.client.meta
        while True:
            try:
                page = await meta.readdir(
                    directory.inode.ino, after=after, limit=_PAGE, with_extents=True
                )
            except UnavailableError:
                raise
            except DfsError as error:
                self.job.fail(directory.remote, error)
                return
            self.job.client.resolver.learn(page.layout)
            await self._entries(page.entries, directory)
            if not page.more:
                return
            after = page.entries[-1].name

    async def _entries(self, entries: Sequence[DirEntry], directory: _Directory) -> None:
        directories: list[_Directory] = []
        symlinks: list[Wanted] = []
        for entry in entries:
            path = os.path.join(directory.path, entry.name)
            remote = directory.remote.rstrip(b"/") + b"/" + entry.name
            wanted = Wanted(path, remote, entry.inode, entry.extents)
            self.job.expect(entry.inode)
            if entry.inode.is_file:
                await self.file(wanted)
            elif entry.inode.is_dir:
                directories.append(_Directory(path, remote, entry.inode))
            elif entry.inode.is_symlink:
                symlinks.append(wanted)
            else:
                self.job.summary.warnings.append(f"{show(remote)}: left out: a special file")
                self.job.progress.files_done += 1
        if directories:
            await self.make_directories(directories)
        if symlinks:
            await self.make_symlinks(symlinks)

    async def file(self, wanted: Wanted) -> None:
        """Send a regular file its way; may wait for others."""
        if wanted.inode.nlink > 1:
            if wanted.inode.ino in self.first_names:
                self.links.append((wanted.inode.ino, wanted))
                return
            self.first_names[wanted.inode.ino] = wanted.path
        if wanted.inode.size <= SMALL_BYTES:
            await self.small.add(wanted)
        else:
            await self.big.add(wanted)

    async def make_directories(self, directories: Sequence[_Directory]) -> None:
        results = await self.job.client.workers.run(
            local_files.make_directories, [directory.path for directory in directories]
        )
        for directory, error in zip(directories, results, strict=True):
            if error is not None:
                self.job.fail(directory.path, error)
                continue
            inode = directory.inode
            self.finished.append((directory.path, inode.mode, inode.atime_ns, inode.mtime_ns))
            self.job.summary.directories += 1
            self.job.progress.files_done += 1
            self.pending.append(directory)
        self._more.unpark_all()

    async def make_symlinks(self, wanted: Sequence[Wanted]) -> None:
        links = [(each.path, each.inode.target, each.inode.mtime_ns) for each in wanted]
        results = await self.job.client.workers.run(local_files.make_symlinks, links)
        for each, error in zip(wanted, results, strict=True):
            if error is not None:
                self.job.fail(each.path, error)
            else:
                self.job.summary.symlinks += 1
                self.job.progress.files_done += 1

    async def finish(self) -> None:
        """After all files: further names of them, then modes and times of directories."""
        run = self.job.client.workers.run
        pairs = [(self.first_names[ino], wanted.path) for ino, wanted in self.links]
        for (_, wanted), error in zip(
            self.links, await run(local_files.make_links, pairs), strict=True
        ):
            if error is not None:
                self.job.fail(wanted.path, error)
            else:
                self.job.done(wanted)
                self.job.moved(wanted.inode.size)
        # The deepest first: a directory that may not be written to still gets its times.
        finished = self.finished[::-1]
        for (path, *_), error in zip(
            finished, await run(local_files.finish_directories, finished), strict=True
        ):
            if error is not None:
                self.job.fail(path, error)


async def download(
    client: "Client",
    remote: Sequence[AnyPath],
    local: str | bytes | Path,
    *,
    recursive: bool = False,
    progress: ProgressCallback | None = None,
) -> Summary:
    """Copy files, and with `recursive` directories, to `local`, as `cp` reads its arguments.

    Into `local` if it is a directory; else a single source becomes `local` itself. A directory
    that is there is merged into, files in it are replaced. Without `recursive` symlinks are
    followed.

    Raises:
        OSError: `local` cannot take what was given.
        UnavailableError: the master does not answer.
    """
    target = os.fsencode(local)
    paths = [encode(path) for path in remote]
    job = Download(client, progress)
    into = await client.workers.run(os.path.isdir, target)
    if not into and (len(paths) > 1 or (target.endswith(b"/") and not recursive)):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), show(target))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        small = SmallFiles(job, nursery)
        big = BigFiles(job, nursery)
        tree = _Tree(job, small, big)
        try:
            for path in paths:
                await _source(tree, path, target, into=into, recursive=recursive)
            await tree.run()
            await small.finish()
            await big.finish()
            await tree.finish()
        except Exception as error:
            failure = error
            nursery.cancel_scope.cancel()
    for each in (failure, small.failure, big.failure):
        if each is not None:
            raise each
    return job.summary


async def _source(tree: _Tree, path: bytes, target: bytes, *, into: bool, recursive: bool) -> None:
    """Start on one source."""
    job = tree.job
    try:
        with about(path):
            inode = await job.client.meta.resolve(path, follow=not recursive)
    except UnavailableError:
        raise
    except DfsError as error:
        job.fail(path, error)
        return
    job.expect(inode)
    name = os.path.basename(path.rstrip(b"/"))
    contents_only = into and name in (b"", b".", b"..")
    where = os.path.join(target, name) if into and not contents_only else target
    if inode.is_dir:
        if not recursive:
            job.fail(path, "is a directory; -r downloads it with all that is in it")
            return
        if contents_only:
            tree.pending.append(_Directory(target, path.rstrip(b"/").removesuffix(b"/."), inode))
            return
        await tree.make_directories([_Directory(where.rstrip(b"/") or b"/", path, inode)])
        return
    if into:
        if where in tree.named:
            job.fail(path, "left out: another source has the same name")
            return
        tree.named.add(where)
    wanted = Wanted(where, path, inode, None)
    if target.endswith(b"/") and not into:
        job.fail(where, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    elif inode.is_symlink:
        await tree.make_symlinks([wanted])
    elif not inode.is_file:
        job.summary.warnings.append(f"{show(path)}: left out: a special file")
    elif await job.client.workers.run(_is_regular_or_new, where):
        await tree.file(wanted)
    else:
        await tree.big.add(wanted, in_place=True)


def _is_regular_or_new(path: bytes) -> bool:
    """Whether a file at `path` is made anew: else it is a device or pipe to write to."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
