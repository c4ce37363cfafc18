"""The one crossing from FUSE's threads into trio.

A thread of libfuse hands over an async function and waits for what becomes of it. While it waits
it looks now and then whether its program has been interrupted (Ctrl-C, SIGKILL); then the function
is cancelled. Nothing leaves here but results and `OSError`s: libfuse could do nothing with a
`trio.Cancelled`.
"""

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import trio

from dfs.core.errors import DfsError, refuse
from dfs.wire.bell import Bell

T = TypeVar("T")

INTERRUPT_POLL_S: Final = 0.2

log = logging.getLogger(__name__)


class _Call(Generic[T]):
    __slots__ = ("args", "error", "function", "result", "returned", "scope")

    def __init__(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.scope = trio.CancelScope()
        self.returned = threading.Lock()
        self.returned.acquire()
        self.result: T
        self.error: BaseException | None = None


class Bridge:
    """Made in trio's thread; `run` is called from others. `close` before the nursery ends."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[_Call[Any]] = deque()
        self._bell = Bell()
        self._closed = False
        nursery.start_soon(self._serve)
        self.interrupted: Callable[[], bool] = _never
        """Whether the request that the calling thread serves has been interrupted."""

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """What `await function(*args)` returns in trio's thread. Blocks the calling thread.

        Raises:
            OSError: as the function does; EINTR if the program was interrupted; EIO where the
                mount is ending, or the function failed in an unexpected way.
        """
        call = _Call(function, args)
        if not self._hand_over(call):
            raise _ending()
        while not call.returned.acquire(timeout=INTERRUPT_POLL_S):
            if self.interrupted():
                self._cancel(call)
                call.returned.acquire()
                break
        if call.error is not None:
            raise call.error
        return call.result

    def wait(self, event: threading.Event) -> None:
        """Wait for what another thread of FUSE does. Raises EINTR as `run`."""
        while not event.wait(INTERRUPT_POLL_S):
            if self.interrupted():
                raise refuse(errno.EINTR, "interrupted")

    def post(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """As `run`, for what nobody waits for: its errors are the function's to tell."""
        self._hand_over(_Call(function, args))

    def _hand_over(self, call: _Call[Any]) -> bool:
        """Have it started in trio's thread; False where the mount is ending."""
        self._waiting.append(call)
        if self._closed:
            # It may have come before the last look at what waits.
            try:
                self._waiting.remove(call)
            except ValueError:
                return True
            return False
        self._bell.ring()
        return True

    def close(self) -> None:
        """Refuse further calls. In trio's thread."""
        self._closed = True
        self._start_waiting()

    # ---------------------------------------------------------------- in trio's thread

    async def _serve(self) -> None:
        try:
            while True:
                await self._bell.heard()
                self._start_waiting()
        finally:
            self.close()

    def _start_waiting(self) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            if self._closed:
                call.error = _ending()
                call.returned.release()
            else:
                self._nursery.start_soon(self._run, call)

    async def _run(self, call: _Call[Any]) -> None:
        try:
            with call.scope:
                call.result = await call.function(*call.args)
            if call.scope.cancelled_caught:
                call.error = refuse(errno.EINTR, "interrupted")
        except OSError as error:
            call.error = error
        except Exception as error:
            log.exception("internal error in the mount; this is a bug in dfs, please report it")
            call.error = DfsError(f"internal error in the mount: {error!r}")
        except BaseException:
            call.error = _ending()
            raise
        finally:
            call.returned.release()

    def _cancel(self, call: _Call[Any]) -> None:
        try:
            self._token.run_sync_soon(call.scope.cancel)
        except trio.RunFinishedError:
            return


def _ending() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO) + " (the mount is ending)")


def _never() -> bool:
    return False
