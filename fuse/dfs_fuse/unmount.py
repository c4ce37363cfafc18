"""Ends a mount: flushes it, unmounts it, waits for its process. Also clears what a dead one left.

The mount itself says which process it is (`about`); the kernel says it of one that cannot. It is
held by a descriptor (pidfd) from before the end of its mount, so that no other is waited for or
signalled.
"""

import ctypes
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from dfs.core.errors import DfsError
from dfs_fuse import busy
from dfs_fuse.about import (
    ASK_S,
    About,
    NoAnswerError,
    ask,
    own_pid_namespace,
    process_behind,
    within,
)
from dfs_fuse.mount_table import Mount, canonical, mounted_at, mounts, shown
from dfs_fuse.preconditions import fusermount

TIMEOUT_S: Final = 120.0
_BUSY_RETRY_S: Final = 0.5
_KILLED_S: Final = 10.0
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Unmounted:
    """What was done."""

    point: str
    was_dead: bool = False
    """Its process was gone before."""
    note: str = ""
    """What the user has to know besides."""


def unmount(
    path: str, *, lazy: bool = False, force: bool = False, timeout_s: float = TIMEOUT_S
) -> Unmounted:
    """End the dfs mount at `path`; when it returns, its process is gone.

    Args:
        lazy: take a busy mount away from the tree of names; who uses it still can, and the last
            one ends its process.
        force: end it, whoever uses it, and whether it can be flushed or not.
        timeout_s: how long flushing may take, and then the end of its process.

    Raises:
        DfsError: it was not unmounted, or not all of it could be done; says why.
    """
    point = canonical(path)
    mounted = _require_dfs(point)
    try:
        about = _ask(mounted, force=force, timeout_s=timeout_s)
    except _DeadError:
        _detach(point, lazily=True)
        return Unmounted(point, was_dead=True)
    log = f"see {about.log}; " if about is not None and about.log else ""
    with _process(mounted, about) as process:
        note = "" if about is None else _flush(point, log, force=force, timeout_s=timeout_s)
        users = _detach_live(point, lazy=lazy, force=force)
        if users and not force:
            return Unmounted(point, note=f"it is out of sight, and ends when this does: {users}")
        if process is not None:
            if users:
                process.signal(signal.SIGTERM)
            note += _await_end(process, point, log, force=force, timeout_s=timeout_s)
    if users:
        note += f"it was busy: {users}"
    return Unmounted(point, note=note)


class _DeadError(Exception):
    """The mount's process has gone."""


def _ask(mounted: Mount, *, force: bool, timeout_s: float) -> About | None:
    """What the mount says of itself; None where it need not say anything.

    Raises:
        DfsError: it cannot answer, and without `force` that is the end.
    """
    name = shown(mounted.point)
    hint = "try again when the servers are back, or --force, which loses what is not yet stored"
    try:
        return ask(mounted.point, min(ASK_S, timeout_s))
    except NoAnswerError:
        if not force:
            raise DfsError(
                f"{name}: the mount does not answer: its servers are down, or its process is "
                "stopped; it stays mounted",
                errno=errno.ETIMEDOUT,
                hint=hint,
            ) from None
        _abort(mounted)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise _DeadError from None
        # EACCES: another user's, which root may unmount and may not look into.
        if error.errno != errno.EACCES and not force:
            raise DfsError(
                f"{name}: the mount answers with an error ({error.strerror}), and stays mounted",
                errno=error.errno,
                hint=hint,
            ) from None
    return None


def _require_dfs(point: str) -> Mount:
    mounted = mounted_at(point)
    if mounted is None:
        others = sorted({shown(mount.point) for mount in mounts() if mount.is_dfs})
        known = f"dfs is mounted at {', '.join(others)}" if others else "no dfs is mounted"
        raise DfsError(f"{shown(point)}: nothing is mounted here", errno=errno.EINVAL, hint=known)
    if not mounted.is_dfs:
        raise DfsError(
            f"{shown(point)}: mounted here is {mounted.kind}, and not dfs",
            errno=errno.EINVAL,
            hint="umount(8) is for that",
        )
    return mounted


def _abort(mounted: Mount) -> None:
    """Have the kernel answer all who wait for a mount whose process does not.

    That process is then told that it is no longer wanted, and ends, unless it is stopped.
    """
    with suppress(OSError), open(f"/sys/fs/fuse/connections/{mounted.minor}/abort", "wb") as file:
        file.write(b"1")


# ---------------------------------------------------------------- flushing


def _flush(point: str, log: str, *, force: bool, timeout_s: float) -> str:
    """Have the mount store all that it holds. Returns what to tell, where that was forgone."""
    try:
        within(timeout_s, lambda: _sync(point))
    except NoAnswerError:
        if force:
            return "it could not be flushed in time; "
        raise DfsError(
            f"{shown(point)}: is still being flushed after {timeout_s:g} s, and stays mounted",
            errno=errno.ETIMEDOUT,
            hint=f"{log}try again, or --force, which loses what is not stored by then",
        ) from None
    except OSError as error:
        if force:
            return f"not all of it could be flushed ({error.strerror}); "
        raise DfsError(
            f"{shown(point)}: cannot be flushed ({error.strerror}), and stays mounted",
            errno=error.errno,
            hint=f"{log}try again when the servers are back, or --force, which loses what is not "
            "stored",
        ) from None
    return ""


def _sync(point: str) -> None:
    """Of the root of a mount this stores all that the mount holds."""
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- unmounting


def _detach_live(point: str, *, lazy: bool, force: bool) -> str:
    """Unmount; returns who uses it, where it was busy and is only out of sight now."""
    end = time.monotonic() + _BUSY_RETRY_S
    while True:
        try:
            _detach(point, lazily=False)
        except DfsError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
        else:
            return ""
        users = busy.describe(point)
        if lazy or force:
            _detach(point, lazily=True)
            return users
        raise DfsError(
            f"{shown(point)}: busy: {users}",
            errno=errno.EBUSY,
            hint="end that first; or --lazy takes it out of sight until it is no longer used, "
            "--force ends it now",
        )


def _detach(point: str, *, lazily: bool) -> None:
    """umount(2), or for an ordinary user the program that may.

    Raises:
        DfsError: EBUSY, or why it may not.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)
    if _libc.umount2(os.fsencode(point), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EINVAL and mounted_at(point) is None:
        return  # somebody else has unmounted it in this moment, maybe its own process
    if number != errno.EPERM:
        raise DfsError(f"{shown(point)}: {os.strerror(number)}", errno=number)
    program = fusermount()
    if program is None:
        raise DfsError(
            f"{shown(point)}: no permission to unmount",
            errno=errno.EPERM,
            hint="that takes root, or the program fusermount3 (package fuse3)",
        )
    done = subprocess.run(
        [program, "-u", *(["-z"] if lazily else []), "--", point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode and mounted_at(point) is not None:
        words = done.stderr.decode(errors="replace").strip()
        is_busy = "busy" in words
        raise DfsError(
            f"{shown(point)}: {words or 'cannot be unmounted'}",
            errno=errno.EBUSY if is_busy else errno.EPERM,
        )


# ---------------------------------------------------------------- its process


@dataclass(frozen=True, slots=True)
class _Process:
    """The mount's process, held by a descriptor: no other gets its number meanwhile."""

    pid: int
    descriptor: int

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def has_ended(self, timeout_s: float) -> bool:
        """Wait for it."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


@contextmanager
def _process(mounted: Mount, about: About | None) -> Iterator[_Process | None]:
    """The process behind the mount; None where it cannot be seen, or has ended."""
    if about is not None and about.pid_namespace == own_pid_namespace():
        pid: int | None = about.pid
    else:
        pid = process_behind(mounted)
    try:
        descriptor = None if pid is None else os.pidfd_open(pid)
    except OSError:
        descriptor = None
    if pid is None or descriptor is None:
        yield None
        return
    try:
        yield _Process(pid, descriptor)
    finally:
        os.close(descriptor)


def _await_end(process: _Process, point: str, log: str, *, force: bool, timeout_s: float) -> str:
    """Wait until it has ended. With `force`, see to it; returns what to tell about that."""
    if process.has_ended(timeout_s):
        return ""
    if not force:
        raise DfsError(
            f"{shown(point)}: is unmounted, but its process (pid {process.pid}) still stores what "
            f"was written, after {timeout_s:g} s",
            errno=errno.ETIMEDOUT,
            hint=f"{log}wait for it, or kill it, which loses what is not stored",
        )
    process.signal(signal.SIGKILL)
    process.has_ended(_KILLED_S)
    return f"its process (pid {process.pid}) had to be killed; "
