"""Takes requests from the kernel for pyfuse3, with no more of trio than there is to wait for.

pyfuse3's own loop passes a lock from task to task for each request, and has trio wait for the
kernel's file descriptor each time: most of the processor time of a request that is answered from
memory. What pyfuse3 needs of trio it finds in a variable of its module, so that it can run on
others (its asyncio mode does); a `RequestPump` stands in there. One of pyfuse3's workers is the
reader, and stays it for as long as what it serves needs no waiting. When that does wait, which is
seen by what it yields, another worker reads.
"""

import select
import time
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType, coroutine
from typing import Any, Final

import trio
from outcome import Value

LINGER_S: Final = 0.0003
"""A program that does one thing after the other asks again within this: it is waited for in the
kernel, unless a request waits for trio."""
SLICE_S: Final = 0.005
"""So long at most all else in the process waits for requests that need no waiting"""
SLICE_WAITED_S: Final = 0.001
"""and so long where other requests wait for something."""
_SELECT_MAX: Final = 1024
"""File descriptors that select(2) takes are below."""
_TURN: Final = object()
"""A worker yields it when it has done its request, and wants to read the next."""

_Steps = Generator[Any, Any, None]
"""A coroutine, step by step: what it yields is trio's, but for _TURN."""


class RequestPump:
    """What pyfuse3 takes for trio. Of one mount; used in trio's thread."""

    ClosedResourceError = trio.ClosedResourceError
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self) -> None:
        self._reader: trio.lowlevel.Task | None = None
        self._reading = False
        """The reader waits for a request; else it serves one."""
        self._idle: list[trio.lowlevel.Task] = []
        """Workers that have nothing to do until one is to read."""
        self._waiting = 0
        """Requests that wait for something."""
        self._passed = 0.0
        """When all else had its turn last."""

    @property
    def lowlevel(self) -> "RequestPump":
        """`trio.lowlevel`."""
        return self

    def open_nursery(self) -> "_Workers":
        """`trio.open_nursery`: where pyfuse3 starts its workers."""
        return _Workers(self)

    def Lock(self) -> "_Turn":  # noqa: N802 - as trio calls it
        """`trio.Lock`: its holder reads."""
        return _Turn()

    async def wait_readable(self, fd: int) -> None:
        """`trio.lowlevel.wait_readable`: return when there is a request."""
        self._reading = True
        try:
            slice_s = SLICE_WAITED_S if self._waiting else SLICE_S
            left_s = self._passed + slice_s - time.perf_counter()
            if left_s > 0 and fd < _SELECT_MAX:
                linger_s = 0.0 if self._waiting else min(LINGER_S, left_s)
                if select.select((fd,), (), (), linger_s)[0]:
                    return
            await trio.lowlevel.wait_readable(fd)
            self._passed = time.perf_counter()
        finally:
            self._reading = False

    # ---------------------------------------------------------------- workers

    @coroutine
    def drive(self, worker: Coroutine[Any, Any, None]) -> _Steps:
        """Run one of pyfuse3's loops, which reads when it is its turn."""
        me = trio.lowlevel.current_task()
        step: Callable[[Any], Any] = worker.send
        value: Any = None
        waits = False
        try:
            while True:
                try:
                    wanted = step(value)
                except StopIteration:
                    return
                step, value = worker.send, None
                try:
                    if wanted is not _TURN:
                        if self._reader is me and not self._reading:
                            # In the middle of a request: somebody else is to read the next.
                            waits = True
                            self._waiting += 1
                            self._pass_on(me)
                        value = yield wanted
                        continue
                    if waits:
                        waits = False
                        self._waiting -= 1
                    if self._reader is None:
                        self._reader = me
                    elif self._reader is not me:
                        yield from self._turn(me)
                except BaseException as error:  # the worker's, as if nobody stood between
                    step, value = worker.throw, error
        finally:
            self._waiting -= waits
            self._pass_on(me)

    def _pass_on(self, me: trio.lowlevel.Task) -> None:
        """Have another worker read, if it was this one's turn."""
        if self._reader is me:
            self._reader = self._idle.pop() if self._idle else None
            if self._reader is not None:
                trio.lowlevel.reschedule(self._reader, Value(None))

    async def _turn(self, me: trio.lowlevel.Task) -> None:
        """Return when it is this worker's turn to read."""
        self._idle.append(me)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(me)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class _Turn:
    """What a worker holds while it reads."""

    @coroutine
    def __aenter__(self) -> _Steps:
        yield _TURN

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        return


class _Workers:
    """A nursery whose tasks are driven by the pump."""

    def __init__(self, pump: RequestPump) -> None:
        self._pump = pump
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> "_Workers":
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)

    def start_soon(
        self, worker: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: object = None
    ) -> None:
        """Start one of pyfuse3's loops."""
        assert self._nursery is not None

        async def run() -> None:
            await self._pump.drive(worker(*args))

        self._nursery.start_soon(run, name=name)
