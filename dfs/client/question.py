"""A request for a range of a chunk, on its way to one source; and who is told when it is late.

The usual read is one question to one source that answers in time. So a question takes no task and
no timer of its own: it is sent by who wants to know, who parks until the answer is there, or until
the client's one `Alarm` says that it is late. A late one is still good: it goes on, while others
are asked as well.
"""

import math
from typing import Any, Final

import trio
from outcome import Outcome
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from dfs.client.answer import Answer
from dfs.client.resolver import Resolver, Source
from dfs.core.chunk import Chunk
from dfs.core.errors import DfsError, UnavailableError
from dfs.wire.calls import Call
from dfs.wire.messages import ReadRecords, RecordsReply
from dfs.wire.pool import Pool

READ_TIMEOUT_S: Final = 10.0


class Question:
    """Sent where that needs no waiting. Whoever made it calls `payload`, or `give_up`."""

    __slots__ = (
        "_address",
        "_begun",
        "_call",
        "_length",
        "_outcome",
        "_pool",
        "_request",
        "_resolver",
        "_task",
        "chunk",
        "sent",
        "source",
        "told",
    )

    def __init__(
        self, pool: Pool, resolver: Resolver, chunk: Chunk, source: Source, offset: int, end: int
    ) -> None:
        self.chunk = chunk
        self.source = source
        self.told: Answer | DfsError | None = None
        """What came of it, once somebody has looked."""
        self._pool = pool
        self._resolver = resolver
        self._address = source.disk.address
        self._length = end - offset
        self._request = ReadRecords(source.disk.disk, chunk.chunk, offset, end - offset)
        self._outcome: Outcome[tuple[RecordsReply, memoryview]] | None = None
        self._task: Task | None = None
        """Who waits for it."""
        self._begun = trio.current_time()
        self._call: Call | None = pool.post(
            self._address, self._request, RecordsReply, self._ended, timeout_s=READ_TIMEOUT_S
        )
        self.sent = self._call is not None
        """False: a connection has to be opened first, or its turn to be waited for."""
        if self.sent:
            resolver.began(self._address, self._length)

    @property
    def begun(self) -> float:
        """When it was made."""
        return self._begun

    async def in_time(self, alarm: "Alarm", limit_s: float) -> bool:
        """Wait for the answer, or until it is late; whether it is there.

        Only while it is `sent`. Cancelled, it is given up.
        """
        if self._outcome is None:
            alarm.set(self, self._begun + limit_s)
            try:
                await self._park()
            finally:
                alarm.unset(self)
        return self._outcome is not None

    async def payload(self) -> memoryview:
        """Wait for the answer: records, not verified. Once. Cancelled, it is given up.

        Raises:
            DfsError: what the source says, or that it does not answer.
        """
        try:
            if self.sent:
                while self._outcome is None:
                    await self._park()
                _, payload = self._outcome.unwrap()
            else:
                payload = await self._ask()
        except UnavailableError:
            self._resolver.failed(self._address)
            raise
        self._resolver.answered(self._address, self._length, trio.current_time() - self._begun)
        return payload

    async def _ask(self) -> memoryview:
        """Ask by this task, which waits for a connection first."""
        self._begun = trio.current_time()
        self._resolver.began(self._address, self._length)
        try:
            _, payload = await self._pool.call_raw(
                self._address, self._request, RecordsReply, timeout_s=READ_TIMEOUT_S
            )
        finally:
            self._resolver.ended(self._address, self._length)
        return payload

    def give_up(self) -> None:
        """Nobody wants the answer any more. Harmless when it is there."""
        if self._call is not None:
            self._call.give_up()
            self._resolver.ended(self._address, self._length)
            self._call = None

    def wake(self) -> None:
        """Have who waits look at it again."""
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def _ended(self, outcome: Outcome[Any]) -> None:
        self._resolver.ended(self._address, self._length)
        self._outcome = outcome
        # The call refers to this question: what it was answered is to go as soon as that does.
        self._call = None
        self.wake()

    async def _park(self) -> None:
        self._task = current_task()
        await wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> Abort:
        self._task = None
        self.give_up()
        return Abort.SUCCEEDED


class Alarm:
    """One timer for all questions of a client. Never later than the first that is late.

    Questions that are answered in time, as nearly all are, cost it nothing.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._due: dict[Question, float] = {}
        self._at = math.inf
        self._scope: trio.CancelScope | None = None

    def set(self, question: Question, at: float) -> None:
        """Wake who waits for the question then, unless `unset` before."""
        self._due[question] = at
        if self._scope is None:
            self._scope = trio.CancelScope()
            self._nursery.start_soon(self._watch)
        if at < self._at:
            self._at = self._scope.deadline = at

    def unset(self, question: Question) -> None:
        self._due.pop(question, None)

    async def _watch(self) -> None:
        while True:
            self._at = min(self._due.values(), default=math.inf)
            with trio.CancelScope(deadline=self._at) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            for question in [each for each, at in self._due.items() if at <= now]:
                del self._due[question]
                question.wake()
