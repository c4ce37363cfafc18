"""Threads for blocking calls of servers, with a quick way there and back.

trio's own threads serve any caller, and pay for it: a call costs 150 us of processor time. Here a
call is an item in a queue, its end an item in another and a wake-up of the event loop: half of
that, and less for who is told of the end (`start`) instead of waiting in a task. The threads are
started when they are first needed, and end with trio's run.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import trio
from outcome import Outcome, capture
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from dfs.wire.bell import Bell

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Job:
    """A call: taken once, by a thread to run it or by its caller to withdraw it."""

    __slots__ = ("_untaken", "args", "function", "outcome", "wake")

    def __init__(
        self,
        wake: Callable[[Outcome[Any]], None],
        function: Callable[..., Any],
        args: tuple[object, ...],
    ) -> None:
        self.wake: Callable[[Outcome[Any]], None] | None = wake
        """Tells who waits for it."""
        self.function = function
        self.args = args
        self.outcome: Outcome[Any]
        self._untaken = [True]

    def take(self) -> bool:
        """Whether it is the first to. From any thread: `pop` is one step of the interpreter."""
        try:
            return self._untaken.pop()
        except IndexError:
            return False


def _nothing() -> None:
    """In place of a function that shall not be called any more."""


class Threads:
    """`dfs.core.workers.Starters` by threads, at most `count` at a time. Made inside trio."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended: deque[_Job] = deque()
        self._bell = Bell()
        self._busy = 0
        """Jobs that wait or run."""
        self._started = 0

    @property
    def free(self) -> bool:
        """See `Starters`."""
        return self._busy < self._count

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """See `Workers`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(partial(reschedule, current_task()), function, args)

        def abort(_: object) -> Abort:
            return Abort.SUCCEEDED if self._withdraw(job) else Abort.FAILED

        return cast(T, await self._wait(job, abort))

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        """As `run`, but cancelling leaves a function behind that has started; it runs on."""
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(partial(reschedule, current_task()), function, args)

        def abort(_: object) -> Abort:
            self._withdraw(job)
            job.wake = None
            return Abort.SUCCEEDED

        return cast(T, await self._wait(job, abort))

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        """See `Starters`."""
        self._put(_Job(wake, function, args))

    def _withdraw(self, job: _Job) -> bool:
        """Whether it never runs."""
        if not job.take():
            return False
        self._busy -= 1
        # It stays in the queue until a thread comes to it: never, where all of them hang.
        job.function, job.args, job.wake = _nothing, (), None
        return True

    async def _wait(self, job: _Job, abort: Callable[[object], Abort]) -> object:
        self._put(job)
        return await wait_task_rescheduled(abort)

    def _put(self, job: _Job) -> None:
        if self._busy >= self._started and self._started < self._count:
            self._start()
        self._busy += 1
        self._jobs.put(job)

    def _start(self) -> None:
        name = f"{self._name} {self._started + 1}"
        threading.Thread(target=self._work, name=name, daemon=True).start()
        if not self._started:
            trio.lowlevel.spawn_system_task(self._deliver)
        self._started += 1

    async def _deliver(self) -> None:
        """Tell the callers of what has ended. Ends with trio's run, and lets the threads end."""
        try:
            while True:
                await self._bell.heard()
                while self._ended:
                    job = self._ended.popleft()
                    self._busy -= 1
                    try:
                        if job.wake is not None:
                            job.wake(job.outcome)
                    except Exception:
                        # Of one of many who wait for these threads: the others go on.
                        log.exception("what follows a call in a thread failed; this is a bug")
        finally:
            for _ in range(self._started):
                self._jobs.put(None)

    # ------------------------------------------------------------------ in the threads

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.take():
                job.outcome = capture(job.function, *job.args)
                self._ended.append(job)
                self._bell.ring()
            del job
