"""`run_chunkserver`: the disks, the listener, the service and the reports of one process.

Everything outside comes in through parameters, so that many servers run in one process in tests.
"""

import contextlib
import logging
import resource
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from random import Random, SystemRandom
from uuid import UUID

import trio

from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.disk import Cache, Disk
from dfs.chunkserver.identity import Identity
from dfs.chunkserver.metrics import ChunkServerMetrics
from dfs.chunkserver.report import Reporter
from dfs.chunkserver.room import Room
from dfs.chunkserver.service import ChunkService
from dfs.chunkserver.threads import DiskThreads
from dfs.chunkserver.upkeep import Upkeep
from dfs.chunkserver.watch import watch
from dfs.core.errors import ConfigError, DfsError, DiskError
from dfs.core.workers import Workers
from dfs.wire.handlers import Handler
from dfs.wire.hello import Hello
from dfs.wire.messages import Message
from dfs.wire.pool import Pool
from dfs.wire.serve import Listener, serve
from dfs.wire.transport import (
    Connector,
    connect_tcp,
    format_address,
    listen_tcp,
    parse_address,
)

_log = logging.getLogger(__name__)

_ANYWHERE = {"", "0.0.0.0", "::"}


async def run_chunkserver(
    config: ChunkServerConfig,
    *,
    listeners: Sequence[Listener] | None = None,
    connector: Connector = connect_tcp,
    random: Random | None = None,
    workers: Callable[[], Workers] = DiskThreads,
    signals: bool = True,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until SIGTERM or SIGINT (with `signals`, in the main thread).

    Started, with the server's address, once it serves. `listeners` (which are then closed here)
    take the place of `config.listen`, and need `config.advertise`. `workers` makes the threads
    of one disk.

    Raises:
        ConfigError: a setting is wrong, a disk is in use or of another cluster.
        DiskError: no disk works.
        DfsError: the master refuses this server.
    """
    random = random or SystemRandom()
    _check(config)
    try:
        await _run(config, listeners, connector, random, workers, signals, task_status)
    except BaseExceptionGroup as group:
        # Nurseries wrap: whoever starts a server wants the one reason why it did not.
        reasons = list(_leaves(group))
        if not all(isinstance(reason, DfsError) for reason in reasons):
            raise
        raise reasons[0] from None
    _log.info("stopped")


async def _run(
    config: ChunkServerConfig,
    listeners: Sequence[Listener] | None,
    connector: Connector,
    random: Random,
    workers: Callable[[], Workers],
    signals: bool,
    task_status: trio.TaskStatus[str],
) -> None:
    address = config.advertise
    if listeners is None:
        tcp = await listen_tcp(config.listen)
        address = address or await _reachable(tcp[0], config.master[0])
        listeners = tcp
    async with _closing(listeners), _open_disks(config, random, workers) as disks:
        service = ChunkService(disks)
        cluster = next((disk.identity.cluster for disk in disks if disk.identity.cluster), "")
        hello = Hello("chunkserver", cluster=cluster, token=config.token)
        async with Pool(hello=hello, connector=connector, random=random) as pool:
            reporter = Reporter(
                service,
                pool,
                masters=config.master,
                server=_server_uuid(disks),
                address=address,
                rack=config.rack,
                zone=config.zone,
                random=random,
            )
            async with trio.open_nursery() as nursery:
                if signals and threading.current_thread() is threading.main_thread():
                    await nursery.start(_stop_on_signal, nursery.cancel_scope)
                for disk in disks:
                    nursery.start_soon(watch, disk)
                cluster = await nursery.start(reporter.run)
                hello = Hello("chunkserver", cluster=cluster, token=config.token)
                upkeep = Upkeep(service, pool, workers())
                handlers = {**service.handlers, **upkeep.handlers}
                await nursery.start(_serve, listeners, handlers, hello)
                if config.http:
                    await _monitor(config.http, service, nursery)
                _log.info("serving %d disks at %s", len(disks), address)
                task_status.started(address)


async def _serve(
    listeners: Sequence[Listener],
    handlers: Mapping[type[Message], Handler],
    hello: Hello,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    await serve(listeners, handlers, hello=hello, task_status=task_status)


async def _monitor(listen: str, service: ChunkService, nursery: trio.Nursery) -> None:
    from dfs.wire.http import serve_http  # noqa: PLC0415  # slow to load, and seldom needed

    metrics = ChunkServerMetrics(service)
    bound = await nursery.start(serve_http, listen, metrics.metrics, metrics.problems)
    _log.info("monitoring at http://%s/metrics and /health", bound)


async def _stop_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            _log.info("stopping: %s", signal.Signals(number).name)
            scope.cancel()


@contextlib.asynccontextmanager
async def _closing(listeners: Sequence[Listener]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()


@contextlib.asynccontextmanager
async def _open_disks(
    config: ChunkServerConfig, random: Random, workers: Callable[[], Workers]
) -> AsyncIterator[list[Disk]]:
    """All disks that work; those that do not are left out with an error in the log."""
    disks: list[Disk] = []
    errors: list[DiskError] = []
    server = _make_uuid(random)
    cache = _cache(len(config.disks))
    try:
        for path in config.disks:
            try:
                disk = await Disk.open(
                    path,
                    fresh=Identity(disk=_make_uuid(random), server=server),
                    workers=workers(),
                    room=Room(path, capacity_bytes=config.capacity_bytes, reserve=config.reserve),
                    cache=cache,
                )
            except DiskError as error:
                _log.error("%s", error)
                errors.append(error)
                continue
            disks.append(disk)
        if not disks:
            raise errors[0]
        _check_identities(disks)
        yield disks
    finally:
        for disk in disks:
            disk.close()


def _check(config: ChunkServerConfig) -> None:
    if not config.master:
        raise ConfigError("no master is given", hint="use --master HOST:PORT")
    if not config.disks:
        raise ConfigError("no disk is given", hint="use --disk DIR")
    for text in (*config.disks, config.rack, config.zone):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{text!a} is not UTF-8", hint="the master is told of it: rename it"
            ) from None
    for address in (*config.master, *([config.advertise] if config.advertise else [])):
        parse_address(address)


def _check_identities(disks: Sequence[Disk]) -> None:
    clusters = {disk.identity.cluster: disk for disk in disks if disk.identity.cluster}
    if len(clusters) > 1:
        one, other = list(clusters.values())[:2]
        raise ConfigError(
            f"disk {one.path} belongs to cluster {one.identity.cluster}, "
            f"disk {other.path} to cluster {other.identity.cluster}",
            hint="one chunk server serves one cluster",
        )
    (uuid, count), *_ = Counter(disk.identity.disk for disk in disks).most_common(1)
    if count > 1:
        paths = [disk.path for disk in disks if disk.identity.disk == uuid]
        raise ConfigError(
            f"{paths[0]} and {paths[1]} have the same disk UUID {uuid}",
            hint="one is a copy of the other: empty it",
        )


def _server_uuid(disks: Sequence[Disk]) -> str:
    """The UUID most of the disks know this server by: one that came from elsewhere adapts."""
    known = [disk.identity.server for disk in disks if disk.identity.cluster]
    every = known or [disk.identity.server for disk in disks]
    return Counter(every).most_common(1)[0][0]


def _make_uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


async def _reachable(listener: trio.SocketListener, master: str) -> str:
    """The address others reach the listener at: its own, or where this host meets the master."""
    host, port = listener.socket.getsockname()[:2]
    if host not in _ANYWHERE:
        return format_address((host, port))
    try:
        host, number = parse_address(master)
        for family, kind, _, _, target in await trio.socket.getaddrinfo(
            host, number, type=socket.SOCK_DGRAM
        ):
            with socket.socket(family, kind) as probe:
                probe.connect(target)  # sends nothing: asks for the route
                return format_address((probe.getsockname()[0], port))
    except OSError:
        pass
    return format_address((socket.gethostname(), port))


def _cache(disks: int) -> Cache:
    """What each disk may keep open: up to half of the files that this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return Cache(fragments=max(8, min(Cache().fragments, soft // 2 // disks)))
