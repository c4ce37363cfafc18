"""Which disks hold a chunk, how to reach them, and which of them to ask first.

Holds what the master said of chunks and disks (a bounded cache, refreshed when a read fails),
and what this client has seen of each server: latency, failures, bytes on their way. Order of
choice: reachable and healthy, then near (host, rack, zone), then not busy, then quick.
"""

import math
from bisect import insort
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from dfs.client.meta import Meta
from dfs.core.chunk import Chunk, DiskLocation, DiskState, Fragment, FragmentState, Layout
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId, DiskId

_CHUNKS_MAX: Final = 20_000
_LOCATE_MAX: Final = 512
_SHUN_FIRST_S: Final = 1.0
_SHUN_MAX_S: Final = 15.0
_SAMPLES: Final = 64
_HEDGE_MIN_S: Final = 0.03
_HEDGE_MAX_S: Final = 1.0
_HEDGE_UNKNOWN_S: Final = 0.25
_BUSY_STEP_BYTES: Final = 8 * 1024 * 1024
_LATENCY_WEIGHT: Final = 0.2
_LARGE_BYTES: Final = 512 * 1024
_LAST_RESORT: Final = 8

_STATE_RANK: Final = {
    DiskState.UP: 0,
    DiskState.DRAINING: 0,
    DiskState.FULL: 0,
    DiskState.UNSTEADY: 0,
    DiskState.SUSPECT: 1,
    DiskState.DOWN: 2,
    DiskState.FAILED: 2,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where this client is, to read from near: its host's addresses, its rack, its zone."""

    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    rack: str = ""
    zone: str = ""

    def distance(self, disk: DiskLocation) -> int:
        if host_of(disk.address) in self.hosts:
            return 0
        if self.rack and self.rack == disk.rack and self.zone == disk.zone:
            return 1
        if self.zone and self.zone == disk.zone:
            return 2
        return 3


class _Latency:
    """How long requests of one kind took: the last few, and a moving average."""

    __slots__ = ("_ordered", "_samples", "average_s", "rank")

    def __init__(self) -> None:
        self.average_s = 0.0
        self.rank = 0
        """The average, in steps that are worth going elsewhere for."""
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._ordered: list[float] = []

    def add(self, seconds: float) -> None:
        self.average_s += _LATENCY_WEIGHT * (seconds - self.average_s)
        self.rank = int(math.log2(1 + self.average_s * 500))
        if len(self._samples) == _SAMPLES:
            self._ordered.remove(self._samples[0])
        self._samples.append(seconds)
        insort(self._ordered, seconds)

    def percentile_95_s(self) -> float | None:
        """None as long as there are too few samples to tell."""
        if len(self._ordered) < _SAMPLES // 4:
            return None
        return self._ordered[int(len(self._ordered) * 0.95)]


@dataclass(slots=True)
class _Seen:
    """What this client has seen of one server."""

    small: _Latency = field(default_factory=_Latency)
    large: _Latency = field(default_factory=_Latency)
    in_flight_bytes: int = 0
    shunned_until: float = -math.inf
    shun_s: float = 0.0


class Source(msgspec.Struct, frozen=True, eq=False):
    """A fragment and the disk it lies on."""

    fragment: Fragment
    disk: DiskLocation

    def __str__(self) -> str:
        return f"disk {self.disk.disk} at {self.disk.address}"


class Resolver:
    """See the module. Owned by the client; used by the reader and the chunk writers."""

    def __init__(self, meta: Meta, place: Place) -> None:
        self._meta = meta
        self._place = place
        self._chunks: OrderedDict[ChunkId, Chunk] = OrderedDict()
        self._disks: dict[DiskId, DiskLocation] = {}
        self._distances: dict[DiskId, int] = {}
        self._seen: dict[str, _Seen] = {}
        self._wanted: dict[ChunkId, list[_Answer]] = {}
        self._asking = False

    # ---------------------------------------------------------------- what the master says

    def learn(self, layout: Layout) -> None:
        """Take over what a reply of the master said."""
        for disk in layout.disks:
            self._disks[disk.disk] = disk
            self._distances[disk.disk] = self._place.distance(disk)
        for chunk in layout.chunks:
            self._chunks[chunk.chunk] = chunk
            self._chunks.move_to_end(chunk.chunk)
        while len(self._chunks) > _CHUNKS_MAX:
            self._chunks.popitem(last=False)

    def forget(self, chunk: ChunkId) -> None:
        self._chunks.pop(chunk, None)

    def known(self, chunk: ChunkId) -> Chunk | None:
        """What has been heard of a chunk, if anything."""
        return self._chunks.get(chunk)

    def disk(self, disk: DiskId) -> DiskLocation | None:
        return self._disks.get(disk)

    async def chunk(self, chunk: ChunkId, *, refresh: bool = False) -> Chunk | None:
        """What is known of a chunk, asked from the master if need be; None if it is gone.

        Callers that ask at the same time share one request.
        """
        if not refresh and (known := self._chunks.get(chunk)) is not None:
            return known
        answer = _Answer()
        self._wanted.setdefault(chunk, []).append(answer)
        if not self._asking:
            self._asking = True
            # Shielded, so that those who join meanwhile are not left behind.
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._asking = False
            wanted, self._wanted = self._wanted, {}
            await self._ask(wanted)
        await answer.event.wait()
        if answer.error is not None:
            raise answer.error.again()
        if not answer.given:
            return await self.chunk(chunk, refresh=refresh)
        return self._chunks.get(chunk)

    async def _ask(self, wanted: "dict[ChunkId, list[_Answer]]") -> None:
        """Ask for `wanted`, and wake all who wait; where the asker is cancelled, they ask again."""
        chunks = list(wanted)
        failure: DfsError | None = None
        given = False
        try:
            for start in range(0, len(chunks), _LOCATE_MAX):
                asked = chunks[start : start + _LOCATE_MAX]
                layout = await self._meta.locate(asked)
                for chunk in asked:
                    self.forget(chunk)
                self.learn(layout)
            given = True
        except DfsError as error:
            failure = error
        finally:
            for answers in wanted.values():
                for answer in answers:
                    answer.error = failure
                    answer.given = given
                    answer.event.set()

    # ---------------------------------------------------------------- whom to ask

    def sources(self, chunk: Chunk) -> list[Source]:
        """Fragments of a chunk on known disks, the best choice first.

        Lost and corrupt ones come last: the blocks that are asked for may still be good.
        """
        found = [
            Source(fragment, disk)
            for fragment in chunk.fragments
            if (disk := self._disks.get(fragment.disk)) is not None
        ]
        if len(found) > 1:
            now = trio.current_time()
            width = max(1, chunk.k + chunk.m)
            found.sort(key=lambda source: self._rank(source, chunk, width, now))
        return found

    def _rank(
        self, source: Source, chunk: Chunk, width: int, now: float
    ) -> tuple[int, int, int, int, int, int]:
        seen = self._seen.get(source.disk.address)
        health = _STATE_RANK.get(source.disk.state, 1)
        if source.fragment.state != FragmentState.GOOD:
            health += _LAST_RESORT
        busy = latency = 0
        if seen is not None:
            if seen.shunned_until > now:
                health += 1
            busy = seen.in_flight_bytes // _BUSY_STEP_BYTES
            latency = seen.small.rank
        index = source.fragment.index
        # Data pieces join without decoding. Copies take turns, chunk by chunk.
        parity = int(chunk.k > 1 and index >= chunk.k)
        turn = index if chunk.k > 1 else (index + chunk.chunk) % width
        return health, self._distances[source.disk.disk], parity, busy, latency, turn

    # ---------------------------------------------------------------- what we see

    def began(self, address: str, length: int) -> None:
        """A request for `length` bytes is on its way."""
        self._of(address).in_flight_bytes += length

    def ended(self, address: str, length: int) -> None:
        self._of(address).in_flight_bytes -= length

    def answered(self, address: str, length: int, seconds: float) -> None:
        """A server answered a request for `length` raw bytes: it is well, and this quick."""
        seen = self._of(address)
        seen.shunned_until = -math.inf
        seen.shun_s = 0.0
        (seen.large if length >= _LARGE_BYTES else seen.small).add(seconds)

    def failed(self, address: str) -> None:
        """A server did not answer: ask others first for a while, longer each time."""
        seen = self._of(address)
        seen.shun_s = min(max(_SHUN_FIRST_S, seen.shun_s * 2), _SHUN_MAX_S)
        seen.shunned_until = trio.current_time() + seen.shun_s

    def hedge_after_s(self, address: str, length: int) -> float:
        """How long to wait for a server before asking another one too.

        Half as long again as its 95th percentile, within bounds.
        """
        seen = self._seen.get(address)
        if seen is None:
            return _HEDGE_UNKNOWN_S
        percentile = (seen.large if length >= _LARGE_BYTES else seen.small).percentile_95_s()
        if percentile is None:
            return _HEDGE_UNKNOWN_S
        return min(max(_HEDGE_MIN_S, percentile * 1.5), _HEDGE_MAX_S)

    def _of(self, address: str) -> _Seen:
        seen = self._seen.get(address)
        if seen is None:
            seen = self._seen[address] = _Seen()
        return seen


class _Answer:
    """One caller of `Resolver.chunk` that waits."""

    __slots__ = ("error", "event", "given")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.error: DfsError | None = None
        self.given = False
        """The master was asked, and has answered."""


def host_of(address: str) -> str:
    """`host:port` -> `host`, without the brackets of IPv6."""
    return address.rpartition(":")[0].strip("[]")
