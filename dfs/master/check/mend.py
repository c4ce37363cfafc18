"""Applying fixes: pure functions over a transaction, each told in `fixes`.

A fix was chosen by a check of a snapshot, and meets the state as it is by now. So each looks at
what it is about to change, and does nothing (False) where that is all right already, or has
become something else. Nothing here takes away data that somebody could want: what has no place
is put into `/lost+found`.
"""

import stat
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec.structs import replace as changed

from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import DfsError
from dfs.core.ids import DEFAULT_POLICY, LINK_MAX, ROOT_INODE, ChunkId, InodeId
from dfs.core.inode import Extent, Inode
from dfs.master import chunks, extents, trims
from dfs.master import keyspace as keys
from dfs.master.check import fixes
from dfs.master.check.indexes import INDEXES
from dfs.master.commands import MendMetadata
from dfs.master.context import Context
from dfs.master.directories import insert, new_inode, touch
from dfs.master.keyspace import (
    Reader,
    get_chunk,
    get_counters,
    get_dentry,
    get_inode,
    get_policy,
    get_session,
    key_id,
    put_chunk,
    put_counters,
    put_inode,
    scan_prefix,
    second_id,
    u64,
)
from dfs.master.removal import TRIMMED, XATTRS
from dfs.master.sessions import OPENED
from dfs.master.transaction import Transaction
from dfs.wire.messages import Cred

LOST_AND_FOUND: Final = b"lost+found"
COUNTED_EXTENTS: Final = 16384
"""Extents of a file that one fix looks at, at most."""

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


def _has(reader: Reader, prefix: bytes) -> bool:
    return next(scan_prefix(reader, prefix), None) is not None


def _inode(reader: Reader, ino: InodeId) -> Inode | None:
    """Raises DfsError for a record that is another's: it would be stored there."""
    inode = get_inode(reader, ino)
    if inode is not None and inode.ino != ino:
        raise DfsError(f"the record of inode {ino} says {inode.ino}")
    return inode


def _chunk(reader: Reader, number: ChunkId) -> Chunk | None:
    """Raises DfsError for a record that is another's: it would be stored there."""
    chunk = get_chunk(reader, number)
    if chunk is not None and chunk.chunk != number:
        raise DfsError(f"the record of chunk {number} says {chunk.chunk}")
    return chunk


def _is_known(reader: Reader, session: int) -> bool:
    return (
        get_session(reader, session) is not None
        or reader.get(keys.leftovers_key(session)) is not None
    )


# ------------------------------------------------------------------ rows that mirror rows


def _tidy_inode(ctx: Context, fix: fixes.TidyInode) -> bool:
    txn, ino = ctx.txn, fix.ino
    inode = _inode(txn, ino)
    if inode is None:
        return _tidy_nothing(ctx, ino)
    parent, size, policy = inode.parent, inode.size, inode.policy
    if not inode.is_dir:
        parent = 0
    elif ino == ROOT_INODE:
        parent = ROOT_INODE
    if inode.is_symlink:
        size = len(inode.target)
    if get_policy(txn, policy) is None:
        policy = DEFAULT_POLICY
    flags = inode.flags
    if _has(txn, keys.XATTR + u64(ino)):
        flags |= XATTRS
    is_open = _has(txn, keys.OPEN + u64(ino))
    if is_open:
        flags |= OPENED
    flags = flags | TRIMMED if _tidy_trims(txn, ino) else flags & ~TRIMMED
    if inode.nlink:
        txn.delete(keys.orphan_key(ino))
    elif is_open and txn.get(keys.orphan_key(ino)) is None:
        txn.put(keys.orphan_key(ino), bytes((keys.Orphan.UNLINKED,)))
    put_inode(txn, changed(inode, parent=parent, size=size, policy=policy, flags=flags))
    return True


def _tidy_nothing(ctx: Context, ino: InodeId) -> bool:
    """Rows about an inode that does not exist, and has left no data."""
    txn = ctx.txn
    txn.delete(keys.orphan_key(ino))
    if txn.get(keys.purge_key(ino)) is None and not _has(txn, keys.EXTENT + u64(ino)):
        for start, _ in trims.of(txn, ino):
            txn.delete(keys.trim_key(ino, start))
    return True


def _tidy_trims(txn: Transaction, ino: InodeId) -> bool:
    """Whether the inode has trims; it is in the purge queue then, and only then."""
    ranges = trims.of(txn, ino)
    for start, _ in ranges:
        txn.delete(keys.trim_key(ino, start))
    for start, end in ranges:
        if start < end:
            extents.split(txn, ino, start)
            extents.split(txn, ino, end)
            trims.add(txn, ino, start, end)
    has_trims = any(start < end for start, end in ranges)
    is_queued = txn.get(keys.purge_key(ino)) is not None
    if has_trims and not is_queued:
        keys.enqueue_purge(txn, ino)
    elif is_queued and not has_trims:
        keys.dequeue_purge(txn, ino)
    return has_trims


def _tidy_open(ctx: Context, fix: fixes.TidyOpen) -> bool:
    """What it was granted is in one of the tables only: without it, permissions decide."""
    txn = ctx.txn
    one, other = (
        keys.open_key(fix.ino, fix.session),
        keys.open_by_session_key(fix.session, fix.ino),
    )
    access = txn.get(one)
    inode = _inode(txn, fix.ino)
    if inode is None or not _is_known(txn, fix.session):
        txn.delete(one)
        txn.delete(other)
    elif access is not None or txn.get(other) is not None:
        txn.put(one, bytes((0,)) if access is None else access)
        txn.put(other, b"")
        put_inode(txn, changed(inode, flags=inode.flags | OPENED))
    return True


def _index_extent(ctx: Context, fix: fixes.IndexExtent) -> bool:
    raw = ctx.txn.get(keys.extent_key(fix.ino, fix.file_offset))
    if raw is None:
        return False
    extent = keys.decode_extent(raw)
    extents.put(ctx.txn, fix.ino, extent)
    return extent.file_offset == fix.file_offset


def _settle_extent(ctx: Context, fix: fixes.SettleExtent) -> bool:
    txn, ino = ctx.txn, fix.ino
    key = keys.extent_by_chunk_key(fix.chunk, fix.chunk_offset, ino, fix.file_offset)
    raw = txn.get(key)
    if raw is None:
        return False
    lost = Extent(fix.file_offset, int.from_bytes(raw, "big"), fix.chunk, fix.chunk_offset)
    stored = txn.get(keys.extent_key(ino, fix.file_offset))
    if stored is not None and keys.decode_extent(stored) == lost:
        return False
    inode = _inode(txn, ino)
    is_queued = txn.get(keys.purge_key(ino)) is not None
    if inode is None and not is_queued:
        # All that is known of a file whose record is lost too: that is mended next.
        overlapping = next(extents.stored(txn, ino, lost.file_offset, lost.end), None)
        wanted: bool | None = overlapping is None
    elif inode is None:
        wanted = False
    else:
        wanted = _lacks(txn, inode, lost)
    if wanted is None:
        return False
    if wanted:
        extents.put(txn, ino, lost)
    else:
        txn.delete(key)
    return True


def _lacks(reader: Reader, inode: Inode, extent: Extent) -> bool | None:
    """Whether a file has lost this extent, by what it says it has; None: that does not tell."""
    few = list(islice(extents.starting_in(reader, inode.ino, 0, extents.ALL), COUNTED_EXTENTS))
    missing = inode.allocated - sum(each.length for each in few)
    if len(few) == COUNTED_EXTENTS:
        return None
    if any(each.file_offset < extent.end and extent.file_offset < each.end for each in few):
        return False
    if not missing:
        return False
    return True if missing >= extent.length else None


def _index_chunk(ctx: Context, fix: fixes.IndexChunk) -> bool:
    txn, number = ctx.txn, fix.chunk
    chunk = _chunk(txn, number)
    if chunk is None:
        return False
    is_open = chunk.state is ChunkState.OPEN
    owner = chunk.owner if is_open and _is_known(txn, chunk.owner) else 0
    if owner != chunk.owner:
        txn.delete(keys.chunk_by_session_key(chunk.owner, number))
        put_chunk(txn, changed(chunk, owner=owner))
    if is_open:
        txn.put(keys.chunk_by_session_key(owner, number), b"")
    for fragment in chunk.fragments:
        txn.put(keys.fragment_by_disk_key(fragment.disk, number), bytes((fragment.index,)))
        if chunk.state is ChunkState.DOOMED:
            txn.put(keys.doomed_key(fragment.disk, number), b"")
    return True


def _index_record(ctx: Context, fix: fixes.IndexRecord) -> bool:
    record = ctx.txn.get(fix.key)
    if record is None or fix.key[:1] not in INDEXES:
        return False
    key, number = INDEXES[fix.key[:1]].enter(record)
    taken = ctx.txn.get(key)
    if taken is not None and not _leads_astray(ctx.txn, key, taken):
        # Two records claim the same.
        return False
    ctx.txn.put(key, u64(number))
    return True


def _drop_row(ctx: Context, fix: fixes.DropRow) -> bool:
    txn, key = ctx.txn, fix.key
    raw = txn.get(key)
    is_useless = _USELESS.get(key[:1])
    if raw is None or is_useless is None or not is_useless(txn, key, raw):
        return False
    txn.delete(key)
    return True


def _no_fragment(reader: Reader, key: bytes, _: bytes) -> bool:
    disk, number = keys.fragment_by_disk_place(key)
    chunk = _chunk(reader, number)
    return chunk is None or all(fragment.disk != disk for fragment in chunk.fragments)


def _not_doomed(reader: Reader, key: bytes, raw: bytes) -> bool:
    chunk = _chunk(reader, second_id(key))
    return chunk is None or chunk.state is not ChunkState.DOOMED or _no_fragment(reader, key, raw)


def _not_owned(reader: Reader, key: bytes, _: bytes) -> bool:
    chunk = _chunk(reader, second_id(key))
    return chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner != key_id(key)


def _leads_astray(reader: Reader, key: bytes, raw: bytes) -> bool:
    table = next(table for table, index in INDEXES.items() if index.table == key[:1])
    record = reader.get(table + raw)
    return record is None or INDEXES[table].enter(record)[0] != key


_USELESS: Final[dict[bytes, Callable[[Reader, bytes, bytes], bool]]] = {
    keys.FRAGMENT_BY_DISK: _no_fragment,
    keys.DOOMED: _not_doomed,
    keys.CHUNK_BY_SESSION: _not_owned,
    keys.LEFTOVERS: lambda reader, key, _: get_session(reader, key_id(key)) is not None,
    keys.REPLY: lambda reader, key, _: not _is_known(reader, key_id(key)),
    **{index.table: _leads_astray for index in INDEXES.values()},
}
"""Whether a row of these tables mirrors nothing."""


# ------------------------------------------------------------------ the tree


def _recreate_inode(ctx: Context, fix: fixes.RecreateInode) -> bool:
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
        flags=XATTRS if _has(txn, keys.XATTR + u64(ino)) else 0,
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


def _drop_entry(ctx: Context, fix: fixes.DropEntry) -> bool:
    txn = ctx.txn
    if get_dentry(txn, fix.parent, fix.name) != fix.ino:
        return False
    parent, inode = _inode(txn, fix.parent), _inode(txn, fix.ino)
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


def _set_parent(ctx: Context, fix: fixes.SetParent) -> bool:
    inode = _inode(ctx.txn, fix.ino)
    if inode is None or get_dentry(ctx.txn, fix.parent, fix.name) != fix.ino:
        return False
    put_inode(ctx.txn, changed(inode, parent=fix.parent))
    return inode.is_dir


def _rescue(ctx: Context, fix: fixes.Rescue) -> bool:
    txn = ctx.txn
    inode = _inode(txn, fix.ino)
    if inode is None or not 0 < inode.nlink + fix.nlink <= LINK_MAX:
        return False
    if fix.parent:
        if get_dentry(txn, fix.parent, fix.name) != fix.ino:
            return False
        _take_entry(ctx, _inode(txn, fix.parent), fix.name, inode)
        # A directory may have been in itself.
        inode = _inode(txn, fix.ino) or inode
    elif inode.nlink == 0 and _has(txn, keys.OPEN + u64(fix.ino)) and not inode.size:
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
    root = _inode(txn, ROOT_INODE)
    if root is None or not root.is_dir:
        raise DfsError("there is no root directory to put anything into")
    name = LOST_AND_FOUND
    while (ino := get_dentry(txn, ROOT_INODE, name)) is not None:
        found = _inode(txn, ino)
        if found is not None and found.is_dir:
            return found
        name += b"~"
    made = new_inode(ctx, root, stat.S_IFDIR | 0o700, nlink=2)
    insert(ctx, root, name, made)
    return made


# ------------------------------------------------------------------ counts


def _adjust_inode(ctx: Context, fix: fixes.AdjustInode) -> bool:
    txn = ctx.txn
    inode = _inode(txn, fix.ino)
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
    chunk = _chunk(txn, fix.chunk)
    if chunk is None:
        return False
    live = chunk.live + fix.live
    if live < 0:
        return False
    chunk = changed(chunk, live=live)
    if chunk.state is not ChunkState.SEALED or live:
        put_chunk(txn, chunk)
        return True
    if _has(txn, keys.EXTENT_BY_CHUNK + u64(fix.chunk)):
        return False
    chunks.doom_unused(txn, chunk)
    return True


def _adjust_counters(ctx: Context, fix: fixes.AdjustCounters) -> bool:
    counters = get_counters(ctx.txn)
    added = {
        name: getattr(counters, name) + getattr(fix, name)
        for name in ("inodes", "live", "chunks", "chunks_open", "chunks_doomed", "purging")
    }
    raised = {
        name: max(getattr(counters, name), getattr(fix, name))
        for name in ("next_inode", "next_chunk", "next_session")
    }
    if min(added.values()) < 0:
        return False
    put_counters(ctx.txn, changed(counters, **added, **raised))
    return True


_FIXES: Final[dict[type[fixes.Fix], Callable[[Context, Any], bool]]] = {
    fixes.TidyInode: _tidy_inode,
    fixes.TidyOpen: _tidy_open,
    fixes.IndexExtent: _index_extent,
    fixes.SettleExtent: _settle_extent,
    fixes.IndexChunk: _index_chunk,
    fixes.IndexRecord: _index_record,
    fixes.DropRow: _drop_row,
    fixes.RecreateInode: _recreate_inode,
    fixes.DropEntry: _drop_entry,
    fixes.SetParent: _set_parent,
    fixes.Rescue: _rescue,
    fixes.AdjustInode: _adjust_inode,
    fixes.AdjustChunk: _adjust_chunk,
    fixes.AdjustCounters: _adjust_counters,
}
