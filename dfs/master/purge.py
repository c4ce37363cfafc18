"""The purge: frees in bounded steps what removals, truncations and closed sessions left behind.

One `commands.PurgeStep` is one step; the master's purge job sends them while there is work. Each
step resumes where the last one stopped, so that freeing n rows costs O(n) in all: the store has
to step over every row that was deleted lately, so nothing here may look for the first one again.
"""

from itertools import islice

import msgspec

from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.master import commands, extents, sessions, trims
from dfs.master.commands import PurgeResult
from dfs.master.keyspace import (
    LEFTOVERS,
    PURGE,
    Reader,
    dequeue_purge,
    from_u64,
    get_counters,
    get_inode,
    key_id,
    prefix_end,
    purge_key,
    put_inode,
    scan_prefix,
    trim_key,
    u64,
)
from dfs.master.removal import TRIMMED, delete_xattrs
from dfs.master.transaction import Transaction


def purge_step(txn: Transaction, command: commands.PurgeStep) -> PurgeResult:
    """Release closed sessions' leftovers first: they may add orphans to the queue."""
    budget = command.limit
    while budget > 0 and (row := next(scan_prefix(txn, LEFTOVERS), None)) is not None:
        budget = sessions.release_some(txn, command.time_ns, key_id(row[0]), budget)
        if budget > 0:
            txn.delete(row[0])
            budget -= 1
    # Each takes one of the budget at least.
    upto = command.after
    start, limit = purge_key(upto + 1), budget
    queued = list(islice(txn.scan(start, prefix_end(PURGE)), limit))
    for key, value in queued:
        budget = _purge_inode(txn, key_id(key), from_u64(value), budget)
        if budget == 0:
            break
        upto = key_id(key)
    else:
        if len(queued) < limit:
            upto = 0
    return PurgeResult(command.limit - budget, pending(txn), upto)


def pending(reader: Reader) -> bool:
    """Whether there is work for a purge step."""
    if get_counters(reader).purging:
        return True
    return next(scan_prefix(reader, LEFTOVERS), None) is not None


def _purge_inode(txn: Transaction, ino: InodeId, position: int, budget: int) -> int:
    """Returns what is left of `budget`."""
    ledger = extents.Ledger()
    inode = get_inode(txn, ino)
    if inode is None:
        budget = _purge_removed(txn, ino, position, budget, ledger)
    else:
        budget = _purge_trims(txn, inode, budget, ledger)
    ledger.book(txn)
    return budget


def _purge_removed(
    txn: Transaction, ino: InodeId, position: int, budget: int, ledger: extents.Ledger
) -> int:
    """`position`: all extents before it are freed; a resumed scan need not pass their graves."""
    taken = _take(txn, ino, position, extents.ALL, budget, ledger)
    budget -= taken.rows
    if budget > 0:
        budget = delete_xattrs(txn, ino, budget)
    if budget > 0:
        for start, _ in trims.of(txn, ino):
            txn.delete(trim_key(ino, start))
        dequeue_purge(txn, ino)
        return budget - 1
    txn.put(purge_key(ino), u64(taken.end))
    return 0


def _purge_trims(txn: Transaction, inode: Inode, budget: int, ledger: extents.Ledger) -> int:
    ino = inode.ino
    freed = 0
    for start, end in trims.of(txn, ino):
        taken = _take(txn, ino, start, end, budget, ledger)
        freed += taken.bytes
        budget -= taken.rows
        txn.delete(trim_key(ino, start))
        if budget <= 0:
            if taken.end < end:
                txn.put(trim_key(ino, taken.end), u64(end))
            break
    flags = inode.flags
    if not trims.of(txn, ino):
        flags &= ~TRIMMED
        dequeue_purge(txn, ino)
        budget -= 1
    # Neither version nor ctime: what a reader sees has not changed.
    put_inode(txn, msgspec.structs.replace(inode, allocated=inode.allocated - freed, flags=flags))
    return max(budget, 0)


class _Taken(msgspec.Struct, frozen=True):
    rows: int
    bytes: int
    end: int
    """No extent that begins before this is left in the range."""


def _take(
    txn: Transaction, ino: InodeId, start: int, end: int, limit: int, ledger: extents.Ledger
) -> _Taken:
    """Free up to `limit` extents that begin in [start, end); none reaches over its edges."""
    freed = 0
    rows = 0
    found = list(islice(extents.starting_in(txn, ino, start, end), limit + 1))
    for extent in found[:limit]:
        extents.drop(txn, ino, extent)
        ledger.add(extent.chunk, -extent.length)
        freed += extent.length
        rows += 1
    return _Taken(rows, freed, found[limit].file_offset if len(found) > limit else end)
