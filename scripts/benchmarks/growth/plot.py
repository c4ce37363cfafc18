"""The picture (SVG): a panel for each axis; each line is a figure as a multiple of its first."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from scripts.benchmarks.growth.series import Axis, Series, number

_WIDTH: Final = 520
_HEIGHT: Final = 260
_LEFT: Final = 70
_TOP: Final = 40
_LEGEND: Final = 300
_LINE: Final = 17
_RANGE: Final = (0.1, 10.0)
_COLOURS: Final = ("#1d4ed8", "#c1121f", "#16a34a", "#7c3aed", "#d97706", "#0e7490", "#be185d")
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#222}.small{font-size:10px;fill:#666}.title{font-weight:bold}"
    ".grid{stroke:#e4e4e4}.one{stroke:#888}.line{fill:none;stroke-width:2}"
)


def svg(axes: Sequence[Axis]) -> str:
    """Up is better: of times and sizes the inverse is drawn. The axis across is logarithmic."""
    height = _TOP + (_HEIGHT + 60) * len(axes)
    width = _LEFT + _WIDTH + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
        f"<title>Cost with growth</title><style>{_STYLE}</style>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    for position, axis in enumerate(axes):
        parts += _panel(axis, _TOP + (_HEIGHT + 60) * position)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(axis: Axis, top: int) -> list[str]:
    places = axis.places()
    parts = [f'<text class="title" x="{_LEFT}" y="{top - 12}">{escape(axis.title)}</text>']
    for multiple in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        y = _y(multiple, top)
        kind = "one" if multiple == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y}H{_LEFT + _WIDTH}"/>')
        label = f'<text class="small" x="{_LEFT - 8}" y="{y + 3}" text-anchor="end">'
        parts.append(f"{label}{multiple:g}×</text>")
    for place in places:
        x = _x(place, places)
        parts.append(
            f'<text class="small" x="{x}" y="{top + _HEIGHT + 16}" text-anchor="middle">'
            f"{escape(axis.label(place))}</text>"
        )
    for order, series in enumerate(axis.series):
        colour = _COLOURS[order % len(_COLOURS)]
        dashes = ' stroke-dasharray="5 3"' if series.less_is_better else ""
        line = "L".join(
            f"{_x(x, places)} {_y(_multiple(series, y), top)}" for x, y in series.points
        )
        parts.append(f'<path class="line" stroke="{colour}"{dashes} d="M{line}"/>')
        y = top + 8 + _LINE * order
        first, last = series.points[0][1], series.points[-1][1]
        text = f"{series.name}: {number(first)} to {number(last)} {series.unit}"
        parts.append(
            f'<path class="line" stroke="{colour}"{dashes} d="M{_LEFT + _WIDTH + 12} {y - 4}h18"/>'
            f'<text class="small" x="{_LEFT + _WIDTH + 36}" y="{y}">{escape(text)}</text>'
        )
    return parts


def _multiple(series: Series, value: float) -> float:
    first = series.points[0][1]
    if series.less_is_better:
        first, value = value, first
    low, high = _RANGE
    return min(high, max(low, value / first)) if first > 0 else high


def _x(place: float, places: Sequence[float]) -> float:
    low, high = math.log(places[0]), math.log(places[-1])
    share = (math.log(place) - low) / (high - low) if high > low else 0.5
    return round(_LEFT + _WIDTH * share, 1)


def _y(multiple: float, top: int) -> float:
    low, high = (math.log(bound) for bound in _RANGE)
    return round(top + _HEIGHT * (1 - (math.log(multiple) - low) / (high - low)), 1)
