"""Reads blocks of a sealed chunk from the chunk servers that hold it, for background work.

Every record is verified. A source that fails, answers with bad or too few records, or takes
long, is joined by the next, and good records count even when others of the same answer are bad:
a block can be had as long as enough good records of it lie anywhere. Who failed is remembered
in `Sources.bad`, for the master.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from dfs.core.block import HEADER_BYTES, RecordHeader, parse_record
from dfs.core.errors import CorruptError, DfsError, FragmentError
from dfs.core.ids import ChunkId, DiskId
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.messages import FragmentSource, ReadRecords, RecordsReply
from dfs.wire.pool import Pool

READ_TIMEOUT_S: Final = 30.0
HEDGE_AFTER_S: Final = 3.0
"""A source that has not answered for so long is joined by the next one."""

_INLINE_BYTES: Final = 64 * 1024
"""Answers up to this size are verified here; a hop to a thread would cost more."""
_UNREACHABLE: Final = "unreachable"


class Block:
    """One block: its verified records by content index."""

    __slots__ = ("header", "payloads", "records")

    def __init__(self, header: RecordHeader) -> None:
        self.header = header
        """Of any one of the records: they differ in nothing but payload checksum and length."""
        self.payloads: dict[int, memoryview] = {}
        self.records: dict[int, memoryview] = {}
        """Header and payload, as they are stored."""


class _Answer(msgspec.Struct, frozen=True):
    """The good records of one answer, each with its bytes."""

    records: list[tuple[RecordHeader, memoryview]]
    problem: CorruptError | None
    """What is wrong with the others."""


class Sources:
    """The places where one chunk can be read. Lives as long as the work that reads it."""

    def __init__(
        self,
        pool: Pool,
        workers: Workers,
        chunk: ChunkId,
        redundancy: Redundancy,
        sources: Sequence[FragmentSource],
        *,
        index: int | None = None,
        urgent: bool = False,
    ) -> None:
        """`sources`: nearest first. `index`: the fragment that is wanted; a block that comes with
        a record of it needs no others. `workers` verify. `urgent`: as of `ReadRecords`."""
        self.chunk = chunk
        self.redundancy = redundancy
        self.index = index
        self.bad: dict[DiskId, str] = {}
        """Why a source failed: one of the reasons of `FragmentReport`."""
        self.errors: dict[DiskId, str] = {}
        """The same in words."""
        self.read_bytes = 0
        self._pool = pool
        self._workers = workers
        self._urgent = urgent
        self._sources = tuple(dict.fromkeys(sources))

    async def gather(self, offset: int, end: int) -> list[Block]:
        """The blocks that overlap raw [offset, end), in order, each with enough records.

        Raises:
            FragmentError: the sources do not have them all; says what each answered.
        """
        return await _Gathering(self, offset, end).run()

    def content_index(self, source: FragmentSource) -> int:
        return source.index if self.redundancy.k > 1 else 0

    def candidates(self) -> tuple[list[FragmentSource], list[FragmentSource]]:
        """Those that have the wanted fragment itself, and the others; failed ones come last."""
        order = sorted(self._sources, key=lambda source: source.disk in self.bad)
        if self.redundancy.k == 1:
            return [], order
        own = [source for source in order if source.index == self.index]
        return own, [source for source in order if source.index != self.index]

    async def ask(self, source: FragmentSource, offset: int, end: int) -> _Answer:
        """What one source has of a range. Raises DfsError when it has nothing to say."""
        request = ReadRecords(
            source.disk, self.chunk, offset, end - offset, background=True, urgent=self._urgent
        )
        try:
            _, payload = await self._pool.call_raw(
                source.address, request, RecordsReply, timeout_s=READ_TIMEOUT_S
            )
        except DfsError as error:
            self.note(
                source, "missing" if isinstance(error, FragmentError) else _UNREACHABLE, error
            )
            raise
        self.read_bytes += len(payload)
        index = self.content_index(source)
        if len(payload) <= _INLINE_BYTES:
            answer = _examine(payload, self.chunk, index)
        else:
            answer = await self._workers.run(_examine, payload, self.chunk, index)
        if answer.problem is not None:
            self.note(source, "corrupt", answer.problem)
        return answer

    def note(self, source: FragmentSource, reason: str, error: DfsError) -> None:
        """A source failed. The first reason stays, unless it was only out of reach."""
        if self.bad.get(source.disk, _UNREACHABLE) == _UNREACHABLE:
            self.bad[source.disk] = reason
            self.errors[source.disk] = f"{reason}: {error.message}"

    def failure(self) -> FragmentError:
        """Too few of the sources have what is needed: what each said."""
        said = "; ".join(
            f"fragment {source.index} on disk {source.disk} at {source.address}: "
            + self.errors.get(source.disk, "read")
            for source in self._sources
        )
        return FragmentError(
            f"chunk {self.chunk} ({self.redundancy}) cannot be read from its "
            f"{len(self._sources)} sources: {said or 'none was given'}"
        )


class _Gathering:
    """One range, on its way."""

    def __init__(self, sources: Sources, offset: int, end: int) -> None:
        self._sources = sources
        self._offset = offset
        self._end = end
        # By all that the records of a block agree in: two valid ones of one place that differ
        # are never put together.
        self._blocks: dict[tuple[int, ...], Block] = {}
        self._records = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> list[Block]:
        own, others = self._sources.candidates()
        while True:
            before = self._records
            await self._ask_until_complete(own, 1)
            await self._ask_until_complete(others, self._sources.redundancy.k)
            if self._gap() is None:
                return self._complete()
            if self._records == before:
                raise self._sources.failure()
            # Some records came, others hid behind a damaged one: ask for those alone.

    def _complete(self) -> list[Block]:
        blocks = {block.header.raw_offset: block for block in self._usable()}
        return [blocks[offset] for offset in sorted(blocks)]

    async def _ask_until_complete(self, candidates: list[FragmentSource], wanted: int) -> None:
        """Ask `wanted` of the candidates at a time, and one more for each that fails or lags."""
        waiting = deque(candidates)
        active: dict[FragmentSource, float] = {}
        full = 0

        async def ask(source: FragmentSource, gap: tuple[int, int]) -> None:
            nonlocal full
            try:
                full += await self._ask(source, *gap)
            except DfsError:
                pass  # noted; the next one is asked
            finally:
                del active[source]
                self._changed.unpark_all()

        async with trio.open_nursery() as nursery:
            while (gap := self._gap()) is not None:
                patience_s = math.inf
                if waiting:
                    lags = min(active.values(), default=-math.inf) + HEDGE_AFTER_S
                    patience_s = lags - trio.current_time()
                    if len(active) + full < wanted or not active or patience_s <= 0:
                        source = waiting.popleft()
                        # The one that lags has a companion now; the next is due later.
                        active = {each: trio.current_time() for each in active}
                        active[source] = trio.current_time()
                        nursery.start_soon(ask, source, gap)
                        continue
                elif not active:
                    break
                with trio.move_on_after(patience_s):
                    await self._changed.park()
            nursery.cancel_scope.cancel()

    async def _ask(self, source: FragmentSource, offset: int, end: int) -> bool:
        """Ask one source, on and on while its answers are cut; whether it had everything."""
        while True:
            answer = await self._sources.ask(source, offset, end)
            reached = self._add(source, answer)
            if answer.problem is not None:
                return False
            if reached >= end:
                return True
            if reached <= offset:
                missing = FragmentError(f"it ends before byte {end}")
                self._sources.note(source, "short", missing)
                raise missing
            offset = reached

    def _add(self, source: FragmentSource, answer: _Answer) -> int:
        """Take over an answer; the raw byte it reaches."""
        index = self._sources.content_index(source)
        reached = 0
        for header, record in answer.records:
            key = (
                header.raw_offset, header.raw_length, header.block_index,
                header.encoded_length, header.codec, header.raw_xxh3,
            )  # fmt: skip
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = Block(header)
            if index not in block.records:
                block.records[index] = record
                block.payloads[index] = record[HEADER_BYTES:]
                self._records += 1
            reached = header.raw_end
        return reached

    def _usable(self) -> list[Block]:
        k, index = self._sources.redundancy.k, self._sources.index
        return [
            block
            for block in self._blocks.values()
            if len(block.records) >= k or index in block.records
        ]

    def _gap(self) -> tuple[int, int] | None:
        """From the first to the last byte that cannot be had yet."""
        spans = sorted((b.header.raw_offset, b.header.raw_end) for b in self._usable())
        start = self._offset
        for begin, end in spans:
            if begin <= start:
                start = max(start, end)
        stop = self._end
        for begin, end in reversed(spans):
            if end >= stop:
                stop = min(stop, begin)
        return None if start >= self._end else (start, max(stop, start + 1))


def _examine(payload: memoryview, chunk: ChunkId, content_index: int) -> _Answer:
    """All good records of an answer. Behind a damaged header nothing can be found."""
    records: list[tuple[RecordHeader, memoryview]] = []
    problem: CorruptError | None = None
    position, size = 0, len(payload)
    while position < size:
        try:
            record = parse_record(
                payload, position, chunk=chunk, content_index=content_index, verify_payload=False
            )
        except CorruptError as error:
            return _Answer(records, error)
        end = position + record.length
        if record.intact:
            records.append((record.header, payload[position:end]))
        elif problem is None:
            problem = CorruptError(f"block {record.header.block_index} does not match its checksum")
        position = end
    return _Answer(records, problem)
