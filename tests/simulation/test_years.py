"""Years of failures of a big cluster, one after the other, in virtual time.

Servers crash for a while, or for good with all that they have, bits rot, the master loses power,
new servers come and data are moved to them. What happens to hundreds of servers within years comes
here within hours of virtual time: nothing would happen in between. Whatever takes fragments away
only does so where every chunk keeps k of its others; then nothing may be lost, and once the
failures end, all is whole again, and evenly spread.
"""

import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from dfs.core.chunk import ChunkState
from dfs.core.errors import DfsError
from dfs.master.keyspace import CHUNK, decode_chunk, scan_prefix
from dfs.master.liveness import Timing
from dfs.master.membership import all_servers
from dfs.wire.messages import JobState
from tests.simulation.world import World

pytestmark = pytest.mark.allow_logs(".")

TIMING = Timing(
    heartbeat_s=5.0, suspect_after_s=17.5, hint_after_s=7.5, down_after_s=60.0, flap_window_s=60.0
)
KIB = 1 << 10
CAPACITY = 64 << 20
HOMES = ("default", "ec")


class Years:
    """One run: `play` it."""

    def __init__(self, world: World, random: Random, files: int) -> None:
        self._world = world
        self._random = random
        self._files = files
        self._away: dict[str, float] = {}
        """Servers that crashed, and when they come back."""
        self._rotten: set[tuple[str, int]] = set()
        """(server, chunk) of fragments that were damaged since the last scrub."""
        self.happened: Counter[str] = Counter()

    async def play(self, failures: int) -> None:
        await self._fill()
        while self.happened.total() < failures:
            await trio.sleep(self._random.expovariate(1 / 20))
            await self._bring_back()
            kinds = (self._crash, self._lose, self._rot, self._cut_power, self._rebalance)
            await self._random.choices(kinds, (8, 4, 3, 1, 1))[0]()
        await self._end()

    # ------------------------------------------------------------------ what happens

    async def _fill(self) -> None:
        for home in HOMES:
            async with self._world.client("maker") as client:
                await client.mkdir(f"/{home}")
                await client.set_policy(f"/{home}", home)
            for number in range(self._files):
                async with self._world.client(f"writer{number}") as client:
                    path = f"/{home}/{number}"
                    await client.write_file(path, Random(path).randbytes(64 * KIB))
        await self._until_whole()

    async def _crash(self) -> None:
        if (name := self._victim()) is not None:
            await self._world.crash(name)
            self._away[name] = trio.current_time() + self._random.choice((3.0, 30.0, 200.0))
            self.happened["crash"] += 1

    async def _lose(self) -> None:
        if (name := self._victim()) is not None:
            await self._world.lose(name)
            await self._world.add_server()
            self.happened["loss"] += 1

    async def _rot(self) -> None:
        """One fragment; a scrub finds it, perhaps much later."""
        held = [(name, f) for name, f in self._world.fragments() if name not in self._away]
        name, fragment = self._random.choice(held)
        if not self._survives({name}, fragment.chunk):
            return
        for path in (self._world.root / name).rglob("*"):
            if path.name == str(fragment):
                _flip(path, self._random)
        self._rotten.add((name, fragment.chunk))
        self.happened["rot"] += 1
        if len(self._rotten) > 3:
            await self._scrub()

    async def _cut_power(self) -> None:
        await self._world.cut_power()
        self.happened["power cut"] += 1

    async def _rebalance(self) -> None:
        async with self._world.client("operator") as client:
            await client.admin.start("rebalance", threshold=0.2)
        self.happened["rebalance"] += 1

    async def _bring_back(self) -> None:
        for name, at in list(self._away.items()):
            if at <= trio.current_time():
                del self._away[name]
                await self._world.start_host(name)

    def _victim(self) -> str | None:
        """A server that may go now: every chunk keeps enough without it."""
        up = [name for name in self._world.servers if name not in self._away]
        name = self._random.choice(up)
        return name if self._survives({name}) else None

    def _survives(self, gone: set[str], only: int = 0) -> bool:
        """Whether every chunk (or one) has k good fragments besides what is away, and on `gone`."""
        left: dict[int, set[int]] = {}
        for name, fragment in self._world.fragments():
            there = name not in gone and name not in self._away
            if there and (name, fragment.chunk) not in self._rotten:
                left.setdefault(fragment.chunk, set()).add(fragment.index)
        return all(
            len(left.get(chunk.chunk, ())) >= chunk.k
            for _, value in scan_prefix(self._world.store, CHUNK)
            for chunk in [decode_chunk(value)]
            if chunk.state is ChunkState.SEALED and (not only or chunk.chunk == only)
        )

    # ------------------------------------------------------------------ what must hold

    async def _scrub(self) -> None:
        await self._until_whole()
        await self._run("scrub", 0.05)
        await self._until_whole()
        self._rotten.clear()

    async def _run(self, kind: str, threshold: float) -> None:
        async with self._world.client("operator") as client:
            job = await client.admin.start(kind, threshold=threshold)
            with trio.fail_after(4 * 3600):
                while (info := await client.admin.job(job.job)).state is JobState.RUNNING:
                    await trio.sleep(10)
        assert info.state is JobState.DONE, info

    async def _until_whole(self) -> None:
        with trio.fail_after(3600):
            while True:
                await self._bring_back()
                if not self._away and not self._world.not_whole():
                    return
                await trio.sleep(10)

    async def _end(self) -> None:
        await self._scrub()
        await self._forget_the_dead()
        await self._run("rebalance", 0.2)
        with trio.fail_after(3600):
            while self._world.unlisted():
                await trio.sleep(10)
        assert not self._world.not_whole()
        async with self._world.client("reader") as client:
            for home in HOMES:
                for number in range(self._files):
                    path = f"/{home}/{number}"
                    assert await client.read_file(path) == Random(path).randbytes(64 * KIB), path
            used = [disk.used for each in await client.meta.servers() for disk in each.disks]
        # Where there is little on each, a fragment makes the difference.
        assert max(used) <= 1.25 * sum(used) / len(used) + 2 * 64 * KIB, sorted(used)

    async def _forget_the_dead(self) -> None:
        async with self._world.client("operator") as client:
            hosts = {f"{name}:9421" for name in self._world.servers}
            for record in all_servers(self._world.store):
                if record.address not in hosts:
                    with trio.fail_after(600):
                        while True:
                            try:
                                await client.admin.remove(record.server)
                                break
                            except DfsError:
                                await trio.sleep(10)


def _flip(path: Path, random: Random) -> None:
    with open(path, "r+b") as file:
        at = random.randrange(os.fstat(file.fileno()).st_size)
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))


def play(root: Path, *, seed: int, servers: int, files: int, failures: int) -> Counter[str]:
    happened: Counter[str] = Counter()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            world = World(
                root, seed, nursery, servers=servers, capacity_bytes=CAPACITY, timing=TIMING
            )
            await world.start()
            years = Years(world, Random(seed), files)
            try:
                await years.play(failures)
            finally:
                happened.update(years.happened)
            world.check_metadata()
            nursery.cancel_scope.cancel()

    try:
        trio.run(run, clock=MockClock(autojump_threshold=0))
    finally:
        shutil.rmtree(root)
    return happened


def test_some_servers_survive_a_year(tmp_path: Path) -> None:
    play(tmp_path / "disks", seed=1, servers=12, files=6, failures=12)


@pytest.mark.long
@pytest.mark.time_limit(3600)
@pytest.mark.parametrize("seed", range(1, 4))
def test_hundreds_of_servers_survive_years(tmp_path: Path, seed: int) -> None:
    happened = play(tmp_path / "disks", seed=seed, servers=200, files=40, failures=60)
    print(happened)
