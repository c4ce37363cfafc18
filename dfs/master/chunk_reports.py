"""What a disk holds against what the master believes: the chunk report.

A server lists a disk's fragments, in order of chunk and in pages, after it started and after it
was given up for DOWN. `plan` compares one stretch of such a list with the store:

    the disk holds it, the master                         then
    knows no such chunk, or has doomed it                 the disk shall drop it
    has that index GOOD on another disk that is alive     it is stale
    has that index GOOD nowhere, or on a dead disk        adopted, where it is whole
    has it as LOST since before the list, and it is whole GOOD again
    has it as GOOD, but it is too short or another's      LOST
    has it sealed, the disk has not                       the disk shall seal it
    the disk lacks it, the master has it as GOOD          LOST

The list is as old as the moment the disk was read, so it is no evidence against a chunk that was
made, sealed or given another fragment since the master asked for it: `report_book` keeps track of
that.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
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
    get_chunks,
    scan_prefix,
    u64,
)
from dfs.wire.messages import HeldFragment

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
    stale: tuple[tuple[ChunkId, int], ...]
    """(chunk, index) that the disk holds and no chunk counts on."""
    adopt: tuple[tuple[ChunkId, int], ...]
    """(chunk, index) that the disk holds and the chunk lacks."""
    marks: tuple[FragmentMark, ...]
    unsealed: tuple[tuple[ChunkId, int], ...]
    """(chunk, length): whole fragments that want their seal."""
    upto: ChunkId
    """How far the stretch is dealt with."""
    outdated: bool = False
    """It may be better than the master believes: a newer list shall tell."""


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
    alive: Callable[[DiskId], bool],
    limit: int,
) -> Plan:
    """Compare a stretch with the store, going through at most `limit` rows of the store.

    `next_chunk` is the number that the next chunk will get. Chunks from `horizon` on and those
    in `spared` may be younger than the list: nothing is held against them. `alive` says which
    disks are not given up.
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
    findings = _Findings(disk)
    there = [held for held in stretch.held if held.chunk <= upto]
    held_ids = [held.chunk for held in there]
    for held, chunk in zip(there, get_chunks(reader, held_ids), strict=True):
        young = held.chunk >= horizon or held.chunk in spared
        if chunk is None:
            if held.chunk < next_chunk:
                findings.drop.append(held.chunk)
        elif chunk.state is ChunkState.DOOMED:
            findings.drop.append(held.chunk)
        elif (fragment := chunk.on(disk)) is None:
            findings.unlisted(chunk, held, alive)
        elif chunk.state is ChunkState.SEALED:
            findings.listed(chunk, fragment, held, young, held.chunk in spared)
    lacking = set(listed).difference(held_ids)
    judged = sorted(n for n in lacking if n < horizon and n not in spared)
    for chunk in get_chunks(reader, judged):
        if chunk is not None and chunk.state is ChunkState.SEALED:
            findings.lacking(chunk)
    return findings.plan(upto)


class _Findings:
    """Gathers what follows for the fragments of one disk."""

    def __init__(self, disk: DiskId) -> None:
        self._disk = disk
        self.drop: list[ChunkId] = []
        self._stale: list[tuple[ChunkId, int]] = []
        self._adopt: list[tuple[ChunkId, int]] = []
        self._marks: list[FragmentMark] = []
        self._unsealed: list[tuple[ChunkId, int]] = []
        self._outdated = False

    def unlisted(self, chunk: Chunk, held: HeldFragment, alive: Callable[[DiskId], bool]) -> None:
        """The disk holds a fragment that the chunk does not count on."""
        holder = next((good.disk for good in chunk.good if good.index == held.index), 0)
        if holder and alive(holder):
            self._stale.append((held.chunk, held.index))
        elif chunk.state is ChunkState.SEALED and held.length >= chunk.length:
            self._adopt.append((held.chunk, held.index))
            if not held.sealed:
                self._unsealed.append((held.chunk, chunk.length))

    def listed(
        self, chunk: Chunk, fragment: Fragment, held: HeldFragment, young: bool, changed: bool
    ) -> None:
        """The disk holds a fragment where the chunk has one, or had.

        `changed`: since the list was made. Its server may have found it to be gone meanwhile.
        """
        whole = fragment.index == held.index and held.length >= chunk.length
        if fragment.state is FragmentState.GOOD and not whole and not young:
            self._mark(chunk, FragmentState.LOST)
        elif fragment.state is FragmentState.LOST and whole and changed:
            self._outdated = True
        elif fragment.state is FragmentState.LOST and whole:
            self._mark(chunk, FragmentState.GOOD)
        if whole and not held.sealed and fragment.state is not FragmentState.CORRUPT:
            self._unsealed.append((held.chunk, chunk.length))

    def lacking(self, chunk: Chunk) -> None:
        """The disk does not hold what the chunk has there."""
        fragment = chunk.on(self._disk)
        if fragment is not None and fragment.state is FragmentState.GOOD:
            self._mark(chunk, FragmentState.LOST)

    def _mark(self, chunk: Chunk, state: FragmentState) -> None:
        self._marks.append(FragmentMark(chunk.chunk, self._disk, state))

    def plan(self, upto: ChunkId) -> Plan:
        return Plan(
            tuple(self.drop),
            tuple(self._stale),
            tuple(self._adopt),
            tuple(self._marks),
            tuple(self._unsealed),
            upto,
            self._outdated,
        )


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
