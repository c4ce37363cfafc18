"""What happens to data that nobody names any more: freed at once if little, else queued.

`remove` and `cut_off` cost a bounded number of steps, whatever the size of the file. The
purge (see `purge`) does the rest:

- A removed inode is gone at once; its extents and extended attributes stay behind, under an
  ino that is never used again, with a row in the purge queue.
- A range cut off a file that lives on is noted as a trim (see `trims`).
"""

from itertools import islice
from typing import Final

import msgspec

from dfs.core.ids import InodeId
from dfs.core.inode import Extent, Inode, InodeFlag
from dfs.master import extents, trims
from dfs.master.context import Context
from dfs.master.keyspace import (
    XATTR,
    enqueue_purge,
    get_counters,
    inode_key,
    orphan_key,
    put_counters,
    scan_prefix,
    u64,
)
from dfs.master.transaction import Transaction

INLINE_ROWS: Final = 128
"""Extents (or extended attributes) that one operation frees by itself."""

TRIMMED: Final = int(InodeFlag.TRIMMED)
XATTRS: Final = int(InodeFlag.XATTRS)


def remove(ctx: Context, inode: Inode) -> None:
    """The inode has no name and is not open: it is gone."""
    txn = ctx.txn
    ino = inode.ino
    txn.delete(inode_key(ino))
    txn.delete(orphan_key(ino))
    counters = get_counters(txn)
    put_counters(txn, msgspec.structs.replace(counters, inodes=counters.inodes - 1))
    if inode.flags & TRIMMED:
        # It is in the queue already.
        return
    queued = False
    if inode.allocated:
        few = _few(ctx, inode, 0, extents.ALL)
        queued = few is None
        _free(ctx, ino, few or [])
    if inode.flags & XATTRS and not queued:
        queued = delete_xattrs(txn, ino, INLINE_ROWS) == 0
    if queued:
        enqueue_purge(txn, ino)


def cut_off(ctx: Context, inode: Inode, start: int, end: int) -> tuple[int, int]:
    """The bytes of [start, end) read as zero from now on.

    Returns the inode's new (allocated, flags), for the caller to store.
    """
    txn = ctx.txn
    ino = inode.ino
    if not inode.allocated:
        return 0, inode.flags
    trimmed = bool(inode.flags & TRIMMED)
    few = _few(ctx, inode, start, end)
    if few is not None:
        ctx.inline_rows -= len(few)
        ledger = extents.Ledger()
        freed = extents.cut(txn, ino, few, start, end, ledger)
        ledger.book(txn)
        if trimmed:
            trims.subtract(txn, ino, start, end)
        return inode.allocated - freed, inode.flags
    extents.split(txn, ino, start)
    extents.split(txn, ino, end)
    trims.add(txn, ino, start, end)
    if not trimmed:
        enqueue_purge(txn, ino)
    return inode.allocated, inode.flags | TRIMMED


def _few(ctx: Context, inode: Inode, start: int, end: int) -> list[Extent] | None:
    """The stored extents in a range, if they are few enough to be freed inline."""
    # Most files have one extent, at 0: a look-up is cheaper than a scan.
    limit = min(INLINE_ROWS, ctx.inline_rows)
    only = extents.only(ctx.txn, inode)
    if only is not None and limit:
        return [only] if only.end > start else []
    few = list(islice(extents.stored(ctx.txn, inode.ino, start, end), limit + 1))
    return few if len(few) <= limit else None


def _free(ctx: Context, ino: InodeId, few: list[Extent]) -> None:
    ctx.inline_rows -= len(few)
    ledger = extents.Ledger()
    for extent in few:
        extents.drop(ctx.txn, ino, extent)
        ledger.add(extent.chunk, -extent.length)
    ledger.book(ctx.txn)


def delete_xattrs(txn: Transaction, ino: InodeId, limit: int) -> int:
    """Returns what is left of `limit`; 0 means that there may be more."""
    rows = scan_prefix(txn, XATTR + u64(ino))
    for key in [key for (key, _), _ in zip(rows, range(limit), strict=False)]:
        txn.delete(key)
        limit -= 1
    return limit
