"""A master's jobs, and servers that answer from a script, by an injected clock."""

from collections.abc import Callable
from random import Random
from typing import Any, Final

import trio
from outcome import Outcome, capture

from dfs.core.chunk import Chunk, FragmentState
from dfs.core.ids import ChunkId, DiskId
from dfs.master.backup.holding import Holding
from dfs.master.claims import Claims
from dfs.master.commands import (
    AllocateChunks,
    DiskIdentity,
    FragmentMark,
    MarkFragments,
    PlaceFragment,
    Placement,
    RegisterServer,
    SealChunk,
)
from dfs.master.jobs.board import Bucket, RunningJob
from dfs.master.jobs.context import JobContext
from dfs.master.journal import LocalJournal
from dfs.master.keyspace import JobRecord, get_chunk, get_counters
from dfs.master.liveness import Liveness, Timing
from dfs.master.membership import all_disks, all_servers
from dfs.master.report_book import ReportBook
from dfs.master.server_service import ServerService
from dfs.wire.handlers import Peer
from dfs.wire.hello import Hello
from dfs.wire.messages import (
    DeleteFragments,
    DiskReport,
    Empty,
    HeldFragment,
    JobState,
    RebuildFragment,
    RebuiltFragment,
    ReportChunks,
)
from tests.unit.master.rig import Rig

LENGTH: Final = 1000
GIB: Final = 1 << 30
PEER: Final = Peer("10.0.0.1:1", Hello("chunkserver"))


class Servers:
    """What chunk servers are asked for; `script` may wait, raise or change things before the
    answer, or give it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.script: Callable[[Any], Any] = self._at_once

    async def _at_once(self, request: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def call(self, address: str, request: Any, reply: type, *, timeout_s: float) -> Any:
        """The script's answer, or that all is well."""
        self.asked.append(request)
        answer = await self.script(request)
        if answer is not None:
            return answer
        return RebuiltFragment(LENGTH, LENGTH) if isinstance(request, RebuildFragment) else Empty()

    @property
    def rebuilds(self) -> list[RebuildFragment]:
        return [request for request in self.asked if isinstance(request, RebuildFragment)]

    @property
    def deleted(self) -> set[tuple[DiskId, ChunkId]]:
        return {
            (request.disk, chunk)
            for request in self.asked
            if isinstance(request, DeleteFragments)
            for chunk in request.chunks
        }


class _NoThreads:
    free = True

    async def run(self, function: Callable[..., Any], *args: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    def start(
        self, wake: Callable[[Outcome[Any]], None], function: Callable[..., Any], *args: object
    ) -> None:
        wake(capture(function, *args))


class Bench:
    """As many servers with a disk each as are asked for; all are up."""

    def __init__(self, disks: int) -> None:
        self.rig = Rig()
        self.ino = self.rig.create(b"file")
        self.servers = Servers()
        self.journal = LocalJournal(self.rig.state, _NoThreads())
        for number in range(1, disks + 1):
            self.journal.append(
                RegisterServer(
                    self.rig.tick(), f"s{number}", f"10.0.0.{number}:9421", "", "", "0.1",
                    (DiskIdentity(f"d{number}", f"/d{number}"),),
                )
            )  # fmt: skip
        self.reports = ReportBook()
        self.claims = Claims()
        self.full: set[DiskId] = set()
        """They say so in their next heartbeat."""
        self.restart()
        self.beat(*range(1, disks + 1))

    def restart(self) -> None:
        """A master that has heard from nobody yet."""
        self.liveness = Liveness(Timing(), trio.current_time)
        self.liveness.load(all_servers(self.rig.store), all_disks(self.rig.store))
        self.context = JobContext(
            self.journal, self.rig.store, self.liveness, self.servers,  # type: ignore[arg-type]
            self.rig.tick, self.claims, self.reports, Random(1),
        )  # fmt: skip

    def beat(self, *servers: int) -> None:
        for number in servers:
            free = 0 if number in self.full else 99 * GIB
            report = DiskReport(
                f"d{number}", f"/d{number}", 100 * GIB, 100 * GIB - free, free, 7, False, ""
            )
            self.liveness.heartbeat(number, [report])

    async def pass_time(self, seconds: float, *alive: int) -> None:
        """As the master sees it; the servers `alive` send heartbeats all along."""
        for _ in range(round(2 * seconds)):
            await trio.sleep(0.5)
            self.beat(*alive)
            self.liveness.tick()

    def ask(self, disk: DiskId) -> bool:
        """Whether the disk owes a report, and is asked for it."""
        now, next_chunk = trio.current_time(), get_counters(self.rig.store).next_chunk
        return self.reports.to_ask((disk,), now, next_chunk) == (disk,)

    def sealed(self, *disks: DiskId, used: int = LENGTH) -> ChunkId:
        """A chunk in a file (its first `used` bytes), with a copy on each of three disks."""
        rig = self.rig
        (chunk,) = rig.state.apply(
            AllocateChunks(
                rig.tick(), rig.session, rig.next_sequence(), 1, (Placement(1, 2, disks),)
            )
        )
        number = chunk.chunk
        rig.commit(self.ino, (number * LENGTH, used, number, 0))
        rig.state.apply(SealChunk(rig.tick(), rig.session, rig.next_sequence(), number, LENGTH))
        return number

    def chunk(self, number: ChunkId) -> Chunk:
        found = get_chunk(self.rig.store, number)
        assert found is not None
        return found

    def mark(self, chunk: ChunkId, disk: DiskId, state: FragmentState) -> None:
        self.journal.append(MarkFragments(self.rig.tick(), (FragmentMark(chunk, disk, state),)))

    def place(self, chunk: ChunkId, index: int, disk: DiskId, *, reclaim: bool = False) -> bool:
        return self.journal.append(PlaceFragment(self.rig.tick(), chunk, index, disk, reclaim))


def job(
    kind: str, *, disks: tuple[int, ...] = (), bandwidth: int = 0, ino: int = 0, policy: int = 0
) -> RunningJob:
    record = JobRecord(
        job=9, kind=kind, state=JobState.RUNNING, subject="", created_ns=0, disks=disks,
        bandwidth=bandwidth, threshold=0.1, ino=ino, policy=policy,
    )  # fmt: skip
    return RunningJob(record, Bucket(0))


def service(bench: Bench) -> ServerService:
    def nothing(_: object) -> None: ...

    holding = Holding(bench.rig.store, bench.journal, bench.liveness, bench.reports, bench.rig.tick)
    return ServerService(
        cluster="", heartbeat_s=1.0, reader=bench.rig.store, journal=bench.journal,
        liveness=bench.liveness, reports=bench.reports, holding=holding, claims=bench.claims,
        add_unsealed=nothing, on_registered=nothing, clock=trio.current_time,
        now_ns=bench.rig.tick,
    )  # fmt: skip


async def report(bench: Bench, disk: int, *held: HeldFragment, question: int = 0) -> None:
    await service(bench).report_chunks(
        PEER, ReportChunks(disk, disk, 0, held, True, question), memoryview(b"")
    )


async def for_a_while(seconds: float, *tasks: Callable[[], Any]) -> None:
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
