"""Fragments of chunks: which disk has which, and what is missing. Pure, over a transaction.

Keeps four tables in step: the chunk's own list, fragment-by-disk, the wanting table (SEALED chunks
that lack a GOOD fragment: what there is to repair) and the stale rows of the doomed table (bytes on
disks that no chunk counts on any more: what there is to delete).

    event                          the fragment list                     and
    MARK    a disk lost, broke     the fragment's state changes          wanting, or not any more
            or found one
    PLACE   a disk has a new one   it replaces all others of its index   those become stale
    STALE   a disk has one that    (as before)                           a stale row
            nobody counts on
    ABANDON a disk is removed      its fragment is forgotten             wanting
    DROP    a disk deleted one     a DOOMED chunk's is forgotten         the row goes

A disk with a stale row of a chunk gets no fragment of it: the deletion may be on its way. So a
deletion and a new fragment never meet, in whatever order their messages arrive.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from msgspec.structs import replace

from dfs.core.chunk import Chunk, ChunkState, Fragment, FragmentState
from dfs.core.ids import ChunkId, DiskId
from dfs.master.commands import (
    ANY_INDEX,
    AbandonFragments,
    FragmentMark,
    MarkFragments,
    MarkStale,
    MarkVerified,
    PlaceFragment,
)
from dfs.master.keyspace import (
    WANTING,
    Reader,
    Writer,
    doomed_key,
    fragment_by_disk_key,
    from_u64,
    get_chunk,
    get_counters,
    key_id,
    prefix_end,
    put_chunk,
    put_counters,
    second_id,
    u64,
    wanting_key,
)

REPORTED: Final = {
    "corrupt": FragmentState.CORRUPT,
    "missing": FragmentState.LOST,
    "short": FragmentState.LOST,
}
"""What a complaint about a fragment makes of it. Any other reason says nothing about it."""

_NS_IN_S: Final = 1_000_000_000
_CORRUPT: Final = b"\1"
"""Ends a stale row of bytes that are known to be damaged: nobody takes them back."""


def is_whole(chunk: Chunk) -> bool:
    """It has a GOOD fragment of each index."""
    return len(chunk.good) >= chunk.width


def settle(txn: Writer, chunk: Chunk, time_ns: int) -> None:
    """Store a chunk whose state or fragments have changed, and note whether it wants some."""
    put_chunk(txn, chunk)
    key = wanting_key(chunk.chunk)
    wants = chunk.state is ChunkState.SEALED and not is_whole(chunk)
    if wants == (txn.get(key) is not None):
        return
    counters = get_counters(txn)
    if wants:
        txn.put(key, u64(time_ns))
    else:
        txn.delete(key)
    put_counters(txn, replace(counters, wanting=counters.wanting + (1 if wants else -1)))


def mark(txn: Writer, command: MarkFragments) -> None:
    """Set the state of fragments. Marks of chunks or disks that do not fit are left out.

    A fragment does not become GOOD beside another GOOD one of the same index.
    """
    by_chunk: dict[ChunkId, dict[DiskId, FragmentMark]] = {}
    for one in command.marks:
        by_chunk.setdefault(one.chunk, {})[one.disk] = one
    for chunk_id, marks in by_chunk.items():
        chunk = get_chunk(txn, chunk_id)
        if chunk is None or chunk.state is ChunkState.DOOMED:
            continue
        good = {fragment.index for fragment in chunk.good}
        fragments = []
        for fragment in chunk.fragments:
            state, here = fragment.state, marks.get(fragment.disk)
            if here is not None and here.index in (fragment.index, ANY_INDEX):
                state = here.state
            if state is not fragment.state and not (
                state is FragmentState.GOOD and fragment.index in good
            ):
                fragment = replace(fragment, state=state)
                if state is FragmentState.GOOD:
                    good.add(fragment.index)
            fragments.append(fragment)
        if tuple(fragments) != chunk.fragments:
            settle(txn, replace(chunk, fragments=tuple(fragments)), command.time_ns)


def place(txn: Writer, command: PlaceFragment) -> bool:
    """See `PlaceFragment`."""
    number, index, disk = command.chunk, command.index, command.disk
    chunk = get_chunk(txn, number)
    if chunk is None or chunk.state is not ChunkState.SEALED or not 0 <= index < chunk.width:
        return False
    here = chunk.on(disk)
    if here is not None and here.index != index:
        return False
    stale = txn.get(doomed_key(disk, number))
    if stale is not None:
        if not (command.reclaim and stale == bytes((index,))):
            return False
        txn.delete(doomed_key(disk, number))
        _count_stale(txn, -1)
    kept = [fragment for fragment in chunk.fragments if fragment.index != index]
    for fragment in chunk.fragments:
        if fragment.index == index and fragment.disk != disk:
            txn.delete(fragment_by_disk_key(fragment.disk, number))
            corrupt = fragment.state is FragmentState.CORRUPT
            txn.put(doomed_key(fragment.disk, number), bytes((index,)) + _CORRUPT * corrupt)
            _count_stale(txn, 1)
    txn.put(fragment_by_disk_key(disk, number), bytes((index,)))
    fragments = sorted((*kept, Fragment(index, disk)), key=lambda fragment: fragment.index)
    settle(txn, replace(chunk, fragments=tuple(fragments)), command.time_ns)
    return True


def mark_stale(txn: Writer, command: MarkStale) -> None:
    """See `MarkStale`."""
    disk = command.disk
    for number, index in command.held:
        chunk = get_chunk(txn, number)
        if chunk is None or chunk.on(disk) is not None:
            continue
        key = doomed_key(disk, number)
        if txn.get(key) is None and any(good.index == index for good in chunk.good):
            txn.put(key, bytes((index,)))
            _count_stale(txn, 1)


def abandon(txn: Writer, command: AbandonFragments) -> None:
    """See `AbandonFragments`. DOOMED chunks are left alone: `DropFragments` is for them."""
    disk = command.disk
    for number in command.chunks:
        chunk = get_chunk(txn, number)
        if chunk is None or chunk.state is ChunkState.DOOMED or chunk.on(disk) is None:
            continue
        txn.delete(fragment_by_disk_key(disk, number))
        left = tuple(fragment for fragment in chunk.fragments if fragment.disk != disk)
        settle(txn, replace(chunk, fragments=left), command.time_ns)


def mark_verified(txn: Writer, command: MarkVerified) -> None:
    """Note the time; chunks that are gone are left out."""
    for number in command.chunks:
        chunk = get_chunk(txn, number)
        if chunk is not None and chunk.state is ChunkState.SEALED:
            put_chunk(txn, replace(chunk, verified_s=command.time_ns // _NS_IN_S))


def forget_stale(txn: Writer, disk: DiskId, chunk: ChunkId) -> bool:
    """The disk has deleted a stale fragment. False: the row is not of that kind, or not there."""
    key = doomed_key(disk, chunk)
    if not txn.get(key):
        return False
    txn.delete(key)
    _count_stale(txn, -1)
    return True


def _count_stale(txn: Writer, change: int) -> None:
    counters = get_counters(txn)
    put_counters(txn, replace(counters, stale=counters.stale + change))


# ------------------------------------------------------------------ reading


def wanting(reader: Reader, after: ChunkId, limit: int) -> list[tuple[ChunkId, int]]:
    """(chunk, since when in ns) of chunks that lack a fragment, in order, past `after`."""
    rows = islice(reader.scan(wanting_key(after + 1), prefix_end(WANTING)), limit)
    return [(key_id(key), from_u64(value)) for key, value in rows]


def on_disk(reader: Reader, disk: DiskId, after: ChunkId, limit: int) -> list[ChunkId]:
    """Chunks that have a fragment on `disk`, in whatever state, in order, past `after`."""
    start, end = fragment_by_disk_key(disk, after + 1), fragment_by_disk_key(disk + 1, 0)
    return [second_id(key) for key, _ in islice(reader.scan(start, end), limit)]


def doomed_on(
    reader: Reader, disk: DiskId, after: ChunkId, limit: int
) -> list[tuple[ChunkId, int | None]]:
    """What the disk shall delete, in order of chunk, past `after`.

    (chunk, None) for a fragment of a DOOMED chunk, (chunk, index) for a stale one.
    """
    rows = reader.scan(doomed_key(disk, after + 1), doomed_key(disk + 1, 0))
    return [(second_id(key), value[0] if value else None) for key, value in islice(rows, limit)]


def stale_of(reader: Reader, chunk: ChunkId, disks: list[DiskId]) -> Iterator[tuple[DiskId, int]]:
    """(disk, index) of stale fragments of a chunk that may be good, among `disks`."""
    values = reader.get_many([doomed_key(disk, chunk) for disk in disks])
    for disk, value in zip(disks, values, strict=True):
        if value and not value.endswith(_CORRUPT, 1):
            yield disk, value[0]
