"""Trims: ranges of a file that were cut off and are not freed yet.

Cutting a long tail off a fragmented file would cost one step for each extent. Instead the range
is noted as trimmed: readers see a hole there at once, and the purge frees the extents below in
bounded steps. Bytes written into a trimmed range later take their part out of it, so they are
seen. Callers split extents at the edges of a range before they trim it.
"""

from bisect import bisect_right

from dfs.core.ids import InodeId
from dfs.master.keyspace import (
    TRIM,
    Reader,
    Writer,
    from_u64,
    prefix_end,
    second_id,
    trim_key,
    u64,
)

Range = tuple[int, int]
"""[start, end) in a file."""


def of(reader: Reader, ino: InodeId) -> list[Range]:
    """All trims of an inode, in order."""
    prefix = TRIM + u64(ino)
    return [
        (second_id(key), from_u64(value)) for key, value in reader.scan(prefix, prefix_end(prefix))
    ]


def add(txn: Writer, ino: InodeId, start: int, end: int) -> None:
    """Trim [start, end); trims that it overlaps or touches become one with it."""
    for low, high in of(txn, ino):
        if low <= end and high >= start:
            txn.delete(trim_key(ino, low))
            start, end = min(start, low), max(end, high)
    txn.put(trim_key(ino, start), u64(end))


def subtract(txn: Writer, ino: InodeId, start: int, end: int) -> None:
    """[start, end) is trimmed no more."""
    for low, high in of(txn, ino):
        if low < end and high > start:
            txn.delete(trim_key(ino, low))
            if low < start:
                txn.put(trim_key(ino, low), u64(start))
            if high > end:
                txn.put(trim_key(ino, end), u64(high))


def covers(trims: list[Range], offset: int) -> bool:
    position = bisect_right(trims, offset, key=_start) - 1
    return position >= 0 and offset < trims[position][1]


def visible(trims: list[Range], start: int, end: int) -> list[Range]:
    """The parts of [start, end) outside of all trims, in order."""
    parts: list[Range] = []
    for low, high in trims:
        if high <= start:
            continue
        if low >= end:
            break
        if low > start:
            parts.append((start, low))
        start = high
    if start < end:
        parts.append((start, end))
    return parts


def _start(trim: Range) -> int:
    return trim[0]
