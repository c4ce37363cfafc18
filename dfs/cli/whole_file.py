"""A local file that appears under its name when it is complete, or not at all.

It is written as NAME.partial beside it, synced, then renamed. What a killed command leaves behind
is that one file, which the next one writes over.
"""

import errno
import fcntl
import os
import stat
from types import TracebackType
from typing import Self

from dfs.core.buffers import Buffer
from dfs.core.errors import ConfigError


class WholeFile:
    """A context manager; blocks. Without `finish` nothing is left of it at the end."""

    def __init__(self, path: str, *, mode: int = 0o600) -> None:
        """Raises ConfigError for what cannot be the name of a new file."""
        self.path = path
        self._mode = mode
        self._partial = path + ".partial"
        self._fd = -1
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(
                f"{path} is no regular file",
                hint="name a new file, or write to - and redirect that",
            )

    def __enter__(self) -> Self:
        """Raises OSError, ConfigError."""
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(
                f"{self._partial} is being written by another command", hint="wait for that"
            ) from None
        os.ftruncate(self._fd, 0)
        return self

    def write(self, data: Buffer) -> None:
        """Raises OSError that names the file."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def finish(self) -> None:
        """All is written: make it durable, and show it. Raises OSError that names the file."""
        try:
            os.fsync(self._fd)
            os.rename(self._partial, self.path)
            _sync_directory(os.path.dirname(os.path.abspath(self.path)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error
        self._close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            # Before the lock goes: another command may wait for the name.
            os.unlink(self._partial)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot
            raise
    finally:
        os.close(fd)
