"""What a mount says of itself: a document in the extended attribute `user.dfs.mount` of its root.

So that `dfs umount` finds its process and its log, and `dfs mount` knows that it is really there.
Whoever asks a mount does so within a time: a mount process may have been stopped or hang.
"""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from dfs.core.errors import DfsError
from dfs_fuse.mount_table import Mount

T = TypeVar("T")

ATTRIBUTE: Final = "user.dfs.mount"
ASK_S: Final = 10.0


class About(msgspec.Struct):
    """The document."""

    pid: int
    pid_namespace: str
    """The pid means something only in the same one."""
    master: str
    root: str
    driver: str
    log: str
    """A file; "" for standard error."""
    version: str


class NoAnswerError(DfsError):
    """The mount did not answer in time: its process hangs, is stopped, or waits for servers."""

    default_errno = errno.ETIMEDOUT


def own_pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def ask(point: str, timeout_s: float = ASK_S) -> About:
    """What the mount at `point` says.

    Raises:
        OSError: ENOTCONN where its process is gone, EACCES where it belongs to somebody else,
            ENODATA or EOPNOTSUPP where it is no dfs mount.
        NoAnswerError: nothing within `timeout_s`.
    """
    found = within(timeout_s, lambda: os.getxattr(point, ATTRIBUTE))
    try:
        return msgspec.json.decode(found, type=About)
    except msgspec.DecodeError:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), point) from None


def process_behind(mounted: Mount) -> int | None:
    """The pid that the kernel knows, of a mount that cannot say it; None where it is not shown.

    Newer kernels tell it, and only to root or the same user.
    """
    wanted = f"fuse_connection:\t{mounted.minor}".encode()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == "/dev/fuse":
                process = link.parent.parent
                lines = (process / "fdinfo" / link.name).read_bytes().splitlines()
                if wanted in lines:
                    return int(process.name)
    return None


def within(timeout_s: float, function: Callable[[], T]) -> T:
    """What `function()` returns, called in a thread that is left alone when time is up.

    Raises:
        NoAnswerError: it took longer. What the function raises is raised here.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # A daemon: who waits inside the kernel can only be left there, and goes with the process.
    thread = threading.Thread(target=call, name="asks a mount", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if results:
        return results[0]
    raise NoAnswerError(f"no answer within {timeout_s:g} s")
