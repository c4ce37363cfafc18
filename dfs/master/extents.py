"""Which bytes of which chunk a file is made of: the extent tables and their accounting.

Every function keeps four things in step: the extent, its row in extent-by-chunk, the chunk's
live bytes, and (by its return value) the inode's `allocated`. Live bytes are summed up in a
`Ledger` and booked once for each chunk at the end of an operation, so that a chunk whose bytes
are replaced by bytes of itself never passes through zero.

Called by `file_data`, `namespace` and `purge`; the inode record itself is theirs to write.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState
from dfs.core.errors import FileSystemError, refuse
from dfs.core.ids import FILE_SIZE_MAX_BYTES, ChunkId, InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.master import chunks, trims
from dfs.master.keyspace import (
    Reader,
    Writer,
    decode_extent,
    encode,
    extent_by_chunk_key,
    extent_key,
    get_chunk,
)
from dfs.master.transaction import Transaction

ALL: Final = FILE_SIZE_MAX_BYTES
"""Past the end of every file."""


class Ledger:
    """Live bytes that an operation gives to and takes from chunks, before they are booked."""

    __slots__ = ("_changes", "_ends")

    def __init__(self) -> None:
        self._changes: dict[ChunkId, int] = {}
        self._ends: dict[ChunkId, int] = {}

    def add(self, chunk: ChunkId, length: int) -> None:
        self._changes[chunk] = self._changes.get(chunk, 0) + length

    def reach(self, chunk: ChunkId, end: int) -> None:
        """A commit refers to bytes of `chunk` up to `end`."""
        self._ends[chunk] = max(end, self._ends.get(chunk, 0))

    def book(self, txn: Transaction) -> None:
        for chunk, change in self._changes.items():
            chunks.add_live(txn, chunk, change, self._ends.get(chunk, 0))


def put(txn: Writer, ino: InodeId, extent: Extent) -> None:
    """Store an extent, over one of the same place and chunk if there is one."""
    txn.put(extent_key(ino, extent.file_offset), encode(extent))
    txn.put(
        extent_by_chunk_key(extent.chunk, extent.chunk_offset, ino, extent.file_offset),
        extent.length.to_bytes(4, "big"),
    )


def drop(txn: Writer, ino: InodeId, extent: Extent) -> None:
    txn.delete(extent_key(ino, extent.file_offset))
    txn.delete(extent_by_chunk_key(extent.chunk, extent.chunk_offset, ino, extent.file_offset))


def stored(reader: Reader, ino: InodeId, start: int, end: int) -> Iterator[Extent]:
    """Extents that overlap [start, end), dead ones among them, in order."""
    if start > 0 and (before := _last_before(reader, ino, start)) and before.end > start:
        yield before
    yield from starting_in(reader, ino, start, end)


def only(reader: Reader, inode: Inode) -> Extent | None:
    """The extent that is all a file has, at offset 0, as with most files; else None."""
    raw = reader.get(extent_key(inode.ino, 0))
    if raw is None:
        return None
    extent = decode_extent(raw)
    return extent if extent.length == inode.allocated else None


def starting_in(reader: Reader, ino: InodeId, start: int, end: int) -> Iterator[Extent]:
    """Extents that begin in [start, end), dead ones among them, in order."""
    for _, value in reader.scan(extent_key(ino, start), extent_key(ino, end)):
        yield decode_extent(value)


def visible(
    reader: Reader, ino: InodeId, start: int, end: int, *, trimmed: bool
) -> Iterator[Extent]:
    """Extents that overlap [start, end) and hold data, whole, in order."""
    if not trimmed:
        yield from stored(reader, ino, start, end)
        return
    for low, high in trims.visible(trims.of(reader, ino), start, end):
        yield from stored(reader, ino, low, high)


def _last_before(reader: Reader, ino: InodeId, offset: int) -> Extent | None:
    rows = reader.scan(extent_key(ino, 0), extent_key(ino, offset), reverse=True)
    row = next(rows, None)
    return None if row is None else decode_extent(row[1])


def check(reader: Reader, session: SessionId, extents: Sequence[Extent], base: int) -> None:
    """May `session` commit these extents at `base` + their offsets?

    Raises EINVAL for impossible ranges, EFBIG past the greatest file, and ESTALE where the
    session may not (or no longer) publish bytes of a chunk.
    """
    named: dict[ChunkId, Chunk] = {}
    for extent in extents:
        file_offset, length, chunk_id, chunk_offset = (
            extent.file_offset,
            extent.length,
            extent.chunk,
            extent.chunk_offset,
        )
        if (
            file_offset < 0
            or length <= 0
            or chunk_offset < 0
            or chunk_offset + length > CHUNK_MAX_BYTES
        ):
            raise refuse(
                errno.EINVAL,
                f"extent of {length} bytes at {file_offset} (chunk {chunk_id} at {chunk_offset})",
            )
        if base + file_offset + length > FILE_SIZE_MAX_BYTES:
            raise refuse(errno.EFBIG, f"{length} bytes at {base + file_offset}")
        chunk = named.get(chunk_id)
        if chunk is None:
            chunk = named[chunk_id] = _committable(reader, session, chunk_id)
        if chunk.state is ChunkState.SEALED and chunk_offset + length > chunk.length:
            raise _stale(
                f"chunk {chunk_id} was sealed at {chunk.length} bytes, "
                f"an extent ends at {chunk_offset + length}"
            )


def _committable(reader: Reader, session: SessionId, chunk_id: ChunkId) -> Chunk:
    chunk = get_chunk(reader, chunk_id) if chunk_id > 0 else None
    if chunk is None or chunk.state not in (ChunkState.OPEN, ChunkState.SEALED):
        raise _stale(f"chunk {chunk_id} is gone")
    if chunk.state is ChunkState.OPEN and chunk.owner != session:
        raise _stale(f"chunk {chunk_id} is open for session {chunk.owner}, not {session}")
    return chunk


def _stale(message: str) -> FileSystemError:
    return FileSystemError(message, errno=errno.ESTALE, hint="write these bytes again")


def shifted(extent: Extent, base: int) -> Extent:
    return Extent(extent.file_offset + base, extent.length, extent.chunk, extent.chunk_offset)


def ascending(extents: Sequence[Extent]) -> bool:
    """In order of file offset, without overlaps."""
    return all(one.end <= other.file_offset for one, other in pairwise(extents))


def fill(txn: Transaction, ino: InodeId, extents: Sequence[Extent], ledger: Ledger) -> int:
    """Store `ascending` extents of an ino that has none yet. Returns the bytes allocated."""
    total = 0
    last: Extent | None = None
    for extent in extents:
        total += extent.length
        ledger.add(extent.chunk, extent.length)
        ledger.reach(extent.chunk, extent.chunk_offset + extent.length)
        if last is not None:
            if _continues(last, extent):
                last = Extent(
                    last.file_offset, last.length + extent.length, last.chunk, last.chunk_offset
                )
                continue
            put(txn, ino, last)
        last = extent
    if last is not None:
        put(txn, ino, last)
        txn.tails.note(ino, last.file_offset)
    return total


def add(txn: Transaction, ino: InodeId, extent: Extent, ledger: Ledger) -> int:
    """As `replace`, where the file has nothing from the extent on, and nothing of it is dead."""
    left = _left_of(txn, ino, extent.file_offset)
    if left is None:
        return replace(txn, ino, extent, ledger, trimmed=False)
    ledger.add(extent.chunk, extent.length)
    ledger.reach(extent.chunk, extent.chunk_offset + extent.length)
    laid = extent
    if _continues(left, extent):
        laid = Extent(left.file_offset, left.length + extent.length, left.chunk, left.chunk_offset)
    put(txn, ino, laid)
    txn.tails.note(ino, laid.file_offset)
    return extent.length


def _left_of(txn: Transaction, ino: InodeId, offset: int) -> Extent | None:
    """The extent that ends at `offset`, if it is the one that was laid last."""
    guess = txn.tails.get(ino)
    raw = None if guess is None else txn.get(extent_key(ino, guess))
    if raw is None:
        return None
    extent = decode_extent(raw)
    return extent if extent.end == offset else None


def replace(
    txn: Transaction, ino: InodeId, extent: Extent, ledger: Ledger, *, trimmed: bool
) -> int:
    """Lay `extent` over what is there, merging it with neighbours that it continues.

    Returns the change of allocated bytes.
    """
    start, end = extent.file_offset, extent.end
    change = extent.length
    ledger.add(extent.chunk, extent.length)
    ledger.reach(extent.chunk, extent.chunk_offset + extent.length)
    left: Extent | None = None
    right: Extent | None = None
    # One backward scan finds all that the extent covers, and its left neighbour.
    covered: list[Extent] = []
    for _, value in txn.scan(extent_key(ino, 0), extent_key(ino, end), reverse=True):
        other = decode_extent(value)
        if other.end <= start:
            left = other if other.end == start else None
            break
        covered.append(other)
        # Past the first of a file lie the graves of others, and the scan would go through them.
        if other.file_offset < start or other.file_offset == 0:
            break
        # Nor through those of the extents that were replaced by the one that ends here.
        if other.file_offset == start and (left := _left_of(txn, ino, start)) is not None:
            break
    for other in covered:
        before, after = _cut(txn, ino, other, start, end, ledger)
        change -= min(other.end, end) - max(other.file_offset, start)
        left = before or left
        right = after or right
    if right is None:
        raw = txn.get(extent_key(ino, end))
        right = None if raw is None else decode_extent(raw)
    if trimmed:
        trims.subtract(txn, ino, start, end)
        dead = trims.of(txn, ino)
        left = None if left is not None and trims.covers(dead, left.file_offset) else left
        right = None if trims.covers(dead, end) else right
    if left is not None and _continues(left, extent):
        extent = Extent(
            left.file_offset, left.length + extent.length, left.chunk, left.chunk_offset
        )
    if right is not None and _continues(extent, right):
        drop(txn, ino, right)
        extent = Extent(
            extent.file_offset,
            extent.length + right.length,
            extent.chunk,
            extent.chunk_offset,
        )
    put(txn, ino, extent)
    txn.tails.note(ino, extent.file_offset)
    return change


def _continues(left: Extent, right: Extent) -> bool:
    return (
        left.chunk == right.chunk
        and left.end == right.file_offset
        and left.chunk_offset + left.length == right.chunk_offset
    )


def _cut(
    txn: Transaction, ino: InodeId, extent: Extent, start: int, end: int, ledger: Ledger
) -> tuple[Extent | None, Extent | None]:
    """Take [start, end) out of an extent that overlaps it; what is left before and after."""
    drop(txn, ino, extent)
    before = after = None
    if extent.file_offset < start:
        before = Extent(
            extent.file_offset, start - extent.file_offset, extent.chunk, extent.chunk_offset
        )
        put(txn, ino, before)
    if extent.end > end:
        skipped = end - extent.file_offset
        after = Extent(end, extent.end - end, extent.chunk, extent.chunk_offset + skipped)
        put(txn, ino, after)
    ledger.add(extent.chunk, max(extent.file_offset, start) - min(extent.end, end))
    return before, after


def cut(
    txn: Transaction,
    ino: InodeId,
    found: Iterable[Extent],
    start: int,
    end: int,
    ledger: Ledger,
) -> int:
    """Take [start, end) out of extents that overlap it. Returns the bytes freed."""
    freed = 0
    for extent in found:
        _cut(txn, ino, extent, start, end, ledger)
        freed += min(extent.end, end) - max(extent.file_offset, start)
    return freed


def split(txn: Transaction, ino: InodeId, offset: int) -> None:
    """Make no extent straddle `offset`."""
    if offset <= 0:
        return
    extent = _last_before(txn, ino, offset)
    if extent is None or extent.end <= offset:
        return
    length = offset - extent.file_offset
    put(txn, ino, Extent(extent.file_offset, length, extent.chunk, extent.chunk_offset))
    put(
        txn,
        ino,
        Extent(offset, extent.length - length, extent.chunk, extent.chunk_offset + length),
    )
