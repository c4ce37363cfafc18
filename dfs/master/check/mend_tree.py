"""Fixes of names and directories: what has no place is put into `/lost+found`."""

import stat
from itertools import islice
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.errors import DfsError
from dfs.core.ids import DEFAULT_POLICY, LINK_MAX, ROOT_INODE
from dfs.core.inode import Extent, Inode
from dfs.master import extents
from dfs.master import keyspace as keys
from dfs.master.check import fixes
from dfs.master.check.lookups import has_rows, sound_inode
from dfs.master.check.mend_rows import COUNTED_EXTENTS
from dfs.master.context import Context
from dfs.master.directories import insert, new_inode, touch
from dfs.master.keyspace import (
    get_counters,
    get_dentry,
    put_counters,
    put_inode,
    u64,
)
from dfs.master.removal import XATTRS

LOST_AND_FOUND: Final = b"lost+found"


def recreate_inode(ctx: Context, fix: fixes.RecreateInode) -> bool:
    txn, ino = ctx.txn, fix.ino
    if txn.get(keys.inode_key(ino)) is not None:
        return False
    is_root = ino == ROOT_INODE
    kind = stat.S_IFDIR | (0o755 if is_root else 0o700) if fix.directory else stat.S_IFREG | 0o600
    few: list[Extent] = []
    size = 0
    if not fix.directory:
        rows = extents.starting_in(txn, ino, 0, extents.ALL)
        few = list(islice(rows, COUNTED_EXTENTS))
        backwards = txn.scan(
            keys.extent_key(ino, 0), keys.extent_key(ino, extents.ALL), reverse=True
        )
        last = next(backwards, None)
        size = 0 if last is None else keys.decode_extent(last[1]).end
    # The next check counts what is in it.
    inode = Inode(
        ino,
        kind,
        2 if fix.directory else max(1, fix.names),
        0,
        0,
        size,
        ctx.now,
        ctx.now,
        ctx.now,
        DEFAULT_POLICY,
        allocated=sum(extent.length for extent in few),
        parent=fix.parent if fix.directory else 0,
        flags=XATTRS if has_rows(txn, keys.XATTR + u64(ino)) else 0,
    )
    counters = get_counters(txn)
    put_counters(
        txn,
        changed(
            counters,
            inodes=counters.inodes + 1,
            next_inode=max(counters.next_inode, ino + 1),
        ),
    )
    if fix.names:
        put_inode(txn, inode)
    else:
        _put_into_lost_and_found(ctx, inode)
    return True


def drop_entry(ctx: Context, fix: fixes.DropEntry) -> bool:
    txn = ctx.txn
    if get_dentry(txn, fix.parent, fix.name) != fix.ino:
        return False
    parent, inode = sound_inode(txn, fix.parent), sound_inode(txn, fix.ino)
    if parent is not None and parent.is_dir and inode is not None and not inode.is_dir:
        return False
    _take_entry(ctx, parent, fix.name, inode)
    return True


def _take_entry(ctx: Context, parent: Inode | None, name: bytes, inode: Inode | None) -> None:
    if parent is None:
        return
    ctx.txn.delete(keys.dentry_key(parent.ino, name))
    if parent.is_dir:
        is_directory = inode is not None and inode.is_dir
        touch(ctx, parent, entries=-1, subdirectories=-int(is_directory))


def set_parent(ctx: Context, fix: fixes.SetParent) -> bool:
    inode = sound_inode(ctx.txn, fix.ino)
    if inode is None or get_dentry(ctx.txn, fix.parent, fix.name) != fix.ino:
        return False
    put_inode(ctx.txn, changed(inode, parent=fix.parent))
    return inode.is_dir


def rescue(ctx: Context, fix: fixes.Rescue) -> bool:
    txn = ctx.txn
    inode = sound_inode(txn, fix.ino)
    if inode is None or not 0 < inode.nlink + fix.nlink <= LINK_MAX:
        return False
    if fix.parent:
        if get_dentry(txn, fix.parent, fix.name) != fix.ino:
            return False
        _take_entry(ctx, sound_inode(txn, fix.parent), fix.name, inode)
        # A directory may have been in itself.
        inode = sound_inode(txn, fix.ino) or inode
    elif inode.nlink == 0 and has_rows(txn, keys.OPEN + u64(fix.ino)) and not inode.size:
        return False
    txn.delete(keys.orphan_key(fix.ino))
    _put_into_lost_and_found(ctx, changed(inode, nlink=inode.nlink + fix.nlink))
    return True


def _put_into_lost_and_found(ctx: Context, inode: Inode) -> None:
    """Its `nlink` counts the name that it gets."""
    place = _lost_and_found(ctx)
    name = b"#%d" % inode.ino
    while get_dentry(ctx.txn, place.ino, name) is not None:
        name += b"~"
    if inode.is_dir:
        inode = changed(inode, parent=place.ino)
    insert(ctx, place, name, inode)


def _lost_and_found(ctx: Context) -> Inode:
    """For root only: who may see what is in there is not known."""
    txn = ctx.txn
    root = sound_inode(txn, ROOT_INODE)
    if root is None or not root.is_dir:
        raise DfsError("there is no root directory to put anything into")
    name = LOST_AND_FOUND
    while (ino := get_dentry(txn, ROOT_INODE, name)) is not None:
        found = sound_inode(txn, ino)
        if found is not None and found.is_dir:
            return found
        name += b"~"
    made = new_inode(ctx, root, stat.S_IFDIR | 0o700, nlink=2)
    insert(ctx, root, name, made)
    return made
