"""Directories from the inside: finding an entry to change, adding and taking entries.

Refusals come in Linux's order: the directory itself (ENOENT, ENOTDIR), the right to search it
(EACCES), the name, whether the entry is there, and only then the right to change it.
"""

import errno
import stat
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.errors import DfsError, refuse
from dfs.core.ids import LINK_MAX, NAME_MAX_BYTES, InodeId, PolicyId
from dfs.core.inode import Inode
from dfs.core.permissions import (
    SEARCH,
    WRITE_SEARCH,
    inherited,
    may,
    refused,
    require,
    shown,
)
from dfs.master import delegations, removal, sessions
from dfs.master.context import Context
from dfs.master.keyspace import (
    Orphan,
    Reader,
    dentry_key,
    get_counters,
    get_dentry,
    get_inode,
    orphan_key,
    put_counters,
    put_dentry,
    put_inode,
)
from dfs.wire.messages import Cred

DOTS: Final = (b".", b"..")


def check_name(name: bytes) -> None:
    """Raises ENOENT (empty), ENAMETOOLONG, EINVAL (a slash or NUL)."""
    if not name:
        raise refuse(errno.ENOENT, "empty name")
    if len(name) > NAME_MAX_BYTES:
        raise refuse(errno.ENAMETOOLONG, f"{shown(name[:32])}...")
    if b"/" in name or b"\0" in name:
        raise refuse(errno.EINVAL, shown(name))


def directory(reader: Reader, cred: Cred, ino: InodeId) -> Inode:
    """A directory that `cred` may search. Raises ENOENT, ENOTDIR, EACCES."""
    inode = get_inode(reader, ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {ino}")
    if not stat.S_ISDIR(inode.mode):
        raise refused(errno.ENOTDIR, inode)
    if not may(inode, cred, SEARCH):
        raise refused(errno.EACCES, inode)
    return inode


def parent_of(ctx: Context, parent: InodeId, name: bytes, *, dots: int) -> Inode:
    """The directory to change an entry `name` of; `dots` is the errno for b"." and b".."."""
    inode = directory(ctx.txn, ctx.cred, parent)
    if name in DOTS:
        raise refuse(dots, shown(name))
    check_name(name)
    return inode


def entry(ctx: Context, parent: Inode, name: bytes) -> Inode:
    """The inode an entry leads to. Raises ENOENT."""
    ino = get_dentry(ctx.txn, parent.ino, name)
    if ino is None:
        raise refuse(errno.ENOENT, shown(name))
    return existing(ctx.txn, ino)


def existing(reader: Reader, ino: InodeId) -> Inode:
    """The inode of an entry: there is one, or the store is damaged."""
    inode = get_inode(reader, ino)
    if inode is None:
        raise DfsError(f"an entry names inode {ino}, which does not exist; run fsck")
    return inode


def require_free(ctx: Context, parent: Inode, name: bytes) -> None:
    """`name` can be made in `parent`. Raises EEXIST, then what `require_insertable` raises."""
    if get_dentry(ctx.txn, parent.ino, name) is not None:
        raise refuse(errno.EEXIST, shown(name))
    require_insertable(ctx, parent)


def require_insertable(ctx: Context, parent: Inode) -> None:
    """Raises ENOENT in a removed directory, EACCES."""
    if parent.nlink == 0:
        raise refused(errno.ENOENT, parent)
    require(parent, ctx.cred, WRITE_SEARCH)


def new_inode(
    ctx: Context,
    parent: Inode,
    mode: int,
    *,
    nlink: int = 1,
    size: int = 0,
    rdev: int = 0,
    target: bytes = b"",
    uid: int | None = None,
    gid: int | None = None,
    mtime_ns: int | None = None,
    policy: PolicyId = 0,
    ino: InodeId = 0,
) -> Inode:
    """A fresh ino and its record, counted but not stored. `mode` has the type; rights are checked.

    What is not given is taken from the caller, the clock and the parent; `ino` from what is
    reserved for the session.
    """
    txn, now = ctx.txn, ctx.now
    owner = inherited(parent, mode, ctx.cred)
    counters = get_counters(txn)
    next_inode = counters.next_inode
    if ino:
        delegations.use_reserved(ctx, ino)
    else:
        ino, next_inode = next_inode, next_inode + 1
    put_counters(txn, changed(counters, next_inode=next_inode, inodes=counters.inodes + 1))
    return Inode(
        ino,
        owner.mode,
        nlink,
        ctx.cred.uid if uid is None else uid,
        owner.gid if gid is None else gid,
        size,
        now,
        now if mtime_ns is None else mtime_ns,
        now,
        policy or parent.policy,
        rdev=rdev,
        parent=parent.ino if stat.S_ISDIR(mode) else 0,
        target=target,
    )


def insert(ctx: Context, parent: Inode, name: bytes, inode: Inode) -> None:
    """Store `inode` and a new entry for it; its `nlink` counts the entry already.

    Raises EMLINK where a directory has as many sub-directories as there may be.
    """
    subdirectory = stat.S_ISDIR(inode.mode)
    if subdirectory and parent.nlink >= LINK_MAX:
        raise refused(errno.EMLINK, parent)
    put_inode(ctx.txn, inode)
    put_dentry(ctx.txn, parent.ino, name, inode.ino)
    touch(ctx, parent, entries=1, subdirectories=int(subdirectory))


def touch(ctx: Context, parent: Inode, *, entries: int = 0, subdirectories: int = 0) -> None:
    """Store a directory whose entries changed."""
    put_inode(
        ctx.txn,
        changed(
            parent,
            nlink=parent.nlink + subdirectories,
            size=parent.size + entries,
            mtime_ns=ctx.now,
            ctime_ns=ctx.now,
        ),
    )


def delete_entry(ctx: Context, parent: Inode, name: bytes) -> None:
    """Only the entry: `touch` and `unlinked` are the caller's."""
    ctx.txn.delete(dentry_key(parent.ino, name))


def unlinked(ctx: Context, inode: Inode) -> Inode | None:
    """One entry of `inode` is gone (for a directory: the only one).

    With the last it goes too, unless it is open; then it lives on as an orphan.
    """
    nlink = inode.nlink - 1
    if stat.S_ISDIR(inode.mode):
        nlink = 0
        delegations.forget(ctx.txn, inode.ino)
    if nlink == 0:
        if not sessions.is_open(ctx.txn, inode):
            removal.remove(ctx, inode)
            return None
        ctx.txn.put(orphan_key(inode.ino), bytes((Orphan.UNLINKED,)))
    inode = changed(inode, nlink=nlink, ctime_ns=ctx.now)
    put_inode(ctx.txn, inode)
    return inode
