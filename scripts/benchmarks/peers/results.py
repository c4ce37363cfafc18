"""What was measured, as a document: columns, figures, and what went wrong."""

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Final

import msgspec

from scripts.benchmarks.peers.system import Column, Program

BUSY: Final = 0.4
"""Processors: where other work took more, a figure is uncertain."""


class Figure(msgspec.Struct):
    """One row of one column: a value for each repetition."""

    values: list[float] = []
    others: float = 0.0
    """The most processors that other work on the machine took meanwhile."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def uncertain(self) -> bool:
        return self.others > BUSY


class ColumnResult(msgspec.Struct):
    """One column; `errors` by workload, "start" for what kept it from coming up."""

    name: str
    title: str
    system: str
    redundancy: str
    seconds: float = 0.0
    figures: dict[str, Figure] = {}
    errors: dict[str, str] = {}
    versions: dict[str, str] = {}
    judged: bool = True

    @property
    def others(self) -> float:
        """Processors that other work took, on average."""
        return statistics.fmean(figure.others for figure in self.figures.values())

    def take(self, lines: str) -> None:
        """Add what `inside` wrote."""
        for line in lines.splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue  # the last one, where it was killed in the middle
            if "error" in content:
                self.errors[content["workload"]] = content["error"]
                continue
            figure = self.figures.setdefault(content["row"], Figure())
            figure.values.append(content["value"])
            figure.others = max(figure.others, content["others"])


class Results(msgspec.Struct):
    """One run."""

    at: str
    machine: str
    cpus: int
    memory_gib: float
    python: str
    scale: float
    repeat: int
    turns: int = 1
    columns: list[ColumnResult] = []

    @classmethod
    def begin(cls, scale: float, repeat: int, turns: int = 1) -> "Results":
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            machine=f"{platform.machine()}, Linux {platform.release().split('-')[0]}",
            cpus=os.cpu_count() or 1,
            memory_gib=round(pages * page / (1 << 30), 1),
            python=platform.python_version(),
            scale=scale,
            repeat=repeat,
            turns=turns,
        )

    def column(self, system: str, column: Column, programs: tuple[Program, ...]) -> ColumnResult:
        """What is known of a column: nothing yet, in the first turn."""
        for known in self.columns:
            if known.name == column.name:
                return known
        made = ColumnResult(
            column.name,
            column.title,
            system,
            column.redundancy,
            versions={each.package: found for each in programs if (found := each.version())},
            judged=column.judged,
        )
        self.columns.append(made)
        return made

    @property
    def uncertain(self) -> bool:
        return any(
            figure.uncertain for column in self.columns for figure in column.figures.values()
        )

    def save(self, to: Path) -> None:
        partial = to.with_suffix(".part")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        partial.replace(to)

    @classmethod
    def load(cls, path: Path) -> "Results":
        return msgspec.json.decode(path.read_bytes(), type=cls)
