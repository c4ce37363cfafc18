"""rename(2) and its flags: replace, NOREPLACE, EXCHANGE."""

import errno
import stat
from typing import Final

import msgspec
from msgspec.structs import replace as changed

from dfs.core.errors import refuse
from dfs.core.ids import LINK_MAX, ROOT_INODE, InodeId
from dfs.core.inode import Inode
from dfs.core.permissions import WRITE, refused, require, require_removable, shown
from dfs.master.context import Context
from dfs.master.directories import (
    delete_entry,
    entry,
    existing,
    parent_of,
    require_insertable,
    touch,
    unlinked,
)
from dfs.master.keyspace import get_dentry, get_inode, put_dentry, put_inode
from dfs.wire.messages import Rename, RenameFlag

NOREPLACE: Final = int(RenameFlag.NOREPLACE)
EXCHANGE: Final = int(RenameFlag.EXCHANGE)


class _Plan(msgspec.Struct, frozen=True):
    """Both ends of a rename as they were found."""

    op: Rename
    old_parent: Inode
    new_parent: Inode
    moved: Inode
    replaced: Inode | None
    """What has the new name now."""

    @property
    def same_parent(self) -> bool:
        return self.old_parent.ino == self.new_parent.ino

    @property
    def exchange(self) -> bool:
        return self.op.flags == EXCHANGE

    @property
    def moves_dir(self) -> bool:
        return stat.S_ISDIR(self.moved.mode)

    @property
    def replaces_dir(self) -> bool:
        return self.replaced is not None and stat.S_ISDIR(self.replaced.mode)


def rename(ctx: Context, op: Rename) -> Inode:
    """Returns the inode that has the new name then."""
    if op.flags not in (0, NOREPLACE, EXCHANGE):
        raise refuse(errno.EINVAL, f"rename flags {op.flags}")
    old_parent = parent_of(ctx, op.parent, op.name, dots=errno.EBUSY)
    dots = errno.EEXIST if op.flags == NOREPLACE else errno.EBUSY
    new_parent = parent_of(ctx, op.new_parent, op.new_name, dots=dots)
    moved = entry(ctx, old_parent, op.name)
    found = get_dentry(ctx.txn, new_parent.ino, op.new_name)
    if found is None and op.flags == EXCHANGE:
        raise refuse(errno.ENOENT, shown(op.new_name))
    if found is not None and op.flags == NOREPLACE:
        raise refuse(errno.EEXIST, shown(op.new_name))
    replaced = None if found is None else existing(ctx.txn, found)
    plan = _Plan(op, old_parent, new_parent, moved, replaced)
    _refuse_cycles(ctx, plan)
    if found == moved.ino:
        return moved
    _require_rights(ctx, plan)
    if plan.exchange:
        _exchange(ctx, plan)
    else:
        _move(ctx, plan)
    return _arrived(ctx, moved, new_parent)


def _refuse_cycles(ctx: Context, plan: _Plan) -> None:
    """A directory may not go below itself (EINVAL), nor over one that holds it (ENOTEMPTY)."""
    if plan.same_parent:
        return
    if plan.moves_dir and _is_within(ctx, plan.new_parent, plan.moved.ino):
        raise refused(errno.EINVAL, plan.moved)
    replaced = plan.replaced
    if (
        replaced is not None
        and stat.S_ISDIR(replaced.mode)
        and _is_within(ctx, plan.old_parent, replaced.ino)
    ):
        raise refused(errno.EINVAL if plan.exchange else errno.ENOTEMPTY, replaced)


def _is_within(ctx: Context, directory: Inode, top: InodeId) -> bool:
    """Whether `directory` is `top` or below it. One step for each level."""
    while directory.ino != top:
        if directory.ino == ROOT_INODE:
            return False
        parent = get_inode(ctx.txn, directory.parent)
        if parent is None:
            # A removed directory that is still open: what held it may be gone.
            return False
        directory = parent
    return True


def _require_rights(ctx: Context, plan: _Plan) -> None:
    """vfs_rename's checks in its order. Raises EACCES, EPERM, ENOTDIR, EISDIR, ENOTEMPTY."""
    cred = ctx.cred
    require_removable(plan.old_parent, plan.moved, cred)
    if plan.replaced is None:
        require_insertable(ctx, plan.new_parent)
    else:
        require_removable(plan.new_parent, plan.replaced, cred)
        if not plan.exchange and plan.moves_dir != plan.replaces_dir:
            number = errno.ENOTDIR if plan.moves_dir else errno.EISDIR
            raise refuse(number, shown(plan.op.new_name))
        if plan.exchange and plan.replaces_dir and not plan.same_parent:
            require(plan.replaced, cred, WRITE)
    if plan.moves_dir and not plan.same_parent:
        # Its ".." is rewritten.
        require(plan.moved, cred, WRITE)
    if not plan.exchange and plan.replaced is not None and plan.replaces_dir and plan.replaced.size:
        raise refuse(errno.ENOTEMPTY, shown(plan.op.new_name))


def _move(ctx: Context, plan: _Plan) -> None:
    leaving = int(plan.moves_dir)
    # A replaced directory takes its ".." with it.
    arriving = leaving - int(plan.replaces_dir)
    entries = 1 if plan.replaced is None else 0
    _require_links(plan, plan.new_parent, arriving)
    delete_entry(ctx, plan.old_parent, plan.op.name)
    put_dentry(ctx.txn, plan.new_parent.ino, plan.op.new_name, plan.moved.ino)
    if plan.same_parent:
        touch(ctx, plan.new_parent, entries=entries - 1, subdirectories=arriving - leaving)
    else:
        touch(ctx, plan.old_parent, entries=-1, subdirectories=-leaving)
        touch(ctx, plan.new_parent, entries=entries, subdirectories=arriving)
    if plan.replaced is not None:
        unlinked(ctx, plan.replaced)


def _exchange(ctx: Context, plan: _Plan) -> None:
    other = plan.replaced
    assert other is not None
    put_dentry(ctx.txn, plan.new_parent.ino, plan.op.new_name, plan.moved.ino)
    put_dentry(ctx.txn, plan.old_parent.ino, plan.op.name, other.ino)
    if plan.same_parent:
        touch(ctx, plan.new_parent)
    else:
        arriving = int(plan.moves_dir) - int(plan.replaces_dir)
        _require_links(plan, plan.new_parent, arriving)
        _require_links(plan, plan.old_parent, -arriving)
        touch(ctx, plan.old_parent, subdirectories=-arriving)
        touch(ctx, plan.new_parent, subdirectories=arriving)
    _arrived(ctx, other, plan.old_parent)


def _require_links(plan: _Plan, parent: Inode, arriving: int) -> None:
    """Raises EMLINK where `parent` cannot take another sub-directory."""
    if not plan.same_parent and arriving > 0 and parent.nlink >= LINK_MAX:
        raise refused(errno.EMLINK, parent)


def _arrived(ctx: Context, inode: Inode, parent: Inode) -> Inode:
    holder = parent.ino if stat.S_ISDIR(inode.mode) else 0
    inode = changed(inode, parent=holder, ctime_ns=ctx.now)
    put_inode(ctx.txn, inode)
    return inode
