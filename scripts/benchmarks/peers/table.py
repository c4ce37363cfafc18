"""The result as Markdown: a table of figures, and one of what dfs must reach."""

from collections.abc import Sequence

from scripts.benchmarks.peers.results import BUSY, Results
from scripts.benchmarks.peers.rows import ROWS
from scripts.benchmarks.peers.verdicts import Verdict, verdicts


def markdown(results: Results) -> str:
    parts = [_heading(results), _figures(results)]
    if judged := verdicts(results.columns):
        parts.append(_goals(judged))
    if problems := _problems(results):
        parts.append("What failed:\n\n" + "\n".join(problems))
    return "\n\n".join(parts) + "\n"


def _heading(results: Results) -> str:
    times = results.repeat * results.turns
    lines = [
        f"{results.at}; {results.cpus} processors, {results.memory_gib:g} GiB, {results.machine}, "
        f"Python {results.python}; scale {results.scale:g}, the median of {times}."
    ]
    if results.uncertain:
        lines.append(
            f"**Provisional**: `~` marks figures while other work took more than {BUSY} processors."
        )
    return " ".join(lines)


def _figures(results: Results) -> str:
    rows = []
    for row in ROWS:
        found = [column.figures.get(row.name) for column in results.columns]
        if any(found):
            cells = [
                f"{number(figure.median)}{'~' if figure.uncertain else ''}" if figure else "-"
                for figure in found
            ]
            rows.append([f"{row.title}, {row.unit}".removesuffix(", "), *cells])
    others = [number(column.others) if column.figures else "-" for column in results.columns]
    rows.append(["processors that other work took meanwhile", *others])
    return table(["row", *(column.title for column in results.columns)], rows)


def _goals(judged: Sequence[Verdict]) -> str:
    rows = [
        [
            verdict.row.title,
            verdict.column.title,
            number(verdict.value),
            ("at most " if verdict.row.better == "less" else "") + number(verdict.bound.value),
            verdict.bound.because,
            "yes" if verdict.reached else f"no: {number(verdict.share)} of it",
        ]
        for verdict in judged
    ]
    reached = sum(verdict.reached for verdict in judged)
    head = ["row", "column", "figure", "must reach", "which is", "reached"]
    return f"{table(head, rows)}\n\n{reached} of {len(judged)} reached."


def _problems(results: Results) -> list[str]:
    return [
        f"- {column.title}, {workload}: {error}"
        for column in results.columns
        for workload, error in column.errors.items()
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))


def number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
