"""Measure dfs and the file systems that people would pick instead, side by side.

Each is set up in namespaces of its own on this machine, measured through its mount, and gone
again, whatever happens. Writes OUT/peers.json, peers.md and peers.svg, also when it is stopped
half-way. Exit status 1 if dfs misses what it must reach, or something failed.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers import enclosure, plot
from scripts.benchmarks.peers.results import ColumnResult, Results
from scripts.benchmarks.peers.rows import BY_NAME
from scripts.benchmarks.peers.scene import Sizes
from scripts.benchmarks.peers.system import Column, System, missing
from scripts.benchmarks.peers.systems import SYSTEMS
from scripts.benchmarks.peers.table import markdown
from scripts.benchmarks.peers.verdicts import verdicts

_COLUMN_LIMIT_MIN: Final = 30.0
_COPIES: Final = 3.5
"""Room on the disk for a byte that is written: three copies, and the source."""


def main() -> int:
    args = arguments()
    if args.show is not None:
        return finish(Results.load(args.show), args.out)
    if why := enclosure.obstacles():
        sys.exit(f"peers: {why}")
    chosen = choose_columns(args.only)
    rows = choose_rows(args.rows)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it is told to stop either way
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results.begin(args.scale, args.repeat, args.turns)
    try:
        for _ in range(args.turns):
            for system, column in chosen:
                result = results.column(system.name, column, system.programs)
                if lacking := missing(system.programs):
                    result.errors["start"] = lacking
                    print(f"  {column.title}: left out: {lacking}", file=sys.stderr)
                else:
                    measure(result, rows, args)
                results.save(args.out / "peers.json")
    except KeyboardInterrupt:
        print("peers: stopped; what was measured is kept", file=sys.stderr)
        finish(results, args.out)
        return 130
    return finish(results, args.out)


def arguments() -> argparse.Namespace:
    there = "; ".join(
        f"{system.name} ({', '.join(column.name for column in system.columns)})"
        for system in SYSTEMS.values()
    )
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", help=f"these systems or columns: {there}")
    parser.add_argument("--rows", metavar="ROW,...", help=f"only these: {', '.join(BY_NAME)}")
    parser.add_argument(
        "--scale", type=_scale, default=1.0, help="part of the full size, such as 0.1 for a look"
    )
    parser.add_argument(
        "--repeat", type=_count, default=3, help="times that rates are measured (3); medians count"
    )
    parser.add_argument(
        "--turns",
        type=_count,
        default=1,
        help="times that all columns are measured, in turns (1): where the machine is not idle",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="where results go: bench-results"
    )
    parser.add_argument("--dir", type=Path, help="where to work, the disk measured; $TMPDIR")
    parser.add_argument(
        "--limit", type=float, default=_COLUMN_LIMIT_MIN, help="minutes a column may take (30)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the servers' logs, in OUT")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing: table and plot of a document"
    )
    return parser.parse_args()


def _scale(text: str) -> float:
    value = float(text)
    if not 0 < value <= 10:
        raise argparse.ArgumentTypeError("more than 0, and 10 at most")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("1 to 100")
    return value


def choose_columns(only: str | None) -> list[tuple[type[System], Column]]:
    everything = [(system, column) for system in SYSTEMS.values() for column in system.columns]
    if only is None:
        return everything
    chosen = []
    for name in only.split(","):
        found = [each for each in everything if name in (each[0].name, each[1].name)]
        if not found:
            names = ", ".join([*SYSTEMS, *(column.name for _, column in everything)])
            sys.exit(f"peers: no system or column {name!r}; there are {names}")
        chosen += [each for each in found if each not in chosen]
    return chosen


def choose_rows(rows: str | None) -> list[str]:
    names = list(BY_NAME) if rows is None else rows.split(",")
    for name in names:
        if name not in BY_NAME:
            sys.exit(f"peers: no row {name!r}; there are {', '.join(BY_NAME)}")
    return names


def measure(result: ColumnResult, rows: Sequence[str], args: argparse.Namespace) -> None:
    """One column in an enclosure; what it wrote goes into `result`, however it ended."""
    print(f"\n{result.title}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="dfs-peers-", dir=args.dir))
    figures = work / "figures"
    argv = [
        *(sys.executable, "-m", "scripts.benchmarks.peers.inside"),
        *("--column", result.name, "--rows", ",".join(rows), "--scale", str(args.scale)),
        *("--repeat", str(args.repeat), "--work", str(work), "--figures", str(figures)),
    ]
    try:
        sizes = Sizes.at(args.scale)
        needed_mib = max(sizes.stream_mib + sizes.kill_mib, sizes.upload_mib) * _COPIES
        enclosure.wait_for_room(work, int(needed_mib) << 20)
        status = enclosure.run_enclosed(argv, args.limit * 60)
        if status and not figures.exists():
            result.errors["start"] = f"the measurement ended with status {status}"
    except (TimeoutError, RuntimeError) as error:
        result.errors["all"] = str(error)
        print(f"    {error}", file=sys.stderr)
    finally:
        result.seconds += round(time.monotonic() - begun, 1)
        if figures.exists():
            result.take(figures.read_text())
        if args.keep and (work / "logs").exists():
            kept = args.out / "logs" / result.name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work / "logs", kept)
        shutil.rmtree(work, ignore_errors=True)


def finish(results: Results, out: Path) -> int:
    """Write and print the table, draw the plot; the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    results.save(out / "peers.json")
    text = markdown(results)
    (out / "peers.md").write_text(text)
    (out / "peers.svg").write_text(plot.svg(results))
    print(f"\n{text}")
    failed = any(column.errors for column in results.columns)
    missed = any(not verdict.reached for verdict in verdicts(results.columns))
    return int(failed or missed)


if __name__ == "__main__":
    sys.exit(main())
