"""The cluster looks after itself: repair, drain, removal, rebalance and scrub, in virtual time."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.chunk import DiskState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.policy import Policy, Spread
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import JobInfo, JobState
from tests.simulation.world import TIMING, World

MIB = 1 << 20
Story = Callable[[World], Awaitable[None]]

pytestmark = pytest.mark.allow_logs(".")


def play(root: Path, story: Story, *, servers: int, seed: int = 1, **options: object) -> None:
    """Run a story in a world of its own. At its end the metadata keeps its invariants."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            world = World(root, seed, nursery, servers=servers, **options)  # type: ignore[arg-type]
            await world.start()
            with trio.fail_after(2 * 3600):
                await story(world)
            world.check_metadata()
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))
    shutil.rmtree(root)


async def fill(world: World, policy: str, files: int, size: int, home: str = "/data") -> None:
    """Files of random bytes, each in a chunk of its own: chunks end with the client."""
    async with world.client("maker") as client:
        await client.mkdir(home)
        await client.set_policy(home, policy)
    for number in range(files):
        path = f"{home}/{number}"
        async with world.client(f"writer{number}") as client:
            await client.write_file(path, Random(path).randbytes(size))


async def check(client: Client, files: int, size: int, home: str = "/data") -> None:
    for number in range(files):
        path = f"{home}/{number}"
        assert await client.read_file(path) == Random(path).randbytes(size), path


async def until(true: Callable[[], bool], within_s: float) -> float:
    """Seconds of virtual time until that holds."""
    began = trio.current_time()
    with trio.fail_after(within_s):
        while not true():
            await trio.sleep(3)
    return trio.current_time() - began


async def finished(
    client: Client, job: int, within_s: float = 3600, *, every_s: float = 3
) -> JobInfo:
    with trio.fail_after(within_s):
        while (info := await client.admin.job(job)).state is JobState.RUNNING:
            await trio.sleep(every_s)
    return info


async def disk_on(client: Client, host: str) -> tuple[int, int]:
    """(server, disk) of a host with one disk."""
    for server in await client.meta.servers():
        if server.address.startswith(f"{host}:"):
            return server.server, server.disks[0].disk
    raise AssertionError(host)


@pytest.mark.parametrize("policy", ["default", "ec"])
def test_what_a_dead_server_held_is_made_anew(tmp_path: Path, policy: str) -> None:
    """After the grace, not before; what it brings back later is deleted or put to use."""

    async def story(world: World) -> None:
        await fill(world, policy, 12, MIB)
        await until(lambda: not world.not_whole(), 200)
        await world.crash("cs1")
        lacking = len(world.not_whole("cs1"))
        assert lacking
        await trio.sleep(TIMING.down_after_s - 5)
        assert len(world.not_whole("cs1")) == lacking, "moved before the grace was over"
        took_s = await until(lambda: not world.not_whole("cs1"), 120)
        assert took_s < 60
        await world.crash("cs2")
        async with world.client("reader") as client:
            await check(client, 12, MIB)
        await until(lambda: not world.not_whole("cs1", "cs2"), 300)
        await world.start_host("cs1")
        await world.start_host("cs2")
        await until(lambda: not world.unlisted(), 300)
        assert not world.not_whole()
        async with world.client("reader") as client:
            await check(client, 12, MIB)

    play(tmp_path / "disks", story, servers=8)


def test_what_waited_long_for_a_server_is_made_anew_as_soon_as_one_comes(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await fill(world, "default", 4, MIB)
        await until(lambda: not world.not_whole(), 200)
        await world.crash("cs1")
        # By then repair has tried in vain so often that it pauses for minutes.
        await trio.sleep(TIMING.down_after_s + 700)
        assert world.not_whole("cs1")
        await world.add_server()
        took_s = await until(lambda: not world.not_whole("cs1"), 600)
        assert took_s < 30, took_s

    play(tmp_path / "disks", story, servers=3)


def test_a_server_that_is_away_for_a_moment_costs_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await fill(world, "default", 6, MIB)
        await until(lambda: not world.not_whole(), 200)
        before = set(world.fragments())
        await world.crash("cs1")
        await trio.sleep(30)
        await world.start_host("cs1")
        await trio.sleep(300)
        assert set(world.fragments()) == before

    play(tmp_path / "disks", story, servers=5)


def test_the_last_copies_come_back_with_the_server_that_had_moved_them_away(
    tmp_path: Path,
) -> None:
    """A server died, its fragments were made anew; then all who have them die: its own count."""

    async def story(world: World) -> None:
        await fill(world, "default", 4, MIB)
        await until(lambda: not world.not_whole(), 200)
        await world.crash("cs1")
        await until(lambda: not world.not_whole("cs1"), 300)
        for name in world.servers[1:]:
            await world.crash(name)
        await trio.sleep(TIMING.down_after_s + 5)
        await world.start_host("cs1")
        await trio.sleep(60)
        held = {name.chunk for server, name in world.fragments() if server == "cs1"}
        assert held, "its copies were deleted while nobody else had any"
        for name in world.servers[1:]:
            await world.start_host(name)
        await until(lambda: not world.not_whole(), 600)
        await until(lambda: not world.unlisted(), 600)
        async with world.client("reader") as client:
            await check(client, 4, MIB)

    play(tmp_path / "disks", story, servers=5)


def test_repair_goes_on_where_a_restarted_master_left_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await fill(world, "default", 20, MIB)
        async with world.client("operator") as client:
            await client.admin.set_budget(MIB // 2)
        await world.crash("cs1")
        await trio.sleep(TIMING.down_after_s + 5)
        await world.cut_power()
        async with world.client("operator") as client:
            assert (await client.admin.jobs()).budget == MIB // 2
            await client.admin.set_budget(0)
        await until(lambda: not world.not_whole("cs1"), 300)

    play(tmp_path / "disks", story, servers=5)


def test_a_paused_repair_waits(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await fill(world, "default", 6, MIB)
        async with world.client("operator") as client:
            await until(lambda: not world.not_whole(), 200)
            assert (await client.admin.control(1, "pause")).state is JobState.PAUSED
            with pytest.raises(FileSystemError, match="cannot be cancelled"):
                await client.admin.control(1, "cancel")
            await world.crash("cs1")
            lacking = len(world.not_whole("cs1"))
            await trio.sleep(TIMING.down_after_s + 120)
            assert len(world.not_whole("cs1")) == lacking
            await client.admin.control(1, "resume")
            await until(lambda: not world.not_whole("cs1"), 120)

    play(tmp_path / "disks", story, servers=5)


def test_a_drained_server_is_empty_and_can_be_removed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await fill(world, "default", 8, MIB)
        await fill(world, "ec", 8, MIB, "/coded")
        async with world.client("operator") as client:
            server, disk = await disk_on(client, "cs3")
            with pytest.raises(match="still holds fragments"):
                await client.admin.remove(server)
            await trio.sleep(3)
            plan = await client.admin.plan("drain", disks=(disk,))
            assert plan.bytes > 0
            assert not plan.refusal
            job = await client.admin.start("drain", disks=(disk,))
            assert (await client.admin.start("drain", disks=(disk,))).job == job.job
            await client.write_file("/meanwhile", b"x" * MIB)
            info = await finished(client, job.job, every_s=0.05)
            assert info.state is JobState.DONE, info
            assert not any(s == "cs3" for s, _ in world.fragments())
            assert not world.not_whole("cs3")
            await client.admin.remove(server)
            assert all(s.server != server for s in await client.meta.servers())
            await trio.sleep(30)
            assert all(not s.address.startswith("cs3:") for s in await client.meta.servers())
            await check(client, 8, MIB)
            await check(client, 8, MIB, "/coded")

    play(tmp_path / "disks", story, servers=8)


def test_a_drain_that_cannot_end_well_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await fill(world, "default", 2, MIB)
            _, disk = await disk_on(client, "cs1")
            plan = await client.admin.plan("drain", disks=(disk,))
            assert "add a server" in plan.refusal
            with pytest.raises(DfsError, match="add a server"):
                await client.admin.start("drain", disks=(disk,))
            servers = await client.meta.servers()
            assert servers[0].disks[0].state == DiskState.UP

    play(tmp_path / "disks", story, servers=3)


def test_a_drain_can_be_taken_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await fill(world, "default", 30, MIB)
            _, disk = await disk_on(client, "cs1")
            job = await client.admin.start("drain", disks=(disk,), bandwidth=MIB // 4)
            await trio.sleep(10)
            await client.admin.set_draining((disk,), False)
            assert (await client.admin.job(job.job)).state is JobState.CANCELLED
            await trio.sleep(10)
            servers = await client.meta.servers()
            assert {each.disks[0].state for each in servers} == {DiskState.UP}
            await until(lambda: not world.unlisted() and not world.not_whole(), 200)

    play(tmp_path / "disks", story, servers=5)


def test_a_dead_server_is_removed_only_when_nothing_is_only_there(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await fill(world, "default", 4, MIB)
            await until(lambda: not world.not_whole(), 200)
            server, _ = await disk_on(client, "cs1")
            await world.crash("cs1")
            await world.crash("cs2")
            await world.crash("cs3")
            await trio.sleep(TIMING.down_after_s + 10)
            with pytest.raises(match="would lose files"):
                await client.admin.remove(server)
            await world.start_host("cs2")
            await world.start_host("cs3")
            await trio.sleep(30)
            await client.admin.remove(server)
            await check(client, 4, MIB)

    play(tmp_path / "disks", story, servers=3)


def test_new_servers_get_their_share(tmp_path: Path) -> None:
    """3 to 6 servers: within the threshold, and hardly a byte more moved than had to be."""

    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await fill(world, "default", 60, MIB // 4)
            await until(lambda: not world.not_whole(), 200)
            for _ in range(3):
                await world.add_server()
            await world.settle(6)
            await trio.sleep(3)
            plan = await client.admin.plan("rebalance", threshold=0.05)
            job = await client.admin.start("rebalance", threshold=0.05, bandwidth=MIB)
            await trio.sleep(4)
            await client.admin.control(job.job, "pause")
            await world.cut_power()
            assert (await client.admin.job(job.job)).state is JobState.PAUSED
            await client.admin.control(job.job, "resume")
            info = await finished(client, job.job)
            assert info.state is JobState.DONE, info
            used = [each.disks[0].used for each in await client.meta.servers()]
            average = sum(used) / len(used)
            assert max(used) <= average * 1.06, (used, info)
            assert min(used) >= average * 0.94, (used, info)
            assert info.bytes_done <= 1.1 * plan.bytes, (info, plan)
            assert not world.not_whole()
            await until(lambda: not world.unlisted(), 100)
            await check(client, 60, MIB // 4)
            again = await client.admin.plan("rebalance", threshold=0.1)
            assert again.bytes == 0

    play(tmp_path / "disks", story, servers=3, capacity_bytes=200 * MIB)


def test_a_scrub_finds_a_flipped_bit_and_it_is_mended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await fill(world, "default", 3, MIB)
            await fill(world, "ec", 3, MIB, "/coded")
            await until(lambda: not world.not_whole(), 200)
            files = sorted(
                path for path in (world.root / "cs1").rglob("*") if path.stat().st_size > 100_000
            )
            assert files
            for path in files:
                data = bytearray(path.read_bytes())
                data[len(data) // 3] ^= 4
                path.write_bytes(data)
            job = await client.admin.start("scrub")
            info = await finished(client, job.job)
            assert info.failures == len(files), info
            await trio.sleep(60)
            again = await finished(client, (await client.admin.start("scrub")).job)
            assert again.failures == 0, again
            page = await client.meta.chunks()
            assert all(chunk.verified_s for chunk in page.chunks if chunk.live)

    play(tmp_path / "disks", story, servers=7)


def test_repair_keeps_racks_apart(tmp_path: Path) -> None:
    racks = {f"cs{number}": "abc"[number % 3] for number in range(1, 10)}

    async def story(world: World) -> None:
        async with world.client("operator") as client:
            await client.meta.create_policy(
                Policy(0, "racks", Redundancy.parse("rep:3"), 3, Spread.RACK)
            )
            await fill(world, "racks", 10, MIB)
            await world.crash("cs1")
            await world.crash("cs2")
            await until(lambda: not world.not_whole("cs1", "cs2"), 300)
            held: dict[int, list[str]] = {}
            page = await client.meta.chunks()
            rack_of = {disk.disk: disk.rack for disk in page.layout.disks}
            for chunk in page.chunks:
                held[chunk.chunk] = [rack_of[good.disk] for good in chunk.good]
            assert all(sorted(found) == ["a", "b", "c"] for found in held.values()), held

    play(tmp_path / "disks", story, servers=9, racks=racks)
