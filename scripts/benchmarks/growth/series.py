"""Figures along an axis. Pure values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass
class Series:
    """One figure at several places of an axis."""

    name: str
    unit: str
    flat: float | None = None
    """How far the last value may be from the first, as a factor; None: nothing is asked."""
    less_is_better: bool = False
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The last value over the first; over 1 is better."""
        first, last = self.points[0][1], self.points[-1][1]
        if self.less_is_better:
            first, last = last, first
        return last / first if first else 0.0


@dataclass
class Axis:
    """What grows, and the figures that were measured with it."""

    title: str
    unit: str = ""
    series: list[Series] = field(default_factory=list)

    def add(
        self,
        x: float,
        name: str,
        value: float,
        unit: str,
        *,
        flat: float | None = None,
        less_is_better: bool = False,
    ) -> None:
        for known in self.series:
            if known.name == name:
                break
        else:
            known = Series(name, unit, flat, less_is_better)
            self.series.append(known)
        known.points.append((x, value))

    def places(self) -> list[float]:
        return sorted({x for series in self.series for x, _ in series.points})

    def label(self, x: float) -> str:
        """A place as people write it: 3,000,000, or 4 KiB."""
        if self.unit == "B":
            for size, unit in _UNITS:
                if x >= size:
                    return f"{x / size:g} {unit}"
        return f"{x:,.0f}"


def markdown(axes: Sequence[Axis]) -> str:
    """A table for each axis."""
    parts = []
    for axis in axes:
        places = axis.places()
        head = " | ".join(axis.label(x) for x in places)
        parts.append(f"| {axis.title} | {head} |\n| --- |{' ---: |' * len(places)}")
        for series in axis.series:
            found = dict(series.points)
            cells = (number(found[x]) if x in found else "-" for x in places)
            unit = f", {series.unit}" if series.unit else ""
            parts.append(f"| {series.name}{unit} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
