"""Operations on names: create, mkdir, mknod, symlink, link, unlink, rmdir, unnamed files, put.

Each takes the context and the operation, returns the inode after it (None if it is gone), and
raises FileSystemError with the errno Linux would give. `rename` has a module of its own;
`operations` is the table of all of them.
"""

import errno
import stat

from msgspec.structs import replace as changed

from dfs.core.errors import refuse
from dfs.core.ids import LINK_MAX, SYMLINK_MAX_BYTES, InodeId
from dfs.core.inode import Inode
from dfs.core.permissions import (
    allowed_mode,
    in_group,
    refused,
    require_removable,
    shown,
)
from dfs.master import extents, sessions
from dfs.master.attributes import require_policy
from dfs.master.context import Context
from dfs.master.directories import (
    delete_entry,
    entry,
    existing,
    insert,
    new_inode,
    parent_of,
    require_free,
    require_insertable,
    touch,
    unlinked,
)
from dfs.master.keyspace import (
    Orphan,
    get_dentry,
    get_inode,
    orphan_key,
    put_dentry,
    put_inode,
)
from dfs.master.limits import check_id, check_size, check_time
from dfs.wire.messages import (
    Create,
    Link,
    Mkdir,
    Mknod,
    Put,
    Rmdir,
    Symlink,
    Unlink,
    Unnamed,
)

_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NODES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES)
_RDEV_MAX = (1 << 32) - 1


def create(ctx: Context, op: Create) -> Inode:
    dots = errno.EEXIST if op.exclusive else errno.EISDIR
    parent = parent_of(ctx, op.parent, op.name, dots=dots)
    found = get_dentry(ctx.txn, parent.ino, op.name)
    if found is not None:
        if op.exclusive:
            raise refuse(errno.EEXIST, shown(op.name))
        inode = existing(ctx.txn, found)
        if stat.S_ISDIR(inode.mode):
            raise refuse(errno.EISDIR, shown(op.name))
        return sessions.open_inode(ctx, inode, op.access) if op.open else inode
    require_insertable(ctx, parent)
    inode = new_inode(ctx, parent, stat.S_IFREG | op.mode & 0o7777, ino=op.ino)
    insert(ctx, parent, op.name, inode)
    return sessions.grant(ctx, inode, sessions.CREATED_ACCESS) if op.open else inode


def mkdir(ctx: Context, op: Mkdir) -> Inode:
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EEXIST)
    require_free(ctx, parent, op.name)
    # Set-id bits are not mkdir's to give; a setgid parent hands on its own.
    inode = new_inode(ctx, parent, stat.S_IFDIR | op.mode & 0o1777, nlink=2)
    insert(ctx, parent, op.name, inode)
    return inode


def mknod(ctx: Context, op: Mknod) -> Inode:
    kind = stat.S_IFMT(op.mode) or stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise refuse(errno.EPERM, shown(op.name))
    if kind not in _NODES or not 0 <= op.rdev <= _RDEV_MAX:
        raise refuse(errno.EINVAL, shown(op.name))
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EEXIST)
    require_free(ctx, parent, op.name)
    if kind in _DEVICES and ctx.cred.uid != 0:
        raise refuse(errno.EPERM, shown(op.name))
    rdev = op.rdev if kind in _DEVICES else 0
    inode = new_inode(ctx, parent, kind | op.mode & 0o7777, rdev=rdev)
    insert(ctx, parent, op.name, inode)
    return inode


def symlink(ctx: Context, op: Symlink) -> Inode:
    if not op.target:
        raise refuse(errno.ENOENT, "empty target")
    if len(op.target) > SYMLINK_MAX_BYTES:
        raise refuse(errno.ENAMETOOLONG, "target of a symbolic link")
    if b"\0" in op.target:
        raise refuse(errno.EINVAL, "target of a symbolic link")
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EEXIST)
    require_free(ctx, parent, op.name)
    mode = stat.S_IFLNK | 0o777
    inode = new_inode(ctx, parent, mode, size=len(op.target), target=op.target)
    insert(ctx, parent, op.name, inode)
    return inode


def unnamed(ctx: Context, op: Unnamed) -> Inode:
    """Needs the rights of a create in `parent`, as O_TMPFILE does."""
    parent = parent_of(ctx, op.parent, b"unnamed", dots=errno.EISDIR)
    require_insertable(ctx, parent)
    inode = new_inode(ctx, parent, stat.S_IFREG | op.mode & 0o7777, nlink=0)
    put_inode(ctx.txn, inode)
    ctx.txn.put(orphan_key(inode.ino), bytes((Orphan.UNNAMED,)))
    return sessions.grant(ctx, inode, sessions.CREATED_ACCESS)


def link(ctx: Context, op: Link) -> Inode:
    txn = ctx.txn
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EEXIST)
    inode = get_inode(txn, op.ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {op.ino}")
    found = get_dentry(txn, parent.ino, op.name)
    if found is not None and not op.replace:
        raise refuse(errno.EEXIST, shown(op.name))
    require_insertable(ctx, parent)
    if stat.S_ISDIR(inode.mode):
        raise refused(errno.EPERM, inode)
    if inode.nlink == 0:
        _adopt_unnamed(ctx, inode)
    if inode.nlink >= LINK_MAX:
        raise refused(errno.EMLINK, inode)
    if found == inode.ino:
        return inode
    victim = None if found is None else _replaceable(ctx, parent, found)
    inode = changed(inode, nlink=inode.nlink + 1, ctime_ns=ctx.now)
    put_inode(txn, inode)
    _name(ctx, parent, op.name, inode, victim)
    return inode


def _adopt_unnamed(ctx: Context, inode: Inode) -> None:
    """Only an inode made without a name gets one, by the session that made it. Raises ENOENT."""
    unnamed = ctx.txn.get(orphan_key(inode.ino)) == bytes((Orphan.UNNAMED,))
    if not (unnamed and sessions.granted(ctx.txn, inode, ctx.session)):
        raise refused(errno.ENOENT, inode)
    ctx.txn.delete(orphan_key(inode.ino))


def _replaceable(ctx: Context, parent: Inode, ino: InodeId) -> Inode:
    """What has the name now, and may lose it. Raises EISDIR, EACCES, EPERM."""
    victim = existing(ctx.txn, ino)
    require_removable(parent, victim, ctx.cred)
    if stat.S_ISDIR(victim.mode):
        raise refused(errno.EISDIR, victim)
    return victim


def _name(ctx: Context, parent: Inode, name: bytes, inode: Inode, victim: Inode | None) -> None:
    """`name` leads to `inode` from now on, instead of to `victim`.

    The victim goes last: it may hold the last live bytes of a chunk that `inode` needs too.
    """
    put_dentry(ctx.txn, parent.ino, name, inode.ino)
    touch(ctx, parent, entries=0 if victim is not None else 1)
    if victim is not None:
        unlinked(ctx, victim)


def unlink(ctx: Context, op: Unlink) -> Inode | None:
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EISDIR)
    victim = entry(ctx, parent, op.name)
    require_removable(parent, victim, ctx.cred)
    if stat.S_ISDIR(victim.mode):
        raise refuse(errno.EISDIR, shown(op.name))
    delete_entry(ctx, parent, op.name)
    touch(ctx, parent, entries=-1)
    return unlinked(ctx, victim)


def rmdir(ctx: Context, op: Rmdir) -> Inode | None:
    dots = errno.EINVAL if op.name == b"." else errno.ENOTEMPTY
    parent = parent_of(ctx, op.parent, op.name, dots=dots)
    victim = entry(ctx, parent, op.name)
    require_removable(parent, victim, ctx.cred)
    if not stat.S_ISDIR(victim.mode):
        raise refuse(errno.ENOTDIR, shown(op.name))
    if victim.size:
        raise refuse(errno.ENOTEMPTY, shown(op.name))
    delete_entry(ctx, parent, op.name)
    touch(ctx, parent, entries=-1, subdirectories=-1)
    return unlinked(ctx, victim)


def put(ctx: Context, op: Put) -> Inode:
    txn = ctx.txn
    parent = parent_of(ctx, op.parent, op.name, dots=errno.EISDIR)
    found = get_dentry(txn, parent.ino, op.name)
    if found is not None and not op.replace:
        raise refuse(errno.EEXIST, shown(op.name))
    require_insertable(ctx, parent)
    _check_put(ctx, parent, op)
    victim = None if found is None else _replaceable(ctx, parent, found)
    inode = new_inode(
        ctx,
        parent,
        stat.S_IFREG | op.mode & 0o7777,
        size=op.size,
        uid=op.uid,
        gid=op.gid,
        mtime_ns=op.mtime_ns,
        policy=op.policy,
    )
    if op.gid is not None:
        mode = stat.S_IFREG | allowed_mode(op.mode, op.gid, ctx.cred)
        inode = changed(inode, mode=mode)
    if op.extents:
        ledger = extents.Ledger()
        allocated = extents.fill(txn, inode.ino, op.extents, ledger)
        ledger.book(txn)
        inode = changed(inode, allocated=allocated, version=1)
    put_inode(txn, inode)
    _name(ctx, parent, op.name, inode, victim)
    return inode


def _check_put(ctx: Context, parent: Inode, op: Put) -> None:
    """Raises EINVAL, EFBIG, EPERM, ESTALE."""
    check_time(op.mtime_ns)
    if op.uid is not None and check_id(op.uid) != ctx.cred.uid and ctx.cred.uid != 0:
        raise refuse(errno.EPERM, shown(op.name))
    if op.gid is not None:
        _require_group(ctx, parent, check_id(op.gid))
    if op.policy:
        require_policy(ctx, op.policy)
    check_size(op.size)
    if op.extents:
        extents.check(ctx.txn, ctx.session, op.extents, 0)
        if not extents.ascending(op.extents) or op.extents[-1].end > op.size:
            raise refuse(errno.EINVAL, f"extents of {shown(op.name)}")


def _require_group(ctx: Context, parent: Inode, gid: int) -> None:
    """A group that is neither the caller's nor handed on by the directory is root's to give."""
    handed_on = parent.mode & stat.S_ISGID and gid == parent.gid
    if not (handed_on or ctx.cred.uid == 0 or in_group(ctx.cred, gid)):
        raise refuse(errno.EPERM, f"group {gid}")
