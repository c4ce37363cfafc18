"""Gathers the blocks of a range from several sources, where one alone does not do.

Asks the best source (or the best k, with erasure coding) for all blocks of a range in one
request. One that fails, answers with bad or too few records, or takes unusually long, is
joined by the next. Good records count even when others of the same answer are bad, so a range
can be read as long as each block of it has k good records anywhere.
"""

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from dfs.client.answer import Answer, Slab, uncovered
from dfs.client.question import Question
from dfs.client.resolver import Source
from dfs.client.retry import worth_retrying
from dfs.core.block import RecordHeader, decode_block
from dfs.core.chunk import Chunk
from dfs.core.errors import CorruptError, DeadlineError, DfsError, UnavailableError
from dfs.core.redundancy import Redundancy

if TYPE_CHECKING:
    from dfs.client.fetcher import Fetcher

_TICK_S: Final = 1e-6
"""Too short to wait for: added to the time of day, less is lost in rounding, and no time passes."""
_PATIENCE_S: Final = 2.0
"""After so long another source is asked, whatever it costs."""


class Group:
    """What has been gathered of one block: payloads by content index."""

    __slots__ = ("header", "payloads")

    def __init__(self, header: RecordHeader) -> None:
        self.header = header
        self.payloads: dict[int, memoryview] = {}


class Attempt:
    """One try to gather a range from the sources known now."""

    def __init__(self, fetcher: "Fetcher", chunk: Chunk, offset: int, end: int) -> None:
        self._fetcher = fetcher
        self._chunk = chunk
        self._offset = offset
        self._end = end
        self._groups: dict[int, Group] = {}
        self._slabs: list[Slab] = []
        self._errors: dict[Source, DfsError] = {}
        self._full = 0
        """Sources that answered with all that they were asked for."""
        self._changed = trio.lowlevel.ParkingLot()

    async def join(self, answers: dict[Source, Answer]) -> list[Slab] | None:
        """The blocks, from answers to questions for the whole range; None if they do not do."""
        for source, answer in answers.items():
            if self._add(source, answer, (self._offset, self._end)) is not None:
                return None
        return await self._decoded(list(answers)) if self._gap() is None else None

    async def run(
        self, sources: list[Source], questions: dict[Source, Question]
    ) -> list[Slab] | None:
        """The blocks; None when the sources do not have them all (`failure` says why).

        `questions` for the whole range have been asked already, and may have been answered.
        """
        while True:
            gathered = sum(len(group.payloads) for group in self._groups.values())
            await self._ask_until_complete(sources, questions)
            if self._gap() is None:
                return await self._decoded(sources)
            if gathered == sum(len(group.payloads) for group in self._groups.values()):
                return None
            # Some blocks came, and others hid behind a damaged record: ask for those alone.
            self._full = 0
            questions = {}

    async def _decoded(self, sources: list[Source]) -> list[Slab] | None:
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

    async def _ask_until_complete(
        self, sources: list[Source], questions: dict[Source, Question]
    ) -> None:
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
                    question = questions.get(source)
                    active[source] = trio.current_time() if question is None else question.begun
                    nursery.start_soon(self._ask, source, question, gap, active)
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

    async def _ask(
        self,
        source: Source,
        question: Question | None,
        gap: tuple[int, int],
        active: dict[Source, float],
    ) -> None:
        rest: tuple[int, int] | None = gap
        try:
            while rest is not None:
                question = question or self._fetcher.question(self._chunk, source, *rest)
                answer = await self._fetcher.answer(question)
                rest, question = self._add(source, answer, rest), None
                active[source] = trio.current_time()
        except DfsError as error:
            self._errors[source] = error
        finally:
            active.pop(source, None)
            self._changed.unpark_all()

    def _add(self, source: Source, answer: Answer, gap: tuple[int, int]) -> tuple[int, int] | None:
        """Take over an answer; what to ask of the source next, where the answer was cut."""
        index = source.fragment.index if self._chunk.k > 1 else 0
        for record in answer.records:
            header = record.header
            group = self._groups.get(header.raw_offset)
            if group is None:
                group = self._groups[header.raw_offset] = Group(header)
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
        rest = uncovered([record.header for record in answer.records], *gap)
        if rest is None:
            self._full += 1
        elif rest[0] > gap[0]:
            # Servers bound the size of an answer: of many tiny blocks it has the first ones.
            return rest
        else:
            self._errors[source] = self._fetcher.short(self._chunk, source)
        return None

    def _usable(self, group: Group) -> bool:
        return len(group.payloads) >= self._chunk.k

    def _gap(self) -> tuple[int, int] | None:
        """From the first to the last byte that cannot be had yet."""
        headers = [group.header for group in self._groups.values() if self._usable(group)]
        return uncovered(headers, self._offset, self._end)

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


def join(groups: list[Group], redundancy: Redundancy) -> list[Slab]:
    """Decode blocks from their pieces. Runs in any thread."""
    return [
        Slab(
            [(group.header.raw_offset, memoryview(raw))],
            group.header.raw_length,
        )
        for group in groups
        for raw in (decode_block(group.header, group.payloads, redundancy),)
    ]
