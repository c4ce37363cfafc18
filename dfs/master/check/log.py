"""What a check has done and found so far, for those who watch it."""

from typing import Final

from dfs.wire.messages import CheckReply, Finding, Outcome

KEPT_MAX: Final = 50_000
"""Findings kept one by one; further ones are only counted."""
PAGE: Final = 1000
NOTES_MAX: Final = 200


class CheckLog:
    """Written by a check, read by `CheckService`."""

    def __init__(self) -> None:
        self.finished = False
        self.error = ""
        self.inodes = self.chunks = self.fragments = 0
        self._phase = ""
        self._done = self._total = 0
        self._counts = dict.fromkeys(Outcome, 0)
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._unchecked: list[str] = []

    def __repr__(self) -> str:
        return f"<CheckLog {self._phase or 'finished'}, {len(self._findings)} findings>"

    def begin(self, phase: str, total: int = 0) -> None:
        self._phase = phase
        self._done, self._total = 0, total

    def reach(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def advance(self, done: int) -> None:
        self._done += done
        self._total = max(self._done, self._total)

    def finish(self, error: str = "") -> None:
        self.begin("")
        self.error = error
        self.finished = True

    def add(self, what: str, outcome: Outcome, todo: str = "", *, count: int = 1) -> None:
        """A finding. `count`: how many things it speaks of."""
        self._counts[outcome] += count
        if len(self._findings) < KEPT_MAX:
            self._findings.append(Finding(what, outcome, todo))

    def note(self, what: str) -> None:
        if len(self._notes) < NOTES_MAX:
            self._notes.append(what)

    def leave(self, what: str) -> None:
        """Something could not be looked at."""
        if len(self._unchecked) < NOTES_MAX:
            self._unchecked.append(what)

    def reply(self, after: int) -> CheckReply:
        """The state of things, with findings past the first `after`."""
        page = self._findings[after : after + PAGE]
        counts = self._counts
        return CheckReply(
            phase=self._phase,
            done=self._done,
            total=self._total,
            finished=self.finished,
            error=self.error,
            inodes=self.inodes,
            chunks=self.chunks,
            fragments=self.fragments,
            found=sum(counts.values()),
            repaired=counts[Outcome.REPAIRED],
            left=counts[Outcome.LEFT],
            findings=tuple(page),
            more=after + len(page) < len(self._findings),
            notes=tuple(self._notes),
            unchecked=tuple(self._unchecked),
        )
