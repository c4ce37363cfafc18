"""From FUSE's threads into trio: what returns, what is raised, and what ends a wait."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
import trio

from dfs.core.errors import UnavailableError
from dfs_fuse.bridge import Bridge

DEADLINE_S = 20.0


@contextmanager
def bridge() -> Iterator[Bridge]:
    """One to trio in another thread, which ends as a mount's does."""
    made: SimpleQueue[tuple[Bridge, trio.Event, trio.lowlevel.TrioToken]] = SimpleQueue()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            here, end = Bridge(nursery), trio.Event()
            made.put((here, end, trio.lowlevel.current_trio_token()))
            await end.wait()
            here.close()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    here, end, token = made.get(timeout=DEADLINE_S)
    try:
        yield here
    finally:
        token.run_sync_soon(end.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


class Outcome:
    """What becomes of a call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._call, args=(function, *args), daemon=True)
        self._thread.start()

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self.result = function(*args)
        except BaseException as error:
            self.error = error

    def wait(self) -> "Outcome":
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self


async def add(*numbers: int) -> int:
    await trio.lowlevel.checkpoint()
    return sum(numbers)


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


def test_many_threads_get_each_its_own_answer() -> None:
    with bridge() as here:

        def ask(first: int) -> list[int]:
            return [here.run(add, first, number) for number in range(200)]

        outcomes = [Outcome(ask, 1000 * thread) for thread in range(8)]
        for thread, outcome in enumerate(outcomes):
            assert outcome.wait().result == [1000 * thread + number for number in range(200)]


def test_errors_with_a_number_arrive_as_they_are() -> None:
    with bridge() as here:
        with pytest.raises(FileNotFoundError) as caught:
            here.run(fail, FileNotFoundError(errno.ENOENT, "nothing there"))
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(UnavailableError, match="chunk 5"):
            here.run(fail, UnavailableError("chunk 5 is away"))
        assert here.run(add, 1, 2) == 3


@pytest.mark.allow_logs("bug in dfs")
def test_other_errors_become_eio_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with bridge() as here:
        with pytest.raises(OSError) as caught:
            here.run(fail, KeyError("unexpected"))
        assert caught.value.errno == errno.EIO
        assert here.run(add, 1, 2) == 3
    assert "KeyError" in caplog.text


def test_an_interrupted_program_waits_no_longer() -> None:
    with bridge() as here:
        interrupted = threading.Event()
        here.interrupted = interrupted.is_set
        waiting = Outcome(here.run, trio.sleep_forever)
        on_event = Outcome(here.wait, threading.Event())
        assert here.run(add, 1) == 1
        interrupted.set()
        for outcome in (waiting.wait(), on_event.wait()):
            assert isinstance(outcome.error, OSError)
            assert outcome.error.errno == errno.EINTR


def test_an_answer_that_comes_in_time_is_kept_by_who_is_interrupted() -> None:
    async def answers_all_the_same() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            # Shielded: what has been done must be told.
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
        return "done"

    with bridge() as here:
        here.interrupted = lambda: True
        assert here.run(answers_all_the_same) == "done"


def test_a_mount_that_ends_leaves_nobody_waiting() -> None:
    with bridge() as here:
        waiting = [Outcome(here.run, trio.sleep_forever) for _ in range(4)]
        assert here.run(add, 1) == 1
    for outcome in waiting:
        assert isinstance(outcome.wait().error, OSError)
    with pytest.raises(OSError, match="the mount is ending") as caught:
        here.run(add, 1)
    assert caught.value.errno == errno.EIO
    here.post(add, 1)


def test_what_nobody_waits_for_is_done() -> None:
    done = threading.Event()

    async def do() -> None:
        done.set()

    with bridge() as here:
        here.post(do)
        assert done.wait(DEADLINE_S)
        here.post(fail, FileNotFoundError(errno.ENOENT, "its own to tell"))
        assert here.run(add, 1) == 1
