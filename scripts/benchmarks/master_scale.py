"""A master of 1,000 servers and 10,000,000 chunks: what they cost it, and how soon it acts.

The master is the real one, a process of its own, over a store that is filled beforehand: half of
the chunks replicated, half erasure-coded, 4.5 fragments each, spread evenly. (Without files: no
path that is measured looks at them.) The chunk servers are synthetic, all of them in this process:
each has its own connection, registers, sends heartbeats, lists its disks when it is asked to, and
says of every fragment it is told to make that it has made it, at once. Verifying one takes a while.

Filling takes some minutes; `--store DIR` keeps the store for the next run. The master's costs are
CPU seconds of its process.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import trio

import dfs.client
from dfs import __version__
from dfs.client import Client
from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState, Fragment
from dfs.core.errors import DfsError
from dfs.core.ids import DEFAULT_POLICY, EC_POLICY, ChunkId, DiskId, ServerId
from dfs.core.policy import BUILT_IN, Policy
from dfs.master.commands import DiskIdentity, Format, RegisterServer
from dfs.master.keyspace import (
    META_COUNTERS,
    DiskRecord,
    ServerRecord,
    chunk_key,
    encode,
    fragment_by_disk_key,
    get_counters,
)
from dfs.master.liveness import Liveness, Timing
from dfs.master.state import State
from dfs.master.store import RocksStore
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.pool import Pool
from dfs.wire.serve import serve
from dfs.wire.transport import listen_tcp, listening_address
from scripts.benchmarks import harness, status_probe
from scripts.benchmarks.harness import MIB, Report

SERVERS: Final = 1000
DISKS: Final = 4
"""Of each server."""
RACK: Final = 10
"""Servers of one rack."""
CHUNKS: Final = 10_000_000
WIDEST: Final = 6
ROWS: Final = 50_000
"""Written in one batch."""
DISK_BYTES: Final = 16 << 40
PAGE: Final = 1000
"""Fragments in one page of a chunk report."""
VERIFY_S: Final = 0.3
"""What a server takes to read a fragment."""
DOWN_AFTER_S: Final = 15.0
MEMORY_MOST: Final = 700


class Layout:
    """Which server has which fragment: a formula, that can be read from both ends.

    Chunks come in rounds of one for each server. In a round, fragment i of the chunk at place p is
    on server (p + i * step) modulo the number of servers, and the step changes with the round.
    """

    def __init__(self, chunks: int) -> None:
        self.rounds = max(2 * DISKS, chunks // SERVERS)
        self.chunks = self.rounds * SERVERS

    def width(self, round_: int) -> int:
        return 6 if round_ % 2 else 3

    def _step(self, round_: int) -> int:
        """So that no rack has two fragments of a chunk."""
        return RACK + round_ % ((SERVERS - RACK) // (WIDEST - 1) - RACK + 1)

    def chunk(self, number: ChunkId) -> Chunk:
        round_, place = divmod(number - 1, SERVERS)
        step, slot = self._step(round_), round_ // 2 % DISKS
        coded = round_ % 2
        fragments = tuple(
            Fragment(index, (place + index * step) % SERVERS * DISKS + slot + 1)
            for index in range(self.width(round_))
        )
        k, spare, policy = (4, 2, EC_POLICY) if coded else (1, 2, DEFAULT_POLICY)
        length = CHUNK_MAX_BYTES
        return Chunk(number, ChunkState.SEALED, k, spare, policy, 0, length, length, fragments)

    def held(self, disk: DiskId) -> Iterator[tuple[ChunkId, int]]:
        """(chunk, index) of all that a disk has, in order of chunk."""
        server, slot = divmod(disk - 1, DISKS)
        for pair in range(slot, (self.rounds + 1) // 2, DISKS):
            for round_ in range(2 * pair, min(2 * pair + 2, self.rounds)):
                step = self._step(round_)
                yield from sorted(
                    (round_ * SERVERS + (server - index * step) % SERVERS + 1, index)
                    for index in range(self.width(round_))
                )


# ------------------------------------------------------------------ filling the store


def identity(server: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"server{server}.dfs"))


def disk_identity(server: int, slot: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"disk{slot}.server{server}.dfs"))


def address(server: int, port: int) -> str:
    """Every server has an address of its own, on one listener."""
    return f"127.1.{server // 250}.{server % 250 + 1}:{port}"


def rack(server: int) -> str:
    return f"rack{server // RACK}"


def fill(path: Path, layout: Layout) -> None:
    """Make a store with all servers, disks and chunks. A full one is left as it is."""
    store = RocksStore(path)
    try:
        state = State(store)
        if state.formatted:
            found = get_counters(store).chunks
            if found != layout.chunks:
                raise SystemExit(f"{path} has {found} chunks, {layout.chunks} are wanted")
            return
        state.apply(Format(time_ns=1, cluster=str(uuid.uuid5(uuid.NAMESPACE_DNS, "cluster.dfs"))))
        for server in range(SERVERS):
            disks = tuple(
                DiskIdentity(disk_identity(server, slot), f"/disk{slot}") for slot in range(DISKS)
            )
            state.apply(
                RegisterServer(
                    1, identity(server), address(server, 1), rack(server), "", __version__, disks
                )
            )
        _write(
            store,
            ((chunk_key(n), encode(layout.chunk(n))) for n in range(1, layout.chunks + 1)),
        )
        for disk in range(1, SERVERS * DISKS + 1):
            rows = layout.held(disk)
            _write(store, ((fragment_by_disk_key(disk, c), bytes((i,))) for c, i in rows))
        counters = msgspec.structs.replace(
            get_counters(store),
            next_chunk=layout.chunks + 1,
            chunks=layout.chunks,
            live=layout.chunks * CHUNK_MAX_BYTES,
            length=layout.chunks * CHUNK_MAX_BYTES,
            redundancy=sum(layout.chunk(n).redundancy for n in (1, SERVERS + 1))
            * (layout.chunks // 2),
        )
        store.write({META_COUNTERS: encode(counters)})
        # As it would be after a while: or that is done, and counted, while the master is measured.
        store._db.flush()
        store._db.compact_range(None, None)
    finally:
        store.close()


def _write(store: RocksStore, rows: Iterator[tuple[bytes, bytes]]) -> None:
    batch: dict[bytes, bytes | None] = {}
    for key, value in rows:
        batch[key] = value
        if len(batch) == ROWS:
            store.write(batch)
            batch = {}
    store.write(batch)


# ------------------------------------------------------------------ the master's process


class MasterProcess:
    def __init__(self, data: Path) -> None:
        argv = [sys.executable, "-m", "dfs", "master", "--data", str(data)]
        argv += ["--listen", "127.0.0.1:0", "--down-after", f"{DOWN_AFTER_S:g}s"]
        self._log = open(data / "master.log", "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stderr=self._log, env=harness.environment()
        )
        self.address = self._await_address()

    def _await_address(self) -> str:
        while self._process.poll() is None:
            text = Path(self._log.name).read_text(encoding="utf-8")
            if "serves at " in text:
                return text.partition("serves at ")[2].partition(",")[0].split()[0]
            time.sleep(0.05)
        raise RuntimeError(Path(self._log.name).read_text(encoding="utf-8"))

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far, of all its threads."""
        return harness.cpu_seconds(self._process.pid)

    def peak_bytes(self) -> int:
        return harness.memory_bytes(self._process.pid, "VmHWM")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._log.close()


@contextmanager
def master_process(data: Path) -> Iterator[MasterProcess]:
    process = MasterProcess(data)
    try:
        yield process
    finally:
        process.stop()


# ------------------------------------------------------------------ synthetic servers


class Fleet:
    """All chunk servers. `run` serves until cancelled."""

    def __init__(self, layout: Layout, master: str) -> None:
        self.layout = layout
        self.master = master
        self.reports = False
        """Whether disks that are asked for a report give one."""
        self.first_page = trio.Event()
        self.listed = 0
        """Fragments reported."""
        self.reported = 0
        """Disks reported."""
        self.silent: set[int] = set()
        """Servers that send no heartbeats any more."""
        self.heard_at: dict[int, float] = {}
        """When each server's last heartbeat was answered."""
        self.slowest_s = 0.0
        """Of a heartbeat's answers."""
        self.beats = 0
        self.failed = 0
        """Calls of the master that it did not answer."""
        self.all_registered = trio.Event()
        self._registered = 0
        self.made: Counter[int] = Counter()
        """Fragments that were ordered, by second."""
        self.first_order = trio.Event()
        self.first_order_at = 0.0
        self._made_length = 0
        self._disk_used = layout.chunks * 3 * CHUNK_MAX_BYTES // 2 // (SERVERS * DISKS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await listen_tcp("0.0.0.0:0")
        self._port = int(listening_address(listeners[0]).rpartition(":")[2])
        handlers: dict[type[m.Message], Handler] = {
            m.RebuildFragment: self._rebuild,
            m.DeleteFragments: self._delete,
            m.VerifyFragment: self._verify,
        }
        hello = Hello("chunkserver")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve(listeners, handlers, hello=hello))
            for server in range(SERVERS):
                nursery.start_soon(self._server, server)
            task_status.started()

    def _rebuild(self, _: Peer, request: m.RebuildFragment, __: memoryview) -> m.RebuiltFragment:
        now = trio.current_time()
        if not self.first_order.is_set():
            self.first_order_at = now
            self.first_order.set()
        self.made[int(now)] += 1
        return m.RebuiltFragment(request.length // request.k, request.length)

    def _delete(self, _: Peer, __: m.DeleteFragments, ___: memoryview) -> m.Empty:
        return m.Empty()

    async def _verify(
        self, _: Peer, request: m.VerifyFragment, __: memoryview
    ) -> m.FragmentVerdict:
        await trio.sleep(VERIFY_S)
        return m.FragmentVerdict("", "", request.length // 4)

    def _disks(self, server: int) -> tuple[m.DiskReport, ...]:
        used = self._disk_used
        return tuple(
            m.DiskReport(
                disk_identity(server, slot), f"/disk{slot}", DISK_BYTES, used, DISK_BYTES - used, 0
            )
            for slot in range(DISKS)
        )

    async def _server(self, server: int) -> None:
        random = Random(server)
        async with (
            Pool(hello=Hello("chunkserver"), random=random) as pool,
            trio.open_nursery() as nursery,
        ):
            number = await self._register(pool, server)
            request = m.Heartbeat(number, self._disks(server))
            while True:
                await trio.sleep(random.uniform(0.9, 1.0))
                if server in self.silent:
                    return
                begun = trio.current_time()
                try:
                    reply = await pool.call(self.master, request, m.HeartbeatReply, timeout_s=30)
                except DfsError:
                    self.failed += 1
                    continue
                self.heard_at[server] = trio.current_time()
                self.slowest_s = max(self.slowest_s, trio.current_time() - begun)
                self.beats += 1
                if not reply.known:
                    number = await self._register(pool, server)
                elif self.reports:
                    for disk in reply.report_disks:
                        nursery.start_soon(self._report, pool, number, disk)

    async def _register(self, pool: Pool, server: int) -> ServerId:
        request = m.RegisterServer(
            identity(server),
            address(server, self._port),
            rack(server),
            "",
            __version__,
            "",
            self._disks(server),
        )
        reply = await pool.call(self.master, request, m.Registered, timeout_s=60, patient=True)
        self._registered += 1
        if self._registered == SERVERS:
            self.all_registered.set()
        return reply.server

    async def _report(self, pool: Pool, server: ServerId, disk: DiskId) -> None:
        held = [m.HeldFragment(c, i, CHUNK_MAX_BYTES, True) for c, i in self.layout.held(disk)]
        after = 0
        for start in range(0, max(1, len(held)), PAGE):
            page = tuple(held[start : start + PAGE])
            last = start + PAGE >= len(held)
            request = m.ReportChunks(server, disk, after, page, last)
            try:
                await pool.call(self.master, request, m.ReportChunksReply, timeout_s=600)
            except DfsError:
                self.failed += 1
                return
            self.listed += len(page)
            self.first_page.set()
            after = page[-1].chunk if page else 0
        self.reported += 1


# ------------------------------------------------------------------ measuring


async def share_of_core(master: MasterProcess, seconds: float) -> float:
    """Per cent of a core that the master takes."""
    begun, spent = time.perf_counter(), master.cpu_s
    await trio.sleep(seconds)
    return 100 * (master.cpu_s - spent) / (time.perf_counter() - begun)


async def measure_status(address: str, report: Report, when: str, times: int = 15) -> None:
    """See `status_probe`."""
    argv = [sys.executable, "-m", status_probe.__name__, address, str(times)]
    done = await trio.run_process(argv, capture_stdout=True)
    took = json.loads(done.stdout)
    report.add(f"look at an inode, {when}", took["inode"], "ms")
    report.add(f"status, {when}", took["status"], "ms", at_most=100)


def measure_placement(report: Report) -> None:
    """As the master does it for each new chunk: choose, then count what will be written."""
    clock = time.monotonic
    liveness = Liveness(Timing(), clock)
    for server in range(SERVERS):
        record = ServerRecord(
            server + 1, identity(server), address(server, 1), rack(server), "", __version__
        )
        disks = [
            DiskRecord(server * DISKS + slot + 1, f"{server}-{slot}", server + 1, "/disk")
            for slot in range(DISKS)
        ]
        reports = [
            m.DiskReport(disk.uuid, disk.path, DISK_BYTES, 0, DISK_BYTES, 0) for disk in disks
        ]
        liveness.admit(record, disks, reports)
    random = Random(1)
    policies: list[Policy] = [p for p in BUILT_IN if p.policy in (DEFAULT_POLICY, EC_POLICY)]
    for policy in policies:
        best = math.inf
        for _ in range(5):
            liveness.choose(policy, random=random)
            begun = time.process_time()
            for _ in range(2000):
                chosen = liveness.choose(policy, random=random)
                liveness.charge(chosen.disks, CHUNK_MAX_BYTES // chosen.redundancy.k)
            best = min(best, (time.process_time() - begun) / 2000)
        name = f"placing a chunk of {policy.redundancy}"
        report.add(name, best * 1e6, "us", at_most=50)


async def measure(
    master: MasterProcess, layout: Layout, report: Report, parts: list[str], seconds: float
) -> None:
    fleet = Fleet(layout, master.address)
    async with trio.open_nursery() as nursery:
        spent = master.cpu_s
        await nursery.start(fleet.run)
        with trio.fail_after(300):
            await fleet.all_registered.wait()
        report.add(f"{SERVERS:,} servers register", master.cpu_s - spent, "CPU s")
        async with dfs.client.connect(master.address) as client:
            await trio.sleep(5)
            for part in parts:
                await PARTS[part](master, fleet, client, report, seconds)
        nursery.cancel_scope.cancel()
    report.add("heartbeats and reports without an answer", fleet.failed, "", at_most=0)
    report.add("master, peak memory", master.peak_bytes() / MIB, "MiB", at_most=MEMORY_MOST)


async def _steady(
    master: MasterProcess, fleet: Fleet, client: Client, report: Report, seconds: float
) -> None:
    beats = fleet.beats
    share = await share_of_core(master, seconds)
    report.add("heartbeats", (fleet.beats - beats) / seconds, "/s")
    report.add("heartbeats, part of a core", share, "%", at_most=30)
    await measure_status(master.address, report, "all well")


async def _reports(
    master: MasterProcess, fleet: Fleet, client: Client, report: Report, seconds: float
) -> None:
    fleet.reports = True
    # Those that were asked for in vain are asked for again a minute later.
    with trio.move_on_after(90):
        await fleet.first_page.wait()
    listed, spent = fleet.listed, master.cpu_s
    fleet.slowest_s = 0.0
    share = await share_of_core(master, seconds)
    report.add("heartbeats and reports, part of a core", share, "%", at_most=30)
    report.add("fragments reported", (fleet.listed - listed) / seconds, "/s")
    if fleet.listed > listed:
        each = (master.cpu_s - spent) / (fleet.listed - listed)
        report.add("all it does, per fragment reported", each * 1e6, "CPU us")
    report.add("a heartbeat's answer takes at most", 1000 * fleet.slowest_s, "ms")
    await measure_status(master.address, report, "during reports")
    fleet.reports = False


async def _lost(
    master: MasterProcess, fleet: Fleet, client: Client, report: Report, seconds: float
) -> None:
    for name, servers in (("a server", {500}), ("a rack", set(range(100, 100 + RACK)))):
        fleet.silent |= servers
        with trio.fail_after(DOWN_AFTER_S + 60):
            await fleet.first_order.wait()
        if len(servers) == 1:
            after_s = fleet.first_order_at - fleet.heard_at[min(servers)] - DOWN_AFTER_S
            report.add("repair begins after the grace", after_s, "s", at_most=1)
        else:
            await trio.sleep(DOWN_AFTER_S + 5)
        made, spent = fleet.made.total(), master.cpu_s
        fleet.slowest_s = 0.0
        share = await share_of_core(master, seconds)
        count = fleet.made.total() - made
        report.add(f"{name} lost: fragments made", count / seconds, "/s")
        report.add(f"{name} lost: master", share, "% of a core")
        each = (master.cpu_s - spent) / max(1, count)
        report.add(f"{name} lost: all it does, per fragment made", each * 1e6, "CPU us")
        slowest_ms = 1000 * fleet.slowest_s
        report.add(f"{name} lost: a heartbeat's answer takes at most", slowest_ms, "ms")
        await measure_status(master.address, report, f"{name} lost")
        status = await client.meta.status()
        short = status.chunks_degraded + status.chunks_at_risk + status.chunks_lost
        report.add(f"{name} lost: chunks that the status calls degraded", short, "")


PARTS: Final = {"steady": _steady, "reports": _reports, "lost": _lost}


def main() -> int:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--store", type=Path, help="keep the filled store there, for other runs")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each measurement")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    report = Report("master_scale")
    layout = Layout(int(CHUNKS * args.scale))
    measure_placement(report)
    with harness.workplace(args.dir) as work:
        kept = args.store or work / "kept"
        begun = time.perf_counter()
        fill(kept / "metadata", layout)
        report.add(f"fill with {layout.chunks:,} chunks", time.perf_counter() - begun, "s")
        report.add("master's disk per chunk", harness.disk_bytes(kept) / layout.chunks, "bytes")
        if args.fill_only:
            return 0
        data = work / "data"
        shutil.copytree(kept, data, copy_function=_link)
        with master_process(data) as master:
            trio.run(measure, master, layout, report, args.parts, args.seconds)
    return report.finish(args.json)


def _link(source: str, target: str) -> None:
    """RocksDB never changes a table once it is written."""
    if source.endswith(".sst"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    sys.exit(main())
