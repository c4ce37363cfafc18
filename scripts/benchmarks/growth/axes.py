"""Each function measures along one axis, in a cluster that somebody else started."""

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import dfs.client
from dfs.client import Client
from dfs.core.ids import ROOT_INODE, SCRATCH_POLICY, InodeId
from dfs.core.inode import Extent
from dfs.wire.messages import Put
from scripts.benchmarks import harness
from scripts.benchmarks.growth import crowd
from scripts.benchmarks.growth.series import Axis
from scripts.benchmarks.harness import MIB, DevCluster
from scripts.benchmarks.metadata import BATCH, PER_DIRECTORY, make_directories, rate

SMALL_S: Final = 4.0
_FILE_BYTES: Final = 20
"""Content of a file in the axis of files: that of all of them fits into one chunk."""
_PROBES: Final = 4000
_LISTED: Final = 20
"""Directories of a thousand files that are listed."""
_ENOUGH_BYTES: Final = 128 * MIB
"""Small files are written until they are so much, or so many."""
_ENOUGH: Final = 500

Say = Callable[[str], None]


async def files(cluster: DevCluster, counts: Sequence[int], axis: Axis, say: Say) -> None:
    """Rates of the master, and what it needs, with so many files in the cluster."""
    async with dfs.client.connect(cluster.master) as client:
        chunk = (await client.meta.allocate_chunks(SCRATCH_POLICY)).chunks[0].chunk
        top = (await client.meta.mkdir(ROOT_INODE, b"fill", 0o755)).ino
        homes: list[InodeId] = []
        resident = harness.memory_bytes(cluster.pids["master"], "VmRSS")
        disk = harness.disk_bytes(cluster.directory / "master")

        async def put(batch: int) -> None:
            ops = []
            for number in range(batch * BATCH, (batch + 1) * BATCH):
                extent = Extent(0, _FILE_BYTES, chunk, number * _FILE_BYTES)
                home = homes[number // PER_DIRECTORY]
                name = b"document-%08d.txt" % number
                ops.append(Put(home, name, 0o644, _FILE_BYTES, (extent,)))
            for result in await client.meta.apply(*ops):
                if result.error is not None:
                    raise RuntimeError(result.error.message)

        filled = 0
        for count in counts:
            say(f"{count:,} files")
            wanted = count // PER_DIRECTORY - len(homes)
            homes += await _directories(client, top, len(homes), wanted)
            first, batches = filled // BATCH, (count - filled) // BATCH

            async def put_next(number: int, first: int = first) -> None:
                await put(first + number)

            cpu = harness.cpu_seconds(cluster.pids["master"])
            await rate(batches, put_next, tasks=4)
            await client.meta.sync()
            spent_us = 1e6 * (harness.cpu_seconds(cluster.pids["master"]) - cpu) / (count - filled)
            name = "made in batches: master's processor"
            axis.add(count, name, spent_us, "us", less_is_better=True)
            filled = count
            axis.add(
                count,
                "master's memory per file",
                max(
                    0.0, (harness.memory_bytes(cluster.pids["master"], "VmRSS") - resident) / count
                ),
                "B",
                less_is_better=True,
            )
            grown = harness.disk_bytes(cluster.directory / "master") - disk
            axis.add(count, "master's disk per file", grown / count, "B", less_is_better=True)
            await _probe(client, cluster, axis, count, homes)


async def _directories(client: Client, top: InodeId, have: int, more: int) -> list[InodeId]:
    """Directories for a thousand files each, a hundred in one."""
    made: list[InodeId] = []
    while len(made) < more:
        name = b"g%d" % (have + len(made))
        group = (await client.meta.mkdir(top, name, 0o755)).ino
        made += await make_directories(client, group, min(100, more - len(made)))
    return made


async def _probe(
    client: Client, cluster: DevCluster, axis: Axis, count: int, homes: Sequence[InodeId]
) -> None:
    meta, rng = client.meta, random.Random(count)

    async def create(number: int) -> None:
        await meta.create(homes[number % len(homes)], b"new-%d-%d" % (count, number), 0o644)

    async def look_up(_: int) -> None:
        number = rng.randrange(count)
        await meta.lookup(homes[number // PER_DIRECTORY], b"document-%08d.txt" % number)

    async def unlink(number: int) -> None:
        await meta.unlink(homes[number % len(homes)], b"new-%d-%d" % (count, number))

    listed = 0

    async def enumerate_one(_: int) -> None:
        nonlocal listed
        page = await meta.readdir(rng.choice(homes), limit=4096)
        listed += len(page.entries)

    for name, act, probes in (
        ("creates", create, _PROBES),
        ("look-ups at random", look_up, 2 * _PROBES),
        ("unlinks", unlink, _PROBES),
    ):
        cpu = harness.cpu_seconds(cluster.pids["master"])
        axis.add(count, name, await rate(probes, act), "/s", flat=0.8)
        spent_us = 1e6 * (harness.cpu_seconds(cluster.pids["master"]) - cpu) / probes
        axis.add(count, f"{name}: master's processor", spent_us, "us", less_is_better=True)
    begun = time.perf_counter()
    await rate(_LISTED, enumerate_one, tasks=1)
    axis.add(count, "listing, entries", listed / (time.perf_counter() - begun), "/s", flat=0.8)


def clients(cluster: DevCluster, counts: Sequence[int], axis: Axis, say: Say) -> None:
    """Processes that write and read small files, each as fast as it can."""
    for count in counts:
        say(f"{count} clients")
        cluster.dfs("mkdir", f"/crowd-{count}")
        for name, done in crowd.small_files(
            cluster.master, f"/crowd-{count}", count, SMALL_S
        ).items():
            axis.add(count, name, done.rate, "/s", flat=0.8)
            axis.add(count, f"{name}: median", done.median_ms, "ms", less_is_better=True)
            axis.add(count, f"{name}: 99 of 100 within", done.slow_ms, "ms", less_is_better=True)


async def sizes(cluster: DevCluster, each: Sequence[int], axis: Axis, say: Say) -> None:
    """One client, one file after the other: written with fsync, read when nothing is cached."""
    for size in each:
        say(f"files of {axis.label(size)}")
        count = max(1, min(_ENOUGH, _ENOUGH_BYTES // size))
        block = os.urandom(min(size, MIB))
        async with dfs.client.connect(cluster.master) as client:
            await client.mkdir(f"/size-{size}")
            begun = time.perf_counter()
            for number in range(count):
                async with await client.open(f"/size-{size}/{number}", "w") as file:
                    for _ in range(size // len(block)):
                        await file.write(block)
                    await file.fsync()
            seconds = time.perf_counter() - begun
        axis.add(size, "written, with fsync", size * count / MIB / seconds, "MiB/s")
        axis.add(size, "one file written", 1e3 * seconds / count, "ms", less_is_better=True)
        cluster.drop_caches()
        async with dfs.client.connect(cluster.master) as client:
            begun = time.perf_counter()
            for number in range(count):
                async with await client.open(f"/size-{size}/{number}", "r") as file:
                    for _ in range(size // len(block)):
                        if await file.read(len(block)) != block:
                            raise RuntimeError("what is read is not what was written")
            seconds = time.perf_counter() - begun
            axis.add(size, "read, cold", size * count / MIB / seconds, "MiB/s")
            axis.add(size, "one file read", 1e3 * seconds / count, "ms", less_is_better=True)
            await client.rmtree(f"/size-{size}")


def servers(cluster: DevCluster, count: int, size_mib: int, axis: Axis, say: Say) -> None:
    """Four clients beside a cluster of so many chunk servers, on this machine."""
    say(f"{count} chunk servers")
    cluster.dfs("mkdir", "/small")
    cluster.dfs("mkdir", "/big")
    for name, done in crowd.small_files(cluster.master, "/small", 4, SMALL_S).items():
        axis.add(count, name, done.rate, "/s", flat=0.8)
    for name, done in crowd.streams(cluster.master, "/big", 4, size_mib).items():
        axis.add(count, f"four files {name}", done.rate, "MiB/s", flat=0.8)
