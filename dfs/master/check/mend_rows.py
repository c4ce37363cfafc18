"""Fixes of rows that mirror other rows: each is derived anew from what it follows from."""

from collections.abc import Callable
from itertools import islice
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.chunk import Chunk, ChunkState, Fragment
from dfs.core.ids import DEFAULT_POLICY, ROOT_INODE, InodeId
from dfs.core.inode import Extent, Inode
from dfs.master import extents, trims
from dfs.master import fragments as of_chunks
from dfs.master import keyspace as keys
from dfs.master.check import fixes
from dfs.master.check.indexes import INDEXES
from dfs.master.check.lookups import has_rows, is_known, sound_chunk, sound_inode
from dfs.master.check.walk import decoded
from dfs.master.context import Context
from dfs.master.keyspace import (
    Reader,
    from_u64,
    get_counters,
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

COUNTED_EXTENTS: Final = 16384
"""Extents of a file that one fix looks at, at most."""


def tidy_inode(ctx: Context, fix: fixes.TidyInode) -> bool:
    txn, ino = ctx.txn, fix.ino
    inode = sound_inode(txn, ino)
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
    if has_rows(txn, keys.XATTR + u64(ino)):
        flags |= XATTRS
    is_open = has_rows(txn, keys.OPEN + u64(ino))
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
    if txn.get(keys.purge_key(ino)) is None and not has_rows(txn, keys.EXTENT + u64(ino)):
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


def tidy_open(ctx: Context, fix: fixes.TidyOpen) -> bool:
    """What it was granted is in one of the tables only: without it, permissions decide."""
    txn = ctx.txn
    one, other = (
        keys.open_key(fix.ino, fix.session),
        keys.open_by_session_key(fix.session, fix.ino),
    )
    access = txn.get(one)
    inode = sound_inode(txn, fix.ino)
    if inode is None or not is_known(txn, fix.session):
        txn.delete(one)
        txn.delete(other)
    elif access is not None or txn.get(other) is not None:
        txn.put(one, bytes((0,)) if access is None else access)
        txn.put(other, b"")
        put_inode(txn, changed(inode, flags=inode.flags | OPENED))
    return True


def index_extent(ctx: Context, fix: fixes.IndexExtent) -> bool:
    raw = ctx.txn.get(keys.extent_key(fix.ino, fix.file_offset))
    if raw is None:
        return False
    extent = keys.decode_extent(raw)
    extents.put(ctx.txn, fix.ino, extent)
    return extent.file_offset == fix.file_offset


def settle_extent(ctx: Context, fix: fixes.SettleExtent) -> bool:
    txn, ino = ctx.txn, fix.ino
    key = keys.extent_by_chunk_key(fix.chunk, fix.chunk_offset, ino, fix.file_offset)
    raw = txn.get(key)
    if raw is None:
        return False
    lost = Extent(fix.file_offset, int.from_bytes(raw, "big"), fix.chunk, fix.chunk_offset)
    stored = txn.get(keys.extent_key(ino, fix.file_offset))
    if stored is not None and keys.decode_extent(stored) == lost:
        return False
    inode = sound_inode(txn, ino)
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


def index_chunk(ctx: Context, fix: fixes.IndexChunk) -> bool:
    txn, number = ctx.txn, fix.chunk
    chunk = sound_chunk(txn, number)
    if chunk is None:
        return False
    is_open = chunk.state is ChunkState.OPEN
    owner = chunk.owner if is_open and is_known(txn, chunk.owner) else 0
    if owner != chunk.owner:
        txn.delete(keys.chunk_by_session_key(chunk.owner, number))
    if is_open:
        txn.put(keys.chunk_by_session_key(owner, number), b"")
    if chunk.state is ChunkState.RETIRED:
        txn.put(keys.retired_key(chunk.rewritten_s, number), b"")
    for fragment in chunk.fragments:
        txn.put(keys.fragment_by_disk_key(fragment.disk, number), bytes((fragment.index,)))
        if chunk.state is ChunkState.DOOMED:
            txn.put(keys.doomed_key(fragment.disk, number), b"")
    of_chunks.settle(txn, changed(chunk, owner=owner), ctx.now)
    return True


def rebuild_chunk(ctx: Context, fix: fixes.RebuildChunk) -> bool:
    txn, number = ctx.txn, fix.chunk
    rows = [
        (keys.extent_by_chunk_place(key)[1], int.from_bytes(value, "big"))
        for key, value in scan_prefix(txn, keys.EXTENT_BY_CHUNK + u64(number))
    ]
    possible = fix.k >= 1 and fix.m >= 0 and all(0 <= i < fix.k + fix.m for i, _ in fix.fragments)
    if txn.get(keys.chunk_key(number)) is not None or not (rows and possible and fix.fragments):
        return False
    length = max(offset + size for offset, size in rows)
    fragments = tuple(Fragment(index, disk) for index, disk in fix.fragments)
    live = sum(size for _, size in rows)
    state, policy = ChunkState.OPEN, DEFAULT_POLICY
    chunk = Chunk(number, state, fix.k, fix.m, policy, 0, length, live, fragments)
    put_chunk(txn, chunk)
    txn.put(keys.chunk_by_session_key(0, number), b"")
    for fragment in fragments:
        txn.put(keys.fragment_by_disk_key(fragment.disk, number), bytes((fragment.index,)))
        # It may have been stale there: now it counts, and must not be deleted.
        of_chunks.forget_stale(txn, fragment.disk, number)
    counters = get_counters(txn)
    put_counters(
        txn,
        changed(
            counters,
            chunks=counters.chunks + 1,
            chunks_open=counters.chunks_open + 1,
            length=counters.length + length,
            redundancy=counters.redundancy + chunk.redundancy,
            next_chunk=max(counters.next_chunk, number + 1),
        ),
    )
    return True


def tidy_delegation(ctx: Context, fix: fixes.TidyDelegation) -> bool:
    txn, ino = ctx.txn, fix.ino
    raw = txn.get(keys.delegation_key(ino))
    if raw is None:
        return False
    session, inode = from_u64(raw), sound_inode(txn, ino)
    mirror = keys.delegation_by_session_key(session, ino)
    if inode is None or not inode.is_dir or not inode.nlink or get_session(txn, session) is None:
        txn.delete(keys.delegation_key(ino))
        txn.delete(mirror)
    else:
        txn.put(mirror, b"")
    return True


def index_record(ctx: Context, fix: fixes.IndexRecord) -> bool:
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


def drop_row(ctx: Context, fix: fixes.DropRow) -> bool:
    txn, key = ctx.txn, fix.key
    raw = txn.get(key)
    is_useless = _USELESS.get(key[:1])
    if raw is None or is_useless is None or not is_useless(txn, key, raw):
        return False
    txn.delete(key)
    return True


def _no_fragment(reader: Reader, key: bytes, _: bytes) -> bool:
    disk, number = keys.fragment_by_disk_place(key)
    chunk = sound_chunk(reader, number)
    return chunk is None or all(fragment.disk != disk for fragment in chunk.fragments)


def _not_doomed(reader: Reader, key: bytes, raw: bytes) -> bool:
    if raw:
        # A stale fragment: wrong only where the chunk counts on that disk.
        return not _no_fragment(reader, key, raw)
    chunk = sound_chunk(reader, second_id(key))
    return chunk is None or chunk.state is not ChunkState.DOOMED or _no_fragment(reader, key, raw)


def _not_owned(reader: Reader, key: bytes, _: bytes) -> bool:
    chunk = sound_chunk(reader, second_id(key))
    return chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner != key_id(key)


def _not_retired(reader: Reader, key: bytes, _: bytes) -> bool:
    chunk = sound_chunk(reader, second_id(key))
    kept = chunk is not None and chunk.state is ChunkState.RETIRED
    return chunk is None or not kept or chunk.rewritten_s != key_id(key)


def _leads_astray(reader: Reader, key: bytes, raw: bytes) -> bool:
    table = next(table for table, index in INDEXES.items() if index.table == key[:1])
    record = reader.get(table + raw)
    return record is None or INDEXES[table].enter(record)[0] != key


def _not_delegated(reader: Reader, key: bytes, _: bytes) -> bool:
    return reader.get(keys.delegation_key(second_id(key))) != u64(key_id(key))


def _not_reserved(reader: Reader, key: bytes, raw: bytes) -> bool:
    """Numbers that nobody is given any more are no loss."""
    kept = decoded(keys.decode_ranges, raw)
    return (
        get_session(reader, key_id(key)) is None
        or kept is None
        or not all(first < end for first, end in kept.ranges)
    )


_USELESS: Final[dict[bytes, Callable[[Reader, bytes, bytes], bool]]] = {
    keys.FRAGMENT_BY_DISK: _no_fragment,
    keys.DOOMED: _not_doomed,
    keys.CHUNK_BY_SESSION: _not_owned,
    keys.DELEGATION_BY_SESSION: _not_delegated,
    keys.RESERVED: _not_reserved,
    keys.RETIRED: _not_retired,
    keys.WANTING: lambda reader, key, _: sound_chunk(reader, key_id(key)) is None,
    keys.LEFTOVERS: lambda reader, key, _: get_session(reader, key_id(key)) is not None,
    keys.REPLY: lambda reader, key, _: not is_known(reader, key_id(key)),
    **{index.table: _leads_astray for index in INDEXES.values()},
}
"""Whether a row of these tables mirrors nothing."""
