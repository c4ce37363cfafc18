"""Compaction and conversion: live bytes a second, and bytes on disks for each of them.

Many files are stored, most are removed, and what is left is compacted; then it is converted. Bytes
written are what the kernel says that the chunk servers wrote; CPU time is of all servers together.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

import dfs.client
from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, Report
from tests.cluster import Cluster, wait_until

FILES: Final = 8000
"""At scale 1."""
FILE_BYTES: Final = 150_000
KEPT_EVERY: Final = 8
COMPACT_JOB: Final = "3"
"""The standing compaction: it would do the work before it is measured."""


@dataclass
class Spent:
    """By all servers of a cluster, since they began."""

    written: int
    master_cpu_s: float
    servers_cpu_s: float


def spent(cluster: Cluster) -> Spent:
    written = 0
    for server in cluster.servers.values():
        lines = Path(f"/proc/{server.pid}/io").read_text().splitlines()
        written += int(dict(line.split(": ") for line in lines)["write_bytes"])
    servers = harness.cpu_seconds(*(server.pid for server in cluster.servers.values()))
    return Spent(written, harness.cpu_seconds(cluster.master.pid), servers)


def measure(report: Report, cluster: Cluster, what: str, *order: str) -> None:
    """Give an order that starts a job, wait for its end, and report on it."""
    before = spent(cluster)
    number = cluster.json(*order)["job"]

    def job() -> dict[str, Any]:
        jobs = cluster.json("admin", "jobs", "list")["jobs"]
        return next(each for each in jobs if each["job"] == number)

    wait_until(lambda: job()["state"] == "done", timeout_s=3600, what=what)
    after, done = spent(cluster), job()
    live = done["bytes_done"]
    if not live or done["failures"]:
        raise SystemExit(f"{what}: {done}")
    took_s = (done["ended_ns"] - done["created_ns"]) / 1e9
    report.add(f"{what}: live bytes", live / MIB, "MiB")
    report.add(f"{what}: live bytes a second", live / MIB / took_s, "MiB/s")
    report.add(f"{what}: written for each", (after.written - before.written) / live, "bytes")
    cpu_s = after.servers_cpu_s - before.servers_cpu_s
    report.add(f"{what}: CPU of chunk servers", cpu_s / (live / 2**30), "s/GiB")
    report.add(
        f"{what}: CPU of the master",
        (after.master_cpu_s - before.master_cpu_s) / (live / 2**30),
        "s/GiB",
    )


async def remove_most(master: str, files: int) -> None:
    async with dfs.client.connect(master) as client:
        for number in range(files):
            if number % KEPT_EVERY:
                await client.unlink(f"/data/source/{number}")


def main() -> int:
    args = harness.parser(__doc__ or "").parse_args()
    report = Report("rewriting")
    with harness.workplace(args.dir) as work, Cluster(work / "cluster", servers=6) as cluster:
        source = work / "source"
        source.mkdir()
        files = int(FILES * args.scale)
        for number in range(files):
            (source / str(number)).write_bytes(os.urandom(FILE_BYTES))
        cluster.dfs("admin", "jobs", "pause", COMPACT_JOB)
        cluster.dfs("mkdir", "/data")
        cluster.dfs("upload", "-r", source, "/data", timeout_s=3600)
        trio.run(remove_most, cluster.master_address, files)
        for number in range(files):
            if number % KEPT_EVERY:
                (source / str(number)).unlink()
        wait_until(
            lambda: cluster.json("admin", "compact", "--dry-run")["bytes"] > 0, what="dead chunks"
        )
        measure(report, cluster, "compaction, rep:3", "admin", "compact")
        convert = ("policy", "set", "-r", "/data", "ec", "--convert")
        measure(report, cluster, "conversion to ec:4+2", *convert)
        cluster.dfs("download", "-r", "/data/source", work / "back", timeout_s=3600)
        for path in source.iterdir():
            if path.read_bytes() != (work / "back" / path.name).read_bytes():
                raise SystemExit(f"{path.name} is not what it was")
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
