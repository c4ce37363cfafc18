"""Which disks owe a chunk report, whose turn it is, and what their lists are too old for.

On a big cluster all disks may owe one at a time (the master has just begun): they are asked a few
at a time. A list is as old as the question, so it is no evidence against a chunk that was made,
sealed, marked or given another fragment since. A question has a number, which its answer repeats:
a disk may still be at the answer to an older one. Memory is bounded by what changes while the few
are at it, and `CHANGED_MAX`: past that, the oldest question counts as never asked.

Owned by the daemon; the service that reads reports asks it, and whoever changes fragments tells it.
"""

from collections.abc import Collection, Iterable
from typing import Final

from dfs.core.ids import ChunkId, DiskId

ASK_AGAIN_S: Final = 60.0
"""How long a disk may be silent after it was asked for a report, until it is asked again."""
AT_ONCE: Final = 16
"""Disks that list what they hold at the same time."""
CHANGED_MAX: Final = 200_000
"""Changed chunks that are remembered."""


class _Asked:
    __slots__ = ("active_at", "horizon", "question", "since")

    def __init__(self, question: int, horizon: ChunkId, since: int, now: float) -> None:
        self.question = question
        self.horizon = horizon
        self.since = since
        """Changes with this number, and later ones, are younger than its list."""
        self.active_at = now


class ReportBook:
    def __init__(self, first_question: int = 1) -> None:
        """`first_question`: lists that an earlier run of the master asked for have others."""
        self._next_question = first_question
        self._wanted: dict[DiskId, float] = {}
        """Disks that are still to be asked, and from when on."""
        self._asked: dict[DiskId, _Asked] = {}
        self._changed: dict[ChunkId, int] = {}
        """Changed since the oldest report was asked for, in order; the numbers of the changes."""
        self._changes = 0

    def __repr__(self) -> str:
        return f"<ReportBook {len(self._asked)} disks report, {len(self._wanted)} wait>"

    def want(self, disks: Iterable[DiskId], *, not_before: float = 0.0) -> None:
        """These disks shall report, from `not_before` on. The first of several wishes counts.

        One that is listing now is asked once more after that.
        """
        for disk in disks:
            self._wanted.setdefault(disk, not_before)

    def to_ask(
        self, disks: Iterable[DiskId], now: float, next_chunk: ChunkId
    ) -> tuple[DiskId, ...]:
        """Those of `disks` that shall be asked (again) now.

        `next_chunk` is the number that the next chunk will get: younger ones are in no list.
        """
        if not (self._wanted or self._asked):
            return ()
        busy = sum(now - asked.active_at < ASK_AGAIN_S for asked in self._asked.values())
        due = []
        for disk in disks:
            asked = self._asked.get(disk)
            if asked is not None:
                if now - asked.active_at < ASK_AGAIN_S:
                    continue
                # It may be at the old list still, so that counts as no newer.
                asked.active_at = now
            elif busy >= AT_ONCE or now < self._wanted.get(disk, now + 1):
                continue
            else:
                del self._wanted[disk]
                self._asked[disk] = _Asked(self._next_question, next_chunk, self._changes, now)
                self._next_question += 1
            busy += 1
            due.append(disk)
        return tuple(due)

    def question(self, disk: DiskId) -> int:
        """What it was asked last; 0 where it owes no answer."""
        asked = self._asked.get(disk)
        return 0 if asked is None else asked.question

    def note_changed(self, chunk: ChunkId) -> None:
        """Call it with every seal, new fragment and mark that is not a report's."""
        if not self._asked:
            return
        self._changed.pop(chunk, None)
        self._changed[chunk] = self._changes
        self._changes += 1
        if len(self._changed) > CHANGED_MAX:
            oldest = min(self._asked, key=lambda disk: self._asked[disk].since)
            del self._asked[oldest]
            self._wanted[oldest] = 0.0
            self._forget_changes()

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
        """Chunks that may be younger than a list."""
        return self._changed.keys()

    def listed(self, disk: DiskId) -> bool:
        """Its list is complete. False: it was not asked for, another one shall come."""
        if self._asked.pop(disk, None) is None:
            return False
        self._forget_changes()
        return True

    def gone(self, disk: DiskId) -> None:
        """It went away, and has to be asked anew when it returns."""
        self._wanted.pop(disk, None)
        self.listed(disk)

    def _forget_changes(self) -> None:
        """Those that are older than all lists that are under way."""
        if not self._asked:
            self._changed.clear()
            return
        oldest = min(asked.since for asked in self._asked.values())
        while self._changed:
            chunk, number = next(iter(self._changed.items()))
            if number >= oldest:
                return
            del self._changed[chunk]
