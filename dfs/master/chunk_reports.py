"""What a disk holds against what the master believes: the chunk report.

A server lists a disk's fragments, in order of chunk and in pages, after it started and after it
was given up for DOWN. `plan` compares one stretch of such a list with the store:

    the disk holds it, the master                         then
    knows no such chunk, or has doomed it                 the disk shall drop it
    has a GOOD fragment of that index elsewhere           the disk shall drop it
    has it as LOST, and it is whole                       GOOD again
    has it as GOOD, but it is too short or another's      LOST
    has it sealed, the disk has not                       the disk shall seal it
    the disk lacks it, the master has it as GOOD          LOST

The list is as old as the moment the disk was read, so it is no evidence against a chunk that was
made or sealed since the master asked for it: `ReportBook` keeps track of that.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice, pairwise
from typing import Final

import msgspec

from dfs.core.chunk import Chunk, ChunkState, Fragment, FragmentState
from dfs.core.errors import ProtocolError
from dfs.core.ids import ChunkId, DiskId
from dfs.master.commands import FragmentMark
from dfs.master.keyspace import (
    EXTENT_BY_CHUNK,
    Reader,
    fragment_by_disk_key,
    fragment_by_disk_place,
    get_chunk,
    scan_prefix,
    u64,
)
from dfs.wire.messages import HeldFragment

ASK_AGAIN_S: Final = 60.0
"""How long a disk may be silent after it was asked for a report, until it is asked again."""

END: Final = (1 << 64) - 1
"""Past every chunk."""


class Stretch(msgspec.Struct, frozen=True):
    """All that a disk holds of chunks in (after, upto]."""

    disk: DiskId
    after: ChunkId
    upto: ChunkId
    held: Sequence[HeldFragment]

    def beyond(self, chunk: ChunkId) -> "Stretch":
        """The part of it past `chunk`."""
        held = [fragment for fragment in self.held if fragment.chunk > chunk]
        return Stretch(self.disk, chunk, self.upto, held)


class Plan(msgspec.Struct, frozen=True):
    """What follows from a stretch."""

    drop: tuple[ChunkId, ...]
    marks: tuple[FragmentMark, ...]
    unsealed: tuple[tuple[ChunkId, int], ...]
    """(chunk, length): whole fragments that want their seal."""
    upto: ChunkId
    """How far the stretch is dealt with."""


def split(
    disk: DiskId, after: ChunkId, held: Sequence[HeldFragment], last: bool, size: int
) -> list[Stretch]:
    """One page as stretches of up to `size` fragments.

    Raises ProtocolError where the page is not in order.
    """
    ids = [after, *(fragment.chunk for fragment in held)]
    if after < 0 or ids[-1] >= END or any(one >= other for one, other in pairwise(ids)):
        raise ProtocolError(f"the chunk report of disk {disk} is not in order of chunk")
    stretches = []
    for start in range(0, len(held), size):
        part = held[start : start + size]
        stretches.append(Stretch(disk, after, part[-1].chunk, part))
        after = part[-1].chunk
    if last:
        stretches.append(Stretch(disk, after, END, ()))
    return stretches


def plan(
    reader: Reader,
    stretch: Stretch,
    *,
    next_chunk: ChunkId,
    horizon: ChunkId,
    spared: Collection[ChunkId],
    limit: int,
) -> Plan:
    """Compare a stretch with the store, going through at most `limit` rows of the store.

    `next_chunk` is the number that the next chunk will get. Chunks from `horizon` on and those
    in `spared` may be younger than the list: nothing is held against them.
    """
    disk = stretch.disk
    start = fragment_by_disk_key(disk, stretch.after + 1)
    end = fragment_by_disk_key(disk, stretch.upto) + b"\0"
    listed = [
        fragment_by_disk_place(key)[1] for key, _ in islice(reader.scan(start, end), limit + 1)
    ]
    upto = stretch.upto
    if len(listed) > limit:
        listed.pop()
        upto = listed[-1]
    drop: list[ChunkId] = []
    marks: list[FragmentMark] = []
    unsealed: list[tuple[ChunkId, int]] = []
    held_ids = set()
    for held in stretch.held:
        if held.chunk > upto:
            break
        held_ids.add(held.chunk)
        chunk = get_chunk(reader, held.chunk)
        if chunk is None:
            if held.chunk < next_chunk:
                drop.append(held.chunk)
            continue
        if _superseded(chunk, disk, held.index):
            drop.append(held.chunk)
            continue
        fragment = _fragment_on(chunk, disk)
        if fragment is None or chunk.state is not ChunkState.SEALED:
            continue
        whole = fragment.index == held.index and held.length >= chunk.length
        young = held.chunk >= horizon or held.chunk in spared
        if fragment.state is FragmentState.GOOD and not whole and not young:
            marks.append(FragmentMark(held.chunk, disk, FragmentState.LOST))
        elif fragment.state is FragmentState.LOST and whole:
            marks.append(FragmentMark(held.chunk, disk, FragmentState.GOOD))
        if whole and not held.sealed and fragment.state is not FragmentState.CORRUPT:
            unsealed.append((held.chunk, chunk.length))
    for number in listed:
        if number in held_ids or number >= horizon or number in spared:
            continue
        chunk = get_chunk(reader, number)
        if chunk is None or chunk.state is not ChunkState.SEALED:
            continue
        fragment = _fragment_on(chunk, disk)
        if fragment is not None and fragment.state is FragmentState.GOOD:
            marks.append(FragmentMark(number, disk, FragmentState.LOST))
    return Plan(tuple(drop), tuple(marks), tuple(unsealed), upto)


def needed(reader: Reader, chunks: Iterable[ChunkId]) -> set[ChunkId]:
    """Those that extents refer to although there is no such chunk: its record is lost.

    What the disks hold of them is the only way to have it back (`dfs admin fsck --repair`).
    """
    return {
        chunk
        for chunk in chunks
        if next(scan_prefix(reader, EXTENT_BY_CHUNK + u64(chunk)), None) is not None
        and ((record := get_chunk(reader, chunk)) is None or record.state is ChunkState.DOOMED)
    }


def _fragment_on(chunk: Chunk, disk: DiskId) -> Fragment | None:
    return next((fragment for fragment in chunk.fragments if fragment.disk == disk), None)


def _superseded(chunk: Chunk, disk: DiskId, index: int) -> bool:
    """The disk's fragment of this chunk is of no use any more."""
    if chunk.state is ChunkState.DOOMED:
        return True
    if _fragment_on(chunk, disk) is not None:
        return False
    return any(
        fragment.index == index and fragment.state is FragmentState.GOOD
        for fragment in chunk.fragments
    )


class _Asked:
    __slots__ = ("active_at", "horizon")

    def __init__(self, horizon: ChunkId) -> None:
        self.horizon = horizon
        self.active_at: float | None = None


class ReportBook:
    """Which disks owe a report, and which chunks their lists are too old to judge."""

    def __init__(self) -> None:
        self._asked: dict[DiskId, _Asked] = {}
        self._sealed: set[ChunkId] = set()
        """Sealed since the oldest report that is under way was asked for."""

    def __repr__(self) -> str:
        return f"<ReportBook {len(self._asked)} disks owe a report>"

    def want(self, disks: Iterable[DiskId], next_chunk: ChunkId) -> None:
        """These disks shall report. The first of several wishes counts."""
        for disk in disks:
            self._asked.setdefault(disk, _Asked(next_chunk))

    def to_ask(self, disks: Iterable[DiskId], now: float) -> tuple[DiskId, ...]:
        """Those of `disks` that shall be asked (again) now."""
        due = []
        for disk in disks:
            asked = self._asked.get(disk)
            if asked is None:
                continue
            if asked.active_at is None or now - asked.active_at >= ASK_AGAIN_S:
                asked.active_at = now
                due.append(disk)
        return tuple(due)

    def note_sealed(self, chunk: ChunkId) -> None:
        if self._asked:
            self._sealed.add(chunk)

    def horizon(self, disk: DiskId, now: float) -> ChunkId:
        """A page of this disk arrived: chunks from here on are younger than its list.

        0 for a disk that was not asked: its list is evidence against nothing.
        """
        asked = self._asked.get(disk)
        if asked is None:
            return 0
        asked.active_at = now
        return asked.horizon

    @property
    def spared(self) -> Collection[ChunkId]:
        return self._sealed

    def finished(self, disk: DiskId) -> None:
        """Its list is complete; or it went away, and has to be asked anew when it returns."""
        self._asked.pop(disk, None)
        if not self._asked:
            self._sealed.clear()
