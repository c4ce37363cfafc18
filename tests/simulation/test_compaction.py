"""Chunks that are mostly dead are written anew while clients go on: nothing is lost, space is."""

from pathlib import Path
from random import Random

import pytest
import trio

from dfs.chunkserver.fragment_format import parse_name
from dfs.client import Client
from dfs.core.chunk import ChunkState, DiskState
from dfs.core.errors import DfsError, FileSystemError, NoSpaceError
from dfs.master.jobs.compact import REST_S
from dfs.master.keyspace import CHUNK, COMPACT_JOB, decode_chunk, scan_prefix
from dfs.wire.messages import JobState
from tests.simulation.test_healing import disk_on, finished, play, until
from tests.simulation.world import World

KIB = 1 << 10
SIZE = 40 * KIB

pytestmark = pytest.mark.allow_logs(".")


def content(path: str) -> bytes:
    return Random(path).randbytes(SIZE)


async def fill(world: World, home: str, policy: str, files: int, kept_every: int) -> list[str]:
    """Files packed into a few chunks, of which only every n-th is kept: their paths."""
    paths = [f"{home}/{number}" for number in range(files)]
    for part in range(0, files, 10):
        async with world.client(f"writer{part}") as client:
            if not part:
                await client.mkdir(home)
                await client.set_policy(home, policy)
            for path in paths[part : part + 10]:
                await client.write_file(path, content(path))
    async with world.client("remover") as client:
        # Else it might have done a test's work before that begins.
        await client.admin.control(COMPACT_JOB, "pause")
        for number, path in enumerate(paths):
            if number % kept_every:
                await client.unlink(path)
    await until(lambda: not world.not_whole() and not world.unlisted(), 300)
    return paths[::kept_every]


async def check(client: Client, paths: list[str]) -> None:
    for path in paths:
        assert await client.read_file(path) == content(path), path


def stored(world: World) -> int:
    """Bytes of all fragment files."""
    return sum(
        path.stat().st_size
        for server in world.servers
        for path in (world.root / server).rglob("*")
        if path.is_file()
    )


def chunks(world: World) -> dict[int, ChunkState]:
    found = (decode_chunk(value) for _, value in scan_prefix(world.store, CHUNK))
    return {chunk.chunk: chunk.state for chunk in found}


@pytest.mark.parametrize("policy", ["default", "ec"])
def test_what_lives_in_mostly_dead_chunks_is_packed_into_a_new_one(
    tmp_path: Path, policy: str
) -> None:
    async def story(world: World) -> None:
        kept = await fill(world, "/data", policy, 60, 10)
        before, old = stored(world), chunks(world)
        async with world.client("operator") as client:
            plan = await client.admin.plan("compact", threshold=0.5)
            assert plan.items == len(old) == 6
            assert plan.bytes == 6 * SIZE
            assert (await client.admin.plan("compact", threshold=0.95)).items == 0
            info = await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            assert (info.state, info.items_done, info.failures) == (JobState.DONE, 6, 0), info
            assert info.bytes_done == plan.bytes
            await until(lambda: not world.unlisted() and len(chunks(world)) == 1, 60)
            assert not chunks(world).keys() & old.keys()
            assert stored(world) < before / 5
            await check(client, kept)
            assert (await client.admin.plan("compact", threshold=0.5)).items == 0

    play(tmp_path / "disks", story, servers=7)


async def after_writes(world: World, count: int) -> None:
    """Until the master has changed its store so often."""
    until_position = world.store.position + count
    with trio.fail_after(600):
        while world.store.position < until_position:
            await trio.sleep(0.001)


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 6])
def test_a_power_cut_of_the_master_at_any_step_costs_nothing(tmp_path: Path, writes: int) -> None:
    """With the job written down, with the target allocated, repointed, its sources doomed."""

    async def story(world: World) -> None:
        kept = await fill(world, "/data", "default", 20, 10)
        world.network.set_latency(0.01, 0.02)
        async with world.client("operator") as client:
            job = await client.admin.start("compact", threshold=0.5)
            await after_writes(world, writes)
            await world.cut_power()
            await finished(client, job.job)
            again = await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            assert not again.failures
            await check(client, kept)
            # A second one may have been under way.
            assert ChunkState.OPEN not in chunks(world).values()
            await until(lambda: not world.unlisted() and len(chunks(world)) == 1, 120)
            assert not world.not_whole()
            await check(client, kept)

    play(tmp_path / "disks", story, servers=5)


def test_a_full_cluster_makes_room(tmp_path: Path) -> None:
    """Of the reserve of its disks; then it takes new files again."""

    async def story(world: World) -> None:
        paths: list[str] = []
        async with world.client("maker") as client:
            await client.admin.control(COMPACT_JOB, "pause")
            await client.mkdir("/data")
        with pytest.raises(NoSpaceError):
            for part in range(100):
                async with world.client(f"writer{part}", on_unavailable="error") as client:
                    for number in range(10):
                        path = f"/data/{part}-{number}"
                        await client.write_file(path, content(path))
                        paths.append(path)
        async with world.client("operator", on_unavailable="error") as client:
            for number, path in enumerate(paths):
                if number % 10:
                    await client.unlink(path)
            await trio.sleep(10)
            for server in await client.meta.servers():
                assert server.disks[0].state == DiskState.FULL
            with pytest.raises(NoSpaceError):
                await client.write_file("/data/new", content("/data/new"))
            info = await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            assert info.items_done == info.items_total > 5, info
            assert not info.failures
            await until(lambda: ChunkState.RETIRED not in chunks(world).values(), 300)
            await until(lambda: not world.unlisted(), 300)
            await trio.sleep(3)
            await client.write_file("/data/new", content("/data/new"))
            await check(client, [*paths[::10], "/data/new"])

    play(tmp_path / "disks", story, servers=3, capacity_bytes=4 << 20)


@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.3])
def test_servers_that_die_in_the_middle_cost_nothing(tmp_path: Path, after_s: float) -> None:
    async def story(world: World) -> None:
        kept = await fill(world, "/data", "ec", 20, 10)
        world.network.set_latency(0.01, 0.02)
        async with world.client("operator") as client:
            job = await client.admin.start("compact", threshold=0.5)
            await trio.sleep(after_s)
            await world.crash("cs2")
            await world.crash("cs5")
            await finished(client, job.job)
            await check(client, kept)
            await world.start_host("cs2")
            await world.start_host("cs5")
            await until(lambda: not world.not_whole(), 300)
            await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            await until(lambda: not world.unlisted() and len(chunks(world)) == 1, 300)
            await check(client, kept)

    play(tmp_path / "disks", story, servers=7)


def test_a_cancelled_compaction_leaves_nothing_behind(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        kept = await fill(world, "/data", "default", 20, 10)
        old = chunks(world)
        world.network.set_latency(0.2, 0.3)
        async with world.client("operator") as client:
            job = await client.admin.start("compact", threshold=0.5)
            await until(lambda: ChunkState.OPEN in chunks(world).values(), 60)
            await client.admin.control(job.job, "cancel")
            await until(lambda: not world.unlisted() and chunks(world) == old, 120)
            await check(client, kept)

    play(tmp_path / "disks", story, servers=5)


def test_readers_with_old_extents_and_writers_go_on(tmp_path: Path) -> None:
    """A file that was opened before its bytes moved reads as before, and so does a download."""

    async def story(world: World) -> None:
        kept = await fill(world, "/data", "default", 40, 8)
        big = Random(1).randbytes(12 << 20)
        async with world.client("writer") as client:
            await client.write_file("/big", bytes(20 << 20))
            await client.truncate("/big", 0)
            await client.write_file("/big", big)
        async with world.client("reader") as reader, world.client("writer") as writer:
            files = [await reader.open(path) for path in (*kept, "/big")]
            for path, file in zip(kept, files, strict=False):
                assert await file.pread(1000, 0) == content(path)[:1000]
            assert await files[-1].pread(1000, 0) == big[:1000]
            async with await writer.open(kept[0], "r+") as changing:
                await changing.pwrite(b"new", 100)
                job = await writer.admin.start("compact", threshold=0.2)
                await changing.pwrite(b"newer", 20_000)
                await finished(writer, job.job)
                await changing.pwrite(b"newest", 30_000)
            await writer.unlink(kept[1])
            await until(lambda: not world.unlisted(), 120)
            expected = bytearray(content(kept[0]))
            for offset, data in ((100, b"new"), (20_000, b"newer"), (30_000, b"newest")):
                expected[offset : offset + len(data)] = data
            assert await writer.read_file(kept[0]) == expected
            for path, file in list(zip(kept, files, strict=False))[1:]:
                assert await file.pread(SIZE, 0) == content(path), "also one that was removed"
            assert b"".join([await files[-1].pread(1 << 20, n << 20) for n in range(12)]) == big
            for file in files:
                await file.close()

    play(tmp_path / "disks", story, servers=5)


def test_it_happens_by_itself(tmp_path: Path) -> None:
    """What is replaced is kept for a while, and readers who know it by then need not ask anew."""

    async def story(world: World) -> None:
        kept = await fill(world, "/data", "default", 20, 10)
        old = chunks(world)
        async with world.client("operator") as client:
            files = [await client.open(path) for path in kept]
            for file in files:
                await file.pread(1000, 0)
            info = await client.admin.control(COMPACT_JOB, "resume")
            with pytest.raises(FileSystemError, match="cannot be cancelled"):
                await client.admin.control(COMPACT_JOB, "cancel")
            await until(lambda: ChunkState.RETIRED in chunks(world).values(), 2 * REST_S)
            assert {chunks(world).get(number) for number in old} == {ChunkState.RETIRED}
            status = await client.meta.status()
            assert (status.chunks, status.chunks_retired, status.chunks_healthy) == (1, 2, 1)
            assert await files[0].pread(SIZE, 0) == content(kept[0])
            await until(lambda: not world.unlisted() and len(chunks(world)) == 1, 120)
            assert await files[1].pread(SIZE, 0) == content(kept[1])
            for file in files:
                await file.close()
            info = await client.admin.job(COMPACT_JOB)
            assert (info.items_done, info.items_total, info.failures) == (2, 2, 0), info
            before = chunks(world)
            await trio.sleep(5 * REST_S)
            assert chunks(world) == before, "and then there is nothing to do"

    play(tmp_path / "disks", story, servers=5)


def test_replaced_chunks_are_no_obstacle_to_a_drain(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        kept = await fill(world, "/data", "default", 20, 10)
        async with world.client("operator") as client:
            await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            assert ChunkState.RETIRED in chunks(world).values()
            for host in ("cs1", "cs2"):
                server, disk = await disk_on(client, host)
                info = await finished(
                    client, (await client.admin.start("drain", disks=(disk,))).job
                )
                assert info.state is JobState.DONE, info
                assert not any(name == host for name, _ in world.fragments())
                await client.admin.remove(server)
            await check(client, kept)

    play(tmp_path / "disks", story, servers=5)


def test_a_chunk_that_cannot_be_read_does_not_keep_others_from_being_compacted(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        kept = await fill(world, "/data", "scratch", 40, 10)
        victim, lost = next((s, name) for s, name in world.fragments())
        (path,) = [
            path for path in (world.root / victim).rglob("*") if parse_name(path.name) == lost
        ]
        path.write_bytes(path.read_bytes()[:100] + bytes(path.stat().st_size - 100))
        async with world.client("operator") as client:
            info = await finished(client, (await client.admin.start("compact", threshold=0.5)).job)
            assert (info.items_done, info.failures) == (3, 1), info
            assert f"chunk {lost.chunk}" in info.note
            used = [c for c, state in chunks(world).items() if state is ChunkState.SEALED]
            assert len(used) == 3, "the bad one, and what two rewrites made of the others"
            found = [await read(client, path) for path in kept]
            assert sum(content(p) == data for p, data in zip(kept, found, strict=True)) == 3

    async def read(client: Client, path: str) -> bytes:
        try:
            return await client.read_file(path)
        except DfsError:
            return b""

    play(tmp_path / "disks", story, servers=3)


def test_it_keeps_to_its_bandwidth_while_it_copies(tmp_path: Path) -> None:
    """Not only from one copy to the next."""

    async def story(world: World) -> None:
        live = 24 << 20
        async with world.client("writer") as client:
            await client.admin.control(COMPACT_JOB, "pause")
            await client.write_file("/big", Random(1).randbytes(live))
            await client.write_file("/gone", bytes(26 << 20))
        await until(lambda: not world.not_whole(), 300)
        async with world.client("operator") as client:
            await client.unlink("/gone")
            job = await client.admin.start("compact", threshold=0.5, bandwidth=3 * live // 20)
            began = trio.current_time()
            await trio.sleep(10)
            assert ChunkState.OPEN in chunks(world).values(), "half of it is copied"
            info = await finished(client, job.job)
            assert (info.items_done, info.bytes_done) == (1, live), info
            assert 15 < trio.current_time() - began < 40
            assert await client.read_file("/big") == Random(1).randbytes(live)

    play(tmp_path / "disks", story, servers=5)
