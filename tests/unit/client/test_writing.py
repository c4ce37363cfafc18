"""Writing while disks fail, fill up and hang, and while the master is away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

import dfs.client
from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.daemon import run_chunkserver
from dfs.chunkserver.room import Reserve
from dfs.client import Client
from dfs.core.chunk import CHUNK_MAX_BYTES, ChunkState
from dfs.core.errors import NoSpaceError, UnavailableError
from tests.simulation.world import LEASE_S, MASTER, InlineWorkers, World
from tests.unit.client.rig import chunks_of, directory, running

MIB = 1 << 20


async def holders(client: Client, path: str) -> list[str]:
    """The hosts that hold the chunk a file was written to last, in order of fragment."""
    chunk = (await chunks_of(client, path))[-1]
    layout = await client.meta.locate([chunk])
    hosts = {disk.disk: disk.address.partition(":")[0] for disk in layout.disks}
    return [hosts[fragment.disk] for fragment in layout.chunks[0].fragments]


async def test_a_full_chunk_is_sealed_and_the_next_one_taken(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    block = Random(1).randbytes(MIB)
    async with running(tmp_path, servers=3) as (_, client):
        await directory(client, "/d", "rep:1")
        async with await client.open("/d/a", "w") as file:
            for number in range(CHUNK_MAX_BYTES // MIB * 2 + 2):
                await file.write(number.to_bytes(4, "big") + block[4:])
        await trio.sleep(5)
        chunks = await chunks_of(client, "/d/a")
        assert len(chunks) == 3
        layout = await client.meta.locate(chunks)
        assert [chunk.state for chunk in layout.chunks] == [
            ChunkState.SEALED,
            ChunkState.SEALED,
            ChunkState.OPEN,
        ]
        assert [chunk.length for chunk in layout.chunks[:2]] == [CHUNK_MAX_BYTES] * 2
        async with await client.open("/d/a") as file:
            for number in range(CHUNK_MAX_BYTES // MIB * 2 + 2):
                assert await file.read(MIB) == number.to_bytes(4, "big") + block[4:]
            assert await file.read(1) == b""


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("fault", ["crash", "hang"])
@pytest.mark.parametrize(
    ("redundancy", "servers", "victims"),
    [("rep:1", 3, 1), ("rep:2", 3, 1), ("rep:3", 4, 1), ("rep:3", 6, 2), ("ec:4+2", 8, 2)],
)
async def test_servers_that_fail_in_the_middle_cost_a_short_pause_and_no_error(
    tmp_path: Path,
    autojump_clock: MockClock,
    fault: str,
    redundancy: str,
    servers: int,
    victims: int,
) -> None:
    rng = Random(2)
    async with running(tmp_path, servers=servers) as (world, client):
        await directory(client, "/d", redundancy)
        model = b""
        slowest = 0.0
        file = await client.open("/d/a", "w")
        for step in range(30):
            if step == 10:
                await file.flush()
                failing = (await holders(client, "/d/a"))[-victims:]
                for host in failing:
                    if fault == "crash":
                        await world.crash(host)
                    else:
                        world.network.hang(host)
            data = rng.randbytes(300_000)
            begun = trio.current_time()
            await file.write(data)
            if step % 7 == 3:
                await file.flush()
            slowest = max(slowest, trio.current_time() - begun)
            model += data
        begun = trio.current_time()
        await file.close()
        slowest = max(slowest, trio.current_time() - begun)
        # A lone copy that hangs can be told from a slow one by patience only.
        assert slowest < (25 if (fault, redundancy) == ("hang", "rep:1") else 5)
        if redundancy == "rep:1":
            await world.mend()
        client.cache.clear()
        assert await client.read_file("/d/a") == model
        await world.mend()
    world.check_metadata()


@pytest.mark.allow_logs("")
async def test_nothing_is_acknowledged_on_fewer_disks_than_the_policy_allows(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(3).randbytes(500_000)
    async with running(tmp_path, servers=3, on_unavailable="wait:10s") as (world, client):
        await directory(client, "/d", "rep:3")
        async with await client.open("/d/a", "w") as file:
            await file.write(data)
            await file.flush()
            for host in world.servers[:2]:
                await world.crash(host)
            await file.write(data)
            with pytest.raises(UnavailableError):
                await file.flush()
            assert (await client.stat("/d/a")).size == len(data)
            await world.mend()
            await file.flush()
        assert await client.read_file("/d/a") == data * 2


@pytest.mark.allow_logs("")
async def test_writing_goes_on_when_the_master_comes_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(4)
    async with running(tmp_path) as (world, client):
        model = b""
        async with await client.open("/a", "w") as file:
            for step in range(12):
                if step % 4 == 1:
                    await world.crash("master")
                    world.network.drop("desk")
                data = rng.randbytes(700_000)
                await file.write(data)
                model += data
                if step % 4 == 2:
                    await world.start_host("master")
                    await file.flush()
        assert await client.read_file("/a") == model


@pytest.mark.allow_logs("")
async def test_bytes_written_before_the_session_expired_are_written_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(5).randbytes(400_000)
    async with running(tmp_path, on_unavailable="wait") as (world, client):
        async with await client.open("/a", "w") as file, await client.open("/log", "a") as log:
            await file.write(data)
            await log.write(b"one ")
            await file.flush()
            await log.flush()
            before = client.meta.session.current_id
            await file.write(data)
            await log.write(b"two")
            world.network.partition("desk", "master")
            await trio.sleep(LEASE_S + 60)
            world.network.heal()
            await file.flush()
            await log.flush()
            assert client.meta.session.current_id != before
        assert await client.read_file("/a") == data * 2
        assert await client.read_file("/log") == b"one two"


@pytest.mark.allow_logs("")
async def test_cancelling_a_writer_leaves_no_open_chunk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        with trio.move_on_after(0.5):
            async with world.client("other") as other:
                async with await other.open("/a", "w") as file:
                    while True:
                        await file.write(bytes(MIB))
                        await trio.sleep(0.01)
        await trio.sleep(30)
        assert (await client.meta.status()).chunks_open == 0
        world.check_metadata()


class SmallWorld(World):
    """Disks that hold little."""

    capacity_bytes = 6 * MIB

    async def _run_server(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        address = f"{name}:9421"
        config = ChunkServerConfig(
            master=(MASTER,),
            disks=(str(self.root / name),),
            advertise=address,
            capacity_bytes=self.capacity_bytes,
            reserve=Reserve(0.0, 0, 0),
        )
        await run_chunkserver(
            config,
            listeners=[self.network.listen(address)],
            connector=self.network.connector(name),
            random=self.fork_random(),
            workers=InlineWorkers,
            signals=False,
            task_status=task_status,
        )


@asynccontextmanager
async def small_cluster(root: Path) -> AsyncIterator[tuple[SmallWorld, Client]]:
    async with trio.open_nursery() as nursery:
        world = SmallWorld(root, 1, nursery, servers=3)
        await world.start()
        async with dfs.client.connect(
            MASTER, connector=world.network.connector("desk"), workers=InlineWorkers()
        ) as client:
            yield world, client
        nursery.cancel_scope.cancel()


@pytest.mark.allow_logs("")
async def test_when_all_disks_are_full_the_error_says_so_and_nothing_is_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(6)
    async with small_cluster(tmp_path) as (_, client):
        await directory(client, "/d", "rep:2")
        kept: dict[str, bytes] = {}
        with pytest.raises(NoSpaceError) as full:
            for number in range(40):
                data = rng.randbytes(MIB)
                await client.write_file(f"/d/{number}", data)
                kept[f"/d/{number}"] = data
        # At the end one copy of two is all that fits, and all that rep:2 insists on.
        assert 8 <= len(kept) <= 17
        assert "space" in str(full.value)
        assert "disk" in str(full.value)
        client.cache.clear()
        for path, data in kept.items():
            assert await client.read_file(path) == data
        await client.rmtree("/d")
        await directory(client, "/e", "rep:2")
        await trio.sleep(60)
        again = rng.randbytes(2 * MIB)
        await client.write_file("/e/a", again)
        assert await client.read_file("/e/a") == again


@pytest.mark.allow_logs("")
async def test_written_bytes_are_kept_until_there_is_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(7)
    filler, data = rng.randbytes(4 * MIB), rng.randbytes(3 * MIB)
    async with small_cluster(tmp_path) as (world, client):
        await directory(client, "/d", "rep:3")
        async with world.client("other") as other:
            await other.write_file("/d/filler", filler)
        async with await client.open("/d/a", "w") as file:
            with pytest.raises(NoSpaceError):
                await file.write(data)
                await file.flush()
            assert file.size == len(data)
            await client.unlink("/d/filler")
            await trio.sleep(60)
            await file.flush()
        assert await client.read_file("/d/a") == data
