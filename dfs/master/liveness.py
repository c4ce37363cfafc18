"""Which servers and disks answer right now: in memory, from heartbeats and an injected clock.

Who the servers and disks are is in the store (`membership`); this is what the store cannot know.
The life of a server, where silence counts from its last heartbeat:

    any        a registration or heartbeat                            -> UP
    UP         silent for suspect_after_s; or for hint_after_s, where
               its connection broke and none took its place           -> SUSPECT
    SUSPECT    silent for down_after_s                                -> DOWN
    (start)    known from the store, not heard since the master began -> SUSPECT

A server that fell (left UP) several times within `flap_window_s` is not trusted at once when it
comes back: its disks are UNSTEADY, which serves reads and takes new data only where nothing else
can, for `steady_after_s`, twice as long for each further fall.

A master that was itself held up (a paused machine, a starved one) blames nobody for the time it
did not listen.

Owned by the master's service, which feeds it; read by placement, layouts, status and the jobs.
Nothing here blocks or yields.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from random import Random
from typing import Final

import msgspec

from dfs.core.chunk import DiskLocation, DiskState
from dfs.core.ids import DiskId, ServerId
from dfs.core.policy import Policy, Spread
from dfs.master.domains import DiskView
from dfs.master.keyspace import DiskRecord, ServerRecord
from dfs.master.placement import Placement, PlacementMap
from dfs.wire.messages import DiskInfo, DiskReport, ServerInfo

FULL_BELOW_BYTES: Final = 64 * 1024 * 1024
FULL_BELOW_SHARE: Final = 64
"""A disk is FULL with less than 64 MiB free, or less than 1/64 of its capacity if that is less."""

STALL_S: Final = 1.0
"""So long between two ticks, and the master itself was held up."""

SERVES: Final = frozenset((DiskState.UP, DiskState.FULL, DiskState.DRAINING, DiskState.UNSTEADY))
"""States in which a disk answers reads."""

DEAD: Final = frozenset((DiskState.DOWN, DiskState.FAILED))
"""States of a disk whose fragments are to be made anew elsewhere."""

FALLS_KEPT: Final = 10
"""Falls of a server that are remembered."""


class Timing(msgspec.Struct, frozen=True):
    """When silence means what. Seconds."""

    heartbeat_s: float = 1.0
    suspect_after_s: float = 3.5
    hint_after_s: float = 1.5
    down_after_s: float = 60.0
    flap_window_s: float = 600.0
    falls_forgiven: int = 2
    """Falls within the window after which a server is still trusted at once."""
    steady_after_s: float = 60.0


class Totals(msgspec.Struct, frozen=True):
    """Bytes over all disks that are not DOWN or FAILED."""

    capacity: int
    used: int
    free: int


class _Disk:
    __slots__ = ("absent_since", "location", "record", "report", "shown", "shown_as", "state")

    def __init__(self, record: DiskRecord, location: DiskLocation) -> None:
        self.record = record
        self.report: DiskReport | None = None
        self.absent_since: float | None = None
        """Since when its server runs without it."""
        self.state = DiskState.SUSPECT
        self.location = location
        self.shown: DiskInfo | None = None
        """What people were told of it last."""
        self.shown_as: tuple[object, object, object] = (None, None, None)
        """Its record, report and state then."""


class _Server:
    __slots__ = (
        "broke_at", "disks", "falls", "heard_at", "ignored", "record", "state", "steady_at",
    )  # fmt: skip

    def __init__(self, record: ServerRecord) -> None:
        self.record = record
        self.disks: dict[str, _Disk] = {}
        """By UUID."""
        self.ignored: frozenset[str] = frozenset()
        """UUIDs of disks that it speaks of and that were removed."""
        self.state = DiskState.SUSPECT
        self.heard_at: float | None = None
        self.broke_at: float | None = None
        self.falls: deque[float] = deque(maxlen=FALLS_KEPT)
        """When it left UP, lately."""
        self.steady_at = 0.0
        """From when on it is trusted with new data."""


class Liveness:
    """All registered servers and disks, and how they are."""

    def __init__(self, timing: Timing, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that only go forward."""
        self.timing: Final = timing
        self._clock = clock
        self._started = self._ticked = clock()
        self._servers: dict[ServerId, _Server] = {}
        self._disks: dict[DiskId, _Disk] = {}
        self._map: PlacementMap | None = None
        self.version = 0
        """Goes up whenever a location or state changes."""

    def __repr__(self) -> str:
        up = sum(server.state is DiskState.UP for server in self._servers.values())
        return f"<Liveness {up} of {len(self._servers)} servers up, {len(self._disks)} disks>"

    # ------------------------------------------------------------------ what is heard

    def load(self, servers: Iterable[ServerRecord], disks: Iterable[DiskRecord]) -> None:
        """Take over what the store knows, at the start of the master."""
        for record in servers:
            self._servers[record.server] = _Server(record)
        for disk in disks:
            self._place_disk(self._servers[disk.server], disk)
        self._moved()

    def admit(
        self, server: ServerRecord, disks: Iterable[DiskRecord], reports: Iterable[DiskReport]
    ) -> None:
        """A server has registered with these disks; `reports` are what it said of them, and of
        others that are not let in."""
        disks, reports = tuple(disks), tuple(reports)
        entry = self._servers.get(server.server)
        if entry is None:
            entry = self._servers[server.server] = _Server(server)
        known = (known.record for known in entry.disks.values())
        # Most often it has only started anew: a thousand do, when the master has.
        same = entry.record == server and set(disks) <= set(known)
        entry.ignored = frozenset(r.uuid for r in reports) - {disk.uuid for disk in disks}
        if not same:
            entry.record = server
            for disk in disks:
                self._place_disk(entry, disk)
            for each in entry.disks.values():
                each.location = self._locate(each.record, entry)
                each.report = None
            self._moved()
        self._hear(entry, reports)

    def heartbeat(self, server: ServerId, reports: Iterable[DiskReport]) -> bool:
        """A sign of life. False: the server or a disk is unknown, it shall register."""
        entry = self._servers.get(server)
        if entry is None:
            return False
        reports = tuple(reports)
        if any(r.uuid not in entry.disks and r.uuid not in entry.ignored for r in reports):
            return False
        self._hear(entry, reports)
        return True

    def _hear(self, entry: _Server, reports: Iterable[DiskReport]) -> None:
        now = entry.heard_at = self._clock()
        entry.broke_at = None
        if entry.state is not DiskState.UP:
            entry.steady_at = now + self._distrust_s(entry, now)
        entry.state = DiskState.UP
        heard = {report.uuid: report for report in reports}
        for uuid, disk in entry.disks.items():
            report = heard.get(uuid)
            if report != disk.report:
                # Else what was made of it before is still good.
                disk.report = report
            if report is not None:
                disk.absent_since = None
            elif disk.absent_since is None:
                disk.absent_since = now
        self._refresh(entry)

    def _distrust_s(self, entry: _Server, now: float) -> float:
        timing = self.timing
        lately = sum(now - fall < timing.flap_window_s for fall in entry.falls)
        too_many = lately - timing.falls_forgiven
        if too_many <= 0:
            return 0.0
        return min(timing.flap_window_s, timing.steady_after_s * 2.0 ** (too_many - 1))

    def set_draining(self, disks: Iterable[DiskId], draining: bool) -> None:
        """As the store says now."""
        for number in disks:
            disk = self._disks.get(number)
            if disk is not None:
                disk.record = msgspec.structs.replace(disk.record, draining=draining)
                self._refresh(self._servers[disk.record.server])

    def forget(self, disks: Iterable[DiskId], server: ServerId = 0) -> None:
        """These disks are not part of the cluster any more, nor servers that had no other.

        `server`, too, if it has no disk.
        """
        if server and not self.disks_of(server):
            self._servers.pop(server, None)
        for number in disks:
            disk = self._disks.pop(number, None)
            if disk is None:
                continue
            entry = self._servers[disk.record.server]
            entry.disks.pop(disk.record.uuid, None)
            if not entry.disks:
                del self._servers[entry.record.server]
        self._moved()

    def connection_broke(self, server: ServerId) -> None:
        """The server's connection ended. Only a hint: believed if it stays silent."""
        entry = self._servers.get(server)
        if entry is not None and entry.state is DiskState.UP and entry.broke_at is None:
            entry.broke_at = self._clock()

    def tick(self) -> list[tuple[ServerRecord, DiskState]]:
        """Draw conclusions from silence. Call it a few times a second.

        Returns the servers whose state changed.
        """
        now = self._clock()
        if now - self._ticked > STALL_S:
            self._excuse(now - self._ticked)
        self._ticked = now
        changed = []
        for entry in self._servers.values():
            state = self._judge(entry, now)
            if state is not entry.state:
                if entry.state is DiskState.UP:
                    entry.falls.append(now)
                entry.state = state
                self._refresh(entry)
                changed.append((entry.record, state))
        return changed

    def _excuse(self, stall_s: float) -> None:
        self._started += stall_s
        for entry in self._servers.values():
            if entry.heard_at is not None:
                entry.heard_at = min(self._clock(), entry.heard_at + stall_s)
            if entry.broke_at is not None:
                entry.broke_at += stall_s

    def _judge(self, entry: _Server, now: float) -> DiskState:
        timing = self.timing
        silent_s = now - (self._started if entry.heard_at is None else entry.heard_at)
        if silent_s >= timing.down_after_s:
            return DiskState.DOWN
        broke = entry.broke_at is not None and now - entry.broke_at >= timing.hint_after_s
        if entry.heard_at is None or silent_s >= timing.suspect_after_s or broke:
            return DiskState.SUSPECT
        return DiskState.UP

    # ------------------------------------------------------------------ keeping in step

    def _place_disk(self, entry: _Server, record: DiskRecord) -> None:
        old = self._disks.get(record.disk)
        if old is not None and old.record.server != record.server:
            self._servers[old.record.server].disks.pop(record.uuid, None)
        disk = _Disk(record, self._locate(record, entry))
        self._disks[record.disk] = entry.disks[record.uuid] = disk

    def _locate(self, disk: DiskRecord, entry: _Server) -> DiskLocation:
        server = entry.record
        return DiskLocation(
            disk.disk, server.server, server.address, server.rack, server.zone, DiskState.SUSPECT
        )

    def _moved(self) -> None:
        """Servers or disks came or moved: the placement map must be built anew."""
        self._map = None
        self.version += 1

    def _refresh(self, entry: _Server) -> None:
        """Work out the state of each disk of a server anew."""
        for disk in entry.disks.values():
            state = _disk_state(entry, disk, self._clock())
            if state is not disk.state or state is not disk.location.state:
                disk.state = state
                disk.location = msgspec.structs.replace(disk.location, state=state)
                self.version += 1
            if self._map is not None:
                report = disk.report
                capacity, free = (report.capacity, report.free) if report else (0, 0)
                self._map.update(disk.record.disk, state, capacity, free)

    # ------------------------------------------------------------------ what is asked

    def choose(
        self,
        policy: Policy,
        *,
        random: Random,
        avoid: Collection[DiskId] = (),
        near: str = "",
        upkeep: bool = False,
    ) -> Placement:
        """See `PlacementMap.choose`."""
        return self._placement_map().choose(
            policy, random=random, avoid=avoid, near=near, upkeep=upkeep
        )

    def charge(self, disks: Iterable[DiskId], length_bytes: int) -> None:
        """See `PlacementMap.charge`."""
        self._placement_map().charge(disks, length_bytes)

    def extend(
        self,
        spread: Spread,
        present: Iterable[DiskId],
        *,
        random: Random,
        avoid: Collection[DiskId] = (),
        upkeep: bool = False,
    ) -> DiskId:
        """See `PlacementMap.extend`."""
        return self._placement_map().extend(
            spread, present, random=random, avoid=avoid, upkeep=upkeep
        )

    def allows(self, spread: Spread, present: Iterable[DiskId], disk: DiskId) -> bool:
        """See `PlacementMap.allows`."""
        return self._placement_map().allows(spread, present, disk)

    def _placement_map(self) -> PlacementMap:
        if self._map is None:
            self._map = PlacementMap(self._view(disk) for disk in self._disks.values())
        return self._map

    def _view(self, disk: _Disk) -> DiskView:
        place, report = disk.location, disk.report
        return DiskView(
            disk=disk.record.disk,
            server=place.server,
            host=place.address.rpartition(":")[0],
            address=place.address,
            path=disk.record.path,
            rack=place.rack,
            zone=place.zone,
            state=disk.state,
            capacity=report.capacity if report else 0,
            free=report.free if report else 0,
        )

    def location(self, disk: DiskId) -> DiskLocation | None:
        """Where a disk is and how it is now; None if it was never registered."""
        entry = self._disks.get(disk)
        return None if entry is None else entry.location

    def locations(self, disks: Iterable[DiskId]) -> tuple[DiskLocation, ...]:
        """Of the disks that are known, each once."""
        known = self._disks
        return tuple(known[disk].location for disk in dict.fromkeys(disks) if disk in known)

    def given_up(self, disk: DiskId) -> bool:
        """What it held is to be made anew: it is DOWN or FAILED, or unknown.

        One that its server runs without has the same grace as a silent server: it may only hang.
        """
        entry = self._disks.get(disk)
        if entry is None:
            return True
        if entry.state is DiskState.FAILED and entry.report is None:
            since = self._clock() if entry.absent_since is None else entry.absent_since
            return self._clock() - since >= self.timing.down_after_s
        return entry.state in DEAD

    def given_up_disks(self) -> list[DiskId]:
        return [number for number in self._disks if self.given_up(number)]

    def serving(self) -> list[DiskLocation]:
        """All disks that answer now."""
        return [disk.location for disk in self._disks.values() if disk.state in SERVES]

    def state(self, disk: DiskId) -> DiskState:
        """DOWN for one that is unknown."""
        entry = self._disks.get(disk)
        return DiskState.DOWN if entry is None else entry.state

    def serves(self, disk: DiskId) -> bool:
        """It answers reads now."""
        return self.state(disk) in SERVES

    def server_state(self, server: ServerId) -> DiskState:
        entry = self._servers.get(server)
        return DiskState.DOWN if entry is None else entry.state

    def is_served(self, disk: DiskId) -> bool:
        """Its server is UP, on a connection that stands, and lists it."""
        entry = self._disks.get(disk)
        if entry is None or entry.report is None:
            return False
        return self.answers(entry.record.server)

    def answers(self, server: ServerId) -> bool:
        """It is UP, on a connection that stands."""
        entry = self._servers.get(server)
        return entry is not None and entry.state is DiskState.UP and entry.broke_at is None

    def disks_of(self, server: ServerId) -> tuple[DiskId, ...]:
        entry = self._servers.get(server)
        disks = entry.disks.values() if entry else ()
        return tuple(disk.record.disk for disk in disks)

    def server(self, server: ServerId) -> ServerRecord | None:
        entry = self._servers.get(server)
        return None if entry is None else entry.record

    @property
    def server_count(self) -> int:
        """Servers registered, up or not."""
        return len(self._servers)

    def server_of(self, disk: DiskId) -> ServerId:
        """0 if the disk is unknown."""
        entry = self._disks.get(disk)
        return 0 if entry is None else entry.record.server

    def presumed_alive(self, disk: DiskId) -> bool:
        """It answers reads; or the master has just begun, and has had no time to hear from it."""
        entry = self._disks.get(disk)
        if entry is None:
            return False
        if entry.state in SERVES:
            return True
        server = self._servers[entry.record.server]
        early = self._clock() - self._started < self.timing.suspect_after_s
        return early and server.heard_at is None

    def away(self) -> list[DiskId]:
        """All disks that are not presumed alive."""
        return [disk for disk in self._disks if not self.presumed_alive(disk)]

    def totals(self) -> Totals:
        capacity = used = free = 0
        for disk in self._disks.values():
            report, state = disk.report, disk.state
            if report and state is not DiskState.DOWN and state is not DiskState.FAILED:
                capacity += report.capacity
                used += report.used
                free += report.free
        return Totals(capacity, used, free)

    def server_infos(self) -> tuple[ServerInfo, ...]:
        """All servers and their disks, in order of number."""
        now = self._clock()
        return tuple(self._info(self._servers[number], now) for number in sorted(self._servers))

    def _info(self, entry: _Server, now: float) -> ServerInfo:
        record = entry.record
        return ServerInfo(
            server=record.server,
            uuid=record.uuid,
            address=record.address,
            rack=record.rack,
            zone=record.zone,
            state=entry.state,
            version=record.version,
            last_heartbeat_s=-1.0 if entry.heard_at is None else now - entry.heard_at,
            disks=tuple(sorted(map(_disk_info, entry.disks.values()), key=_BY_NUMBER)),
        )


def _disk_state(entry: _Server, disk: _Disk, now: float) -> DiskState:
    if entry.state is not DiskState.UP:
        return entry.state
    report = disk.report
    if report is None or report.failed:
        return DiskState.FAILED
    if disk.record.draining:
        return DiskState.DRAINING
    if report.free < min(FULL_BELOW_BYTES, report.capacity // FULL_BELOW_SHARE) or not report.free:
        return DiskState.FULL
    return DiskState.UP if now >= entry.steady_at else DiskState.UNSTEADY


_BY_NUMBER: Final = attrgetter("disk")


def _disk_info(disk: _Disk) -> DiskInfo:
    """What people are told of a disk: made anew only where something has changed, for there are
    thousands of them."""
    shown = disk.shown
    record, report, state = disk.shown_as
    if (
        shown is None
        or report is not disk.report
        or state is not disk.state
        or record is not disk.record
    ):
        shown = disk.shown = _describe(disk)
        disk.shown_as = disk.record, disk.report, disk.state
    return shown


def _describe(disk: _Disk) -> DiskInfo:
    record, report = disk.record, disk.report
    error = report.error if report else ""
    if report is None and disk.state is DiskState.FAILED:
        error = "its server runs without it"
    return DiskInfo(
        disk=record.disk,
        uuid=record.uuid,
        server=record.server,
        path=record.path,
        state=disk.state,
        capacity=report.capacity if report else 0,
        used=report.used if report else 0,
        free=report.free if report else 0,
        fragments=report.fragments if report else 0,
        error=error,
    )
