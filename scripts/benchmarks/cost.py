"""Processor time of one operation on the mount, by process: client, master, chunk servers.

    scripts/bench cost
    .venv/bin/python -m scripts.benchmarks.cost --row random-read --row small-read --turns 3

Other work on the machine disturbs it least of all that can be measured, so this is what to compare
before and after a change. What waits is not seen: see `mount` for that. Default cluster settings,
rep:3, four servers; each row has a client of its own, which remembers nothing. With several turns a
figure is the least of them.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, DevCluster, Report
from scripts.benchmarks.mount import DRIVERS, ceiling, forget_pages, mounted

_PAGE: Final = 4096
_BLOCK: Final = 128 * 1024
_AFTER_S: Final = 1.0
"""What was written is told to the master a moment later: that belongs to it."""


@dataclass
class Spent:
    """What a row took: seconds of processor time by side, wall time, and for how much work."""

    seconds: dict[str, float]
    wall_s: float
    count: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Costs:
    """The rows, on one cluster."""

    def __init__(self, work: Path, cluster: DevCluster, driver: str, scale: float) -> None:
        self.cluster = cluster
        self.driver = driver
        self.point = work / "point"
        self.point.mkdir()
        self.files = max(100, int(2000 * scale))
        self.syncs = max(50, int(500 * scale))
        self.size = max(32, int(512 * scale)) * MIB
        self.rows: dict[str, tuple[str, Callable[[], Spent]]] = {
            "small-write": ("ms", self.small_write),
            "small-read": ("ms", lambda: self.small_read(self.names())),
            "small-read-listed": ("ms", self.small_read_listed),
            "small-read-anyhow": ("ms", lambda: self.small_read(self.shuffled())),
            "write-fsync": ("ms", self.write_fsync),
            "write": ("s/GiB", self.write),
            "read": ("s/GiB", lambda: self.read(cold=True)),
            "read-warm": ("s/GiB", lambda: self.read(cold=False)),
            "random-read": ("ms", lambda: self.random_read(cold=True)),
            "random-read-warm": ("ms", lambda: self.random_read(cold=False)),
            "random-read-again": ("ms", self.random_read_again),
            "bare-read": ("s/GiB", self.bare_read),
        }

    # ------------------------------------------------------------------ small files

    def names(self) -> list[Path]:
        """In the order in which they were made."""
        home = self.point / "small"
        return [home / f"s{number}" for number in range(self.files)]

    def shuffled(self) -> list[Path]:
        names = self.names()
        random.Random(1).shuffle(names)
        return names

    def small_write(self) -> Spent:
        block = os.urandom(_PAGE)
        with self.client() as pid:
            names = self.names()
            if names[0].parent.exists():
                for name in names:
                    name.unlink()
                names[0].parent.rmdir()
            names[0].parent.mkdir()
            with self.spent(pid, len(names), after_s=_AFTER_S) as spent:
                for name in names:
                    with open(name, "wb", buffering=0) as file:
                        file.write(block)
        return spent

    def small_read(self, names: list[Path]) -> Spent:
        self.make_small()
        self.cluster.drop_caches()
        with self.client() as pid, self.spent(pid, len(names)) as spent:
            for name in names:
                read_small(name)
        return spent

    def small_read_listed(self) -> Spent:
        self.make_small()
        self.cluster.drop_caches()
        with self.client() as pid, self.spent(pid, self.files) as spent:
            for name in sorted(os.listdir(self.point / "small")):
                read_small(self.point / "small" / name)
        return spent

    def make_small(self) -> None:
        with self.client():
            there = self.names()[-1].exists()
        if not there:
            self.small_write()

    # ------------------------------------------------------------------ one big file

    def write_fsync(self) -> Spent:
        path = self.point / "synced"
        block = os.urandom(_PAGE)
        with self.client() as pid:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_WRONLY)
            with self.spent(pid, self.syncs) as spent:
                for _ in range(self.syncs):
                    os.write(fd, block)
                    os.fsync(fd)
            os.close(fd)
        return spent

    def write(self) -> Spent:
        block = random.Random(1).randbytes(MIB)
        path = self.point / "big"
        with self.client() as pid:
            path.unlink(missing_ok=True)
            with (
                self.spent(pid, self.size / 2**30, after_s=_AFTER_S) as spent,
                open(path, "wb", buffering=0) as file,
            ):
                for _ in range(self.size // MIB):
                    file.write(block)
                os.fsync(file.fileno())
        return spent

    def make_big(self) -> Path:
        with self.client():
            there = (self.point / "big").exists()
        if not there:
            self.write()
        return self.point / "big"

    def read(self, *, cold: bool) -> Spent:
        path = self.make_big()
        if cold:
            self.cluster.drop_caches()
        with self.client() as pid, self.spent(pid, self.size / 2**30) as spent:
            read_through(path)
        return spent

    def random_read(self, *, cold: bool) -> Spent:
        """4 KiB each of so many different blocks."""
        path = self.make_big()
        if cold:
            self.cluster.drop_caches()
        places = self.places()
        with self.client() as pid, self.spent(pid, len(places)) as spent:
            read_pages(path, places)
        return spent

    def random_read_again(self) -> Spent:
        """Other pages of blocks that were read a moment before."""
        path = self.make_big()
        places = self.places()[: 32 * MIB // _BLOCK]
        with self.client() as pid:
            read_pages(path, places)
            again = [place // _BLOCK * _BLOCK + (place + _PAGE) % _BLOCK for place in places]
            forget_pages(path)
            with self.spent(pid, len(again)) as spent:
                read_pages(path, again)
        return spent

    def places(self) -> list[int]:
        rng = random.Random(2)
        blocks = self.size // _BLOCK
        chosen = rng.sample(range(blocks), blocks // 2)
        return [block * _BLOCK + rng.randrange(_BLOCK // _PAGE) * _PAGE for block in chosen]

    def bare_read(self) -> Spent:
        """The same on a bare file system in memory: what the driver and the kernel cost."""
        block = random.Random(1).randbytes(MIB)
        path = self.point / "big"
        with ceiling(self.driver, self.point) as pid:
            with open(path, "wb", buffering=0) as file:
                for _ in range(self.size // MIB):
                    file.write(block)
            forget_pages(path)
            with self.spent(pid, self.size / 2**30, servers=False) as spent:
                read_through(path)
        return spent

    # ------------------------------------------------------------------ measuring

    @contextmanager
    def client(self) -> Iterator[int]:
        """A mount that remembers nothing."""
        with mounted(self.cluster, self.driver, self.point) as pid:
            os.stat(self.point)
            yield pid

    @contextmanager
    def spent(
        self, client: int, count: float, *, after_s: float = 0.0, servers: bool = True
    ) -> Iterator[Spent]:
        sides = {"client": [client]}
        if servers:
            sides["master"] = [self.cluster.pids["master"]]
            sides["servers"] = [self.cluster.pids[name] for name in self.cluster.server_names()]
        before = {side: harness.cpu_seconds(*pids) for side, pids in sides.items()}
        spent = Spent({}, 0.0, count)
        begun = time.perf_counter()
        yield spent
        spent.wall_s = time.perf_counter() - begun
        time.sleep(after_s)
        for side, pids in sides.items():
            spent.seconds[side] = harness.cpu_seconds(*pids) - before[side]


def read_small(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        if len(file.read()) != _PAGE:
            raise RuntimeError(f"{path} is not what was written")


def read_through(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def read_pages(path: Path, places: list[int]) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for place in places:
        if len(os.pread(fd, _PAGE, place)) != _PAGE:
            raise RuntimeError(f"a short read of {path} at {place}")
    os.close(fd)


def tell(report: Report, row: str, unit: str, spent: Spent) -> None:
    factor = 1000.0 if unit == "ms" else 1.0
    for side, seconds in spent.seconds.items():
        report.add(f"{row}: {side}", factor * seconds / spent.count, unit)
    if len(spent.seconds) > 1:
        report.add(f"{row}: all", factor * spent.total / spent.count, unit)
    rate, of = (spent.count, "/s") if unit == "ms" else (spent.count * 1024, "MiB/s")
    report.add(f"{row}: rate of that moment", rate / spent.wall_s, of)


def main() -> int:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--driver", choices=DRIVERS, default="pyfuse3")
    parser.add_argument("--row", action="append", metavar="ROW", help="only this one; repeatable")
    parser.add_argument("--turns", type=int, default=1, help="measure each row so often")
    args = parser.parse_args()
    report = Report("cost")
    with harness.workplace(args.dir) as work, harness.dev_cluster(work / "cluster", 4) as cluster:
        costs = Costs(work, cluster, args.driver, args.scale)
        unknown = set(args.row or ()) - set(costs.rows)
        if unknown:
            parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(costs.rows)}")
        for row in args.row or costs.rows:
            unit, measure = costs.rows[row]
            turns = [measure() for _ in range(args.turns)]
            tell(report, row, unit, min(turns, key=lambda spent: spent.total))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
