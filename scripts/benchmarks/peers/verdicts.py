"""Whether dfs reaches what it must: its figures beside those of the peers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scripts.benchmarks.peers.results import ColumnResult
from scripts.benchmarks.peers.rows import ROWS, Goal, Row

OURS: Final = "dfs"
YARDSTICK: Final = "local"


@dataclass(frozen=True)
class Bound:
    """What must be reached, and where that comes from."""

    value: float
    because: str


@dataclass(frozen=True)
class Verdict:
    """One goal for one column of dfs."""

    row: Row
    column: ColumnResult
    value: float
    bound: Bound

    @property
    def reached(self) -> bool:
        if self.row.better == "less":
            return self.value <= self.bound.value
        return self.value >= self.bound.value

    @property
    def share(self) -> float:
        """1 or more where it is reached."""
        better, worse = self.value, self.bound.value
        if self.row.better == "less":
            better, worse = worse, better
        return better / worse if worse > 0 else float("inf")


def verdicts(columns: Sequence[ColumnResult]) -> list[Verdict]:
    """In the order of the rows; nothing where no peer that counts was measured."""
    found = []
    for row in ROWS:
        for column in columns:
            if column.system != OURS or not column.judged or row.name not in column.figures:
                continue
            for goal in row.goals:
                if goal.redundancy != column.redundancy:
                    continue
                if (bound := bound_of(row, goal, columns)) is not None:
                    found.append(Verdict(row, column, column.figures[row.name].median, bound))
    return found


def bound_of(row: Row, goal: Goal, columns: Sequence[ColumnResult]) -> Bound | None:
    """None where no peer that counts was measured."""
    if goal.fixed is not None:
        return Bound(goal.fixed, "fixed")
    rivals = [column for column in columns if _counts(column, row, goal)]
    if not rivals:
        return None
    pick = min if row.better == "less" else max
    best = pick(rivals, key=lambda column: column.figures[row.name].median)
    return Bound(goal.factor * best.figures[row.name].median, f"{goal.factor:g} × {best.title}")


def _counts(column: ColumnResult, row: Row, goal: Goal) -> bool:
    if column.system in (OURS, YARDSTICK, *goal.without) or row.name not in column.figures:
        return False
    if goal.only and column.system not in goal.only:
        return False
    return not goal.among or column.redundancy == goal.among
