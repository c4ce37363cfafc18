"""Gets raw bytes of a chunk from the disks that hold it, whatever state those are in.

Asks the best source (or the best k, with erasure coding) for all blocks of a range in one
request. One that fails, answers with bad or too few records, or takes unusually long, is
joined by the next. Every record is verified; good ones count even when others of the same
answer are bad, so a range can be read as long as each block of it has k good records anywhere.
Bad fragments are reported to the master.
"""

import math
from collections import deque
from typing import Final

import trio

from dfs.client.block_cache import Block
from dfs.client.meta import Meta
from dfs.client.reports import Reports
from dfs.client.resolver import Resolver, Source
from dfs.client.retry import Patience, worth_retrying
from dfs.core.block import (
    CODEC_RAW,
    HEADER_BYTES,
    Record,
    RecordHeader,
    decode_block,
    parse_header,
    parse_record,
)
from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import (
    CorruptError,
    DeadlineError,
    DfsError,
    DiskError,
    FragmentError,
    UnavailableError,
)
from dfs.core.ids import ChunkId
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.messages import READ_MAX_BYTES, ReadRecords, RecordsReply
from dfs.wire.pool import Pool

FETCH_MAX_BYTES: Final = READ_MAX_BYTES
READ_TIMEOUT_S: Final = 10.0
_INLINE_BYTES: Final = 256 * 1024
"""Answers up to this size are decoded here; a hop to a thread would cost more."""
_TICK_S: Final = 1e-6
"""Too short to wait for: added to the time of day, less is lost in rounding, and no time passes."""
_HEDGE_SHARE: Final = 0.05
_HEDGE_SAVED_MAX: Final = 10.0
_GIVEN_UP_S: Final = 30.0
"""So long servers that were waited for in vain are asked once and not waited for."""
_GIVEN_UP_MAX: Final = 256
_PATIENCE_S: Final = 2.0
"""After so long another source is asked, whatever it costs."""


class StaleExtentError(DfsError):
    """The chunk is gone: the extents that named it are out of date."""


class Slab:
    """Blocks that share memory: `size` bytes of it."""

    __slots__ = ("blocks", "size")

    def __init__(self, blocks: list[Block], size: int) -> None:
        self.blocks = blocks
        self.size = size


class Fetcher:
    """See the module. Owned by the client; safe to use from many tasks."""

    def __init__(
        self, meta: Meta, pool: Pool, resolver: Resolver, workers: Workers, reports: Reports
    ) -> None:
        self._meta = meta
        self._pool = pool
        self._resolver = resolver
        self._workers = workers
        self._reports = reports
        self._hedges = _HEDGE_SAVED_MAX
        self._given_up: dict[frozenset[str], float] = {}
        """Servers that were waited for in vain, together, and until when that counts."""

    async def fetch(self, chunk_id: ChunkId, offset: int, length: int) -> list[Slab]:
        """The blocks that overlap raw [offset, offset + length); at most FETCH_MAX_BYTES.

        Together they cover the range; their order is not defined. Waits for servers that are
        away as `on_unavailable` says; but whoever finds the same servers away soon after others
        have waited for them in vain does not wait as well, once for each of a thousand files.

        Raises:
            StaleExtentError: no file refers to the chunk any more.
            UnavailableError: too few of its disks can be reached.
            CorruptError: they can, and do not have the bytes any more.
        """
        patience = self._meta.link.patience()
        known: object = None
        error: DfsError | None = None
        while True:
            # Whatever went wrong, the chunk may have moved, or be of no file any more.
            chunk = await self._resolver.chunk(chunk_id, refresh=error is not None)
            if chunk is None or chunk.state in (ChunkState.DOOMED, ChunkState.RETIRED):
                self._resolver.forget(chunk_id)
                raise StaleExtentError(f"chunk {chunk_id} is gone")
            sources = self._resolver.sources(chunk)
            layout = (chunk.fragments, sorted((s.disk.disk, s.disk.address) for s in sources))
            if error is not None and layout == known and not worth_retrying(error):
                raise error
            attempt = _Attempt(self, chunk, offset, offset + length)
            slabs = await attempt.run(sources)
            if slabs is not None:
                return slabs
            error = attempt.failure()
            if layout == known and worth_retrying(error):
                await self._wait_for(attempt.away, patience, error)
            known = layout

    async def _wait_for(self, away: frozenset[str], patience: Patience, error: DfsError) -> None:
        """Pause before the next try; raises `error` where time is up, or was up for others."""
        now = trio.current_time()
        if self._given_up.get(away, -math.inf) > now:
            raise error
        try:
            await patience.pause(error)
        except DfsError:
            if len(self._given_up) >= _GIVEN_UP_MAX:
                self._given_up.clear()
            self._given_up[away] = now + _GIVEN_UP_S
            raise

    def take_hedge(self) -> bool:
        """Whether one more request may be sent to save time: a twentieth of all, and a reserve."""
        if self._hedges < 1.0:
            return False
        self._hedges -= 1.0
        return True

    async def ask(self, chunk: Chunk, source: Source, offset: int, end: int) -> "_Answer":
        """What one source has of a range, verified. Raises DfsError when it has nothing to say."""
        self._hedges = min(_HEDGE_SAVED_MAX, self._hedges + _HEDGE_SHARE)
        address, length = source.disk.address, end - offset
        request = ReadRecords(source.disk.disk, chunk.chunk, offset, length)
        begun = trio.current_time()
        self._resolver.began(address, length)
        try:
            _, payload = await self._pool.call_raw(
                address, request, RecordsReply, timeout_s=READ_TIMEOUT_S
            )
        except DfsError as error:
            if isinstance(error, UnavailableError):
                self._resolver.failed(address)
            self._report(chunk, source, error)
            raise
        finally:
            self._resolver.ended(address, length)
        self._resolver.answered(address, length, trio.current_time() - begun)
        index = source.fragment.index if chunk.k > 1 else 0
        if len(payload) <= _INLINE_BYTES or _is_raw(payload, chunk, index):
            answer = _verify(payload, chunk, index)
        else:
            answer = await self._workers.run(_verify, payload, chunk, index)
        if answer.problem is not None:
            self._report(chunk, source, answer.problem)
        return answer

    def lags(self, source: Source) -> None:
        """Another one was quicker, though it was asked later."""
        self._resolver.failed(source.disk.address)

    def hedge_after_s(self, source: Source, length: int) -> float:
        return self._resolver.hedge_after_s(source.disk.address, length)

    def short(self, chunk: Chunk, source: Source) -> FragmentError:
        """Report a fragment that ends before bytes that were acknowledged."""
        error = FragmentError(f"{source} holds fewer blocks of chunk {chunk.chunk} than it should")
        self._reports.add(chunk.chunk, source.disk.disk, "short")
        return error

    def _report(self, chunk: Chunk, source: Source, error: DfsError) -> None:
        reason = "unreachable"
        if isinstance(error, CorruptError):
            reason = "corrupt"
        elif isinstance(error, FragmentError):
            reason = "missing"
        elif not isinstance(error, DiskError | UnavailableError):
            return
        self._reports.add(chunk.chunk, source.disk.disk, reason)

    async def decode(self, chunk: Chunk, groups: "list[_Group]") -> list[Slab]:
        """Join (or rebuild) the blocks of an erasure-coded range."""
        return await self._workers.run(_join, groups, Redundancy(chunk.k, chunk.m))


class _Answer:
    """The good records of one answer; with k = 1 also what they decode to."""

    __slots__ = ("problem", "records", "slabs")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.slabs: list[Slab] = []
        self.problem: CorruptError | None = None
        """What is wrong with the others."""


class _Group:
    """What has been gathered of one block: payloads by content index."""

    __slots__ = ("header", "payloads")

    def __init__(self, header: RecordHeader) -> None:
        self.header = header
        self.payloads: dict[int, memoryview] = {}


class _Attempt:
    """One try to gather a range from the sources known now."""

    def __init__(self, fetcher: Fetcher, chunk: Chunk, offset: int, end: int) -> None:
        self._fetcher = fetcher
        self._chunk = chunk
        self._offset = offset
        self._end = end
        self._groups: dict[int, _Group] = {}
        self._slabs: list[Slab] = []
        self._errors: dict[Source, DfsError] = {}
        self._full = 0
        """Sources that answered with all that they were asked for."""
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self, sources: list[Source]) -> list[Slab] | None:
        """The blocks; None when the sources do not have them all (`failure` says why)."""
        while True:
            gathered = sum(len(group.payloads) for group in self._groups.values())
            await self._ask_until_complete(sources)
            if self._gap() is None:
                if self._chunk.k == 1:
                    return self._slabs
                try:
                    groups = [g for g in self._groups.values() if self._usable(g)]
                    return await self._fetcher.decode(self._chunk, groups)
                except CorruptError as error:
                    # Every piece matched its own checksum: this was damaged before it was split.
                    for source in sources:
                        self._errors.setdefault(source, error)
                    return None
            if gathered == sum(len(group.payloads) for group in self._groups.values()):
                return None
            # Some blocks came, and others hid behind a damaged record: ask for those alone.
            self._full = 0

    async def _ask_until_complete(self, sources: list[Source]) -> None:
        waiting = deque(sources)
        active: dict[Source, float] = {}
        """Sources that are being asked, and since when."""
        async with trio.open_nursery() as nursery:
            while (gap := self._gap()) is not None:
                wanted = len(active) + self._full < self._chunk.k or not active
                delay_s = math.inf
                if waiting:
                    delay_s = 0.0 if wanted else self._overdue(active, gap)
                if delay_s <= _TICK_S:
                    source = waiting.popleft()
                    active[source] = trio.current_time()
                    nursery.start_soon(self._ask, source, gap, active)
                elif not active:
                    break
                else:
                    with trio.move_on_after(delay_s):
                        await self._changed.park()
            for source, since in active.items():
                if trio.current_time() - since >= self._hedge_after_s(source, gap):
                    self._fetcher.lags(source)
            nursery.cancel_scope.cancel()

    def _overdue(self, active: dict[Source, float], gap: tuple[int, int]) -> float:
        """Seconds until another source should be asked because the last one takes so long."""
        source, since = next(reversed(active.items()))
        waited = trio.current_time() - since
        remaining = self._hedge_after_s(source, gap) - waited
        if remaining <= 0 and waited < _PATIENCE_S and not self._fetcher.take_hedge():
            return _PATIENCE_S - waited
        return remaining

    def _hedge_after_s(self, source: Source, gap: tuple[int, int] | None) -> float:
        start, end = gap or (self._offset, self._end)
        return self._fetcher.hedge_after_s(source, end - start)

    async def _ask(self, source: Source, gap: tuple[int, int], active: dict[Source, float]) -> None:
        rest: tuple[int, int] | None = gap
        try:
            while rest is not None:
                answer = await self._fetcher.ask(self._chunk, source, *rest)
                rest = self._add(source, answer, rest)
                active[source] = trio.current_time()
        except DfsError as error:
            self._errors[source] = error
        finally:
            active.pop(source, None)
            self._changed.unpark_all()

    def _add(self, source: Source, answer: _Answer, gap: tuple[int, int]) -> tuple[int, int] | None:
        """Take over an answer; what to ask of the source next, where the answer was cut."""
        index = source.fragment.index if self._chunk.k > 1 else 0
        for record in answer.records:
            header = record.header
            group = self._groups.get(header.raw_offset)
            if group is None:
                group = self._groups[header.raw_offset] = _Group(header)
            elif (group.header.raw_length, group.header.raw_xxh3) != (
                header.raw_length,
                header.raw_xxh3,
            ):
                # Two valid records of one place that differ: of a write that was given up.
                continue
            group.payloads[index] = record.payload
        self._slabs += answer.slabs
        if answer.problem is not None:
            self._errors[source] = answer.problem
            return None
        rest = _covers([record.header for record in answer.records], *gap)
        if rest is None:
            self._full += 1
        elif rest[0] > gap[0]:
            # Servers bound the size of an answer: of many tiny blocks it has the first ones.
            return rest
        else:
            self._errors[source] = self._fetcher.short(self._chunk, source)
        return None

    def _usable(self, group: _Group) -> bool:
        return len(group.payloads) >= self._chunk.k

    def _gap(self) -> tuple[int, int] | None:
        """From the first to the last byte that cannot be had yet."""
        headers = [group.header for group in self._groups.values() if self._usable(group)]
        return _covers(headers, self._offset, self._end)

    @property
    def away(self) -> frozenset[str]:
        """Addresses of the servers that could not be reached."""
        return frozenset(
            source.disk.address
            for source, error in self._errors.items()
            if isinstance(error, UnavailableError)
        )

    def failure(self) -> DfsError:
        """Why the attempt failed: which disks were tried, and what each answered."""
        chunk, k = self._chunk, self._chunk.k
        said = "; ".join(f"{source}: {error}" for source, error in self._errors.items())
        needed = "a good copy" if k == 1 else f"{k} good fragments of {k + chunk.m}"
        what = (
            f"chunk {chunk.chunk} ({Redundancy(k, chunk.m)}), bytes {self._offset} to {self._end}: "
            f"needs {needed}; tried {said or 'nothing: no disk that holds it is known'}"
        )
        errors = list(self._errors.values())
        if not errors or any(worth_retrying(error) for error in errors):
            kind = DeadlineError if _all_deadline(errors) else UnavailableError
            return kind(what, hint="start the servers that are down, or wait until they are back")
        return CorruptError(
            what, hint="the bytes are lost unless a disk with a good fragment comes back"
        )


def _all_deadline(errors: list[DfsError]) -> bool:
    return bool(errors) and all(isinstance(error, DeadlineError) for error in errors)


def _covers(headers: list[RecordHeader], offset: int, end: int) -> tuple[int, int] | None:
    """The hull of what blocks leave uncovered of [offset, end); None when nothing."""
    first: int | None = None
    last = offset
    at = offset
    for header in sorted(headers, key=lambda header: header.raw_offset):
        if header.raw_offset >= end:
            break
        if header.raw_offset > at:
            first = at if first is None else first
            last = header.raw_offset
        at = max(at, header.raw_end)
    if at < end:
        first = at if first is None else first
        last = end
    return None if first is None else (first, last)


def _is_raw(payload: memoryview, chunk: Chunk, index: int) -> bool:
    """Whether nothing is to be done but checksums, as far as the first record tells."""
    try:
        header = parse_header(payload, chunk=chunk.chunk, content_index=index)
    except CorruptError:
        return True
    return header.codec == CODEC_RAW or chunk.k > 1


def _verify(payload: memoryview, chunk: Chunk, index: int) -> _Answer:
    """The good records of a payload; with k = 1 decoded. Runs in any thread."""
    answer = _Answer()
    redundancy = Redundancy(chunk.k, chunk.m)
    whole = chunk.k == 1
    raw_blocks: list[Block] = []
    position, end = 0, len(payload)
    while position < end:
        try:
            header = parse_header(
                payload, chunk=chunk.chunk, content_index=index, position=position
            )
        except CorruptError as error:
            # Where the next record starts is not known.
            answer.problem = error
            break
        try:
            record = parse_record(
                payload, position, chunk=chunk.chunk, content_index=index, verify_payload=True
            )
            if whole:
                raw = decode_block(header, {0: record.payload}, redundancy)
                if header.codec == CODEC_RAW:
                    raw_blocks.append((header.raw_offset, record.payload))
                else:
                    block = (header.raw_offset, memoryview(raw))
                    answer.slabs.append(Slab([block], header.raw_length))
            answer.records.append(record)
        except CorruptError as error:
            answer.problem = error
        position += HEADER_BYTES + header.payload_length
    if raw_blocks:
        answer.slabs.append(Slab(raw_blocks, end))
    return answer


def _join(groups: list[_Group], redundancy: Redundancy) -> list[Slab]:
    """Decode blocks from their pieces. Runs in any thread."""
    return [
        Slab(
            [(group.header.raw_offset, memoryview(raw))],
            group.header.raw_length,
        )
        for group in groups
        for raw in (decode_block(group.header, group.payloads, redundancy),)
    ]
