"""Whose signals end a wait: asked of real processes, stopped so that signals stay pending."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from dfs_fuse.interrupts import Interrupts, is_interrupted
from tests.cluster import wait_until

_CHILD = """
import signal, sys
handled = lambda *_: None
{setup}
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def stopped_child(setup: str = "") -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD.format(setup=setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            os.kill(child.pid, signal.SIGSTOP)
            status = Path(f"/proc/{child.pid}/status")
            wait_until(lambda: "State:\tT" in status.read_text(), what="the child has stopped")
            yield child.pid
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("number", "setup"),
    [
        pytest.param(signal.SIGTERM, "", id="the default action ends it"),
        pytest.param(signal.SIGALRM, "", id="a timer nobody handles ends it too"),
        pytest.param(signal.SIGINT, "", id="Python handles Ctrl-C"),
        pytest.param(signal.SIGHUP, "signal.signal(signal.SIGHUP, handled)", id="handled SIGHUP"),
    ],
)
def test_a_signal_that_is_to_end_a_process_interrupts_it(
    number: signal.Signals, setup: str
) -> None:
    with stopped_child(setup) as pid:
        assert not is_interrupted(pid)
        os.kill(pid, number)
        assert is_interrupted(pid)


@pytest.mark.parametrize(
    ("number", "setup"),
    [
        (signal.SIGALRM, "signal.signal(signal.SIGALRM, handled)"),
        (signal.SIGUSR1, "signal.signal(signal.SIGUSR1, handled)"),
        (signal.SIGCHLD, "signal.signal(signal.SIGCHLD, handled)"),
        (signal.SIGTERM, "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"),
        (signal.SIGINT, "signal.signal(signal.SIGINT, signal.SIG_IGN)"),
        (signal.SIGTSTP, "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])"),
    ],
)
def test_timers_children_and_what_is_blocked_or_ignored_interrupt_nobody(
    number: signal.Signals, setup: str
) -> None:
    with stopped_child(setup) as pid:
        os.kill(pid, number)
        assert not is_interrupted(pid)


def test_who_has_ended_waits_for_nothing() -> None:
    with stopped_child() as pid:
        pass
    assert not is_interrupted(pid)
    assert not is_interrupted(0)


async def test_only_the_wait_of_the_interrupted_process_is_cancelled() -> None:
    interrupts = Interrupts()
    others_wait = trio.CancelScope()
    with stopped_child() as pid, stopped_child() as undisturbed:
        os.kill(pid, signal.SIGTERM)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupts.watch)

            async def wait(process: int) -> None:
                with interrupts.cancelling(process):
                    await trio.sleep_forever()

            async def wait_for_others() -> None:
                with others_wait:
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(wait, undisturbed)
                        waiting.start_soon(wait, 0)

            nursery.start_soon(wait_for_others)
            with trio.fail_after(10), interrupts.cancelling(pid) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
            assert not others_wait.cancel_called
            assert len(interrupts._waiting) == 1
            nursery.cancel_scope.cancel()
    assert not interrupts._waiting


async def test_a_quick_request_is_not_looked_at() -> None:
    interrupts = Interrupts()
    with stopped_child() as pid:
        os.kill(pid, signal.SIGTERM)
        with interrupts.cancelling(pid) as scope:
            await trio.lowlevel.checkpoint()
        assert not scope.cancel_called
    assert not interrupts._waiting
