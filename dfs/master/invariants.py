"""Walks every table and checks every invariant that `keyspace` states. Changes nothing.

Used by the tests after every step, and by `admin fsck`. It needs memory in proportion to the
inodes and chunks, and must see a store that does not change meanwhile: a checkpoint, or a master
that is stopped.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain, pairwise

import msgspec

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState
from dfs.core.ids import ROOT_INODE, ChunkId, InodeId
from dfs.core.inode import Extent, Inode
from dfs.master import keyspace as keys
from dfs.master import trims
from dfs.master.keyspace import Reader, from_u64, key_id, scan_prefix, second_id
from dfs.master.removal import TRIMMED, XATTRS
from dfs.master.sessions import OPENED


def check(reader: Reader) -> list[str]:
    """What is wrong, one sentence each; empty when all is well."""
    return list(problems(reader))


def problems(reader: Reader) -> Iterator[str]:
    facts = _Facts(reader)
    yield from chain(
        _tree(reader, facts),
        _links(facts),
        _orphans(reader, facts),
        _opens(reader, facts),
        _extents(reader, facts),
        _trims(reader, facts),
        _xattrs(reader, facts),
        _extents_by_chunk(reader),
        _chunks(reader, facts),
        _indexes(reader, facts),
        _counters(reader, facts),
    )


class _Facts:
    """What one pass over the tables gathers for the checks."""

    def __init__(self, reader: Reader) -> None:
        self.inodes: dict[InodeId, Inode] = {
            key_id(key): keys.decode_inode(value) for key, value in scan_prefix(reader, keys.INODE)
        }
        self.chunks: dict[ChunkId, Chunk] = {
            key_id(key): keys.decode_chunk(value) for key, value in scan_prefix(reader, keys.CHUNK)
        }
        self.sessions = {key_id(key) for key, _ in scan_prefix(reader, keys.SESSION)}
        self.leftovers = {key_id(key) for key, _ in scan_prefix(reader, keys.LEFTOVERS)}
        self.queued = {key_id(key) for key, _ in scan_prefix(reader, keys.PURGE)}
        self.orphans = {key_id(key) for key, _ in scan_prefix(reader, keys.ORPHAN)}
        self.open = {key_id(key) for key, _ in scan_prefix(reader, keys.OPEN)}
        self.names: Counter[InodeId] = Counter()
        self.entries: Counter[InodeId] = Counter()
        self.subdirectories: Counter[InodeId] = Counter()
        self.holder: dict[InodeId, InodeId] = {}
        self.live: Counter[ChunkId] = Counter()
        self.allocated: Counter[InodeId] = Counter()
        self.trims: dict[InodeId, list[trims.Range]] = defaultdict(list)


def _tree(reader: Reader, facts: _Facts) -> Iterator[str]:
    root = facts.inodes.get(ROOT_INODE)
    if root is None or not root.is_dir or root.parent != ROOT_INODE:
        yield "the root is missing, no directory, or does not hold itself"
    for key, value in scan_prefix(reader, keys.DENTRY):
        parent, name, ino = key_id(key), keys.dentry_name(key), from_u64(value)
        facts.names[ino] += 1
        facts.entries[parent] += 1
        holder, inode = facts.inodes.get(parent), facts.inodes.get(ino)
        if holder is None or not holder.is_dir or holder.nlink == 0:
            yield f"entry {name!r} is in {parent}, which is no directory"
        if inode is None:
            yield f"entry {name!r} of {parent} names {ino}, which does not exist"
        elif inode.is_dir:
            facts.subdirectories[parent] += 1
            facts.holder[ino] = parent
            if inode.parent != parent:
                yield f"directory {ino} is in {parent} but says {inode.parent}"
        if not 1 <= len(name) <= 255 or name in (b".", b"..") or b"/" in name or b"\0" in name:
            yield f"entry {name!r} of {parent} has a name that cannot be"
    yield from _unreachable(facts)


def _unreachable(facts: _Facts) -> Iterator[str]:
    """Directories that hold each other in a circle have names, and are still not in the tree."""
    reached = {ROOT_INODE}
    for ino in facts.holder:
        way: list[InodeId] = []
        at = ino
        while at not in reached and at in facts.holder and len(way) <= len(facts.holder):
            way.append(at)
            at = facts.holder[at]
        if at in reached:
            reached.update(way)
        else:
            yield f"directory {ino} cannot be reached from the root"


def _links(facts: _Facts) -> Iterator[str]:
    for ino, inode in facts.inodes.items():
        if inode.ino != ino:
            yield f"the record of inode {ino} says {inode.ino}"
        names = facts.names[ino]
        if inode.is_dir:
            expected = 2 + facts.subdirectories[ino] if names or ino == ROOT_INODE else 0
            if names > 1 or (ino == ROOT_INODE and names):
                yield f"directory {ino} has {names} names"
            if inode.size != facts.entries[ino]:
                entries = facts.entries[ino]
                yield f"directory {ino} has {entries} entries, its size says {inode.size}"
        else:
            expected = names
            if inode.parent:
                yield f"inode {ino} is no directory but has a parent"
        if inode.nlink != expected:
            yield f"inode {ino} has nlink {inode.nlink}, not {expected}"
        if inode.is_symlink and inode.size != len(inode.target):
            yield f"symlink {ino} has size {inode.size}, its target {len(inode.target)}"


def _orphans(reader: Reader, facts: _Facts) -> Iterator[str]:
    nameless = {ino for ino, inode in facts.inodes.items() if inode.nlink == 0}
    for ino in nameless ^ facts.orphans:
        yield f"inode {ino} is {'not ' * (ino not in facts.orphans)}in the orphan table"
    for ino in facts.orphans - facts.open:
        yield f"orphan {ino} is not open"


def _opens(reader: Reader, facts: _Facts) -> Iterator[str]:
    by_inode = {(key_id(key), second_id(key)) for key, _ in scan_prefix(reader, keys.OPEN)}
    by_session = {
        (second_id(key), key_id(key)) for key, _ in scan_prefix(reader, keys.OPEN_BY_SESSION)
    }
    for ino, session in by_inode ^ by_session:
        yield f"inode {ino} open in session {session} is in one of the two tables only"
    for ino, session in by_inode:
        if session not in facts.sessions | facts.leftovers:
            yield f"inode {ino} is open in session {session}, which is unknown"
        inode = facts.inodes.get(ino)
        if inode is None:
            yield f"inode {ino} is open and does not exist"
        elif not inode.flags & OPENED:
            yield f"inode {ino} is open and has no flag"
    for session in facts.leftovers & facts.sessions:
        yield f"session {session} is known and left over"
    for key, _ in scan_prefix(reader, keys.REPLY):
        if key_id(key) not in facts.sessions | facts.leftovers:
            yield f"a reply is kept for session {key_id(key)}, which is unknown"


def _extents(reader: Reader, facts: _Facts) -> Iterator[str]:
    last: tuple[InodeId, Extent] | None = None
    for key, value in scan_prefix(reader, keys.EXTENT):
        ino, offset = keys.extent_place(key)
        extent = keys.decode_extent(value)
        facts.live[extent.chunk] += extent.length
        facts.allocated[ino] += extent.length
        inode, chunk = facts.inodes.get(ino), facts.chunks.get(extent.chunk)
        where = f"extent of {ino} at {offset}"
        if extent.file_offset != offset:
            yield f"{where} says {extent.file_offset}"
        if extent.length <= 0 or extent.chunk_offset + extent.length > CHUNK_MAX_BYTES:
            yield f"{where} has length {extent.length}"
        if last is not None and last[0] == ino and last[1].end > offset:
            yield f"{where} overlaps the one before"
        if inode is None and ino not in facts.queued:
            yield f"{where} belongs to nobody"
        if inode is not None and not inode.is_file:
            yield f"{where} belongs to no regular file"
        if chunk is None or chunk.state is ChunkState.DOOMED:
            yield f"{where} lies in chunk {extent.chunk}, which is gone"
        elif extent.chunk_offset + extent.length > chunk.length:
            yield f"{where} ends past the end of chunk {extent.chunk}"
        index = keys.extent_by_chunk_key(extent.chunk, extent.chunk_offset, ino, offset)
        if reader.get(index) != extent.length.to_bytes(4, "big"):
            yield f"{where} is not in extent-by-chunk"
        last = ino, extent
    for ino, inode in facts.inodes.items():
        if inode.allocated != facts.allocated[ino]:
            yield f"inode {ino} has {facts.allocated[ino]} allocated, it says {inode.allocated}"


def _trims(reader: Reader, facts: _Facts) -> Iterator[str]:
    for key, value in scan_prefix(reader, keys.TRIM):
        facts.trims[key_id(key)].append((second_id(key), from_u64(value)))
    for ino, ranges in facts.trims.items():
        inode = facts.inodes.get(ino)
        if any(low >= high for low, high in ranges):
            yield f"a trim of {ino} is empty"
        if any(one[1] >= other[0] for one, other in pairwise(ranges)):
            yield f"trims of {ino} overlap or touch"
        if ino not in facts.queued:
            yield f"inode {ino} has trims and is not in the purge queue"
        if inode is not None and not inode.flags & TRIMMED:
            yield f"inode {ino} has trims and no flag"
    for ino, inode in facts.inodes.items():
        if inode.flags & TRIMMED and ino not in facts.queued:
            yield f"inode {ino} has the trim flag and is not in the purge queue"
        if ino in facts.queued and not inode.flags & TRIMMED:
            yield f"inode {ino} lives, is in the purge queue and has no trim flag"
        if not inode.is_file:
            continue
        ranges = facts.trims.get(ino, [])
        for key, value in scan_prefix(reader, keys.EXTENT + keys.u64(ino)):
            extent = keys.decode_extent(value)
            dead = trims.covers(ranges, extent.file_offset)
            edges = chain.from_iterable(ranges)
            if any(extent.file_offset < edge < extent.end for edge in edges):
                yield f"extent of {ino} at {second_id(key)} straddles the edge of a trim"
            if not dead and extent.end > inode.size:
                yield f"extent of {ino} at {second_id(key)} lies past the end of the file"


def _xattrs(reader: Reader, facts: _Facts) -> Iterator[str]:
    for key, _ in scan_prefix(reader, keys.XATTR):
        inode = facts.inodes.get(key_id(key))
        if inode is None:
            if key_id(key) not in facts.queued:
                yield f"an attribute of inode {key_id(key)} belongs to nobody"
        elif not inode.flags & XATTRS:
            yield f"inode {key_id(key)} has attributes and no flag"


def _extents_by_chunk(reader: Reader) -> Iterator[str]:
    for key, value in scan_prefix(reader, keys.EXTENT_BY_CHUNK):
        chunk, chunk_offset, ino, offset = keys.extent_by_chunk_place(key)
        expected = Extent(offset, int.from_bytes(value, "big"), chunk, chunk_offset)
        raw = reader.get(keys.extent_key(ino, offset))
        if raw is None or keys.decode_extent(raw) != expected:
            yield f"extent-by-chunk has {expected} of {ino}, its extent is another"


def _chunks(reader: Reader, facts: _Facts) -> Iterator[str]:
    doomed = {(key_id(key), second_id(key)) for key, _ in scan_prefix(reader, keys.DOOMED)}
    owned = {(key_id(key), second_id(key)) for key, _ in scan_prefix(reader, keys.CHUNK_BY_SESSION)}
    by_disk = {
        (*keys.fragment_by_disk_place(key), value)
        for key, value in scan_prefix(reader, keys.FRAGMENT_BY_DISK)
    }
    for number, chunk in facts.chunks.items():
        state = chunk.state
        if chunk.live != facts.live[number]:
            yield f"chunk {number} has {facts.live[number]} live bytes, it says {chunk.live}"
        if state is ChunkState.SEALED and chunk.live == 0:
            yield f"chunk {number} is sealed without a live byte"
        if state is ChunkState.OPEN:
            if (chunk.owner, number) not in owned:
                yield f"chunk {number} is open and not among its session's"
            owned.discard((chunk.owner, number))
            if chunk.owner and chunk.owner not in facts.sessions | facts.leftovers:
                yield f"chunk {number} is open for session {chunk.owner}, which is unknown"
        elif chunk.owner:
            yield f"chunk {number} is {state.name} and owned"
        for fragment in chunk.fragments:
            place = (fragment.disk, number, bytes((fragment.index,)))
            if place not in by_disk:
                yield f"fragment {fragment.index} of chunk {number} is not in fragment-by-disk"
            by_disk.discard(place)
            if state is ChunkState.DOOMED:
                if (fragment.disk, number) not in doomed:
                    yield f"chunk {number} is doomed and not so on disk {fragment.disk}"
                doomed.discard((fragment.disk, number))
    for disk, number in doomed:
        yield f"chunk {number} is doomed on disk {disk} by mistake"
    for session, number in owned:
        yield f"chunk {number} is listed for session {session} by mistake"
    for disk, number, _ in by_disk:
        yield f"chunk {number} is listed for disk {disk} by mistake"


def _indexes(reader: Reader, facts: _Facts) -> Iterator[str]:
    def ids(table: bytes) -> dict[bytes, int]:
        return {key: from_u64(value) for key, value in scan_prefix(reader, table)}

    named = {
        keys.policy_by_name_key(policy.name): policy.policy for policy in keys.policies(reader)
    }
    if named != ids(keys.POLICY_BY_NAME):
        yield "policies and their names do not match"
    servers = [keys.decode_server(value) for _, value in scan_prefix(reader, keys.SERVER)]
    if {keys.server_by_uuid_key(s.uuid): s.server for s in servers} != ids(keys.SERVER_BY_UUID):
        yield "servers and their UUIDs do not match"
    disks = [keys.decode_disk(value) for _, value in scan_prefix(reader, keys.DISK)]
    if {keys.disk_by_uuid_key(d.uuid): d.disk for d in disks} != ids(keys.DISK_BY_UUID):
        yield "disks and their UUIDs do not match"
    sessions = [keys.decode_session(value) for _, value in scan_prefix(reader, keys.SESSION)]
    nonces = {keys.session_by_nonce_key(s.nonce, s.client): s.session for s in sessions}
    if nonces != ids(keys.SESSION_BY_NONCE):
        yield "sessions and their nonces do not match"
    for inode in facts.inodes.values():
        if reader.get(keys.policy_key(inode.policy)) is None:
            yield f"inode {inode.ino} has policy {inode.policy}, which does not exist"


def _counters(reader: Reader, facts: _Facts) -> Iterator[str]:
    counters = keys.get_counters(reader)
    states = Counter(chunk.state for chunk in facts.chunks.values())
    expected = msgspec.structs.replace(
        counters,
        inodes=len(facts.inodes),
        live=facts.live.total(),
        chunks=len(facts.chunks),
        chunks_open=states[ChunkState.OPEN],
        chunks_doomed=states[ChunkState.DOOMED],
        purging=sum(1 for _ in scan_prefix(reader, keys.PURGE)),
    )
    if counters != expected:
        yield f"the counters say {counters}, a count {expected}"
    for name, table, next_id in (
        ("inode", facts.inodes, counters.next_inode),
        ("chunk", facts.chunks, counters.next_chunk),
        ("session", facts.sessions, counters.next_session),
    ):
        if max(table, default=0) >= next_id:
            yield f"{name} {max(table)} exists, {next_id} would be given next"
