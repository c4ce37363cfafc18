"""The mount: each driver beside a bare file system in memory on it (its ceiling), and the disk.

Default cluster settings, rep:2, four servers. Ratios within one run count; absolute numbers are
this machine's of that moment.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path
from typing import Final

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, DevCluster, Report

DRIVERS: Final = ("fusepy", "pyfuse3")
_ANSWERS_S: Final = 20.0


def main() -> int:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--driver", choices=DRIVERS, action="append", help="only this one")
    args = parser.parse_args()
    report = Report("mount")
    with harness.workplace(args.dir) as work, harness.dev_cluster(work / "cluster", 4) as cluster:
        cluster.dfs("policy", "create", "rep2", "--redundancy", "rep:2")
        cluster.dfs("policy", "set", "/", "rep2")
        for driver in args.driver or DRIVERS:
            Comparison(report, work, cluster, driver, args.scale).run()
    return report.finish(args.json)


class Comparison:
    """All rows of one driver."""

    def __init__(
        self, report: Report, work: Path, cluster: DevCluster, driver: str, scale: float
    ) -> None:
        self.report = report
        self.cluster = cluster
        self.driver = driver
        self.files = max(100, int(4000 * scale))
        self.entries = max(200, int(20_000 * scale))
        self.big = max(64, int(1024 * scale)) * MIB
        self.point = work / f"point-{driver}"
        self.local = work / f"local-{driver}"
        self.point.mkdir()
        self.local.mkdir()

    def run(self) -> None:
        with ceiling(self.driver, self.point) as _:
            top = self._rates(self.point)
            top |= self._streams(self.point, cold=lambda: None)
        disk = self._disk()
        with mounted(self.cluster, self.driver, self.point) as pid:
            got = self._rates(self.point)
            for name, least in (
                ("creates", 0.6),
                ("stats", 0.6),
                ("unlinks", 0.6),
                ("4 KiB files", 0.4),
            ):
                self._ratio(name, got[name], top[name], "/s", least)
            got |= self._streams(self.point, cold=self.cluster.drop_caches)
            write_limit = min(top["write"], disk["write"] / 2)
            self._ratio("write", got["write"], write_limit, "MiB/s", 0.7)
            self._ratio("read, warm", got["read, warm"], top["read, warm"], "MiB/s", 0.7)
            read_limit = min(top["read, cold"], disk["read"])
            self._ratio("read, cold", got["read, cold"], read_limit, "MiB/s", 0.7)
            self._add("random 4 KiB, cold, 1 reader", got["random 1"], "/s", 2000)
            self._add("random 4 KiB, cold, 4 readers", got["random 4"], "/s", got["random 1"])
            self._listing()
            ours, theirs = synced_writes(self.point, self.local)
            self._ratio("4 KiB write + fsync", ours, theirs, "/s", 0.25)
            peak = harness.memory_bytes(pid, "VmHWM") / MIB
            self.report.add(f"{self.driver}: peak memory", peak, "MiB", at_most=700)

    def _add(self, name: str, value: float, unit: str, at_least: float | None = None) -> None:
        self.report.add(f"{self.driver}: {name}", value, unit, at_least=at_least)

    def _ratio(self, name: str, ours: float, theirs: float, unit: str, least: float) -> None:
        self._add(name, ours, unit)
        self._add(f"{name}, its limit", theirs, unit)
        self._add(f"{name} / limit", ours / theirs, "", least)

    def _rates(self, point: Path) -> dict[str, float]:
        """Operations a second of one process."""
        directory = point / "many"
        directory.mkdir()
        names = [str(directory / f"f{number}") for number in range(self.files)]

        def write_small(name: str) -> None:
            with open(name, "wb", buffering=0) as file:
                file.write(block)

        block = os.urandom(4096)
        rates = {
            "creates": rate(lambda name: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)), names),
            "stats": rate(os.stat, names),
            "unlinks": rate(os.unlink, names),
            "4 KiB files": rate(write_small, names),
        }
        for name in names:
            os.unlink(name)
        directory.rmdir()
        return rates

    def _streams(self, point: Path, cold: Callable[[], None]) -> dict[str, float]:
        """MiB/s of one big file, and random reads a second from it."""
        path = point / "big"
        block = random.Random(1).randbytes(MIB)
        begun = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(self.big // MIB):
                file.write(block)
            os.fsync(file.fileno())
        found = {"write": self.big / MIB / (time.perf_counter() - begun)}
        cold()
        forget_pages(path)
        found["read, cold"] = self._read(path)
        forget_pages(path)
        found["read, warm"] = self._read(path)
        for readers in (1, 4):
            cold()
            forget_pages(path)
            found[f"random {readers}"] = self._random_reads(path, readers)
        path.unlink()
        return found

    def _read(self, path: Path) -> float:
        begun = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass
        return self.big / MIB / (time.perf_counter() - begun)

    def _random_reads(self, path: Path, readers: int) -> float:
        count = 4000 // readers
        begun = time.perf_counter()
        running = [
            Process(target=read_randomly, args=(path, self.big, count, seed))
            for seed in range(readers)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join()
        return count * readers / (time.perf_counter() - begun)

    def _disk(self) -> dict[str, float]:
        source = harness.random_file(self.local / "source", self.big)
        write_s = harness.dd_write(source, self.local / "copy")
        harness.drop_cache(source)
        read_s = harness.dd_read(source)
        source.unlink()
        return {"write": self.big / MIB / write_s, "read": self.big / MIB / read_s}

    def _listing(self) -> None:
        source = self.local / "entries"
        source.mkdir()
        for number in range(self.entries):
            (source / f"entry-{number}").touch()
        self.cluster.dfs("upload", "-r", source, "/entries")
        begun = time.perf_counter()
        subprocess.run(
            ["ls", "-l", str(self.point / "entries")], check=True, stdout=subprocess.DEVNULL
        )
        rate = self.entries / (time.perf_counter() - begun)
        self._add(f"ls -l of {self.entries:,}, cold", rate, "/s", 10_000)
        self.cluster.dfs("rm", "-r", "/entries")


def rate(act: Callable[[str], object], names: list[str]) -> float:
    begun = time.perf_counter()
    for name in names:
        act(name)
    return len(names) / (time.perf_counter() - begun)


def read_randomly(path: Path, size: int, count: int, seed: int) -> None:
    rng = random.Random(seed)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(count):
        assert len(os.pread(fd, 4096, rng.randrange(size // 4096) * 4096)) == 4096
    os.close(fd)


def synced_writes(*directories: Path) -> list[float]:
    """4 KiB writes a second, each followed by fsync: in all directories by turns, on one disk."""
    turns, count = 10, 30
    block = os.urandom(4096)
    seconds = dict.fromkeys(directories, 0.0)
    for turn in range(turns):
        for directory in directories:
            fd = os.open(directory / f"synced-{turn}", os.O_CREAT | os.O_WRONLY)
            begun = time.perf_counter()
            for _ in range(count):
                os.write(fd, block)
                os.fsync(fd)
            seconds[directory] += time.perf_counter() - begun
            os.close(fd)
    return [turns * count / seconds[directory] for directory in directories]


def forget_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextmanager
def ceiling(driver: str, point: Path) -> Iterator[int]:
    script = Path(__file__).with_name("memory_fs.py")
    with served([sys.executable, str(script), driver, str(point)], point, {}) as pid:
        yield pid


@contextmanager
def mounted(cluster: DevCluster, driver: str, point: Path) -> Iterator[int]:
    argv = [sys.executable, "-m", "dfs", "mount", "--foreground", "--driver", driver, str(point)]
    with served(argv, point, {"DFS_MASTER": cluster.master}) as pid:
        yield pid


@contextmanager
def served(argv: list[str], point: Path, env: dict[str, str]) -> Iterator[int]:
    """A mount by a process of its own, ended by SIGTERM."""
    process = subprocess.Popen(argv, env=harness.environment(**env), stdout=sys.stderr)
    try:
        end = time.monotonic() + _ANSWERS_S
        while not os.path.ismount(point):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(argv)}: no mount at {point}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # One that was killed leaves its mount point behind.
        subprocess.run(["umount", "-l", str(point)], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
