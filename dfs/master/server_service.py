"""What the master answers to chunk servers: registration, heartbeats, chunk reports."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dfs.core.chunk import DiskState
from dfs.core.errors import BusyError, ProtocolError
from dfs.core.ids import DiskId, ServerId
from dfs.master import chunk_reports
from dfs.master.backup.holding import Holding
from dfs.master.claims import Claims
from dfs.master.commands import (
    DiskIdentity,
    MarkFragments,
    MarkStale,
    PlaceFragment,
    RegisterServer,
    Registration,
)
from dfs.master.jobs.seal import Unsealed
from dfs.master.journal import Journal
from dfs.master.keyspace import (
    Reader,
    disk_by_uuid_key,
    from_u64,
    get_counters,
    server_by_uuid_key,
)
from dfs.master.liveness import Liveness
from dfs.master.pace import Pace
from dfs.master.report_book import ReportBook
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer

log = logging.getLogger(__name__)

STRETCH_FRAGMENTS: Final = 200
"""Fragments of a report compared in one go: a millisecond or two."""
STRETCH_ROWS: Final = 400
"""Rows of the store gone through in one go."""
REPORTS_REST: Final = 9.0
"""All reports together take a tenth of the event loop: heartbeats come first."""

REPORT_AFTER_S: Final = 30.0
"""A disk that holds what could not be settled is asked again so much later."""

_UNSPECIFIED: Final = frozenset(("", "0.0.0.0", "[::]", "::"))


class ServerService:
    """Handlers for chunk servers. Keeps which connection each server speaks on."""

    def __init__(
        self,
        *,
        cluster: str,
        heartbeat_s: float,
        reader: Reader,
        journal: Journal,
        liveness: Liveness,
        reports: ReportBook,
        holding: Holding,
        claims: Claims,
        add_unsealed: Callable[[Unsealed], None],
        on_registered: Callable[[str], None],
        clock: Callable[[], float],
        now_ns: Callable[[], int],
    ) -> None:
        """`on_registered` is told the address of a server that has just come (back)."""
        self._cluster = cluster
        self._heartbeat_s = heartbeat_s
        self._reader = reader
        self._journal = journal
        self._liveness = liveness
        self._reports = reports
        self._holding = holding
        self._claims = claims
        self._add_unsealed = add_unsealed
        self._on_registered = on_registered
        self._clock = clock
        self._now_ns = now_ns
        self._pace = Pace(REPORTS_REST)
        self._peers: dict[ServerId, Peer] = {}
        self._again: set[DiskId] = set()
        """Disks that hold what could not be settled yet: they shall report once more."""

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {
            m.RegisterServer: self.register,
            m.Heartbeat: self.heartbeat,
            m.ReportChunks: self.report_chunks,
        }

    def note_broken(self) -> None:
        """Tell `liveness` of servers whose connection has ended."""
        for server, peer in self._peers.items():
            if peer.connection is not None and peer.connection.closed:
                self._liveness.connection_broke(server)

    def note_down(self, server: ServerId) -> None:
        """The server is given up: its next heartbeat has its disks report anew."""
        for disk in self._liveness.disks_of(server):
            self._reports.gone(disk)

    # ------------------------------------------------------------------ registration

    async def register(self, peer: Peer, request: m.RegisterServer, _: memoryview) -> m.Registered:
        """Synced before the reply: the numbers it gives must never be given twice."""
        if request.cluster and request.cluster != self._cluster:
            raise ProtocolError(
                f"the disks of {request.address} belong to cluster {request.cluster}, "
                f"this master serves {self._cluster}",
                hint="give the server the address of its own master, or empty disks",
            )
        self._refuse_double(request)
        registration = self._journal.append(
            RegisterServer(
                time_ns=self._now_ns(),
                uuid=request.uuid,
                address=_reachable(request.address, peer),
                rack=request.rack,
                zone=request.zone,
                version=request.version,
                disks=tuple(DiskIdentity(disk.uuid, disk.path) for disk in request.disks),
            )
        )
        await self._journal.sync()
        self._admit(peer, registration, request.disks)
        numbers = {disk.uuid: disk.disk for disk in registration.disks}
        return m.Registered(
            self._cluster,
            registration.server.server,
            tuple(numbers.get(disk.uuid, 0) for disk in request.disks),
            self._heartbeat_s,
        )

    def _admit(
        self, peer: Peer, registration: Registration, reports: Sequence[m.DiskReport]
    ) -> None:
        server = registration.server
        self._peers[server.server] = peer
        self._liveness.admit(server, registration.disks, reports)
        self._reports.want(disk.disk for disk in registration.disks)
        self._on_registered(server.address)
        log.info(
            "server %d at %s is up with %d disks (dfs %s)",
            server.server,
            server.address,
            len(registration.disks),
            server.version,
        )

    def _refuse_double(self, request: m.RegisterServer) -> None:
        """Raises BusyError where another process serves under the same identity right now."""
        raw = self._reader.get(server_by_uuid_key(request.uuid))
        number = 0 if raw is None else from_u64(raw)
        for disk in request.disks:
            raw = self._reader.get(disk_by_uuid_key(disk.uuid))
            if raw is None:
                continue
            holder = self._liveness.server_of(from_u64(raw))
            if holder != number and self._liveness.is_served(from_u64(raw)):
                raise BusyError(
                    f"disk {disk.path} of {request.address} is served by server {holder} already",
                    hint="it is a copy, or in use there: stop one of the two",
                )
        known = self._liveness.server(number)
        if known is None or known.address == request.address:
            return
        peer = self._peers.get(number)
        stands = peer is not None and peer.connection is not None and not peer.connection.closed
        if stands and self._liveness.answers(number):
            raise BusyError(
                f"server {number} runs at {known.address} already, {request.address} has the "
                "same identity",
                hint="a data directory was copied: stop one of the two",
            )

    # ------------------------------------------------------------------ heartbeats

    def heartbeat(self, peer: Peer, request: m.Heartbeat, _: memoryview) -> m.HeartbeatReply:
        server = request.server
        before = self._liveness.server_state(server)
        if not self._liveness.heartbeat(server, request.disks):
            return m.HeartbeatReply(known=False)
        self._peers[server] = peer
        disks = self._liveness.disks_of(server)
        if before is not DiskState.UP:
            record = self._liveness.server(server)
            assert record is not None
            log.info("server %d at %s answers again", server, record.address)
            self._on_registered(record.address)
            if before is DiskState.DOWN:
                # What was lost or deleted while it was away is for the report to find.
                self._reports.want(disks)
        for disk in disks:
            if self._liveness.state(disk) is DiskState.FAILED:
                # It may never be listed. Once it works again, its server registers anew.
                self._reports.gone(disk)
        next_chunk = get_counters(self._reader).next_chunk
        asked = self._reports.to_ask(disks, self._clock(), next_chunk)
        return m.HeartbeatReply(True, asked, tuple(map(self._reports.question, asked)))

    # ------------------------------------------------------------------ chunk reports

    async def report_chunks(
        self, _: Peer, request: m.ReportChunks, __: memoryview
    ) -> m.ReportChunksReply:
        """Compare a page with the store, letting others in after each stretch of it."""
        disk = request.disk
        self._check_owner(request)
        self._holding.note(request)
        drop: list[int] = []
        changed = 0
        stretches = chunk_reports.split(
            disk, request.after, request.fragments, request.last, STRETCH_FRAGMENTS
        )
        for stretch in stretches:
            rest = stretch
            while rest.after < rest.upto:
                async with self._pace:
                    self._check_owner(request)
                    if self._is_old(request):
                        return m.ReportChunksReply(())
                    plan = self._compare(rest)
                    changed += self._follow(disk, plan)
                drop.extend(plan.drop)
                rest = rest.beyond(plan.upto)
        if changed or drop:
            log.info(
                "disk %d: %d fragments noted as lost, found, adopted or stale, %d to delete",
                disk,
                changed,
                len(drop),
            )
        if needed := chunk_reports.needed(self._reader, drop):
            log.error(
                "disk %d holds fragments of %d chunks that files need and whose records are lost, "
                "such as chunk %d: run dfs admin fsck --repair",
                disk,
                len(needed),
                min(needed),
            )
            drop = [chunk for chunk in drop if chunk not in needed]
        useless = self._holding.let_go(request, drop)
        if useless:
            # What makes these fragments useless must not be undone by a power cut.
            await self._journal.sync()
        if request.last and not self._is_old(request):
            self._reports.listed(disk)
            if disk in self._again:
                self._again.discard(disk)
                self._reports.want((disk,), not_before=self._clock() + REPORT_AFTER_S)
        return m.ReportChunksReply(tuple(useless))

    def _check_owner(self, request: m.ReportChunks) -> None:
        """Raises ProtocolError where the disk has gone to another server, or was removed."""
        if not request.server or self._liveness.server_of(request.disk) != request.server:
            raise ProtocolError(
                f"disk {request.disk} does not belong to server {request.server}",
                hint="the server must register again",
            )

    def _is_old(self, request: m.ReportChunks) -> bool:
        """Begun before the disk was asked last: what changed until then is not known any more."""
        return bool(request.question) and request.question != self._reports.question(request.disk)

    def _compare(self, stretch: chunk_reports.Stretch) -> chunk_reports.Plan:
        # While it waited for its turn the disk may have failed: then its list says nothing.
        horizon = self._reports.horizon(stretch.disk, self._clock())
        return chunk_reports.plan(
            self._reader,
            stretch,
            next_chunk=get_counters(self._reader).next_chunk,
            horizon=horizon,
            spared=self._reports.spared,
            # One that is silent for a moment has what it has.
            alive=lambda disk: not self._liveness.given_up(disk),
            limit=STRETCH_ROWS,
        )

    def _follow(self, disk: DiskId, plan: chunk_reports.Plan) -> int:
        """Do what follows from a stretch, but for deletions; how many fragments were changed."""
        changed = len(plan.marks)
        if plan.marks:
            self._journal.append(MarkFragments(self._now_ns(), plan.marks))
        if plan.outdated:
            self._again.add(disk)
        for chunk, length in plan.unsealed:
            self._add_unsealed(Unsealed(disk, chunk, length))
        return changed + self._settle_unlisted(disk, plan)

    def _settle_unlisted(self, disk: DiskId, plan: chunk_reports.Plan) -> int:
        """What the disk holds beyond the master's list: adopt it, or have it deleted.

        Not of a chunk that is being moved: the disk may be getting another fragment of it, in
        the place of this one. Nor adopt what has changed since the list was made: it may be gone.
        """
        claims, journal, now_ns = self._claims, self._journal, self._now_ns()
        stale = tuple(held for held in plan.stale if held[0] not in claims.moving)
        if stale:
            journal.append(MarkStale(now_ns, disk, stale))
        put_off = len(stale) < len(plan.stale)
        adopted = 0
        for chunk, index in plan.adopt:
            if chunk in claims.moving or chunk in self._reports.spared:
                put_off = True
            elif not claims.is_deleting(disk, chunk):
                adopted += journal.append(PlaceFragment(now_ns, chunk, index, disk, True))
        if put_off:
            self._again.add(disk)
        return len(stale) + adopted


def _reachable(address: str, peer: Peer) -> str:
    """A server that listens on all interfaces is reached at the address it calls from."""
    host, _, port = address.rpartition(":")
    if host not in _UNSPECIFIED:
        return address
    return f"{peer.address.rpartition(':')[0]}:{port}"
