"""What the benchmarks share: a cluster of their own, times, sizes, a table and a JSON document.

A figure that depends on the machine is measured beside its yardstick, in the same run, on the
same disk; the target is then a ratio.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MIB: Final = 1 << 20


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DFS_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **more}


# ------------------------------------------------------------------ results


@dataclass
class Figure:
    """One measured number; `target` is a bound below (rates) or above (sizes, times) it."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Report:
    """Figures in the order they were measured; printed as they come."""

    benchmark: str
    figures: list[Figure] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> float:
        target = at_least if at_most is None else at_most
        figure = Figure(name, value, unit, target, at_most is not None)
        self.figures.append(figure)
        print(f"  {_row(figure)}", file=sys.stderr, flush=True)
        return value

    def finish(self, to: Path | None) -> int:
        """Print the table, write the document; the exit status: 1 if a target was missed."""
        width = max(len(figure.name) for figure in self.figures)
        print(f"\n{self.benchmark}")
        for figure in self.figures:
            print(f"  {_row(figure, width)}")
        if to is not None:
            document = {
                "benchmark": self.benchmark,
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "cpus": os.cpu_count(),
                "machine": platform.machine(),
                "python": platform.python_version(),
                "figures": [{**asdict(figure), "met": figure.met} for figure in self.figures],
            }
            to.write_text(json.dumps(document, indent=2) + "\n")
        return int(any(figure.met is False for figure in self.figures))


def _row(figure: Figure, width: int = 44) -> str:
    row = f"{figure.name:<{width}}  {_number(figure.value):>10} {figure.unit:<8}"
    if figure.target is not None:
        bound = "at most" if figure.at_most else "at least"
        row += f"  {bound} {_number(figure.target):<8} {'ok' if figure.met else 'MISSED'}"
    return row.rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    made.add_argument(
        "--dir", type=Path, default=None, help="where to work (the disk measured); default: $TMPDIR"
    )
    made.add_argument(
        "--scale", type=float, default=1.0, help="part of the full size, for a quick look"
    )
    return made


# ------------------------------------------------------------------ a cluster


class DevCluster:
    """A `dfs dev` cluster under `directory`."""

    def __init__(self, directory: Path, servers: int) -> None:
        self.directory = directory
        self.servers = servers
        self.master = ""
        self.pids: dict[str, int] = {}

    def start(self) -> None:
        self._dev("start", "--servers", str(self.servers))
        document = json.loads((self.directory / "cluster.json").read_text())
        self.master = document["master"]
        self.pids = {each["name"]: each["pid"] for each in document["processes"]}

    def destroy(self) -> None:
        self._dev("destroy", "--yes")

    def _dev(self, verb: str, *args: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dfs", "dev", verb, "--dir", str(self.directory), *args],
            check=True,
            stdout=sys.stderr,
            env=environment(),
        )

    def dfs(self, *args: str | Path, stdout: int | None = None) -> "Run":
        """Run `dfs ARGS`; its time and peak memory. A failure ends the benchmark."""
        argv = [sys.executable, "-m", "dfs", *map(str, args)]
        return run(argv, stdout=stdout, env=environment(DFS_MASTER=self.master))

    def peak_bytes(self, name: str) -> int:
        """The most resident memory a server had so far."""
        return memory_bytes(self.pids[name], "VmHWM")

    def server_names(self) -> list[str]:
        return [name for name in self.pids if name != "master"]

    def server_directories(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if path.name in self.server_names()]

    def stored_bytes(self) -> int:
        """What the servers' disks hold, all overhead counted (allocated blocks)."""
        return sum(disk_bytes(path) for path in self.server_directories())

    def drop_caches(self) -> None:
        for path in self.server_directories():
            drop_cache(path)


@contextmanager
def workplace(directory: Path | None) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dfs-bench-", dir=directory))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def dev_cluster(directory: Path, servers: int) -> Iterator[DevCluster]:
    cluster = DevCluster(directory, servers)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()


# ------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_bytes: int


def run(argv: Sequence[str], *, stdout: int | None = None, env: dict[str, str]) -> Run:
    """Run a command; wall time and peak resident memory. Raises CalledProcessError."""
    begun = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Run(seconds, usage.ru_maxrss * 1024)


def cpu_seconds(*pids: int) -> float:
    """User and system time of processes so far, all their threads together."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int, which: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident memory of a process: now, or at its highest so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no {which} for process {pid}")


def dd_write(source: Path, target: Path) -> float:
    """Seconds that `dd` takes to write `source` (from the page cache) to disk."""
    argv = ["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync", "status=none"]
    seconds = run(argv, env=environment()).seconds
    target.unlink()
    return seconds


def dd_read(source: Path) -> float:
    argv = ["dd", f"if={source}", "of=/dev/null", "bs=1M", "status=none"]
    return run(argv, env=environment()).seconds


def warm_cache(path: Path) -> None:
    dd_read(path)


def drop_cache(path: Path) -> None:
    """Make the kernel forget file contents (all files under a directory); they go to disk first."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def disk_bytes(directory: Path) -> int:
    """Bytes allocated on disk under a directory; a file of several names counts once."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        stat = path.lstat()
        found[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def random_file(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        file.write(os.urandom(size % MIB))
    return path
