"""chmod, chown, utimens and truncate (one operation, SetAttr), and the policy of an inode."""

import errno
import stat

from msgspec.structs import replace as changed

from dfs.core.errors import FileSystemError, refuse
from dfs.core.inode import Inode
from dfs.core.permissions import (
    WRITE,
    allowed_mode,
    in_group,
    may,
    mode_after_chown,
    refused,
    require_owner,
)
from dfs.master import file_data, sessions
from dfs.master.context import Context
from dfs.master.keyspace import get_inode, get_policy, put_inode
from dfs.master.limits import check_id, check_size, check_time
from dfs.wire.messages import SetAttr, SetPolicy


def set_attr(ctx: Context, op: SetAttr) -> Inode:
    """All or nothing: every right is checked before the first field changes.

    Order as in `cp -p`: truncate, chown, chmod (an explicit mode outlives what chown clears),
    times last.
    """
    inode = get_inode(ctx.txn, op.ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {op.ino}")
    before = inode
    if op.size is not None:
        inode = file_data.regular_file(ctx, op.ino)
        size = check_size(op.size)
        sessions.require_data(ctx, inode, WRITE)
    if op.uid is not None or op.gid is not None:
        _require_chown(ctx, inode, op.uid, op.gid)
    if op.mode is not None:
        if stat.S_ISLNK(inode.mode):
            raise refused(errno.EOPNOTSUPP, inode)
        require_owner(inode, ctx.cred)
    _require_times(ctx, inode, op)

    if op.size is not None:
        inode = file_data.truncated(ctx, inode, size)
    if op.uid is not None or op.gid is not None:
        if not stat.S_ISDIR(inode.mode):
            file_data.drop_capability(ctx, inode)
        inode = changed(
            inode,
            uid=inode.uid if op.uid is None else op.uid,
            gid=inode.gid if op.gid is None else op.gid,
            mode=mode_after_chown(inode, ctx.cred),
        )
    if op.mode is not None:
        mode = stat.S_IFMT(inode.mode) | allowed_mode(op.mode, inode.gid, ctx.cred)
        inode = changed(inode, mode=mode)
    inode = _with_times(ctx, inode, op)
    if inode is before:
        return inode
    inode = changed(inode, ctime_ns=ctx.now)
    put_inode(ctx.txn, inode)
    return inode


def _require_chown(ctx: Context, inode: Inode, uid: int | None, gid: int | None) -> None:
    """Root may all; the owner may keep the owner and give a group of theirs. Raises EPERM."""
    cred = ctx.cred
    if uid is not None:
        check_id(uid)
    if gid is not None:
        check_id(gid)
    if cred.uid == 0:
        return
    if cred.uid != inode.uid:
        raise refused(errno.EPERM, inode)
    if uid is not None and uid != inode.uid:
        raise refused(errno.EPERM, inode)
    if gid is not None and gid != inode.gid and not in_group(cred, gid):
        raise refused(errno.EPERM, inode)


def _require_times(ctx: Context, inode: Inode, op: SetAttr) -> None:
    """Own times are the owner's to set; "both to now" also takes a right to write."""
    check_time(op.atime_ns)
    check_time(op.mtime_ns)
    if op.atime_now and op.mtime_now:
        if ctx.cred.uid != inode.uid and not may(inode, ctx.cred, WRITE):
            raise refused(errno.EACCES, inode)
    elif _sets_times(op):
        require_owner(inode, ctx.cred)


def _sets_times(op: SetAttr) -> bool:
    return op.atime_now or op.mtime_now or op.atime_ns is not None or op.mtime_ns is not None


def _with_times(ctx: Context, inode: Inode, op: SetAttr) -> Inode:
    if not _sets_times(op):
        return inode
    atime_ns, mtime_ns = inode.atime_ns, inode.mtime_ns
    if op.atime_now:
        atime_ns = ctx.now
    elif op.atime_ns is not None:
        atime_ns = op.atime_ns
    if op.mtime_now:
        mtime_ns = ctx.now
    elif op.mtime_ns is not None:
        mtime_ns = op.mtime_ns
    return changed(inode, atime_ns=atime_ns, mtime_ns=mtime_ns)


def set_policy(ctx: Context, op: SetPolicy) -> Inode:
    """Raises EPERM for who does not own it, EINVAL for an unknown policy or a special file."""
    inode = get_inode(ctx.txn, op.ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {op.ino}")
    require_owner(inode, ctx.cred)
    if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        raise refused(errno.EINVAL, inode)
    require_policy(ctx, op.policy)
    inode = changed(inode, policy=op.policy, ctime_ns=ctx.now)
    put_inode(ctx.txn, inode)
    return inode


def require_policy(ctx: Context, policy: int) -> None:
    """Raises EINVAL."""
    if policy < 0 or get_policy(ctx.txn, policy) is None:
        raise FileSystemError(
            f"there is no policy {policy}", errno=errno.EINVAL, hint="see `dfs policy list`"
        )
