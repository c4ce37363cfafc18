"""Inodes, and all that is kept by inode: names, opens, extents, trims, attributes, the purge.

One pass: every table whose keys begin with an inode number is read side by side with the others.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator
from itertools import chain, pairwise
from typing import Final

from dfs.core.chunk import CHUNK_MAX_BYTES, ChunkState
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.core.inode import Extent, Inode
from dfs.master import keyspace as keys
from dfs.master import trims
from dfs.master.check.fixes import (
    AdjustInode,
    DropEntry,
    IndexExtent,
    RecreateInode,
    Rescue,
    SetParent,
    TidyInode,
    TidyOpen,
)
from dfs.master.check.problem import RESTORE_ALL, Problem
from dfs.master.check.tree import note_directory, note_subdirectory
from dfs.master.check.walk import END, MISPLACED_MAX, Walk, decoded, sorted_rows
from dfs.master.keyspace import from_u64, second_id
from dfs.master.removal import TRIMMED, XATTRS
from dfs.master.sessions import OPENED

_RESTORE: Final = "restore the file from a backup, or copy what reads of it and remove it"

Found = Iterator[Problem]


def check_inodes(walk: Walk) -> Found:
    """After `gather_names`."""
    return _Inodes(walk).run()


class _Inodes:
    """The tables side by side, each at the same inode."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._inodes = walk.cursor(keys.INODE)
        self._names = sorted_rows(walk.names)
        self._entries = sorted_rows(walk.entries)
        self._orphans = walk.cursor(keys.ORPHAN)
        self._opens = walk.cursor(keys.OPEN)
        self._extents = walk.cursor(keys.EXTENT)
        self._trims = walk.cursor(keys.TRIM)
        self._xattrs = walk.cursor(keys.XATTR)
        self._queue = walk.cursor(keys.PURGE)

    def run(self) -> Found:
        inodes = self._inodes
        cursors = (
            inodes,
            self._names,
            self._entries,
            self._orphans,
            self._opens,
            self._extents,
            self._trims,
            self._xattrs,
            self._queue,
        )
        if inodes.id != ROOT_INODE:
            yield Problem("the root is missing", RecreateInode(ROOT_INODE, True, 1, ROOT_INODE))
        while (ino := min([cursor.id for cursor in cursors])) < END:
            inode = None
            raw = inodes.one(ino)
            if raw is not None:
                inode = decoded(keys.decode_inode, raw)
                if inode is None:
                    yield Problem(f"the record of inode {ino} cannot be read", todo=_RESTORE)
                elif inode.ino != ino:
                    yield Problem(f"the record of inode {ino} says {inode.ino}", todo=_RESTORE)
                    inode = None
            yield from self._check(ino, inode)

    def _check(self, ino: InodeId, inode: Inode | None) -> Found:
        queued = self._queue.one(ino) is not None
        self._walk.seen["purging"] += queued
        entries = sum(second_id(record) for record, _ in self._entries.of(ino))
        if inode is None:
            yield from self._nothing(ino, entries, queued)
            yield from self._opens_of(ino, inode)
            names = opens = 0
        else:
            self._walk.seen["inodes"] += 1
            self._walk.last_inode = ino
            yield from self._record(ino, inode)
            names = yield from self._names_of(ino, inode)
            opens = yield from self._opens_of(ino, inode)
            yield from self._entries_of(ino, inode, entries)
            if inode.is_dir:
                note_directory(
                    self._walk,
                    ino,
                    inode.nlink,
                    is_named=bool(names) or ino == ROOT_INODE,
                    is_empty=not entries,
                    is_open=bool(opens),
                )
        yield from self._orphan(ino, inode, names, opens)
        dead = yield from self._trims_of(ino, inode, queued)
        yield from self._extents_of(ino, inode, dead)
        for _ in self._xattrs.of(ino):
            if inode is not None and not inode.flags & XATTRS:
                yield Problem(f"inode {ino} has attributes and no flag", TidyInode(ino))

    # ------------------------------------------------------------------ no record

    def _nothing(self, ino: InodeId, entries: int, queued: bool) -> Found:
        """There is no such inode: there should be no trace of it but what waits for the purge."""
        remains = not queued and ino in (self._extents.id, self._xattrs.id)
        names = 0
        for record, _ in self._names.of(ino):
            names += 1
            parent, name = second_id(record), record[17:]
            kept = (entries or remains) and names == 1
            yield Problem(
                f"entry {name!r} of {parent} names {ino}, which does not exist",
                RecreateInode(ino, bool(entries), 1, parent)
                if kept
                else DropEntry(parent, name, ino),
            )
        if names or ino == ROOT_INODE:
            return
        if entries:
            yield Problem(
                f"{entries} entries are in {ino}, which is no directory",
                RecreateInode(ino, True, 0),
            )
        elif remains:
            yield Problem(
                f"an extent or attribute of inode {ino} belongs to nobody",
                RecreateInode(ino, False, 0),
            )

    # ------------------------------------------------------------------ the record, its names

    def _record(self, ino: InodeId, inode: Inode) -> Found:
        if ino == ROOT_INODE and not inode.is_dir:
            yield Problem("the root is no directory", todo=RESTORE_ALL)
        elif ino == ROOT_INODE and inode.parent != ino:
            yield Problem("the root does not hold itself", TidyInode(ino))
        if not inode.is_dir and inode.parent:
            yield Problem(f"inode {ino} is no directory but has a parent", TidyInode(ino))
        if inode.is_symlink and inode.size != len(inode.target):
            yield Problem(
                f"symlink {ino} has size {inode.size}, its target {len(inode.target)}",
                TidyInode(ino),
            )
        if inode.policy not in self._walk.policies:
            yield Problem(
                f"inode {ino} has policy {inode.policy}, which does not exist", TidyInode(ino)
            )

    def _names_of(self, ino: InodeId, inode: Inode) -> Generator[Problem, None, int]:
        if inode.is_dir:
            return (yield from self._names_of_directory(ino, inode))
        names = sum(1 for _ in self._names.of(ino))
        if inode.nlink != names:
            yield Problem(
                f"inode {ino} has nlink {inode.nlink}, not {names}",
                AdjustInode(ino, nlink=names - inode.nlink)
                if names
                else Rescue(ino, 1 - inode.nlink),
            )
        return names

    def _names_of_directory(self, ino: InodeId, inode: Inode) -> Generator[Problem, None, int]:
        """A directory has one name, in the directory that its record says."""
        walk = self._walk
        kept: tuple[InodeId, bytes] | None = None
        names = 0
        for record, _ in self._names.of(ino):
            names += 1
            place = second_id(record), record[17:]
            note_subdirectory(walk, place[0], ino)
            if ino != ROOT_INODE and (kept is None or inode.parent == place[0] != kept[0]):
                kept, place = place, kept or place
            if kept != place:
                yield Problem(
                    f"directory {ino} has {names} names, {place[1]!r} in {place[0]} among them",
                    DropEntry(*place, ino),
                )
        if kept is not None and inode.parent != kept[0]:
            yield Problem(
                f"directory {ino} is in {kept[0]} but says {inode.parent}", SetParent(ino, *kept)
            )
            if len(walk.misplaced) < MISPLACED_MAX:
                walk.misplaced[ino] = kept
        return names

    def _entries_of(self, ino: InodeId, inode: Inode, entries: int) -> Found:
        if inode.is_dir:
            if inode.size != entries:
                yield Problem(
                    f"directory {ino} has {entries} entries, its size says {inode.size}",
                    AdjustInode(ino, size=entries - inode.size),
                )
            return
        if not entries:
            return
        prefix = keys.DENTRY + keys.u64(ino)
        for key, value in keys.scan_prefix(self._walk.reader, prefix):
            name = keys.dentry_name(key)
            yield Problem(
                f"entry {name!r} is in {ino}, which is no directory",
                DropEntry(ino, name, from_u64(value)),
            )

    def _orphan(self, ino: InodeId, inode: Inode | None, names: int, opens: int) -> Found:
        """An inode without a name is in the orphan table, and open."""
        listed = self._orphans.one(ino) is not None
        nameless = inode is not None and inode.nlink == 0
        if listed != nameless:
            yield Problem(
                f"inode {ino} is {'' if listed else 'not '}in the orphan table", TidyInode(ino)
            )
        if inode is not None and nameless and not opens and not names and not inode.is_dir:
            yield Problem(f"orphan {ino} is not open", Rescue(ino, 1))

    # ------------------------------------------------------------------ who has it open

    def _opens_of(self, ino: InodeId, inode: Inode | None) -> Generator[Problem, None, int]:
        walk = self._walk
        opens = 0
        for key, _ in self._opens.of(ino):
            opens += 1
            session = second_id(key)
            fix = TidyOpen(ino, session)
            if walk.reader.get(keys.open_by_session_key(session, ino)) is None:
                yield Problem(
                    f"inode {ino} open in session {session} is in one of the two tables only", fix
                )
            if session not in walk.sessions and session not in walk.leftovers:
                yield Problem(f"inode {ino} is open in session {session}, which is unknown", fix)
            if inode is None:
                yield Problem(f"inode {ino} is open and does not exist", fix)
            elif not inode.flags & OPENED:
                yield Problem(f"inode {ino} is open and has no flag", TidyInode(ino))
        return opens

    # ------------------------------------------------------------------ its data

    def _trims_of(
        self, ino: InodeId, inode: Inode | None, queued: bool
    ) -> Generator[Problem, None, list[trims.Range]]:
        ranges = [(second_id(key), from_u64(value)) for key, value in self._trims.of(ino)]
        fix = TidyInode(ino)
        if ranges:
            if any(low >= high for low, high in ranges):
                yield Problem(f"a trim of {ino} is empty", fix)
            if any(one[1] >= other[0] for one, other in pairwise(ranges)):
                yield Problem(f"trims of {ino} overlap or touch", fix)
            if not queued:
                yield Problem(f"inode {ino} has trims and is not in the purge queue", fix)
        if inode is None:
            return ranges
        flagged = bool(inode.flags & TRIMMED)
        if ranges and not flagged:
            yield Problem(f"inode {ino} has trims and no flag", fix)
        if flagged and not queued:
            yield Problem(f"inode {ino} has the trim flag and is not in the purge queue", fix)
        if queued and not flagged:
            yield Problem(f"inode {ino} lives, is in the purge queue and has no trim flag", fix)
        return ranges

    def _extents_of(self, ino: InodeId, inode: Inode | None, dead: list[trims.Range]) -> Found:
        edges = sorted(chain.from_iterable(dead))
        allocated = 0
        last: Extent | None = None
        for key, value in self._extents.of(ino):
            offset = second_id(key)
            where = f"extent of {ino} at {offset}"
            self._walk.seen["extents"] += 1
            extent = decoded(keys.decode_extent, value)
            if extent is None:
                yield Problem(f"{where} cannot be read", todo=_RESTORE)
                continue
            allocated += extent.length
            yield from self._extent(ino, offset, extent)
            if last is not None and last.end > offset:
                yield Problem(f"{where} overlaps the one before", todo=_RESTORE)
            last = extent
            if inode is None or not inode.is_file:
                continue
            if edges:
                following = bisect_right(edges, offset)
                if following < len(edges) and edges[following] < extent.end:
                    yield Problem(f"{where} straddles the edge of a trim", TidyInode(ino))
            if extent.end > inode.size and not trims.covers(dead, offset):
                yield Problem(
                    f"{where} lies past the end of the file",
                    todo="truncate the file to its size, which frees these bytes, or to a greater "
                    "one, which shows them",
                )
        if allocated and inode is not None and not inode.is_file:
            yield Problem(f"extents of {ino} belong to no regular file", todo=_RESTORE)
        self._walk.seen["live"] += allocated
        if inode is not None and inode.allocated != allocated:
            yield Problem(
                f"inode {ino} has {allocated} allocated, it says {inode.allocated}",
                AdjustInode(ino, allocated=allocated - inode.allocated),
            )

    def _extent(self, ino: InodeId, offset: int, extent: Extent) -> Found:
        where = f"extent of {ino} at {offset}"
        if extent.file_offset != offset:
            yield Problem(f"{where} says {extent.file_offset}", todo=_RESTORE)
        if extent.length <= 0 or not (0 <= extent.chunk_offset <= CHUNK_MAX_BYTES - extent.length):
            yield Problem(f"{where} has length {extent.length}", todo=_RESTORE)
            return
        reader = self._walk.reader
        index = keys.extent_by_chunk_key(extent.chunk, extent.chunk_offset, ino, offset)
        if reader.get(index) == extent.length.to_bytes(4, "big"):
            return
        # `check_chunks` goes by that table: it will not meet this extent.
        self._walk.unindexed = True
        yield Problem(f"{where} is not in extent-by-chunk", IndexExtent(ino, offset))
        chunk = self._walk.chunk(extent.chunk)
        if chunk is None or chunk.state in (ChunkState.DOOMED, ChunkState.RETIRED):
            yield gone(ino, offset, extent.chunk)
        elif extent.chunk_offset + extent.length > chunk.length:
            yield past_the_end(ino, offset, extent.chunk)


def gone(ino: InodeId, offset: int, chunk: int) -> Problem:
    return Problem(
        f"extent of {ino} at {offset} lies in chunk {chunk}, which is gone", todo=_RESTORE
    )


def past_the_end(ino: InodeId, offset: int, chunk: int) -> Problem:
    return Problem(f"extent of {ino} at {offset} ends past the end of chunk {chunk}", todo=_RESTORE)
