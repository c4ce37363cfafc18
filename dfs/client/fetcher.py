"""Gets raw bytes of a chunk from the disks that hold it, whatever state those are in.

The usual read has one question for the best source, and its answer is whole, in time and
verified: nothing else is set up for it. Whatever is not so goes on as an `Attempt` with several
sources, which takes the question over. Every record is verified. Bad fragments are reported to
the master.
"""

import math
from typing import Final

import trio

from dfs.client.answer import Answer, Slab, is_cheap, uncovered, verify
from dfs.client.gathering import Attempt, Group, join
from dfs.client.meta import Meta
from dfs.client.question import Alarm, Question
from dfs.client.reports import Reports
from dfs.client.resolver import Resolver, Source
from dfs.client.retry import Patience, worth_retrying
from dfs.core.chunk import Chunk, ChunkState
from dfs.core.errors import (
    CorruptError,
    DfsError,
    DiskError,
    FragmentError,
    UnavailableError,
)
from dfs.core.ids import ChunkId
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.messages import READ_MAX_BYTES
from dfs.wire.pool import Pool

FETCH_MAX_BYTES: Final = READ_MAX_BYTES
_HEDGE_SHARE: Final = 0.05
_HEDGE_SAVED_MAX: Final = 10.0
_GIVEN_UP_S: Final = 30.0
"""So long servers that were waited for in vain are asked once and not waited for."""
_GIVEN_UP_MAX: Final = 256
_GONE: Final = (ChunkState.DOOMED, ChunkState.RETIRED)


class StaleExtentError(DfsError):
    """The chunk is gone: the extents that named it are out of date."""


class Fetcher:
    """See the module. Owned by the client; safe to use from many tasks."""

    def __init__(
        self,
        meta: Meta,
        pool: Pool,
        resolver: Resolver,
        workers: Workers,
        reports: Reports,
        nursery: trio.Nursery,
    ) -> None:
        self._meta = meta
        self._pool = pool
        self._resolver = resolver
        self._workers = workers
        self._reports = reports
        self._alarm = Alarm(nursery)
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
        end = offset + length
        known: object = None
        error: DfsError | None = None
        while True:
            # Whatever went wrong, the chunk may have moved, or be of no file any more.
            chunk = self._resolver.known(chunk_id) if error is None else None
            if chunk is None:
                chunk = await self._resolver.chunk(chunk_id, refresh=error is not None)
            if chunk is None or chunk.state in _GONE:
                self._resolver.forget(chunk_id)
                raise StaleExtentError(f"chunk {chunk_id} is gone")
            sources = self._resolver.sources(chunk)
            if error is not None:
                layout = _layout(chunk, sources)
                if layout == known and not worth_retrying(error):
                    raise error
            questions = {
                source: self.question(chunk, source, offset, end) for source in sources[: chunk.k]
            }
            try:
                slabs = await self._in_time(chunk, questions, offset, end)
                if slabs is not None:
                    return slabs
                attempt = Attempt(self, chunk, offset, end)
                slabs = await attempt.run(sources, questions)
            finally:
                for question in questions.values():
                    question.give_up()
            if slabs is not None:
                return slabs
            error = attempt.failure()
            layout = _layout(chunk, sources)
            if layout == known and worth_retrying(error):
                await self._wait_for(attempt.away, patience, error)
            known = layout

    async def _in_time(
        self, chunk: Chunk, questions: dict[Source, Question], offset: int, end: int
    ) -> list[Slab] | None:
        """The usual case: all that is needed comes in time, and is good. None: it is not that."""
        if len(questions) < chunk.k:
            return None
        answers: dict[Source, Answer] = {}
        for source, question in questions.items():
            limit_s = self.hedge_after_s(source, end - offset)
            if not question.sent or not await question.in_time(self._alarm, limit_s):
                return None
            try:
                answer = await self.answer(question)
            except DfsError:
                return None
            headers = [record.header for record in answer.records]
            if answer.problem is not None or uncovered(headers, offset, end) is not None:
                return None
            if chunk.k == 1:
                return answer.slabs
            answers[source] = answer
        return await Attempt(self, chunk, offset, end).join(answers)

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

    async def ask(self, chunk: Chunk, source: Source, offset: int, end: int) -> Answer:
        """What one source has of a range, verified. Raises DfsError when it has nothing to say."""
        return await self.answer(self.question(chunk, source, offset, end))

    def question(self, chunk: Chunk, source: Source, offset: int, end: int) -> Question:
        """What `answer` waits for; on its way now, where that needs no waiting."""
        self._hedges = min(_HEDGE_SAVED_MAX, self._hedges + _HEDGE_SHARE)
        return Question(self._pool, self._resolver, chunk, source, offset, end)

    async def answer(self, question: Question) -> Answer:
        """What a source has, verified; the same each time. Raises DfsError as `ask`."""
        if question.told is None:
            try:
                question.told = await self._verified(question)
            except DfsError as error:
                question.told = error
                self._report(question, error)
        if isinstance(question.told, DfsError):
            raise question.told
        return question.told

    async def _verified(self, question: Question) -> Answer:
        payload = await question.payload()
        chunk = question.chunk
        index = question.source.fragment.index if chunk.k > 1 else 0
        if is_cheap(payload, chunk, index):
            answer = verify(payload, chunk, index)
        else:
            answer = await self._workers.run(verify, payload, chunk, index)
        if answer.problem is not None:
            self._report(question, answer.problem)
        return answer

    def lags(self, source: Source) -> None:
        """Another one was quicker, though it was asked later."""
        self._resolver.failed(source.disk.address)

    def hedge_after_s(self, source: Source, length: int) -> float:
        return self._resolver.hedge_after_s(source.disk.address, length)

    def short(self, chunk: Chunk, source: Source) -> FragmentError:
        """Report a fragment that ends before bytes that were acknowledged."""
        error = FragmentError(f"{source} holds fewer blocks of chunk {chunk.chunk} than it should")
        self._reports.add(chunk.chunk, source.disk.disk, "short", source.fragment.index)
        return error

    def _report(self, question: Question, error: DfsError) -> None:
        reason = "unreachable"
        if isinstance(error, CorruptError):
            reason = "corrupt"
        elif isinstance(error, FragmentError):
            reason = "missing"
        elif not isinstance(error, DiskError | UnavailableError):
            return
        source = question.source
        self._reports.add(question.chunk.chunk, source.disk.disk, reason, source.fragment.index)

    async def decode(self, chunk: Chunk, groups: list[Group]) -> list[Slab]:
        """Join (or rebuild) the blocks of an erasure-coded range."""
        return await self._workers.run(join, groups, Redundancy(chunk.k, chunk.m))


def _layout(chunk: Chunk, sources: list[Source]) -> object:
    """What a second try depends on: where it is the same as before, it ends the same."""
    return chunk.fragments, sorted((s.disk.disk, s.disk.address) for s in sources)
