"""Chunks whose live bytes were written anew elsewhere: extents move. Pure, over a transaction.

A chunk server copies parts of SEALED chunks, one after the other, into a target: an OPEN chunk of
the master's own. Then `repoint` moves the extents, in bounded steps; between two of them some
lie here and some there, and all read the same. A source that has lost its last extent is RETIRED by
the same transaction: backups of the metadata that are older than this refer to it.

Called by `State` for the commands of `jobs.rewriter`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Final

from msgspec.structs import replace

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState
from dfs.core.errors import FileSystemError
from dfs.core.ids import MASTER_SESSION, InodeId, PolicyId
from dfs.core.inode import Extent
from dfs.master import chunks, extents
from dfs.master.commands import AbandonTarget, AllocateTarget, Place, Repoint, Repointed
from dfs.master.keyspace import (
    decode_extent,
    extent_by_chunk_key,
    extent_by_chunk_place,
    extent_key,
    get_chunk,
    get_inode,
    put_chunk,
)
from dfs.master.transaction import Transaction

TARGETS_MOST: Final = 10_000
"""More than a master ever has under way."""


def allocate(txn: Transaction, command: AllocateTarget) -> Chunk:
    """See `AllocateTarget`."""
    (target,) = chunks.allot(txn, MASTER_SESSION, command.policy, (command.placement,))
    return target


def abandon(txn: Transaction, command: AbandonTarget) -> None:
    """See `AbandonTarget`."""
    target = get_chunk(txn, command.chunk)
    if target is not None and _is_open(target):
        chunks.give_up(txn, target)


def give_up_all(txn: Transaction) -> None:
    """A master begins: nobody will finish what the last one had written."""
    chunks.release_session(txn, MASTER_SESSION, TARGETS_MOST)


def repoint(txn: Transaction, command: Repoint) -> Repointed:
    """See `Repoint`."""
    copies = _Copies(command.parts, command.base)
    if not 0 <= command.base <= copies.end <= command.length <= CHUNK_MAX_BYTES:
        raise FileSystemError(
            f"parts of chunk {command.source} do not fit into chunk {command.target}: they would "
            f"end at {copies.end} of {command.length} bytes"
        )
    target, source = get_chunk(txn, command.target), get_chunk(txn, command.source)
    if source is None or source.state is not ChunkState.SEALED or target is None:
        return Repointed(0, 0, None)
    if not _is_open(target) and target.state is not ChunkState.SEALED:
        return Repointed(0, 0, None)
    found = list(islice(_rows(txn, command), command.limit))
    policies = _Policies(txn, command.only)
    ledger = extents.Ledger()
    rows = moved = 0
    for key, value in found:
        _, chunk_offset, ino, file_offset = extent_by_chunk_place(key)
        length = int.from_bytes(value, "big")
        copied_to = copies.find(chunk_offset, length)
        old = Extent(file_offset, length, command.source, chunk_offset)
        raw = txn.get(extent_key(ino, file_offset))
        if copied_to is None or raw is None or decode_extent(raw) != old or not policies.fit(ino):
            continue
        extents.drop(txn, ino, old)
        extents.put(txn, ino, Extent(file_offset, length, command.target, copied_to))
        ledger.add(command.target, length)
        ledger.add(command.source, -length)
        rows += 1
        moved += length
    if rows:
        if _is_open(target):
            chunks.seal_before_use(txn, target, command.length, command.lost, command.time_ns)
        put_chunk(txn, replace(source, rewritten_s=command.time_ns // 1_000_000_000))
    ledger.book(txn)
    upto = Place(*extent_by_chunk_place(found[-1][0])[1:]) if len(found) == command.limit else None
    return Repointed(rows, moved, upto)


def _rows(txn: Transaction, command: Repoint) -> Iterator[tuple[bytes, bytes]]:
    """The extents that may lie in the parts, past `after`."""
    if not command.parts:
        return iter(())
    source, after = command.source, command.after
    last_offset, last_length = command.parts[-1]
    start = extent_by_chunk_key(source, command.parts[0][0], 0, 0)
    if after is not None:
        place = after.chunk_offset, after.ino, after.file_offset
        start = extent_by_chunk_key(source, *place) + b"\0"
    return txn.scan(start, extent_by_chunk_key(source, last_offset + last_length, 0, 0))


def _is_open(target: Chunk) -> bool:
    return target.state is ChunkState.OPEN and target.owner == MASTER_SESSION


class _Copies:
    """Where the copy of each byte of the parts is."""

    def __init__(self, parts: Sequence[tuple[int, int]], base: int) -> None:
        self._starts = [offset for offset, _ in parts]
        self._ends = [offset + length for offset, length in parts]
        *self._copies, self.end = accumulate((length for _, length in parts), initial=base)

    def find(self, offset: int, length: int) -> int | None:
        """None where not all of a range lies in one part."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset + length > self._ends[number]:
            return None
        return self._copies[number] + offset - self._starts[number]


class _Policies:
    """Which files are meant."""

    def __init__(self, txn: Transaction, only: PolicyId) -> None:
        self._txn = txn
        self._only = only
        self._known: dict[InodeId, bool] = {}

    def fit(self, ino: InodeId) -> bool:
        if not self._only:
            return True
        known = self._known.get(ino)
        if known is None:
            inode = get_inode(self._txn, ino)
            known = self._known[ino] = inode is not None and inode.policy == self._only
        return known
