"""A disk that falls ill at will: a FUSE mount that passes everything on to a directory.

`SickDisk` is the test's side. It hangs while its process is stopped; it is full, or answers writes
with an error, while the process is told so through a file beside the directory.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.cluster import environment

START_S: Final = 20.0


def is_possible() -> bool:
    """Whether this machine can mount FUSE file systems."""
    return os.access("/dev/fuse", os.W_OK)


class SickDisk:
    """Use as a context manager."""

    def __init__(self, path: Path, aside: Path) -> None:
        """The disk is `path`; what it holds, and how it is, is kept in `aside`."""
        self.path = path
        self._behind = aside / "behind"
        self._sickness = aside / "sickness"
        for each in (self.path, self._behind):
            each.mkdir(parents=True)
        self._sickness.touch()

    def __enter__(self) -> "SickDisk":
        argv = [sys.executable, "-m", "tests.sick_disk"]
        argv += [str(self._behind), str(self.path), str(self._sickness)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment())
        end = time.monotonic() + START_S
        while not self.path.is_mount():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.path} is not mounted")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.wake()
        for tool in ("fusermount3", "fusermount"):
            with contextlib.suppress(FileNotFoundError):
                if not subprocess.run([tool, "-uz", self.path], check=False).returncode:
                    break
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(START_S)

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def sick(self, error: int) -> Iterator[None]:
        """Every write fails with this errno."""
        self._sickness.write_text(str(error))
        try:
            yield
        finally:
            self._sickness.write_text("")


# ------------------------------------------------------------------ the process


class _PassOn:
    """fusepy's operations. Without `flush`: nobody that ends shall wait for this disk."""

    use_ns = True

    def __init__(self, root: str, sickness: str) -> None:
        self._root = root
        self._sickness = sickness

    def __call__(self, name: str, path: str, *args: Any) -> Any:
        return getattr(self, name)(self._root + path, *args)

    def _writes(self) -> None:
        with open(self._sickness, encoding="ascii") as file:
            if error := file.read():
                raise OSError(int(error), os.strerror(int(error)))

    def init(self, *_: Any) -> None: ...

    def destroy(self, *_: Any) -> None: ...

    def access(self, path: str, mode: int) -> None:
        if not os.access(path, mode):
            raise OSError(errno.EACCES, path)

    def getattr(self, path: str, *_: Any) -> dict[str, int]:
        found = os.lstat(path)
        names = "mode ino nlink uid gid size blocks".split()
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime")}
        return {f"st_{name}": getattr(found, f"st_{name}") for name in names} | times

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(path)
        names = "bsize frsize blocks bfree bavail files ffree favail namemax".split()
        answer = {f"f_{name}": getattr(found, f"f_{name}") for name in names}
        try:
            self._writes()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                answer |= {"f_bfree": 0, "f_bavail": 0}
        return answer

    def readdir(self, path: str, _: int) -> list[str]:
        return [".", "..", *os.listdir(path)]

    def mkdir(self, path: str, mode: int) -> None:
        self._writes()
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, self._root + new)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        os.utime(path, ns=times)

    def create(self, path: str, mode: int, *_: Any) -> int:
        self._writes()
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags & ~(os.O_DIRECT | os.O_APPEND))

    def read(self, _: str, size: int, offset: int, fd: int) -> bytes:
        return os.pread(fd, size, offset)

    def write(self, _: str, data: bytes, offset: int, fd: int) -> int:
        self._writes()
        return os.pwrite(fd, data, offset)

    def truncate(self, path: str, length: int, fd: int | None = None) -> None:
        os.truncate(path if fd is None else fd, length)

    def release(self, _: str, fd: int) -> None:
        os.close(fd)

    def fsync(self, _: str, __: int, fd: int) -> None:
        os.fdatasync(fd)

    def fsyncdir(self, path: str, *_: Any) -> None: ...

    def opendir(self, _: str) -> int:
        return 0

    def releasedir(self, *_: Any) -> None: ...


def main() -> None:
    import fuse  # loads libfuse

    root, point, sickness = sys.argv[1:]
    fuse.FUSE(_PassOn(root, sickness), point, foreground=True, nothreads=False, big_writes=True)


if __name__ == "__main__":
    main()
