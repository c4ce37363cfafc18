"""Applying fixes: pure functions over a transaction, each told in `fixes`.

A fix was chosen by a check of a snapshot, and meets the state as it is by now. So each looks at
what it is about to change, and does nothing (False) where that is all right already, or has
become something else. Nothing here takes away data that somebody could want: what has no place
is put into `/lost+found`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.structs import replace as changed

from dfs.core.chunk import ChunkState
from dfs.core.errors import DfsError
from dfs.core.ids import LINK_MAX
from dfs.master import chunks
from dfs.master import keyspace as keys
from dfs.master.check import fixes
from dfs.master.check.lookups import has_rows, sound_chunk, sound_inode
from dfs.master.check.mend_rows import (
    drop_row,
    index_chunk,
    index_extent,
    index_record,
    rebuild_chunk,
    settle_extent,
    tidy_delegation,
    tidy_inode,
    tidy_open,
)
from dfs.master.check.mend_tree import drop_entry, recreate_inode, rescue, set_parent
from dfs.master.commands import MendMetadata
from dfs.master.context import Context
from dfs.master.keyspace import (
    get_counters,
    put_chunk,
    put_counters,
    put_inode,
    u64,
)
from dfs.master.transaction import Transaction
from dfs.wire.messages import Cred

_ROOT: Final = Cred(0, 0)


def mend(txn: Transaction, command: MendMetadata) -> tuple[bool, ...]:
    """Make these fixes, each by itself; which of them changed something."""
    return tuple(_mend_one(txn, command.time_ns, fix) for fix in command.fixes)


def _mend_one(txn: Transaction, time_ns: int, fix: fixes.AnyFix) -> bool:
    child = txn.child()
    ctx = Context(child, time_ns, 0, _ROOT)
    try:
        done = _FIXES[type(fix)](ctx, fix)
    except (DfsError, msgspec.MsgspecError, ValueError, OverflowError):
        # It leads to something that is damaged itself: that has to be mended first, if it can.
        return False
    if not done or all(txn.get(key) == value for key, value in child.changes.items()):
        return False
    child.commit()
    return True


def _adjust_inode(ctx: Context, fix: fixes.AdjustInode) -> bool:
    txn = ctx.txn
    inode = sound_inode(txn, fix.ino)
    if inode is None:
        return False
    nlink, size = inode.nlink + fix.nlink, inode.size + fix.size
    allocated = inode.allocated + fix.allocated
    if min(size, allocated) < 0 or (fix.nlink and not 0 < nlink <= LINK_MAX):
        return False
    if fix.nlink:
        txn.delete(keys.orphan_key(fix.ino))
    put_inode(txn, changed(inode, nlink=nlink, size=size, allocated=allocated))
    return True


def _adjust_chunk(ctx: Context, fix: fixes.AdjustChunk) -> bool:
    txn = ctx.txn
    chunk = sound_chunk(txn, fix.chunk)
    if chunk is None:
        return False
    live = chunk.live + fix.live
    if live < 0:
        return False
    chunk = changed(chunk, live=live)
    if chunk.state is not ChunkState.SEALED or live:
        put_chunk(txn, chunk)
        return True
    if has_rows(txn, keys.EXTENT_BY_CHUNK + u64(fix.chunk)):
        return False
    chunks.doom(txn, chunk)
    return True


def _adjust_counters(ctx: Context, fix: fixes.AdjustCounters) -> bool:
    counters = get_counters(ctx.txn)
    added = {
        name: getattr(counters, name) + getattr(fix, name)
        for name in (
            *("inodes", "live", "chunks", "chunks_open", "chunks_doomed"),
            *("chunks_retired", "purging", "wanting", "stale", "length", "redundancy"),
        )
    }
    raised = {
        name: max(getattr(counters, name), getattr(fix, name))
        for name in ("next_inode", "next_chunk", "next_session", "next_job")
    }
    if min(added.values()) < 0:
        return False
    put_counters(ctx.txn, changed(counters, **added, **raised))
    return True


_FIXES: Final[dict[type[fixes.Fix], Callable[[Context, Any], bool]]] = {
    fixes.TidyInode: tidy_inode,
    fixes.TidyOpen: tidy_open,
    fixes.IndexExtent: index_extent,
    fixes.SettleExtent: settle_extent,
    fixes.IndexChunk: index_chunk,
    fixes.IndexRecord: index_record,
    fixes.DropRow: drop_row,
    fixes.RebuildChunk: rebuild_chunk,
    fixes.TidyDelegation: tidy_delegation,
    fixes.RecreateInode: recreate_inode,
    fixes.DropEntry: drop_entry,
    fixes.SetParent: set_parent,
    fixes.Rescue: rescue,
    fixes.AdjustInode: _adjust_inode,
    fixes.AdjustChunk: _adjust_chunk,
    fixes.AdjustCounters: _adjust_counters,
}
