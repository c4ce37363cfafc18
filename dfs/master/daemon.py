"""The master as a process: `run_master` is what `dfs master` runs.

`Master` puts the parts together over a store, a journal, a clock and listeners given from outside,
so that a simulation runs the very same master in memory. `run_master` gives it the real ones.
"""

import logging
import resource
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, NoReturn

import msgspec
import trio

from dfs import __version__
from dfs.core import allocator, collector
from dfs.core.errors import DfsError
from dfs.core.workers import Starters
from dfs.master import membership, sessions
from dfs.master.backup.holding import Holding
from dfs.master.backup.service import BackupService
from dfs.master.check.service import CheckService
from dfs.master.claims import Claims
from dfs.master.commands import Format, StartMaster
from dfs.master.health import Health
from dfs.master.job_service import JobService
from dfs.master.jobs.board import JobBoard
from dfs.master.jobs.compact import Compact
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.convert import Convert
from dfs.master.jobs.count import CountHealth
from dfs.master.jobs.drain import Drain
from dfs.master.jobs.expire import ExpireSessions
from dfs.master.jobs.flush import FlushLog
from dfs.master.jobs.loop import Job, run_forever
from dfs.master.jobs.membership import DiskKeeper
from dfs.master.jobs.mover import Mover
from dfs.master.jobs.purge import PurgeFiles, PurgeFragments
from dfs.master.jobs.rebalance import Rebalance
from dfs.master.jobs.repair import Repair
from dfs.master.jobs.retire import KEEP_S, ExpireRetiredChunks
from dfs.master.jobs.rewriter import Rewriter
from dfs.master.jobs.scrub import Scrub
from dfs.master.jobs.seal import SealJob
from dfs.master.jobs.watch import WatchServers
from dfs.master.journal import LocalJournal
from dfs.master.leases import Leases
from dfs.master.liveness import Liveness, Timing
from dfs.master.metrics import MasterMetrics
from dfs.master.recalls import Recalls
from dfs.master.report_book import ReportBook
from dfs.master.server_service import ServerService
from dfs.master.service import ClientService
from dfs.master.snapshots import Snapshots
from dfs.master.state import State
from dfs.master.status import StatusService
from dfs.master.store import RocksStore, Store
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.pool import Pool
from dfs.wire.serve import Listener, serve
from dfs.wire.threads import Threads
from dfs.wire.transport import Connector, connect_tcp, listen_tcp, listening_address

log = logging.getLogger(__name__)


CONNECTIONS_MAX: Final = 16_384
FILES_WANTED: Final = CONNECTIONS_MAX + 2048
"""Open files: connections, RocksDB's tables, some to spare."""
STOP_S: Final = 10.0
"""What a clean stop may take."""


class MasterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a master; the names are those of the command line and the file."""

    data: Path
    """Directory of the metadata."""
    listen: str = "127.0.0.1:9420"
    lease_s: float = 90.0
    """How long a client may be silent before what it holds is released. Longer than clients
    wait for a master that is away, so that a break in between costs them nothing."""
    heartbeat_s: float = 1.0
    down_after_s: float = 60.0
    """How long a chunk server may be silent before its fragments count as lost."""
    keep_retired_s: float = KEEP_S
    """How long chunks are kept whose bytes compaction or conversion has copied elsewhere."""
    cache_bytes: int = 16 * 1024 * 1024
    """Memory for metadata that was read lately."""
    http: str = ""
    """`HOST:PORT` of the monitoring port; "": none."""

    @property
    def timing(self) -> Timing:
        """SUSPECT after three and a half missed heartbeats, or one and a half after a break."""
        return Timing(
            heartbeat_s=self.heartbeat_s,
            suspect_after_s=3.5 * self.heartbeat_s,
            hint_after_s=1.5 * self.heartbeat_s,
            down_after_s=self.down_after_s,
        )


class Master:
    """One metadata master over a store, which its maker closes."""

    def __init__(
        self,
        store: Store,
        workers: Starters,
        *,
        timing: Timing,
        lease_s: float,
        connector: Connector = connect_tcp,
        random: Random,
        clock: Callable[[], float] = trio.current_time,
        now_ns: Callable[[], int] = time.time_ns,
        snapshots: Path | None = None,
        keep_retired_s: float = KEEP_S,
    ) -> None:
        """Format an empty store, and take up what a full one says. `clock` only goes forward.

        `snapshots`: a directory of the master's own, on the store's file system.
        """
        state = State(store)
        self.journal = LocalJournal(state, workers)
        if not state.formatted:
            identity = str(uuid.UUID(int=random.getrandbits(128), version=4))
            self.journal.append(Format(time_ns=now_ns(), cluster=identity))
        run = random.getrandbits(63)
        self.journal.append(StartMaster(time_ns=now_ns(), run=run, position=self.journal.position))
        self.cluster = state.cluster

        self._pool = Pool(
            hello=Hello("master", cluster=self.cluster),
            connector=connector,
            random=Random(random.getrandbits(64)),
        )
        self.liveness = Liveness(timing, clock)
        self.liveness.load(membership.all_servers(store), membership.all_disks(store))
        leases = Leases(lease_s, clock)
        leases.grant(record.session for record in sessions.all_sessions(store))
        health = Health(store, self.liveness.away)
        # What a report found just before the last master ended may not have been noted.
        reports = ReportBook(run)
        reports.want(disk.disk for disk in membership.all_disks(store))

        claims = Claims()
        context = JobContext(
            self.journal, store, self.liveness, self._pool, now_ns, claims, reports, random
        )
        seal = SealJob(context)
        holding = Holding(store, self.journal, self.liveness, reports, now_ns)
        servers = ServerService(
            cluster=self.cluster,
            heartbeat_s=timing.heartbeat_s,
            reader=store,
            journal=self.journal,
            liveness=self.liveness,
            reports=reports,
            holding=holding,
            claims=claims,
            add_unsealed=seal.add_unsealed,
            on_registered=self._pool.forgive,
            clock=clock,
            now_ns=now_ns,
        )
        clients = ClientService(
            cluster=self.cluster,
            reader=store,
            journal=self.journal,
            liveness=self.liveness,
            leases=leases,
            recalls=Recalls(store, self.journal, clock=clock, now_ns=now_ns),
            reports=reports,
            run=run,
            random=random,
            clock=clock,
            now_ns=now_ns,
        )
        self.status = StatusService(
            cluster=self.cluster,
            reader=store,
            liveness=self.liveness,
            leases=leases,
            health=health,
            notices=holding.notices,
            clock=clock,
        )
        taken = Snapshots(snapshots, store, workers)
        self._checks = CheckService(context, taken, holding.notices)
        self._backups = BackupService(taken)
        mover = Mover(context)
        repair = Repair(context, mover)
        rewriter = Rewriter(context, mover)
        kinds = (
            repair,
            Scrub(context, mover),
            Drain(context, mover),
            Rebalance(context, mover),
            Compact(context, rewriter),
            Convert(context, rewriter),
        )
        self.board = JobBoard(context, {kind.name: kind for kind in kinds})
        jobs = JobService(self.board, DiskKeeper(context, self.board), repair.hurry, self.journal)
        self.handlers = {
            **clients.handlers(),
            **servers.handlers(),
            **self.status.handlers(),
            **self._checks.handlers(),
            **self._backups.handlers(),
            **holding.handlers(),
            **jobs.handlers(),
        }
        self.jobs: tuple[Job, ...] = (
            WatchServers(self.liveness, servers.note_broken, servers.note_down),
            FlushLog(self.journal),
            ExpireSessions(context, leases),
            seal,
            PurgeFiles(context),
            ExpireRetiredChunks(context, keep_retired_s),
            PurgeFragments(context),
            CountHealth(health),
        )

    async def run(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve until cancelled; closes the listeners.

        The ids that `StartMaster` skipped are on the disk before anyone is served.
        """
        await self.journal.sync()
        async with self._pool, trio.open_nursery() as nursery:
            for job in self.jobs:
                nursery.start_soon(run_forever, job, name=job.name)
            nursery.start_soon(self._checks.run)
            nursery.start_soon(self._backups.run)
            nursery.start_soon(self.board.run)
            await serve(
                listeners,
                self.handlers,
                hello=Hello("master", cluster=self.cluster),
                limits=Limits(connections=CONNECTIONS_MAX),
                task_status=task_status,
            )
        raise AssertionError("serve returned")


async def run_master(
    config: MasterConfig, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a master until SIGTERM or SIGINT; `task_status` gets the address it listens on.

    Raises ConfigError where the directory is in use or cannot be used, or the address is taken.
    """
    allocator.keep_little()
    _allow_files()
    listeners = await listen_tcp(config.listen)
    address = listening_address(listeners[0])
    try:
        store = RocksStore(config.data / "metadata", cache_bytes=config.cache_bytes)
    except DfsError:
        for listener in listeners:
            await listener.aclose()
        raise
    try:
        master = Master(
            store,
            Threads(2, "log"),
            timing=config.timing,
            lease_s=config.lease_s,
            random=Random(),
            snapshots=config.data / "snapshots",
            keep_retired_s=config.keep_retired_s,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            await nursery.start(master.run, listeners)
            log.info(
                "dfs %s master of cluster %s serves at %s, metadata in %s",
                __version__,
                master.cluster,
                address,
                config.data,
            )
            if config.http:
                await _monitor(config.http, master, nursery)
            collector.tune()
            task_status.started(address)
        with trio.move_on_after(STOP_S, shield=True):
            await master.journal.sync()
        log.info("stopped")
    finally:
        store.close()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            scope.cancel()


async def _monitor(listen: str, master: Master, nursery: trio.Nursery) -> None:
    from dfs.wire.http import serve_http  # noqa: PLC0415  # slow to load, and seldom needed

    metrics = MasterMetrics(master.status.latest, master.board.infos)
    bound = await nursery.start(serve_http, listen, metrics.metrics, metrics.problems)
    log.info("monitoring at http://%s/metrics and /health", bound)


def _allow_files() -> None:
    """Ask for as many open files as the system lets this process have, up to what is useful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
