"""What results look like: tables and columns for people, one JSON document for programs.

A person's terminal gets colours and progress bars; a pipe gets plain text.
"""

import json
import math
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dfs.cli.connect import options
from dfs.core.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from dfs.client import Progress

_UNITS: Final = "KMGTPE"
_REFRESH_S: Final = 0.1
_COLUMN_GAP: Final = 2
_HALF_A_YEAR_S: Final = 365 * 24 * 3600 // 2


def emit_json(document: object) -> None:
    """The one document of a command with --json."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


# ------------------------------------------------------------------ values


def human(size_bytes: float) -> str:
    """Short, rounded up, in powers of 1024, as `ls -h` writes it: 0, 999, 1.5K, 12M."""
    if size_bytes < 1024:
        return str(int(size_bytes))
    scaled = float(size_bytes)
    for unit in _UNITS:
        scaled /= 1024
        # Rounded up: what is shown is never less than what is there.
        if (tenths := math.ceil(scaled * 10)) < 100:
            return f"{tenths / 10:.1f}{unit}"
        if (whole := math.ceil(scaled)) < 1024 or unit == _UNITS[-1]:
            return f"{whole}{unit}"
    raise AssertionError("not reached: the last unit takes all")


def duration(seconds: float) -> str:
    """Roughly: 0.3s, 45s, 12m, 3h 20m, 5d 4h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes}m"
    return f"{hours // 24}d {hours % 24}h"


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`, `3 directories`."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun}"


def percent(part: float, whole: float) -> str:
    """Rounded up, as `df` has it; - where there is nothing to divide by."""
    return f"{math.ceil(part * 100 / whole)}%" if whole else "-"


def time_ns(value: int) -> str:
    """Local time to the nanosecond, as `stat` writes it."""
    seconds, nanoseconds = divmod(value, 1_000_000_000)
    local = time.localtime(seconds)
    return time.strftime(f"%Y-%m-%d %H:%M:%S.{nanoseconds:09d} %z", local)


def time_short(value_ns: int, now_s: float) -> str:
    """As `ls -l` writes it: with the hour within half a year, else with the year."""
    seconds = value_ns // 1_000_000_000
    recent = now_s - _HALF_A_YEAR_S < seconds <= now_s
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", time.localtime(seconds))


@cache
def user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@cache
def group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# ------------------------------------------------------------------ layout


def is_terminal() -> bool:
    """Whether a person reads stdout as it comes."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_colours() -> bool:
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str) -> str:
    """`text` in an ANSI style ("1;34") where the terminal shows it."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and has_colours() else text


def width(text: str) -> int:
    """Columns of a terminal that printable `text` takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """`text` filled up to `columns`, which its colours do not count for."""
    room = " " * max(0, columns - width(text))
    return room + text if right else text + room


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: frozenset[str] = frozenset(),
    styles: dict[str, str] | None = None,
) -> None:
    """Aligned columns; those named in `numbers` to the right. `styles` colours cells by content."""
    widths = [
        max([width(title), *(width(row[column]) for row in rows)])
        for column, title in enumerate(titles)
    ]

    def line(cells: Sequence[str], style_of: dict[str, str]) -> str:
        shown = []
        for cell, columns, title in zip(cells, widths, titles, strict=True):
            padded = pad(cell, columns, right=title in numbers)
            shown.append(paint(padded, style_of.get(cell, "")))
        return (" " * _COLUMN_GAP).join(shown).rstrip()

    print(line(titles, dict.fromkeys(titles, "1")))
    for row in rows:
        print(line(row, styles or {}))


def print_columns(names: Sequence[str], styles: Sequence[str]) -> None:
    """Names side by side, down then across, as `ls` fills a terminal; one a line in a pipe."""
    if not is_terminal():
        for name in names:
            print(name)
        return
    if not names:
        return
    widest = max(map(width, names)) + _COLUMN_GAP
    across = max(1, shutil.get_terminal_size().columns // widest)
    down = -(-len(names) // across)
    for row in range(down):
        cells = range(row, len(names), down)
        line = [
            paint(names[each], styles[each])
            + " " * (widest - width(names[each]) if each + down < len(names) else 0)
            for each in cells
        ]
        print("".join(line))


# ------------------------------------------------------------------ progress


class ProgressBar:
    """Bytes, rate and time left of a long operation, on a terminal; nothing elsewhere.

    A context manager. `update` is what the client calls.
    """

    def __init__(self, title: str, *, in_bytes: bool = True, items: str = "files") -> None:
        """`items`: what is counted besides bytes."""
        self._title = title
        self._items = items
        self._in_bytes = in_bytes
        self._rich: RichProgress | None = None
        self._latest: Progress | None = None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if options.quiet or sys.stderr is None or not sys.stderr.isatty():
            return self
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._rich.add_task(self._title, total=None, done="")
        self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            if self._latest is not None:
                self._show(self._rich, self._latest)
            self._rich.stop()

    def update(self, progress: "Progress") -> None:
        if self._rich is None:
            return
        self._latest = progress
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + _REFRESH_S
            self._show(self._rich, progress)

    def _show(self, rich: "RichProgress", progress: "Progress") -> None:
        task = rich.tasks[0]
        files = f"{progress.files_done}"
        if progress.files_total is not None:
            files += f"/{progress.files_total}"
        if not self._in_bytes:
            rich.update(
                task.id,
                completed=progress.files_done,
                total=progress.files_total,
                done=f"{files}  {task.speed or 0:.0f}/s",
            )
            return
        done = format_size(progress.bytes_done)
        if progress.bytes_total is not None:
            done += f" of {format_size(progress.bytes_total)}"
        rich.update(
            task.id,
            completed=progress.bytes_done,
            total=progress.bytes_total,
            done=f"{done}  {format_size(task.speed or 0)}/s  {files} {self._items}",
        )
