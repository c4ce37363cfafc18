"""The result as a picture (SVG): in each row, every column as a multiple of the best peer."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from scripts.benchmarks.peers.results import ColumnResult, Results
from scripts.benchmarks.peers.rows import ROWS, Row
from scripts.benchmarks.peers.verdicts import OURS, YARDSTICK, bound_of, verdicts

_LEFT: Final = 330
_WIDTH: Final = 560
_STEP: Final = 22
_TOP: Final = 30
_RANGE: Final = (0.02, 50.0)
"""Multiples of the best peer; what is beyond is drawn at the edge."""
_COLOURS: Final = ("#c1121f", "#f4795b", "#1d4ed8", "#60a5fa", "#7c3aed")
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#222}.small{font-size:10px;fill:#666}"
    ".grid{stroke:#e4e4e4}.one{stroke:#444}.goal{stroke:#16a34a;stroke-width:2}"
)


def svg(results: Results) -> str:
    """Right is better, in every row. A green mark is what dfs rep:3 must reach."""
    rows = [row for row in ROWS if _base(row, results.columns) is not None]
    marks = {column.name: f"m{number}" for number, column in enumerate(results.columns)}
    height = _TOP + _STEP * len(rows) + 30 + 18 * len(results.columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 40}" '
        f'height="{height}" role="img"><title>dfs beside its peers</title><style>{_STYLE}</style>',
        f'<rect width="{_LEFT + _WIDTH + 40}" height="{height}" fill="#fff"/>',
        "<defs>",
        *(_mark(column, marks[column.name], results.columns) for column in results.columns),
        "</defs>",
        *_grid(len(rows)),
    ]
    goals = {
        verdict.row.name: verdict
        for verdict in reversed(verdicts(results.columns))
        if verdict.column.name == "dfs-3"
    }
    for number, row in enumerate(rows):
        y = _TOP + _STEP * number + _STEP // 2
        base = _base(row, results.columns)
        assert base is not None
        parts.append(
            f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.title)}</text>'
        )
        if row.name in goals:
            x = _x(_multiple(row, goals[row.name].bound.value, base))
            parts.append(f'<path class="goal" d="M{x} {y - 8}V{y + 8}"/>')
        for column in reversed(results.columns):
            if row.name in column.figures:
                x = _x(_multiple(row, column.figures[row.name].median, base))
                parts.append(f'<use href="#{marks[column.name]}" x="{x}" y="{y}"/>')
    for number, column in enumerate(results.columns):
        y = _TOP + _STEP * len(rows) + 34 + 18 * number
        parts.append(f'<use href="#{marks[column.name]}" x="{_LEFT}" y="{y - 4}"/>')
        parts.append(f'<text x="{_LEFT + 12}" y="{y}">{escape(column.title)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _base(row: Row, columns: Sequence[ColumnResult]) -> float | None:
    """What a mark in the middle means: the best peer that counts, or what is fixed for the row."""
    if not any(row.name in column.figures for column in columns):
        return None
    bound = bound_of(row, row.goals[0], columns)
    return bound.value / row.goals[0].factor if bound is not None else None


def _multiple(row: Row, value: float, base: float) -> float:
    low, high = _RANGE
    if row.better == "less":
        value, base = base, value
    return min(high, max(low, value / base)) if base > 0 else high


def _x(multiple: float) -> float:
    low, high = (math.log(bound) for bound in _RANGE)
    return round(_LEFT + _WIDTH * (math.log(multiple) - low) / (high - low), 1)


def _grid(rows: int) -> list[str]:
    bottom = _TOP + _STEP * rows
    parts = []
    for multiple in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        x = _x(multiple)
        kind = "one" if multiple == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{x} {_TOP}V{bottom}"/>')
        label = "best peer" if multiple == 1 else f"{multiple:g}×"
        parts.append(
            f'<text class="small" x="{x}" y="{_TOP - 8}" text-anchor="middle">{label}</text>'
        )
    return parts


def _mark(column: ColumnResult, name: str, columns: Sequence[ColumnResult]) -> str:
    """A disc for dfs, a ring with a letter for a peer, a cross for the local disk."""
    ours = [each.name for each in columns if each.system == OURS]
    peers = [each.name for each in columns if each.system not in (OURS, YARDSTICK)]
    if column.system == OURS:
        colour = _COLOURS[ours.index(column.name) % len(_COLOURS)]
        drawn = f'<circle r="5" fill="{colour}"/>'
    elif column.system == YARDSTICK:
        drawn = '<path d="M-4 -4L4 4M-4 4L4 -4" stroke="#999"/>'
    else:
        letter = chr(ord("a") + peers.index(column.name))
        drawn = (
            '<circle r="6" fill="#fff" stroke="#666"/>'
            f'<text class="small" dy="3" text-anchor="middle">{letter}</text>'
        )
    return f'<g id="{name}">{drawn}</g>'
