"""How a cluster heals and levels itself: detection, repair beside the disk's own rate, rebalance.

Servers are killed with SIGKILL while real clients write and read. Yardsticks, in the same run on
the same disk: what a plain program reads and writes; what the clients get while nothing is wrong.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, Report
from tests.cluster import Cluster

FULL_BYTES: Final = 8 << 30
"""Raw bytes stored before anything breaks, at scale 1."""
FILE_BYTES: Final = 256 * MIB
FRONT_BYTES: Final = 64 * MIB
"""What the clients in the foreground write and read at a time."""
DOWN_AFTER_S: Final = 5
REBALANCED: Final = 0.02
STEP_BYTES: Final = 4 * MIB


@dataclass
class Disk:
    """What a plain program gets of the disk, bytes a second."""

    write: float
    read: float

    def rebuilds(self, sources: int) -> float:
        """Bytes a second of fragments made, each from as many bytes of `sources` others."""
        return 1 / (1 / self.write + sources / self.read)


def measure_disk(path: Path) -> Disk:
    size = 1024 * MIB
    block = os.urandom(STEP_BYTES)
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // STEP_BYTES):
            file.write(block)
        os.fsync(file.fileno())
    write_s = time.monotonic() - began
    harness.drop_cache(path)
    read_s = harness.dd_read(path)
    path.unlink()
    return Disk(size / write_s, size / read_s)


class Front:
    """Clients that write and read all the time, each its own file again and again."""

    def __init__(self, cluster: Cluster, source: Path, directory: str) -> None:
        self._cluster = cluster
        self._source = source
        self._directory = directory
        self._stop = threading.Event()
        self._ended: list[tuple[str, float, float]] = []
        cluster.dfs("upload", source, f"{directory}/read")

    def _repeat(self, kind: str, args: tuple[str | Path, ...]) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            subprocess.run(
                self._cluster.command(*args),
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=harness.environment(DFS_MASTER=self._cluster.master_address),
            )
            self._ended.append((kind, began, time.monotonic()))

    @contextmanager
    def running(self) -> Iterator[None]:
        self._stop.clear()
        work = {
            "write": ("upload", self._source, f"{self._directory}/write"),
            "read": ("download", f"{self._directory}/read", "-"),
        }
        threads = [threading.Thread(target=self._repeat, args=each) for each in work.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def rate(self, kind: str, since: float, until: float) -> float:
        """Bytes a second of the runs that lay mostly in this time."""
        runs = [
            ended - began
            for what, began, ended in self._ended
            if what == kind and since <= (began + ended) / 2 <= until
        ]
        return FRONT_BYTES * len(runs) / sum(runs) if runs else 0.0


# ------------------------------------------------------------------ what the cluster says


def job(cluster: Cluster, kind: str) -> dict[str, Any]:
    jobs = cluster.json("admin", "jobs", "list")["jobs"]
    return next((each for each in jobs if each["kind"] == kind), {})


def servers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Those that the master knows, by name."""
    found = {each["address"]: each for each in cluster.json("admin", "servers")["servers"]}
    return {
        name: found[process.address]
        for name, process in cluster.servers.items()
        if process.address in found
    }


def is_whole(cluster: Cluster) -> bool:
    chunks = cluster.json("admin", "status")["chunks"]
    return not (chunks["degraded"] or chunks["at_risk"] or chunks["lost"])


def wait_for(condition: Callable[[], object], *, pause_s: float = 0.0) -> float:
    """The time when it became true. Each look is a command: without a pause it takes a core."""
    while not condition():
        time.sleep(pause_s)
    return time.monotonic()


def fill(cluster: Cluster, work: Path, directory: str, total: int) -> None:
    """Random files, each made, uploaded and deleted, so that the disk holds them once only."""
    for number in range(max(1, total // FILE_BYTES)):
        source = harness.random_file(work / "part", FILE_BYTES)
        cluster.dfs("upload", source, f"{directory}/{number}", timeout_s=600)
        source.unlink()


# ------------------------------------------------------------------ repair


class Made:
    """Bytes that repair made since: its job counts from nothing with each piece of work."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last = self._count()
        self.bytes = 0

    def _count(self) -> int:
        return int(job(self._cluster, "repair").get("bytes_done", 0))

    def look(self) -> None:
        now = self._count()
        self.bytes += now - self._last if now >= self._last else now
        self._last = now


def kill_and_repair(
    report: Report, cluster: Cluster, name: str, title: str, *, spare: str
) -> tuple[float, float, int]:
    """SIGKILL a server; when repair began and ended, and the bytes it made."""
    lost = servers(cluster)[name]["used"]
    made = Made(cluster)
    cluster.kill(name)
    killed_at = time.monotonic()
    seen_at = wait_for(lambda: servers(cluster)[name]["state"] != "up")
    report.add(f"{title}: until status shows the dead server", seen_at - killed_at, "s", at_most=5)
    assert not is_whole(cluster)
    if spare:
        cluster.add_server(spare).spawn()
    began = wait_for(lambda: servers(cluster)[name]["state"] == "down", pause_s=0.1)
    while not is_whole(cluster):
        made.look()
        time.sleep(2)
    ended = time.monotonic()
    made.look()
    report.add(f"{title}: made / lost", made.bytes / max(lost, 1), "", at_most=1.05)
    return began, ended, made.bytes


def measure_repair(report: Report, work: Path, redundancy: str, total: int) -> None:
    k, width = (1, 3) if redundancy == "rep:3" else (4, 6)
    disk = measure_disk(work / "yardstick")
    report.add("the disk writes (with fsync)", disk.write / MIB, "MiB/s")
    report.add("the disk reads, cold", disk.read / MIB, "MiB/s")
    source = harness.random_file(work / "front", FRONT_BYTES)
    with Cluster(work / "cluster", servers=6, down_after=f"{DOWN_AFTER_S}s") as cluster:
        cluster.dfs("policy", "create", "measured", "--redundancy", redundancy)
        for directory in ("/data", "/front"):
            cluster.dfs("mkdir", directory)
            cluster.dfs("policy", "set", directory, "measured")
        fill(cluster, work, "/data", total)
        wait_for(lambda: is_whole(cluster))

        # A wide policy needs another server to be whole again.
        spares = ["cs7", "cs8"] if width == 6 else ["", ""]
        began, ended, moved = kill_and_repair(
            report, cluster, "cs6", f"{redundancy}, idle", spare=spares[0]
        )
        rate = moved / (ended - began)
        report.add(f"{redundancy}, idle: repair", rate / MIB, "MiB/s")
        report.add(
            f"{redundancy}, idle: repair / disk ({k} read, 1 written)",
            rate / disk.rebuilds(k),
            "",
            at_least=0.5,
        )

        front = Front(cluster, source, "/front")
        with front.running():
            time.sleep(20)
            usual = time.monotonic()
            began, ended, moved = kill_and_repair(
                report, cluster, "cs5", f"{redundancy}, loaded", spare=spares[1]
            )
        report.add(f"{redundancy}, loaded: repair", moved / (ended - began) / MIB, "MiB/s")
        for kind in ("write", "read"):
            normal = front.rate(kind, 0, usual)
            report.add(f"{redundancy}: clients {kind}, normally", normal / MIB, "MiB/s")
            report.add(
                f"{redundancy}: clients {kind} during repair / normally",
                front.rate(kind, began, ended) / normal,
                "",
                at_least=0.7,
            )
        # Of those killed it says that they are not checked, with status 1.
        assert "nothing wrong" in cluster.dfs("admin", "fsck", check=False, timeout_s=600).stdout


# ------------------------------------------------------------------ rebalance


def measure_rebalance(report: Report, work: Path, total: int) -> None:
    """From 3 servers to 6, interrupted by the death of the master, clients at work."""
    capacity = 2 * max(total, FILE_BYTES)
    source = harness.random_file(work / "front", FRONT_BYTES)
    with Cluster(work / "cluster", servers=3, capacity=str(capacity)) as cluster:
        for directory in ("/data", "/front"):
            cluster.dfs("mkdir", directory)
        fill(cluster, work, "/data", total)
        for name in ("cs4", "cs5", "cs6"):
            cluster.add_server(name, capacity=str(capacity)).spawn()
        cluster.wait_ready()
        front = Front(cluster, source, "/front")
        used = [each["used"] for each in servers(cluster).values()]
        least = sum(max(0, each - sum(used) / len(used)) for each in used)
        with front.running():
            time.sleep(10)
            cluster.dfs("admin", "rebalance", "--threshold", "2%", "--no-wait")
            began = wait_for(
                lambda: job(cluster, "rebalance")["bytes_done"] > least / 4, pause_s=0.5
            )
            cluster.kill("master")
            cluster.restart("master")
            ended = wait_for(lambda: job(cluster, "rebalance")["state"] == "done", pause_s=1)
        moved = job(cluster, "rebalance")["bytes_done"]
        report.add("rebalance, 3 to 6: moved / least", moved / least, "", at_most=1.1)
        report.add("rebalance, 3 to 6: rate", moved * 0.75 / (ended - began) / MIB, "MiB/s")
        time.sleep(5)
        shares = [each["used"] / each["capacity"] for each in servers(cluster).values()]
        average = sum(shares) / len(shares)
        off = max(abs(share - average) for share in shares)
        report.add("rebalance, 3 to 6: farthest from even fill", off * 100, "%", at_most=2)
        cluster.dfs("admin", "fsck", timeout_s=600)


def main() -> int:
    parser = harness.parser(__doc__ or "")
    parser.add_argument(
        "--only", choices=("rep:3", "ec:4+2", "rebalance"), action="append", help="these alone"
    )
    args = parser.parse_args()
    report = Report("healing")
    total = int(FULL_BYTES * args.scale)
    for part in args.only or ("rep:3", "ec:4+2", "rebalance"):
        with harness.workplace(args.dir) as work:
            if part == "rebalance":
                measure_rebalance(report, work, total // 2)
            else:
                measure_repair(report, work, part, total)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
