"""Cost with growth: 10,000 to 3,000,000 files; 1 to 64 clients; files of 4 KiB to 4 GiB; 3 to 12
chunk servers. Each axis has clusters of its own. Writes OUT/growth.json, growth.md, growth.svg.

Exit status 1 if a rate that has to stay flat fell by more than a fifth.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import trio

from scripts.benchmarks import harness
from scripts.benchmarks.growth import axes, plot
from scripts.benchmarks.growth.series import Axis, markdown
from scripts.benchmarks.harness import MIB

_FILES: Final = (10_000, 100_000, 1_000_000, 3_000_000)
_CLIENTS: Final = (1, 4, 16, 64)
_SIZES: Final = (4096, 64 << 10, MIB, 16 * MIB, 256 * MIB, 4096 * MIB)
_SERVERS: Final = (3, 6, 12)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to work; default: $TMPDIR")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--axis", choices=MEASURED, action="append", help="only this one")
    parser.add_argument("--most", type=float, default=1.0, help="part of the full growth, up to 1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    measured: list[Axis] = []
    for name in args.axis or MEASURED:
        with harness.workplace(args.dir) as work:
            measured.append(MEASURED[name](work, args.most))
        document = json.dumps([asdict(axis) for axis in measured], indent=2)
        (args.out / "growth.json").write_text(document + "\n")
        (args.out / "growth.md").write_text(markdown(measured))
        (args.out / "growth.svg").write_text(plot.svg(measured))
    print(markdown(measured))
    return int(not _flat(measured))


def files(work: Path, most: float) -> Axis:
    axis = Axis("files in the cluster")
    with harness.dev_cluster(work / "cluster", 1) as cluster:
        counts = [count for count in _FILES if count <= max(_FILES[0], most * _FILES[-1])]
        trio.run(axes.files, cluster, counts, axis, say)
    return axis


def clients(work: Path, most: float) -> Axis:
    axis = Axis("clients at once")
    with harness.dev_cluster(work / "cluster", 4) as cluster:
        counts = [count for count in _CLIENTS if count <= max(1.0, most * _CLIENTS[-1])]
        axes.clients(cluster, counts, axis, say)
    return axis


def sizes(work: Path, most: float) -> Axis:
    axis = Axis("bytes of a file", unit="B")
    with harness.dev_cluster(work / "cluster", 4) as cluster:
        each = [size for size in _SIZES if size <= max(_SIZES[0], most * _SIZES[-1])]
        trio.run(axes.sizes, cluster, each, axis, say)
    return axis


def servers(work: Path, most: float) -> Axis:
    axis = Axis("chunk servers on one machine")
    for count in _SERVERS:
        if count <= max(_SERVERS[0], most * _SERVERS[-1]):
            with harness.dev_cluster(work / f"cluster-{count}", count) as cluster:
                axes.servers(cluster, count, max(16, int(256 * most)), axis, say)
    return axis


MEASURED: Final[dict[str, Callable[[Path, float], Axis]]] = {
    "files": files,
    "clients": clients,
    "sizes": sizes,
    "servers": servers,
}


def _flat(measured: list[Axis]) -> bool:
    flat = True
    for axis in measured:
        for series in axis.series:
            if series.flat is not None and series.ratio < series.flat:
                print(
                    f"{axis.title}: {series.name} fell to {series.ratio:.2f} of the first figure; "
                    f"at least {series.flat:g} is wanted"
                )
                flat = False
    return flat


def say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
