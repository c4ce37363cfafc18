"""Local files, read and written by blocking functions that the transfers run in threads.

Nothing here knows of the cluster. Each function does a batch, so that one hop to a thread
serves many files; what goes wrong with one file is its own result and stops no other.
"""

import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dfs.core.buffers import Buffer

_IOV_MAX: Final = 512
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without waiting, should a pipe have taken a file's place meanwhile."""
_counter = itertools.count()


class ChangedError(OSError):
    """A file was changed while it was read."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "it changed while it was read")


@dataclass(frozen=True, slots=True)
class LocalEntry:
    """One name in a local directory."""

    path: bytes
    name: bytes
    status: os.stat_result | None
    """None: it could not be looked at, and `error` says why."""
    error: OSError | None = None
    target: bytes = b""
    """Symlinks only."""


def look(path: bytes, name: bytes, *, follow: bool) -> LocalEntry:
    """What is at `path`."""
    try:
        status = os.stat(path, follow_symlinks=follow)
        target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
    except OSError as error:
        return LocalEntry(path, name, None, error)
    return LocalEntry(path, name, status, None, target)


class Scan:
    """A local directory, read in slices. Close it."""

    def __init__(self, path: bytes) -> None:
        """Raises OSError."""
        self._names: Iterator[os.DirEntry[bytes]] = iter(())
        self._scan = os.scandir(path)
        self._names = iter(self._scan)

    def slice(self, count: int) -> list[LocalEntry]:
        """The next entries; none at the end. Raises OSError."""
        return [
            look(entry.path, entry.name, follow=False)
            for entry in itertools.islice(self._names, count)
        ]

    def close(self) -> None:
        self._scan.close()


def reason(error: OSError) -> str:
    """Why, in a few words, without the path."""
    return error.strerror or str(error)


# ------------------------------------------------------------------ reading


def read_whole(entries: Sequence[LocalEntry]) -> list[bytes | OSError]:
    """The content of small files, as it was when they were looked at."""
    return [_read_one(entry) for entry in entries]


def _read_one(entry: LocalEntry) -> bytes | OSError:
    assert entry.status is not None
    size = entry.status.st_size
    try:
        fd = os.open(entry.path, _READ)
        try:
            data = os.read(fd, size + 1)
            while 0 < len(data) < size:
                more = os.read(fd, size + 1 - len(data))
                if not more:
                    break
                data += more
            check_unchanged(fd, entry.status)
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return data if len(data) == size else ChangedError()


def check_unchanged(fd: int, before: os.stat_result) -> None:
    """Raises ChangedError when the open file is not as it was looked at."""
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_ino, now.st_dev) != (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
        before.st_dev,
    ):
        raise ChangedError


def open_to_read(entry: LocalEntry) -> int:
    """Raises OSError, ChangedError."""
    assert entry.status is not None
    fd = os.open(entry.path, _READ)
    try:
        check_unchanged(fd, entry.status)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_step(fd: int, offset: int, length: int) -> tuple[int, bytes]:
    """Data at or after `offset` and where it starts, without holes; b"" at the end."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        length = min(length, os.lseek(fd, start, os.SEEK_HOLE) - start)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return offset, b""
        start = offset  # the file system does not know of holes
    return start, os.pread(fd, length, start)


# ------------------------------------------------------------------ writing


def temporary_beside(path: bytes) -> bytes:
    """A name for the unfinished file, in the same directory."""
    directory = os.path.dirname(path)
    name = f".dfs-{os.getpid()}-{next(_counter)}.part".encode()
    return os.path.join(directory, name)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A small file to be written."""

    path: bytes
    mode: int
    atime_ns: int
    mtime_ns: int
    size: int
    parts: Sequence[tuple[int, Buffer]]
    """(offset, bytes); what no part covers is a hole."""


def write_whole(files: Sequence[NewFile]) -> list[OSError | None]:
    """Write small files, each under a temporary name that is then replaced by its own."""
    return [_write_one(file) for file in files]


def _write_one(file: NewFile) -> OSError | None:
    temporary = temporary_beside(file.path)
    try:
        fd = create(temporary)
        try:
            at = 0
            for offset, _ in file.parts:
                if offset != at:
                    break
                at += len(_)
            if at == file.size:
                write_all(fd, [part for _, part in file.parts])
            else:
                os.ftruncate(fd, file.size)
                for offset, part in file.parts:
                    write_at(fd, [part], offset)
            finish(fd, file.mode, file.atime_ns, file.mtime_ns)
        finally:
            os.close(fd)
        os.rename(temporary, file.path)
    except OSError as error:
        remove(temporary)
        return error
    return None


def create(path: bytes) -> int:
    """Create a file nobody has; raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(fd: int, buffers: Sequence[Buffer]) -> None:
    """Write all buffers at the file's position."""
    rest = [buffer for buffer in buffers if len(buffer)]
    while rest:
        rest = _after(rest, os.writev(fd, rest[:_IOV_MAX]))


def write_at(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all buffers, one after the other, from `offset` on."""
    rest = [buffer for buffer in buffers if len(buffer)]
    while rest:
        written = os.pwritev(fd, rest[:_IOV_MAX], offset)
        offset += written
        rest = _after(rest, written)


def _after(buffers: list[Buffer], written: int) -> list[Buffer]:
    """What is left of `buffers` when `written` bytes are gone."""
    for number, buffer in enumerate(buffers):
        if written < len(buffer):
            rest: list[Buffer] = list(buffers[number:])
            if written:
                rest[0] = memoryview(buffer)[written:]
            return rest
        written -= len(buffer)
    return []


def finish(fd: int, mode: int, atime_ns: int, mtime_ns: int) -> None:
    """Set mode and times of a file that is complete."""
    os.fchmod(fd, mode & 0o7777)
    os.utime(fd, ns=(atime_ns, mtime_ns))


def remove(path: bytes) -> None:
    """Remove a temporary file, if it is there."""
    try:
        os.unlink(path)
    except OSError:
        return


def make_symlinks(links: Sequence[tuple[bytes, bytes, int]]) -> list[OSError | None]:
    """Make (path, target, mtime_ns), replacing what is no directory."""
    results: list[OSError | None] = []
    for path, target, mtime_ns in links:
        temporary = temporary_beside(path)
        try:
            os.symlink(target, temporary)
            os.utime(temporary, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
            os.rename(temporary, path)
            results.append(None)
        except OSError as error:
            remove(temporary)
            results.append(error)
    return results


def make_links(links: Sequence[tuple[bytes, bytes]]) -> list[OSError | None]:
    """Make hard links (existing, new), replacing what is no directory."""
    results: list[OSError | None] = []
    for existing, new in links:
        temporary = temporary_beside(new)
        try:
            os.link(existing, temporary, follow_symlinks=False)
            os.rename(temporary, new)
            # Renaming one name of a file to another of the same does nothing.
            remove(temporary)
            results.append(None)
        except OSError as error:
            remove(temporary)
            results.append(error)
    return results


def make_directories(paths: Sequence[bytes]) -> list[OSError | None]:
    """Make directories that can be written to; existing ones are taken as they are."""
    results: list[OSError | None] = []
    for path in paths:
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            results.append(None if os.path.isdir(path) else error)
        else:
            results.append(None)
    return results


def finish_directories(directories: Sequence[tuple[bytes, int, int, int]]) -> list[OSError | None]:
    """Set (path, mode, atime_ns, mtime_ns)."""
    results: list[OSError | None] = []
    for path, mode, atime_ns, mtime_ns in directories:
        try:
            os.chmod(path, mode & 0o7777)
            os.utime(path, ns=(atime_ns, mtime_ns))
            results.append(None)
        except OSError as error:
            results.append(error)
    return results
