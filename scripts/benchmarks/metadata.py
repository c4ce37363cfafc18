"""The master through the client library: rates with 10,000 and with 1,000,000 files, its size.

The first rates are measured in a cluster of some 40,000 files, the second in one of a million.
"""

import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import dfs.client
from dfs.client import Client
from dfs.core.ids import ROOT_INODE, SCRATCH_POLICY, InodeId
from dfs.core.inode import Extent
from dfs.wire.messages import Put
from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, DevCluster, Report

TASKS = 8
PER_DIRECTORY = 1000
FILE_BYTES = 60
"""Content of a file: an extent in a chunk, as small packed files have."""
BATCH = 1000
REPEATS = 3
"""Each rate is the best of so many, before and after: other programs come and go."""


async def rate(count: int, each: Callable[[int], Awaitable[object]], tasks: int = TASKS) -> float:
    """Calls a second of `each(number)` by `tasks` tasks, which each wait for their answers."""

    async def work(first: int) -> None:
        for number in range(first, count, tasks):
            await each(number)

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for first in range(tasks):
            nursery.start_soon(work, first)
    return count / (time.perf_counter() - begun)


async def make_directories(client: Client, parent: InodeId, count: int) -> list[InodeId]:
    made = []
    for number in range(count):
        made.append((await client.meta.mkdir(parent, b"d%d" % number, 0o755)).ino)
    return made


async def measure_rates(
    client: Client, report: Report, label: str, scale: float
) -> dict[str, float]:
    """Create in fresh directories, look up at random, one synchronous client."""
    best: dict[str, float] = {}
    for repeat in range(REPEATS):
        for name, value in (await rates_once(client, f"{label} {repeat}", scale)).items():
            best[name] = max(value, best.get(name, 0.0))
    targets = {"creates": 8000, "lookups": 20_000, "sync creates": 1500}
    for name, value in best.items():
        who = "1 task" if name == "sync creates" else f"{TASKS} tasks"
        report.add(f"{name}, {who}, {label} files", value, "/s", at_least=targets[name])
    return best


async def rates_once(client: Client, directory: str, scale: float) -> dict[str, float]:
    meta = client.meta
    top = (await meta.mkdir(ROOT_INODE, directory.encode(), 0o755)).ino
    homes = await make_directories(client, top, 10)
    count = int(10_000 * scale)
    rng = random.Random(1)

    async def create(number: int) -> None:
        await meta.create(homes[number % 10], b"f%d" % number, 0o644)

    async def look_up(_: int) -> None:
        number = rng.randrange(count)
        await meta.lookup(homes[number % 10], b"f%d" % number)

    async def create_alone(number: int) -> None:
        await meta.create(homes[number % 10], b"s%d" % number, 0o644)

    return {
        "creates": await rate(count, create),
        "lookups": await rate(4 * count, look_up),
        "sync creates": await rate(max(1, count // 3), create_alone, tasks=1),
    }


async def fill(client: Client, count: int, listed: int) -> InodeId:
    """Bring the cluster to `count` small files; the directory that holds `listed` of them."""
    meta = client.meta
    layout = await meta.allocate_chunks(SCRATCH_POLICY)
    chunk = layout.chunks[0].chunk
    top = (await meta.mkdir(ROOT_INODE, b"fill", 0o755)).ino
    big = (await meta.mkdir(ROOT_INODE, b"big", 0o755)).ino
    homes = await make_directories(client, top, max(1, (count - listed) // PER_DIRECTORY))

    async def put(batch: int) -> None:
        ops = []
        for number in range(batch * BATCH, min((batch + 1) * BATCH, count)):
            home = homes[number // PER_DIRECTORY % len(homes)]
            parent = big if number < listed else home
            extent = Extent(0, FILE_BYTES, chunk, number * FILE_BYTES)
            name = b"document-%08d.txt" % number
            ops.append(Put(parent, name, 0o644, FILE_BYTES, (extent,)))
        for result in await meta.apply(*ops):
            if result.error is not None:
                raise RuntimeError(result.error.message)

    await rate((count + BATCH - 1) // BATCH, put, tasks=4)
    return big


async def list_directory(client: Client, ino: InodeId) -> int:
    count, after, more = 0, b"", True
    while more:
        page = await client.meta.readdir(ino, after=after, limit=4096)
        count += len(page.entries)
        after, more = page.entries[-1].name, page.more
    return count


async def measure(cluster: DevCluster, report: Report, scale: float) -> None:
    async with dfs.client.connect(cluster.master) as client:
        before = await measure_rates(client, report, "10,000", scale)
        await client.meta.sync()
        disk = harness.disk_bytes(cluster.directory / "master")
        inodes = (await client.meta.statfs()).inodes
        count, listed = int(1_000_000 * scale), int(200_000 * scale)
        begun = time.perf_counter()
        big = await fill(client, count, listed)
        report.add("filling up, in batches", count / (time.perf_counter() - begun), "files/s")
        await client.meta.sync()
        added = (await client.meta.statfs()).inodes - inodes
        grown = harness.disk_bytes(cluster.directory / "master") - disk
        report.add("master's disk per file", grown / added, "bytes", at_most=300)
        after = await measure_rates(client, report, "1,000,000", scale)
        for name in before:
            report.add(f"{name}, 1,000,000 / 10,000", after[name] / before[name], "", at_least=0.8)
        begun = time.perf_counter()
        seen = await list_directory(client, big)
        if seen != listed:
            raise RuntimeError(f"listed {seen} of {listed} entries")
        report.add(f"list {listed:,} with attributes", time.perf_counter() - begun, "s", at_most=4)
    report.add("master, peak memory", cluster.peak_bytes("master") / MIB, "MiB", at_most=400)


def main() -> int:
    args = harness.parser(__doc__ or "").parse_args()
    report = Report("metadata")
    with harness.workplace(args.dir) as work, harness.dev_cluster(Path(work) / "c", 1) as cluster:
        trio.run(measure, cluster, report, args.scale)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
