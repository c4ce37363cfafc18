"""A whole master in memory: network, clock and chance from outside, stand-ins for chunk servers.

    async with grid(servers=3) as g:
        chunk = await g.write(...)

Runs under trio's MockClock. A `StandIn` speaks the chunk server's side of the protocol over the
network and remembers what it was told; it stores no bytes.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

import trio
import trio.testing
from outcome import Outcome, capture

from dfs.core.chunk import Chunk
from dfs.core.errors import DfsError, FragmentError, from_wire
from dfs.core.ids import ChunkId, DiskId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.master import invariants
from dfs.master.daemon import Master
from dfs.master.liveness import Timing
from dfs.master.store import MemoryStore
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.memory import MemoryNetwork
from dfs.wire.pool import Pool
from dfs.wire.serve import serve

R = TypeVar("R", bound=m.Message)
T = TypeVar("T")

GIB = 1 << 30
MASTER = "master:9420"
TIMING = Timing(heartbeat_s=1.0, suspect_after_s=3.5, hint_after_s=1.5, down_after_s=60.0)
LEASE_S = 90.0
ROOT_CRED = m.Cred(0, 0)
START_NS = 1_700_000_000_000_000_000


class InlineWorkers:
    free = True

    async def run(self, function: Callable[..., T], *args: object) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    def start(
        self, wake: Callable[[Outcome[Any]], None], function: Callable[..., Any], *args: object
    ) -> None:
        wake(capture(function, *args))


class StandIn:
    """A chunk server with one disk, as the master sees it."""

    def __init__(self, network: MemoryNetwork, number: int) -> None:
        self.network = network
        self.host = f"host{number}"
        self.address = f"{self.host}:9421"
        self.uuid = f"server-{number}"
        self.disk_uuid = f"disk-{number}"
        self.cluster = ""
        self.disk: DiskId = 0
        self.server = 0
        self.free = 50 * GIB
        self.failed = False
        self.held: dict[ChunkId, m.HeldFragment] = {}
        self.dropped: list[ChunkId] = []
        self.reports = 0
        self.scope = trio.CancelScope()

    def handlers(self) -> dict[type[m.Message], Handler]:
        return {
            m.DeleteFragments: self._delete,
            m.StatFragment: self._stat,
            m.SealFragment: self._seal,
        }

    async def run(self) -> None:
        """Serve, register and send heartbeats until `scope` is cancelled."""
        self.scope = trio.CancelScope()
        hello = Hello("chunkserver", cluster=self.cluster)
        with self.scope:
            pool = Pool(hello=hello, connector=self.network.connector(self.host), random=Random(1))
            async with pool, trio.open_nursery() as nursery:
                listener = self.network.listen(self.address)
                nursery.start_soon(
                    lambda: serve(listener, self.handlers(), hello=Hello("chunkserver"))
                )
                await self._attend(pool)

    async def _attend(self, pool: Pool) -> None:
        registered = False
        while True:
            try:
                if not registered:
                    await self._register(pool)
                    registered = True
                beat = m.Heartbeat(self.server, (self._report(),))
                reply = await pool.call(MASTER, beat, m.HeartbeatReply, timeout_s=2)
                registered = reply.known
                if reply.report_disks:
                    await self._report_chunks(pool)
            except DfsError as error:
                if not error.retry:
                    raise
            await trio.sleep(1)

    async def _register(self, pool: Pool) -> None:
        request = m.RegisterServer(
            self.uuid, self.address, "", "", "0.1", self.cluster, (self._report(),)
        )
        reply = await pool.call(MASTER, request, m.Registered, timeout_s=5)
        self.cluster, self.server, (self.disk,) = reply.cluster, reply.server, reply.disks

    def _report(self) -> m.DiskReport:
        used = 100 * GIB - self.free
        return m.DiskReport(
            self.disk_uuid, "/data", 100 * GIB, used, self.free, len(self.held), self.failed
        )

    async def _report_chunks(self, pool: Pool) -> None:
        """Pages of two, to see that pages work."""
        listed = [self.held[chunk] for chunk in sorted(self.held)]
        after = 0
        for start in range(0, len(listed) + 1, 2):
            page = tuple(listed[start : start + 2])
            last = start + 2 > len(listed)
            request = m.ReportChunks(self.server, self.disk, after, page, last)
            reply = await pool.call(MASTER, request, m.ReportChunksReply, timeout_s=5)
            for chunk in reply.drop:
                del self.held[chunk]
            self.dropped += reply.drop
            after = page[-1].chunk if page else after
        self.reports += 1

    def _delete(self, _: Peer, request: m.DeleteFragments, __: memoryview) -> m.Empty:
        for chunk in request.chunks:
            self.held.pop(chunk, None)
        return m.Empty()

    def _fragment(self, chunk: ChunkId) -> m.HeldFragment:
        if chunk not in self.held:
            raise FragmentError(f"chunk {chunk} is not here")
        return self.held[chunk]

    def _stat(self, _: Peer, request: m.StatFragment, __: memoryview) -> m.FragmentStatus:
        held = self._fragment(request.chunk)
        return m.FragmentStatus(held.index, 1, held.length, held.length, held.sealed)

    def _seal(self, _: Peer, request: m.SealFragment, __: memoryview) -> m.FragmentStatus:
        held = self._fragment(request.chunk)
        if held.length < request.length:
            raise FragmentError("too short")
        sealed = m.HeldFragment(held.chunk, held.index, request.length, True)
        self.held[request.chunk] = sealed
        return m.FragmentStatus(sealed.index, 1, sealed.length, sealed.length, True)


class Session:
    """One client session: changes with their sequence numbers."""

    def __init__(self, g: "Grid", session: SessionId) -> None:
        self.g = g
        self.id = session
        self.sequence = 0

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    async def apply(self, *ops: m.AnyOp) -> list[Inode | None]:
        """The inodes after the operations. Raises what the first refused one met."""
        request = m.Apply(self.id, self.next(), ROOT_CRED, ops)
        reply = await self.g.call(request, m.Applied)
        for result in reply.results:
            if result.error is not None:
                raise from_wire(result.error)
        return [result.inode for result in reply.results]

    async def create(self, name: bytes, *, parent: int = 1) -> Inode:
        (inode,) = await self.apply(m.Create(parent, name, 0o644))
        assert inode is not None
        return inode

    async def allocate(self, policy: int = 1, **options: object) -> tuple[Chunk, ...]:
        request = m.AllocateChunks(self.id, self.next(), policy, **options)  # type: ignore[arg-type]
        return (await self.g.call(request, m.LayoutReply)).layout.chunks

    async def write(self, name: bytes, length: int = 1000, *, policy: int = 1) -> Chunk:
        """A file whose bytes are a chunk of their own, left open: committed, not sealed."""
        (chunk,) = await self.allocate(policy)
        self.g.store_fragments(chunk, length)
        inode = await self.create(name)
        await self.apply(m.Commit(inode.ino, (Extent(0, length, chunk.chunk, 0),)))
        return chunk

    async def seal(self, chunk: Chunk, length: int = 1000, lost: tuple[int, ...] = ()) -> None:
        await self.g.call(m.SealChunk(self.id, self.next(), chunk.chunk, length, lost), m.Empty)
        for fragment in chunk.fragments:
            stand_in = self.g.on_disk(fragment.disk)
            if fragment.index not in lost:
                held = stand_in.held[chunk.chunk]
                stand_in.held[chunk.chunk] = m.HeldFragment(chunk.chunk, held.index, length, True)


class Grid:
    """The master, its network, its stand-ins, and a client's connection."""

    def __init__(self, nursery: trio.Nursery, seed: int) -> None:
        self.nursery = nursery
        self.random = Random(seed)
        self.network = MemoryNetwork(self.random)
        self.store = MemoryStore()
        self.servers: list[StandIn] = []
        self.pool = Pool(
            hello=Hello("client"), connector=self.network.connector("client"), random=Random(2)
        )
        self.master_scope = trio.CancelScope()

    async def start_master(self) -> None:
        """Also again, after `stop_master`, over the same store."""
        self.master = Master(
            self.store,
            InlineWorkers(),
            timing=TIMING,
            lease_s=LEASE_S,
            connector=self.network.connector("master"),
            random=self.random,
            now_ns=lambda: START_NS + int(trio.current_time() * 1e9),
        )
        listener = self.network.listen(MASTER)
        self.master_scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with self.master_scope:
                await self.master.run([listener], task_status=task_status)

        await self.nursery.start(run)

    async def stop_master(self) -> None:
        self.master_scope.cancel()
        self.network.crash("master")
        await trio.testing.wait_all_tasks_blocked()

    async def add_server(self) -> StandIn:
        stand_in = StandIn(self.network, len(self.servers) + 1)
        self.servers.append(stand_in)
        await self.start_server(stand_in)
        return stand_in

    async def start_server(self, stand_in: StandIn) -> None:
        before = stand_in.reports
        self.nursery.start_soon(stand_in.run)
        while stand_in.reports == before:
            await trio.sleep(0.1)

    async def kill_server(self, stand_in: StandIn) -> None:
        stand_in.scope.cancel()
        self.network.crash(stand_in.host)
        await trio.testing.wait_all_tasks_blocked()

    def on_disk(self, disk: DiskId) -> StandIn:
        return next(stand_in for stand_in in self.servers if stand_in.disk == disk)

    def store_fragments(self, chunk: Chunk, length: int) -> None:
        for fragment in chunk.fragments:
            held = m.HeldFragment(chunk.chunk, fragment.index, length, False)
            self.on_disk(fragment.disk).held[chunk.chunk] = held

    async def call(self, request: m.Message, reply: type[R], *, timeout_s: float = 10) -> R:
        return await self.pool.call(MASTER, request, reply, timeout_s=timeout_s, patient=True)

    async def session(self) -> Session:
        request = m.OpenSession("test", self.random.getrandbits(60))
        return Session(self, (await self.call(request, m.SessionOpened)).session)

    async def chunk(self, chunk: ChunkId) -> Chunk | None:
        reply = await self.call(m.LocateChunks((chunk,)), m.LayoutReply)
        return reply.layout.chunks[0] if reply.layout.chunks else None

    async def status(self) -> m.StatusReply:
        return await self.call(m.ClusterStatus(), m.StatusReply)


@asynccontextmanager
async def grid(servers: int = 3, *, seed: int = 1) -> AsyncIterator[Grid]:
    """Everything runs while the block does; then the store's invariants are checked."""
    async with trio.open_nursery() as nursery:
        made = Grid(nursery, seed)
        await made.start_master()
        async with made.pool:
            for _ in range(servers):
                await made.add_server()
            yield made
        nursery.cancel_scope.cancel()
    assert invariants.check(made.store) == []
