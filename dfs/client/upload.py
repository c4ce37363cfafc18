"""Uploads: local files and trees into the cluster, and streams.

Small files are read in batches by worker threads, packed into shared blocks, and created with
their content by one `Put` each, hundreds in a request. Larger ones are written to an inode
without a name, which gets its name when all of it is published. So no half-written file is ever
visible under its final name. When an upload returns, all of it is on disks.

Kept: content, holes, modes, modification times, symlinks, hard links, empty files and
directories. Sockets, FIFOs and devices are left out, with a warning. A file that vanishes,
changes or cannot be read is a failure in the summary; the others go on. Failures of the cluster
itself (no space, unavailable) end the upload with an error.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import local_files
from dfs.client.big_upload import BigFiles, ReadStream, store_stream
from dfs.client.local_files import LocalEntry, Scan
from dfs.client.meta import unwrap
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.client.remote_paths import AnyPath, about, encode, show, split
from dfs.client.small_upload import SMALL_BYTES, SmallFiles
from dfs.client.together import together
from dfs.core.errors import DfsError, FileSystemError, from_wire, refuse
from dfs.core.ids import InodeId, PolicyId
from dfs.core.inode import Inode
from dfs.wire.messages import AnyOp, Link, Mkdir, SetAttr, Symlink, Unlink

if TYPE_CHECKING:
    from dfs.client.client import Client

_SLICE: Final = 512
"""Names of a local directory handled at a time."""
_DIRECTORIES_AT_ONCE: Final = 6
_OPS: Final = 256


class Upload:
    """One upload under way: what its parts share."""

    def __init__(
        self, client: "Client", policy: PolicyId, callback: ProgressCallback | None
    ) -> None:
        self.client = client
        self.policy = policy
        """The policy asked for; 0: as the directories say."""
        self.summary = Summary()
        self.progress = Progress(bytes_total=0, files_total=0)
        self.first_names: dict[tuple[int, int], InodeId] = {}
        """Inodes of local files with several names, once the first is uploaded."""
        self._callback = callback

    def policy_in(self, directory: Inode) -> PolicyId:
        """The policy of a new file in `directory`."""
        return self.policy or directory.policy

    def expect(self, entry: LocalEntry) -> None:
        """Count something that will be `done` or `fail`."""
        assert self.progress.files_total is not None
        assert self.progress.bytes_total is not None
        self.progress.files_total += 1
        if entry.status is not None and stat.S_ISREG(entry.status.st_mode):
            self.progress.bytes_total += entry.status.st_size

    def moved(self, count: int) -> None:
        """So many bytes are on their way."""
        self.progress.bytes_done += count
        self.tell()

    def done(self, entry: LocalEntry, inode: Inode) -> None:
        """A regular file is stored."""
        assert entry.status is not None
        self.summary.files += 1
        self.summary.bytes += entry.status.st_size
        self.progress.files_done += 1
        if entry.status.st_nlink > 1:
            self.first_names[entry.status.st_dev, entry.status.st_ino] = inode.ino

    def fail(self, path: bytes, error: OSError | str) -> None:
        """A name that is not stored, and why."""
        if isinstance(error, DfsError):
            text = str(error)
        else:
            text = error if isinstance(error, str) else local_files.reason(error)
        self.failed(path, text)
        self.progress.files_done += 1
        self.tell()

    def failed(self, path: bytes, reason: str) -> None:
        """Something about a name that is counted elsewhere."""
        self.summary.failures.append(Failure(show(path), reason))

    def tell(self) -> None:
        if self._callback is not None:
            self._callback(self.progress)


@dataclass(slots=True)
class _Directory:
    """A local directory and its counterpart."""

    path: bytes
    inode: Inode


@dataclass(slots=True)
class _Linked:
    """A further name of a file that has several."""

    entry: LocalEntry
    parent: Inode


@dataclass(slots=True)
class _Tree:
    """Walks local directories and sorts what is in them."""

    job: Upload
    small: SmallFiles
    big: BigFiles
    pending: list[_Directory] = field(default_factory=list)
    attributes: list[tuple[bytes, SetAttr]] = field(default_factory=list)
    """Of directories and symlinks, with their local paths; set when all is in place."""
    linked: list[_Linked] = field(default_factory=list)
    claimed: set[tuple[int, int]] = field(default_factory=set)
    named: set[bytes] = field(default_factory=set)
    """New names of sources that are no directories."""
    _working: int = 0
    _more: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Upload all pending directories with what is below them."""
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
        run = self.job.client.workers.run
        try:
            scan = await run(Scan, directory.path)
        except OSError as error:
            self.job.fail(directory.path, error)
            return
        try:
            while entries := await run(scan.slice, _SLICE):
                await self.sort(entries, directory.inode)
        except OSError as error:
            if isinstance(error, DfsError):
                raise
            self.job.fail(directory.path, error)
        finally:
            scan.close()

    async def sort(self, entries: Sequence[LocalEntry], parent: Inode) -> None:
        """Send each entry its way; returns when the smaller part of that is done."""
        directories: list[LocalEntry] = []
        symlinks: list[LocalEntry] = []
        for entry in entries:
            self.job.expect(entry)
            status = entry.status
            if status is None:
                self.job.fail(entry.path, entry.error or "vanished")
            elif stat.S_ISREG(status.st_mode):
                if status.st_nlink > 1:
                    key = (status.st_dev, status.st_ino)
                    if key in self.claimed:
                        self.linked.append(_Linked(entry, parent))
                        continue
                    self.claimed.add(key)
                if status.st_size <= SMALL_BYTES:
                    await self.small.add(entry, parent)
                else:
                    await self.big.add(entry, parent)
            elif stat.S_ISDIR(status.st_mode):
                directories.append(entry)
            elif stat.S_ISLNK(status.st_mode):
                symlinks.append(entry)
            else:
                self.job.summary.warnings.append(f"{show(entry.path)}: left out: {_kind(status)}")
                self.job.progress.files_done += 1
        if directories:
            await self._make_directories(directories, parent)
        if symlinks:
            await self._make_symlinks(symlinks, parent)

    async def _make_directories(self, entries: list[LocalEntry], parent: Inode) -> None:
        # Others can be written to until the end, whatever their final mode.
        meta = self.job.client.meta
        ops = [Mkdir(parent.ino, e.name, _mode(e) | 0o700) for e in entries]
        results = await meta.apply(*ops)
        for entry, result in zip(entries, results, strict=True):
            try:
                try:
                    inode = unwrap(result)
                except FileSystemError as error:
                    if error.errno != errno.EEXIST:
                        raise
                    inode = await meta.lookup(parent.ino, entry.name)
                    if not inode.is_dir:
                        raise FileSystemError(
                            "a file of that name is in the way", errno=errno.ENOTDIR
                        ) from None
            except FileSystemError as error:
                self.job.fail(entry.path, error)
                continue
            assert inode is not None
            if self.job.policy and inode.policy != self.job.policy:
                inode = await meta.set_policy(inode.ino, self.job.policy)
            self.made(entry, inode)

    def made(self, entry: LocalEntry, inode: Inode) -> None:
        """The counterpart of a local directory is there."""
        assert entry.status is not None
        change = SetAttr(
            inode.ino,
            mode=_mode(entry),
            atime_ns=entry.status.st_atime_ns,
            mtime_ns=entry.status.st_mtime_ns,
        )
        self.attributes.append((entry.path, change))
        self.job.summary.directories += 1
        self.job.progress.files_done += 1
        self.pending.append(_Directory(entry.path, inode))
        self._more.unpark_all()

    async def _make_symlinks(self, entries: list[LocalEntry], parent: Inode) -> None:
        meta = self.job.client.meta
        results = await meta.apply(*(Symlink(parent.ino, e.name, e.target) for e in entries))
        for entry, result in zip(entries, results, strict=True):
            try:
                if result.error is not None and result.error.errno == errno.EEXIST:
                    pair = (Unlink(parent.ino, entry.name), _symlink(parent, entry))
                    result = (await meta.apply(*pair))[1]
                inode = unwrap(result)
            except FileSystemError as error:
                self.job.fail(entry.path, error)
                continue
            assert inode is not None
            assert entry.status is not None
            times = entry.status
            change = SetAttr(inode.ino, atime_ns=times.st_atime_ns, mtime_ns=times.st_mtime_ns)
            self.attributes.append((entry.path, change))
            self.job.summary.symlinks += 1
            self.job.progress.files_done += 1

    async def finish(self) -> None:
        """After all files: further names, then times and modes of directories."""
        meta = self.job.client.meta
        for start in range(0, len(self.linked), _OPS):
            ops: list[AnyOp] = []
            linked: list[_Linked] = []
            for each in self.linked[start : start + _OPS]:
                status = each.entry.status
                assert status is not None
                ino = self.job.first_names.get((status.st_dev, status.st_ino))
                if ino is None:
                    self.job.fail(each.entry.path, "another name of the file could not be stored")
                    continue
                linked.append(each)
                ops.append(Link(ino, each.parent.ino, each.entry.name, replace=True))
            for each, result in zip(linked, await meta.apply(*ops), strict=True):
                if result.error is not None:
                    self.job.fail(each.entry.path, from_wire(result.error))
                else:
                    self.job.summary.files += 1
                    self.job.progress.files_done += 1
                    self.job.moved(each.entry.status.st_size if each.entry.status else 0)
        for start in range(0, len(self.attributes), _OPS):
            changes = self.attributes[start : start + _OPS]
            results = await meta.apply(*(change for _, change in changes))
            for (path, _), result in zip(changes, results, strict=True):
                if result.error is not None:
                    reason = os.strerror(result.error.errno)
                    self.job.failed(path, f"its mode and times could not be set: {reason}")


def _symlink(parent: Inode, entry: LocalEntry) -> Symlink:
    return Symlink(parent.ino, entry.name, entry.target)


def _mode(entry: LocalEntry) -> int:
    assert entry.status is not None
    return entry.status.st_mode & 0o7777


def _kind(status: os.stat_result) -> str:
    if stat.S_ISSOCK(status.st_mode):
        return "a socket"
    return "a FIFO" if stat.S_ISFIFO(status.st_mode) else "a device"


# ------------------------------------------------------------------ from outside


async def upload(
    client: "Client",
    local: Sequence[str | bytes | Path],
    remote: AnyPath,
    *,
    recursive: bool = False,
    policy: str | None = None,
    progress: ProgressCallback | None = None,
) -> Summary:
    """Copy local files, and with `recursive` directories, to `remote`, as `cp` reads its arguments.

    Into `remote` if it is a directory; else a single source becomes `remote` itself. A directory
    that is there is merged into, files in it are replaced. Without `recursive` symlinks are
    followed. `policy` is a policy's name, for all new data.

    Raises:
        FileSystemError: `remote` cannot take what was given.
        NoSpaceError, UnavailableError: the cluster cannot take more now; what has been stored
            stays, and running it again does no harm.
    """
    raw = encode(remote)
    number = (await client.writers.named(policy)).policy if policy else 0
    job = Upload(client, number, progress)
    sources = [os.fsencode(path) for path in local]
    target, new_name = await _target(client, raw, len(sources))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        small = SmallFiles(job, nursery)
        big = BigFiles(job, nursery)
        tree = _Tree(job, small, big)
        try:
            for path in sources:
                await _source(tree, path, target, new_name, recursive=recursive)
            await tree.run()
            await small.finish()
            await big.finish()
            await tree.finish()
            await client.sync()
        except Exception as error:
            failure = error
            nursery.cancel_scope.cancel()
    raise_first(failure, small.failure, big.failure)
    return job.summary


def raise_first(*failures: Exception | None) -> None:
    """Raise the first failure there is."""
    for failure in failures:
        if failure is not None:
            raise failure


async def _target(client: "Client", path: bytes, sources: int) -> tuple[Inode, bytes | None]:
    """The directory to put things into, and the one new name there, if it is no directory."""
    with about(path):
        try:
            inode = await client.meta.resolve(path)
        except FileSystemError as error:
            if error.errno != errno.ENOENT or sources > 1:
                raise
        else:
            if inode.is_dir:
                return inode, None
            if sources > 1 or path.endswith(b"/"):
                raise refuse(errno.ENOTDIR, show(path))
        above, name = split(path)
    with about(above):
        parent = await client.meta.resolve(above)
        if not parent.is_dir:
            raise refuse(errno.ENOTDIR, show(above))
    return parent, name + (b"/" if path.endswith(b"/") else b"")


async def _source(
    tree: _Tree, path: bytes, target: Inode, new_name: bytes | None, *, recursive: bool
) -> None:
    """Start on one source."""
    job = tree.job
    name = os.path.basename(path.rstrip(b"/"))
    entry = await job.client.workers.run(
        partial(local_files.look, path, name, follow=not recursive)
    )
    status = entry.status
    if status is None:
        job.expect(entry)
        job.fail(path, entry.error or "vanished")
        return
    is_directory = stat.S_ISDIR(status.st_mode)
    if path.endswith(b"/") and not is_directory:
        # A trailing slash follows a symlink to a directory.
        entry = await job.client.workers.run(partial(local_files.look, path, name, follow=True))
        if entry.status is None:
            job.expect(entry)
            job.fail(path, entry.error or "vanished")
            return
        status = entry.status
        is_directory = stat.S_ISDIR(status.st_mode)
    if is_directory and not recursive:
        job.expect(entry)
        job.fail(path, "is a directory; -r uploads it with all that is in it")
        return
    if new_name is not None and new_name.endswith(b"/") and not is_directory:
        job.expect(entry)
        job.fail(path, f"{show(new_name)} is no directory")
        return
    if new_name is None and name in (b"", b".", b".."):
        # `dir/.` and `/`: what is in it, into the target.
        job.expect(entry)
        tree.made(entry, target)
        return
    wanted = (new_name or name).rstrip(b"/")
    if not is_directory:
        if wanted in tree.named:
            job.expect(entry)
            job.fail(path, "left out: another source has the same name")
            return
        tree.named.add(wanted)
    await tree.sort([LocalEntry(path, wanted, status, None, entry.target)], target)


async def upload_stream(
    client: "Client",
    read: ReadStream,
    remote: AnyPath,
    *,
    policy: str | None = None,
    mode: int = 0o644,
    progress: ProgressCallback | None = None,
) -> Summary:
    """Store what `await read()` gives, until b"", as the file `remote`.

    The file appears, or takes the place of the one that is there, when it is complete and on
    disks.

    Raises:
        FileSystemError: `remote` is a directory, or there is none to hold it.
        NoSpaceError, UnavailableError: the cluster cannot take it now; nothing is visible of it.
    """
    raw = encode(remote)
    number = (await client.writers.named(policy)).policy if policy else 0
    job = Upload(client, number, progress)
    job.progress.bytes_total = job.progress.files_total = None
    with about(raw):
        above, name = split(raw)
        parent = await client.meta.resolve(above)
        if raw.endswith(b"/"):
            raise refuse(errno.EISDIR, show(raw))
        try:
            there = await client.meta.lookup(parent.ino, name)
        except FileSystemError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            if there.is_dir:
                raise refuse(errno.EISDIR, show(raw))
        size = await store_stream(job, read, parent, name, mode)
    job.summary.files = job.progress.files_done = 1
    job.summary.bytes = size
    await client.sync()
    job.tell()
    return job.summary
