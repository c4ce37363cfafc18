"""Clients at work while hosts crash, hang and lose each other, by seed.

After each run: every acknowledged byte is there, the metadata keeps its invariants, and when all
is deleted nothing is left, neither in the master's tables nor on a disk.

DFS_SIM_SEEDS: how many seeds to run (10), or one seed as `seed:NUMBER`. A seed that failed goes
into REGRESSIONS when it is mended.
"""

import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError
from dfs.core.ids import DEFAULT_POLICY, EC_POLICY
from dfs.wire.messages import SetPolicy
from tests.simulation.world import LEASE_S, World

SERVERS = 7
CLIENTS = 2
TASKS = 3
"""Of each client, each with files of its own."""
STEPS = 12
"""Of each task."""
DOWN_MAX = 2
"""Chunk servers that are out of reach at a time."""
REGRESSIONS = [11, 52, 140]

Step = Callable[[], Awaitable[None]]


def seeds() -> list[int]:
    wanted = os.environ.get("DFS_SIM_SEEDS", "10")
    if wanted.startswith("seed:"):
        return [int(wanted.removeprefix("seed:"))]
    return sorted({*REGRESSIONS, *range(1, int(wanted) + 1)})


class Worker:
    """One task of a client: changes files of its own at random, and knows what is in them."""

    def __init__(self, client: Client, home: str, random: Random) -> None:
        self.client = client
        self.home = home
        self.random = random
        self.model: dict[str, bytes] = {}
        self._serial = 0

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            choices: list[Step] = [self.create]
            if self.model:
                choices += [self.replace, self.append, self.patch, self.check, self.check]
                choices += [self.rename, self.remove, self.cut]
            await self.random.choice(choices)()
            await trio.sleep(self.random.expovariate(1 / 2.0))

    def _data(self) -> bytes:
        size = self.random.choice((0, 1, 100, 5000, 5000, 70_000, 131_072, 300_000, 1_500_000))
        if self.random.random() < 0.5:
            return self.random.randbytes(size)
        return (b"%d text that compresses " % self._serial * (size // 20 + 1))[:size]

    def _pick(self) -> str:
        return self.random.choice(sorted(self.model))

    def _fresh(self) -> str:
        self._serial += 1
        return f"{self.home}/file{self._serial}"

    async def create(self) -> None:
        path, data = self._fresh(), self._data()
        await self.client.write_file(path, data)
        self.model[path] = data

    async def replace(self) -> None:
        path, data = self._pick(), self._data()
        await self.client.write_file(path, data)
        self.model[path] = data

    async def append(self) -> None:
        path, data = self._pick(), self._data()
        async with await self.client.open(path, "a") as file:
            await file.write(data)
        self.model[path] += data

    async def patch(self) -> None:
        """Overwrite a range in the middle, or past the end."""
        path, data = self._pick(), self._data()
        before = self.model[path]
        offset = self.random.randrange(len(before) + 10_000)
        async with await self.client.open(path, "r+") as file:
            await file.pwrite(data, offset)
        if data:
            whole = bytearray(before.ljust(offset + len(data), b"\0"))
            whole[offset : offset + len(data)] = data
            self.model[path] = bytes(whole)

    async def cut(self) -> None:
        path = self._pick()
        size = self.random.randrange(len(self.model[path]) + 1000)
        await self.client.truncate(path, size)
        self.model[path] = self.model[path][:size].ljust(size, b"\0")

    async def rename(self) -> None:
        path = self._pick()
        to = self._fresh() if self.random.random() < 0.7 else self._pick()
        await self.client.rename(path, to)
        if path != to:
            self.model[to] = self.model.pop(path)

    async def remove(self) -> None:
        path = self._pick()
        await self.client.unlink(path)
        del self.model[path]

    async def check(self) -> None:
        await check_file(self.client, self._pick(), self.model)


async def check_file(client: Client, path: str, model: dict[str, bytes]) -> None:
    expected = model[path]
    found = await client.read_file(path)
    assert len(found) == len(expected), f"{path}: {len(found)} bytes, not {len(expected)}"
    assert found == expected, f"{path}: wrong bytes"


class Chaos:
    """Breaks things, never more than the policies can bear, and mends them after a while."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.fork_random()
        self.away: set[str] = set()
        self.wiped = False
        self.told: list[str] = []
        """What happened, for the report of a failure."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self.random.expovariate(1 / 3.0))
                nursery.start_soon(self._incident())

    def _incident(self) -> Step:
        incidents: list[Step] = [self.slow_network, self.cut_connections, self.part]
        if len(self.away) < DOWN_MAX:
            incidents += [self.crash_server, self.crash_server, self.hang_server]
            if not self.wiped:
                incidents.append(self.lose_disk)
        if "master" not in self.away:
            incidents += [self.crash_master, self.hang_master]
        return self.random.choice(incidents)

    @contextmanager
    def _out(self, host: str, what: str) -> Iterator[None]:
        self.told.append(f"{trio.current_time():.1f}: {host} {what}")
        self.away.add(host)
        try:
            yield
        finally:
            self.away.discard(host)
            self.told.append(f"{trio.current_time():.1f}: {host} is back")

    def _server(self) -> str:
        return self.random.choice([s for s in self.world.servers if s not in self.away])

    async def crash_server(self) -> None:
        name = self._server()
        with self._out(name, "crashes"):
            await self.world.crash(name)
            await trio.sleep(self.random.choice((0.1, 2, 10, 80)))
            await self.world.start_host(name)

    async def lose_disk(self) -> None:
        """A server comes back with all its fragments gone; once a run."""
        self.wiped = True
        name = self._server()
        with self._out(name, "loses its disk"):
            await self.world.crash(name)
            for directory in (self.world.root / name / "fragments").iterdir():
                for path in directory.iterdir():
                    path.unlink()
            await trio.sleep(self.random.choice((1, 30)))
            await self.world.start_host(name)

    async def hang_server(self) -> None:
        name = self._server()
        with self._out(name, "hangs"):
            self.world.network.hang(name)
            await trio.sleep(self.random.choice((0.5, 4, 20)))
            self.world.network.heal(name)

    async def crash_master(self) -> None:
        with self._out("master", "crashes"):
            await self.world.crash("master")
            await trio.sleep(self.random.choice((0.1, 1, 10)))
            await self.world.start_host("master")

    async def hang_master(self) -> None:
        with self._out("master", "hangs"):
            self.world.network.hang("master")
            await trio.sleep(self.random.choice((0.5, 4, 20)))
            self.world.network.heal("master")

    async def part(self) -> None:
        """Two hosts lose each other; anybody else reaches both."""
        names = [*self.world.servers, "master", *(f"client{n}" for n in range(CLIENTS))]
        one, other = self.random.sample(names, 2)
        self.told.append(f"{trio.current_time():.1f}: {one} and {other} lose each other")
        self.world.network.partition(one, other)
        await trio.sleep(self.random.choice((0.5, 5, 15)))
        self.world.network.heal(one, other)

    async def slow_network(self) -> None:
        self.world.network.set_latency(0.0, self.random.choice((0.001, 0.05, 0.5)))
        await trio.sleep(self.random.uniform(1, 10))
        self.world.network.set_latency(0.0)

    async def cut_connections(self) -> None:
        for _ in range(self.random.randrange(1, 5)):
            self.world.network.drop_one()
            await trio.lowlevel.checkpoint()


async def run_client(world: World, number: int, policy: str) -> dict[str, bytes]:
    """One client program and its tasks, in the midst of it all; what must be in its files."""
    home = f"/client{number}"
    model: dict[str, bytes] = {}
    async with world.client(f"client{number}") as client:
        await client.mkdir(home)
        await client.set_policy(home, policy)
        async with trio.open_nursery() as nursery:
            workers = []
            for task in range(TASKS):
                await client.mkdir(f"{home}/{task}")
                workers.append(Worker(client, f"{home}/{task}", world.fork_random()))
                nursery.start_soon(workers[-1].run, STEPS)
        for worker in workers:
            model.update(worker.model)
    return model


async def keep_rewriting(world: World) -> None:
    """All files get another policy, over and over, and chunks with anything dead are compacted."""
    async with world.client("operator") as client:
        for policy in cycle((EC_POLICY, DEFAULT_POLICY)):
            await client.admin.start("compact", threshold=0.01)
            await trio.sleep(2)
            for number in range(CLIENTS):
                with suppress(FileSystemError):
                    home = await client.stat(f"/client{number}")
                    for task in range(TASKS):
                        entries = [e async for e in client.scandir(f"/client{number}/{task}")]
                        changes = [SetPolicy(entry.inode.ino, policy) for entry in entries]
                        if changes:
                            await client.meta.apply(*changes)
                    await client.admin.start("convert", ino=home.ino, policy=policy)
            await trio.sleep(2)


async def run_disaster(root: Path, seed: int) -> None:
    async with trio.open_nursery() as nursery:
        world = World(root, seed, nursery, servers=SERVERS)
        await world.start()
        chaos = Chaos(world)
        model: dict[str, bytes] = {}
        try:
            with trio.fail_after(4 * 3600):
                async with trio.open_nursery() as troubled:
                    troubled.start_soon(chaos.run)
                    if seed not in REGRESSIONS:
                        troubled.start_soon(keep_rewriting, world)
                    async with trio.open_nursery() as clients:

                        async def work(number: int, policy: str) -> None:
                            model.update(await run_client(world, number, policy))

                        clients.start_soon(work, 0, "default")
                        clients.start_soon(work, 1, "ec")
                    troubled.cancel_scope.cancel()
                world.check_metadata()
                await world.mend()
                world.check_metadata()
                await check_everything(world, model)
                await check_nothing_is_left(world, model)
        except BaseException:
            print(f"seed {seed}:", *chaos.told, sep="\n  ")
            raise
        nursery.cancel_scope.cancel()


async def check_everything(world: World, model: dict[str, bytes]) -> None:
    async with world.client("reader", on_unavailable="wait:60s") as client:
        for path in model:
            await check_file(client, path, model)
        names = {
            f"/{home}/{task}/{entry.name.decode()}"
            for home in ("client0", "client1")
            for task in range(TASKS)
            for entry in [e async for e in client.scandir(f"/{home}/{task}")]
        }
        assert names == set(model)


async def check_nothing_is_left(world: World, model: dict[str, bytes]) -> None:
    """With all files deleted and all sessions over, no chunk and no fragment stays behind."""
    async with world.client("cleaner") as client:
        for path in model:
            await client.unlink(path)
        for home in ("/client0", "/client1"):
            for task in range(TASKS):
                await client.rmdir(f"{home}/{task}")
            await client.rmdir(home)
        with trio.fail_after(3 * LEASE_S + 600):
            while (await client.meta.statfs()).chunks or world.fragments():
                await trio.sleep(5)
        assert (await client.meta.statfs()).inodes == 1
        assert (await client.meta.statfs()).live == 0
    world.check_metadata()


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.allow_logs(".")
def test_nothing_acknowledged_is_lost_and_nothing_leaks(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disks"
    # The scheduler shuffles what is ready, by a random generator of its own.
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio._core._run, "_r", Random(seed))
    trio.run(run_disaster, root, seed, clock=MockClock(autojump_threshold=0))
    shutil.rmtree(root)
