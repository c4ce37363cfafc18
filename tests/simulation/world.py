"""A whole cluster in one process: the real master and chunk servers on a memory network.

Time is trio's MockClock, which jumps when everybody waits; all randomness comes from one seed;
blocking calls run inline. Disks are real directories, the master's store lives in memory and
outlives the master, as a disk would.
"""

import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final, TypeVar

import trio
from outcome import Outcome, capture

import dfs.client
from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.daemon import run_chunkserver
from dfs.chunkserver.fragment_format import FragmentName, parse_name
from dfs.chunkserver.room import Reserve
from dfs.client import Client
from dfs.core.chunk import DiskState
from dfs.master import invariants
from dfs.master.daemon import Master
from dfs.master.keyspace import CHUNK, decode_chunk, scan_prefix
from dfs.master.liveness import Timing
from dfs.master.membership import all_disks, all_servers
from dfs.wire.memory import MemoryNetwork
from tests.simulation.power import PowerCutStore

T = TypeVar("T")

MASTER: Final = "master:9420"
LEASE_S: Final = 90.0
KEEP_RETIRED_S: Final = 20.0
TIMING: Final = Timing()
_EPOCH_NS: Final = 1_700_000_000_000_000_000


class InlineWorkers:
    """`dfs.core.workers.Starters` without threads: a thread would outrun the clock."""

    free = True

    async def run(self, function: Callable[..., T], *args: object) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return function(*args)
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        return await self.run(function, *args)

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        wake(capture(function, *args))


class _Host:
    """What runs on one host, until it crashes."""

    def __init__(self) -> None:
        self.scope: trio.CancelScope | None = None
        self.over = trio.Event()

    @property
    def up(self) -> bool:
        return self.scope is not None


class World:
    """Made inside trio; everything runs in `nursery`."""

    def __init__(
        self,
        root: Path,
        seed: int,
        nursery: trio.Nursery,
        *,
        servers: int,
        capacity_bytes: int | None = None,
        racks: Mapping[str, str] | None = None,
        timing: Timing = TIMING,
    ) -> None:
        """`capacity_bytes`: of each disk. `racks`: of servers, by name."""
        self.root = root
        self._capacity_bytes = capacity_bytes
        self._racks = racks or {}
        self._timing = timing
        self._made = servers
        self.random = Random(seed)
        self.network = MemoryNetwork(Random(self.random.getrandbits(64)))
        self.store = PowerCutStore()
        self.servers = [f"cs{number}" for number in range(1, servers + 1)]
        self._nursery = nursery
        self._hosts = {name: _Host() for name in ("master", *self.servers)}

    def fork_random(self) -> Random:
        return Random(self.random.getrandbits(64))

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        await self.start_host("master")
        for name in self.servers:
            await self.start_host(name)
        await self.settle(len(self.servers))

    async def start_host(self, name: str) -> None:
        """Start a program where none runs; returns when it serves, or is at it for a while."""
        host = self._hosts[name] = _Host()
        host.scope = trio.CancelScope()
        ready = trio.Event()
        self._nursery.start_soon(self._run_host, name, host, ready)
        with trio.move_on_after(5):
            await ready.wait()

    async def _run_host(self, name: str, host: _Host, ready: trio.Event) -> None:
        assert host.scope is not None
        try:
            with host.scope:
                async with trio.open_nursery() as nursery:
                    program = self._run_master if name == "master" else self._run_server
                    await nursery.start(program, name)
                    ready.set()
        finally:
            host.scope = None
            host.over.set()

    async def _run_master(self, _: str, *, task_status: trio.TaskStatus[None]) -> None:
        master = Master(
            self.store,
            InlineWorkers(),
            timing=self._timing,
            lease_s=LEASE_S,
            connector=self.network.connector("master"),
            random=self.fork_random(),
            now_ns=now_ns,
            keep_retired_s=KEEP_RETIRED_S,
        )
        await master.run([self.network.listen(MASTER)], task_status=task_status)

    async def _run_server(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        address = f"{name}:9421"
        config = ChunkServerConfig(
            master=(MASTER,),
            disks=(str(self.root / name),),
            advertise=address,
            capacity_bytes=self._capacity_bytes,
            rack=self._racks.get(name, ""),
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

    async def add_server(self) -> str:
        """One more chunk server joins."""
        self._made += 1
        name = f"cs{self._made}"
        self.servers.append(name)
        await self.start_host(name)
        return name

    async def crash(self, name: str) -> None:
        """End a program in the middle of whatever it does; nobody is told."""
        host = self._hosts[name]
        if host.scope is None:
            return
        host.scope.cancel()
        self.network.crash(name)  # in the same step: nobody gets to say goodbye
        with trio.CancelScope(shield=True):
            await host.over.wait()

    async def lose(self, name: str) -> None:
        """A server goes with all that it has, and never comes back."""
        await self.crash(name)
        self.servers.remove(name)
        del self._hosts[name]
        shutil.rmtree(self.root / name)

    async def cut_power(self) -> None:
        """The master's machine loses power, with what was not synced, and comes back."""
        await self.crash("master")
        self.store.cut_power()
        await self.start_host("master")

    def up(self, name: str) -> bool:
        return self._hosts[name].up

    async def mend(self) -> None:
        """End every fault, and start what does not run."""
        self.network.heal()
        self.network.set_latency(0.0)
        for name in self._hosts:
            if not self.up(name):
                await self.start_host(name)
        await self.settle(len(self.servers))

    async def settle(self, servers: int) -> None:
        """Wait until the master hears `servers` chunk servers."""
        async with self.client("observer") as client:
            with trio.fail_after(120):
                while True:
                    states = [each.state for each in await client.meta.servers()]
                    if states.count(DiskState.UP) >= servers:
                        return
                    await trio.sleep(0.2)

    @asynccontextmanager
    async def client(self, host: str, *, on_unavailable: str = "wait") -> AsyncIterator[Client]:
        """A client that runs on `host`."""
        async with dfs.client.connect(
            MASTER,
            on_unavailable=on_unavailable,
            cache_bytes=1 << 20,
            name=host,
            connector=self.network.connector(host),
            workers=InlineWorkers(),
            rng=self.fork_random(),
        ) as client:
            yield client

    # ------------------------------------------------------------------ what must hold

    def check_metadata(self) -> None:
        """Every invariant of the master's tables."""
        problems = invariants.check(self.store)
        assert not problems, "\n".join(problems[:20])

    def not_whole(self, *gone: str) -> list[str]:
        """Chunks that lack a fragment, or count on one that is not on its server's disk.

        Servers in `gone` hold nothing.
        """
        held = {(server, name.chunk, name.index) for server, name in self.fragments()}
        names = {record.disk: record.server for record in all_disks(self.store)}
        hosts = {
            record.server: record.address.partition(":")[0] for record in all_servers(self.store)
        }
        wrong = []
        for _, value in scan_prefix(self.store, CHUNK):
            chunk = decode_chunk(value)
            where = [(hosts[names[good.disk]], good.index) for good in chunk.good]
            there = [
                place
                for place in where
                if place[0] not in gone and (place[0], chunk.chunk, place[1]) in held
            ]
            if len(there) < chunk.width:
                wrong.append(f"{chunk} is on {there}")
        return wrong

    def unlisted(self) -> list[tuple[str, FragmentName]]:
        """Fragment files that no chunk counts on."""
        names = {record.disk: record.server for record in all_disks(self.store)}
        hosts = {
            record.server: record.address.partition(":")[0] for record in all_servers(self.store)
        }
        listed = {
            (hosts[names[fragment.disk]], chunk.chunk, fragment.index)
            for _, value in scan_prefix(self.store, CHUNK)
            for chunk in [decode_chunk(value)]
            for fragment in chunk.fragments
        }
        return [
            (server, name)
            for server, name in self.fragments()
            if (server, name.chunk, name.index) not in listed
        ]

    def fragments(self) -> list[tuple[str, FragmentName]]:
        """(server, name) of every fragment file on the disks."""
        return [
            (server, name)
            for server in self.servers
            for path in (self.root / server).rglob("*")
            if (name := parse_name(path.name)) is not None
        ]


def now_ns() -> int:
    return _EPOCH_NS + int(trio.current_time() * 1e9)
