"""What the master answers to people: servers, sessions, chunks, and how the cluster is."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

import trio

from dfs import __version__
from dfs.core.chunk import DiskState, Layout
from dfs.master import sessions
from dfs.master.health import PROMPT_CHUNKS, Counts, Health
from dfs.master.keyspace import (
    CHUNK,
    CHUNK_BY_SESSION,
    OPEN_BY_SESSION,
    Reader,
    chunk_key,
    decode_chunk,
    get_counters,
    prefix_end,
    scan_prefix,
    u64,
)
from dfs.master.leases import Leases
from dfs.master.liveness import Liveness
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer

CHUNKS_MAX: Final = 4096
"""Chunks in one ListChunks reply."""
COUNTED_MAX: Final = 10_000
"""Open files of one session are counted up to this."""
PROBLEMS_MAX: Final = 20
"""Servers and disks that are named one by one; the rest are counted."""
GIVE_WAY_EVERY: Final = 64
"""Sessions described between two turns of the event loop."""


_BAD: Final = (DiskState.FAILED, DiskState.FULL, DiskState.UNSTEADY)


class StatusService:
    """Handlers for administration. Reads only."""

    def __init__(
        self,
        *,
        cluster: str,
        reader: Reader,
        liveness: Liveness,
        leases: Leases,
        health: Health,
        notices: Callable[[], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        """`notices`: what people should know beside how servers and chunks are."""
        self._cluster = cluster
        self._reader = reader
        self._liveness = liveness
        self._leases = leases
        self._health = health
        self._notices = notices
        self._clock = clock
        self._started = clock()
        self._counting = trio.Lock()

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {
            m.ListServers: self.list_servers,
            m.ListSessions: self.list_sessions,
            m.ListChunks: self.list_chunks,
            m.ClusterStatus: self.cluster_status,
        }

    def list_servers(self, _: Peer, __: m.ListServers, ___: memoryview) -> m.ServersReply:
        return m.ServersReply(self._liveness.server_infos())

    async def list_sessions(self, _: Peer, __: m.ListSessions, ___: memoryview) -> m.SessionsReply:
        infos = []
        for number, record in enumerate(sessions.all_sessions(self._reader), 1):
            infos.append(
                m.SessionInfo(
                    session=record.session,
                    client=record.client,
                    address=record.address,
                    opened_ns=record.opened_ns,
                    renewed_s=self._leases.silent_s(record.session),
                    open_files=self._count(OPEN_BY_SESSION + u64(record.session)),
                    open_chunks=self._count(CHUNK_BY_SESSION + u64(record.session)),
                )
            )
            if number % GIVE_WAY_EVERY == 0:
                await trio.lowlevel.checkpoint()
        return m.SessionsReply(tuple(infos))

    def _count(self, prefix: bytes) -> int:
        return sum(1 for _ in islice(scan_prefix(self._reader, prefix), COUNTED_MAX))

    def list_chunks(self, _: Peer, request: m.ListChunks, __: memoryview) -> m.ChunksReply:
        limit = max(1, min(request.limit, CHUNKS_MAX))
        after = min(max(0, request.after), 1 << 63)
        rows = self._reader.scan(chunk_key(after + 1), prefix_end(CHUNK))
        found = [decode_chunk(value) for _, value in islice(rows, limit + 1)]
        more = len(found) > limit
        page = tuple(found[:limit])
        disks = (fragment.disk for chunk in page for fragment in chunk.fragments)
        return m.ChunksReply(page, more, Layout((), self._liveness.locations(disks)))

    async def cluster_status(self, _: Peer, __: m.ClusterStatus, ___: memoryview) -> m.StatusReply:
        """Chunks are counted afresh, unless too many lack something: then as they were last."""
        if self._health.is_prompt:
            async with self._counting:
                await self._health.count(trio.lowlevel.checkpoint, most=PROMPT_CHUNKS)
        return self.latest()

    def latest(self) -> m.StatusReply:
        """The status, with chunks as they were last counted. Quick."""
        counters = get_counters(self._reader)
        counts = self._health.counts
        servers = self._liveness.server_infos()
        grace_s = self._liveness.timing.down_after_s
        totals = self._liveness.totals()
        return m.StatusReply(
            cluster=self._cluster,
            version=__version__,
            uptime_s=self._clock() - self._started,
            capacity=totals.capacity,
            used=totals.used,
            free=totals.free,
            inodes=counters.inodes,
            chunks=counters.chunks - counters.chunks_retired,
            chunks_open=counters.chunks_open,
            chunks_healthy=counts.healthy,
            chunks_degraded=counts.degraded,
            chunks_at_risk=counts.at_risk,
            chunks_lost=counts.lost,
            live=counters.live,
            purge_queue=counters.chunks_doomed,
            chunks_retired=counters.chunks_retired,
            servers=servers,
            problems=(*self._notices(), *problems(servers, counts, grace_s)),
            length=counters.length,
            redundancy=counters.redundancy,
        )


def problems(servers: tuple[m.ServerInfo, ...], counts: Counts, down_after_s: float) -> list[str]:
    """What is wrong, one sentence each, the worst first."""
    found = []
    if counts.lost:
        found.append(
            f"{_chunks(counts.lost)} cannot be read now: more fragments are away than their "
            "redundancy bears; bring the servers and disks that hold them back"
        )
    if counts.at_risk:
        found.append(f"{_chunks(counts.at_risk)} would be lost with one more fragment")
    if counts.degraded:
        wants = "has fewer fragments than its policy wants"
        if counts.degraded > 1:
            wants = "have fewer fragments than their policies want"
        found.append(f"{_chunks(counts.degraded)} {wants}")
    if not servers:
        found.append("no chunk server has registered: nothing can be written")
    single = [
        _server_problem(server, down_after_s) for server in servers if server.state != DiskState.UP
    ]
    for server in servers:
        if server.state == DiskState.UP:
            single += [_disk_problem(server, disk) for disk in server.disks if _is_bad(disk)]
    found += single[:PROBLEMS_MAX]
    if len(single) > PROBLEMS_MAX:
        found.append(f"{len(single) - PROBLEMS_MAX} more servers or disks have problems")
    return found


def _chunks(number: int) -> str:
    return "1 chunk" if number == 1 else f"{number} chunks"


def _server_problem(server: m.ServerInfo, down_after_s: float) -> str:
    name = f"server {server.server} at {server.address}"
    if server.last_heartbeat_s < 0:
        return f"{name} has not been heard since this master started"
    silent = f"for {server.last_heartbeat_s:.0f} s"
    if server.state == DiskState.DOWN:
        return (
            f"{name} is down: silent {silent}; start it, or, when nothing is degraded any more, "
            f"`dfs admin remove {server.server}` if it is gone for good"
        )
    return (
        f"{name} has not answered {silent}; after {down_after_s:.0f} s without it, its data is "
        "made anew on others"
    )


def _is_bad(disk: m.DiskInfo) -> bool:
    state = disk.state
    return state != DiskState.UP and state in _BAD


def _disk_problem(server: m.ServerInfo, disk: m.DiskInfo) -> str:
    name = f"disk {disk.disk} ({disk.path} on {server.address})"
    if disk.state == DiskState.FULL:
        return f"{name} is full: {disk.free >> 20} MiB free"
    if disk.state == DiskState.UNSTEADY:
        return f"{name} gets no new data for a while: its server fell several times lately"
    return f"{name} has failed: {disk.error or 'its server gives no reason'}"
