"""`run_chunkserver`: the disks, the listener, the service and the reports of one process.

Everything outside comes in through parameters, so that many servers run in one process in tests.
"""

import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from random import Random, SystemRandom
from typing import Final

import trio

from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.disk import Cache, Disk
from dfs.chunkserver.metrics import ChunkServerMetrics
from dfs.chunkserver.opening import Opening, check_identities, open_disks
from dfs.chunkserver.report import Reporter
from dfs.chunkserver.service import ChunkService
from dfs.chunkserver.threads import DiskThreads, DiskWorkers
from dfs.chunkserver.upkeep import Upkeep
from dfs.chunkserver.watch import watch
from dfs.core import collector
from dfs.core.errors import ConfigError, DfsError
from dfs.wire.handlers import Handler
from dfs.wire.hello import Hello
from dfs.wire.limits import MIB, Limits
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

STOP_S: Final = 5.0
"""What a clean stop may take."""
LIMITS: Final = Limits(kept_bytes=64 * MIB)
"""Of the connections to other servers: a few fragments are made at a time, from many pieces."""


async def run_chunkserver(
    config: ChunkServerConfig,
    *,
    listeners: Sequence[Listener] | None = None,
    connector: Connector = connect_tcp,
    random: Random | None = None,
    workers: Callable[[], DiskWorkers] = DiskThreads,
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
    workers: Callable[[], DiskWorkers],
    signals: bool,
    task_status: trio.TaskStatus[str],
) -> None:
    address = config.advertise
    if listeners is None:
        tcp = await listen_tcp(config.listen)
        address = address or await _reachable(tcp[0], config.master[0])
        listeners = tcp
    cache = _cache(len(config.disks))
    async with _closing(listeners), open_disks(config, random, workers, cache) as opening:
        disks = opening.disks
        service = ChunkService(disks)
        cluster = next((disk.identity.cluster for disk in disks if disk.identity.cluster), "")
        hello = Hello("chunkserver", cluster=cluster, token=config.token)
        async with Pool(hello=hello, connector=connector, random=random, limits=LIMITS) as pool:
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
                nursery.start_soon(_take_late, opening, service, reporter, nursery)
                cluster = await nursery.start(reporter.run)
                hello = Hello("chunkserver", cluster=cluster, token=config.token)
                upkeep = Upkeep(service, pool, workers())
                handlers = {**service.handlers, **upkeep.handlers}
                await nursery.start(_serve, listeners, handlers, hello)
                if config.http:
                    await _monitor(config.http, service, nursery)
                if signals:
                    collector.tune()
                _log.info("serving %d disks at %s", len(disks), address)
                task_status.started(address)


async def _take_late(
    opening: Opening, service: ChunkService, reporter: Reporter, nursery: trio.Nursery
) -> None:
    """Serve disks that did not answer when the server started, once they do."""
    async for disk in opening.late:
        try:
            check_identities([*opening.disks, disk])
        except ConfigError as error:
            _log.error("%s", error)
            disk.close()
            continue
        opening.disks.append(disk)
        service.add(disk)
        reporter.add(disk)
        nursery.start_soon(watch, disk)


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
            if not scope.cancel_called:
                threading.Thread(target=_end_at_last, name="end", daemon=True).start()
            scope.cancel()


def _end_at_last() -> None:
    """A call to a disk that hangs never comes back, nor does what waits for it.

    Nothing is lost that was acknowledged: it is as if the server were killed.
    """
    time.sleep(STOP_S)
    _log.warning("stopped without waiting any longer for a disk that hangs")
    logging.shutdown()
    os._exit(0)


@contextlib.asynccontextmanager
async def _closing(listeners: Sequence[Listener]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()


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


def _server_uuid(disks: Sequence[Disk]) -> str:
    """The UUID most of the disks know this server by: one that came from elsewhere adapts."""
    known = [disk.identity.server for disk in disks if disk.identity.cluster]
    every = known or [disk.identity.server for disk in disks]
    return Counter(every).most_common(1)[0][0]


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
