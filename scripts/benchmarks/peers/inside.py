"""What runs in an enclosure: one column, brought up and measured; a line of JSON for each figure.

`__main__` starts it as a program of its own and reads what it wrote, also where it came to grief
half-way.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from scripts.benchmarks.peers import commands, enclosure, failure, names, storage, streams
from scripts.benchmarks.peers.processes import Load, Processes
from scripts.benchmarks.peers.rows import BY_NAME
from scripts.benchmarks.peers.scene import Figures, Scene, Sizes, Workload
from scripts.benchmarks.peers.system import Column, System
from scripts.benchmarks.peers.systems import SYSTEMS

ONCE: Final[dict[str, Workload]] = {
    "text": storage.text,
    "resident": names.resident,
    "commands": commands.commands,
}
REPEATED: Final[dict[str, Workload]] = {
    "names": names.names,
    "create-4": names.create_at_once,
    "small": names.small,
    "fsync": streams.synced,
    "stream": streams.stream,
    "random": streams.at_random,
}
LAST: Final[dict[str, Workload]] = {"kill": failure.kill}

_SERVES_S: Final = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--column", required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--repeat", type=int, required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    args = parser.parse_args()
    set_environment(args.work)
    enclosure.furnish()
    with open(args.figures, "w") as figures:
        report = Report(figures)
        try:
            scene = bring_up(args.column, Sizes.at(args.scale), args.work)
        except Exception as error:
            report.error("start", error)
            return 1
        Measurement(scene, report, set(args.rows.split(","))).run(args.repeat)
        return 0


def set_environment(home: Path) -> None:
    """What programs are told by it is the same on every machine: proxies, for one, are not."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME=str(home), LC_ALL="C.UTF-8")


class Report:
    """Writes lines, and says them."""

    def __init__(self, to: TextIO) -> None:
        self._to = to

    def figure(self, row: str, value: float, others: float) -> None:
        self._line({"row": row, "value": value, "others": round(others, 2)})
        what = BY_NAME[row]
        print(f"    {what.title}: {value:,.4g} {what.unit}", file=sys.stderr, flush=True)

    def error(self, workload: str, error: Exception) -> None:
        self._line({"workload": workload, "error": f"{type(error).__name__}: {error}"})
        print(f"    {workload}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _line(self, content: dict[str, object]) -> None:
        print(json.dumps(content), file=self._to, flush=True)


def bring_up(column_name: str, sizes: Sizes, work: Path) -> Scene:
    kind, column = find_column(column_name)
    for name in ("logs", "system", "scratch"):
        (work / name).mkdir()
    processes = Processes(work / "logs")
    system = kind(work / "system", column, processes)
    system.start()
    if not column.commands_only:
        system.mount()
        _wait_until_it_stores(system)
    return Scene(system, processes, sizes, work / "scratch", system.directory)


def find_column(name: str) -> tuple[type[System], Column]:
    for system in SYSTEMS.values():
        for column in system.columns:
            if column.name == name:
                return system, column
    raise LookupError(f"no column {name}")


def _wait_until_it_stores(system: System) -> None:
    """Servers may be known to each other a moment after each of them serves."""
    probe = system.directory / "probe"
    end = time.monotonic() + _SERVES_S
    while True:
        try:
            with open(probe, "wb", buffering=0) as file:
                file.write(os.urandom(4096))
                os.fsync(file.fileno())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            probe.unlink()
            return


class Measurement:
    """All workloads that yield a row which is wanted."""

    def __init__(self, scene: Scene, report: Report, rows: set[str]) -> None:
        self._scene = scene
        self._report = report
        self._rows = rows
        self._wanted = {BY_NAME[row].workload for row in rows}
        self._top = scene.system.directory

    def run(self, repeat: int) -> None:
        self._round("once", ONCE)
        for number in range(repeat):
            self._round(f"round{number}", REPEATED)
        self._round("last", LAST)

    def _round(self, name: str, workloads: dict[str, Workload]) -> None:
        commands_only = self._scene.system.column.commands_only
        wanted = {
            key: act
            for key, act in workloads.items()
            if key in self._wanted and (key == "commands" or not commands_only)
        }
        if not wanted:
            return
        self._scene.directory = self._top / name
        if not commands_only:
            self._scene.directory.mkdir()
        for key, act in wanted.items():
            self._measure(key, act)

    def _measure(self, key: str, act: Callable[[Scene], Figures]) -> None:
        before = Load.now()
        try:
            for row, value in act(self._scene):
                now = Load.now()
                if row in self._rows:
                    self._report.figure(row, value, now.others_since(before))
                before = now
        except Exception as error:
            self._report.error(key, error)


if __name__ == "__main__":
    sys.exit(main())
