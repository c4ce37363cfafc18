"""POSIX permission rules, as Linux has them: pure functions over an inode and a caller.

Master and client decide by the same rules: a client that has a directory to itself refuses what
the master would. uid 0 stands for all capabilities: it reads and writes everything, searches every
directory, and executes a file that anybody may execute.
"""

import errno
import stat
from typing import Final, Protocol

import msgspec

from dfs.core.errors import FileSystemError, refuse
from dfs.core.inode import Inode

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1
"""Values of access(2). The execute bit, as it is called on a directory."""
WRITE_SEARCH: Final = WRITE | SEARCH
"""What changing a directory's entries takes."""

_ANY_EXECUTE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


class Cred(Protocol):
    """Who asks."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> tuple[int, ...]: ...


def shown(name: bytes) -> str:
    """A name for a message: one printable line, whatever the bytes."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def refused(number: int, inode: Inode) -> FileSystemError:
    return refuse(number, f"inode {inode.ino}")


def in_group(cred: Cred, gid: int) -> bool:
    return cred.gid == gid or gid in cred.groups


def may(inode: Inode, cred: Cred, want: int) -> bool:
    """Whether the mode bits give `cred` all of `want` (Access bits)."""
    mode = inode.mode
    if cred.uid == 0:
        return not want & SEARCH or stat.S_ISDIR(mode) or bool(mode & _ANY_EXECUTE)
    if cred.uid == inode.uid:
        return (mode >> 6) & want == want
    if cred.gid == inode.gid or inode.gid in cred.groups:
        return (mode >> 3) & want == want
    return mode & want == want


def require(inode: Inode, cred: Cred, want: int) -> None:
    """Raises EACCES."""
    if not may(inode, cred, want):
        raise refused(errno.EACCES, inode)


def is_owner(inode: Inode, cred: Cred) -> bool:
    return cred.uid in (0, inode.uid)


def require_owner(inode: Inode, cred: Cred) -> None:
    """Raises EPERM unless `cred` owns the inode or is root."""
    if cred.uid not in (0, inode.uid):
        raise refused(errno.EPERM, inode)


def require_removable(directory: Inode, victim: Inode, cred: Cred) -> None:
    """An entry of `directory` that leads to `victim` is to go. Raises EACCES or (sticky) EPERM."""
    require(directory, cred, WRITE_SEARCH)
    if directory.mode & stat.S_ISVTX and cred.uid not in (0, victim.uid, directory.uid):
        raise refused(errno.EPERM, victim)


def mode_after_write(inode: Inode, cred: Cred) -> int:
    """Data changed: set-id bits go, unless root changed it (file_remove_privs)."""
    mode = inode.mode
    if cred.uid == 0 or not mode & (stat.S_ISUID | stat.S_ISGID):
        return mode
    return _without_set_id(inode, cred)


def mode_after_chown(inode: Inode, cred: Cred) -> int:
    """Owner or group are being set: set-id bits go, also when root does it; not on directories."""
    if stat.S_ISDIR(inode.mode):
        return inode.mode
    return _without_set_id(inode, cred)


def _without_set_id(inode: Inode, cred: Cred) -> int:
    # S_ISGID without group execute is a lock marker, no privilege: a member of the group keeps it.
    mode = inode.mode & ~stat.S_ISUID
    if mode & stat.S_ISGID and (
        mode & stat.S_IXGRP or not (cred.uid == 0 or in_group(cred, inode.gid))
    ):
        mode &= ~stat.S_ISGID
    return mode


def allowed_mode(mode: int, gid: int, cred: Cred) -> int:
    """Permission bits that `cred` may give an inode of group `gid`: S_ISGID is for members."""
    mode &= 0o7777
    if mode & stat.S_ISGID and cred.uid != 0 and not in_group(cred, gid):
        mode &= ~stat.S_ISGID
    return mode


class Ownership(msgspec.Struct, frozen=True):
    mode: int
    gid: int


def inherited(parent: Inode, mode: int, cred: Cred) -> Ownership:
    """Mode and group of a new inode: a setgid directory hands on its group (inode_init_owner)."""
    if not parent.mode & stat.S_ISGID:
        return Ownership(mode, cred.gid)
    if stat.S_ISDIR(mode):
        return Ownership(mode | stat.S_ISGID, parent.gid)
    executable = stat.S_ISGID | stat.S_IXGRP
    if mode & executable == executable and cred.uid != 0 and not in_group(cred, parent.gid):
        mode &= ~stat.S_ISGID
    return Ownership(mode, parent.gid)
