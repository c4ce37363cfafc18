"""Threads for blocking calls: results, errors, cancellation, how many there are, and their end."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from outcome import Outcome

from dfs.wire.threads import Threads

DEADLINE_S = 20.0


async def test_results_and_errors_arrive_with_who_asked() -> None:
    def fail(number: int) -> None:
        raise OSError(number, "so it is")

    threads = Threads(3, "test")
    found: dict[int, int] = {}

    async def ask(number: int) -> None:
        found[number] = await threads.run(pow, number, 2)

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(ask, number)
    assert found == {number: number * number for number in range(500)}
    with pytest.raises(OSError, match="so it is") as caught:
        await threads.run(fail, 7)
    assert caught.value.errno == 7


async def test_who_starts_a_call_is_told_of_its_end_on_the_event_loop() -> None:
    threads = Threads(1, "test")
    told: list[tuple[int, Outcome[int]]] = []
    done = trio.Event()

    def note(outcome: Outcome[int]) -> None:
        told.append((threading.get_ident(), outcome))
        if len(told) == 2:
            done.set()

    threads.start(note, int, "5")
    threads.start(note, int, "five")
    assert not told
    with trio.fail_after(DEADLINE_S):
        await done.wait()
    assert [thread for thread, _ in told] == [threading.get_ident()] * 2
    assert told[0][1].unwrap() == 5
    with pytest.raises(ValueError, match="five"):
        told[1][1].unwrap()
    assert await threads.run(int, "6") == 6


async def test_no_more_run_at_a_time_than_may() -> None:
    running: set[int] = set()
    most: list[int] = []

    def work() -> None:
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.005)
        running.discard(threading.get_ident())

    threads = Threads(2, "test")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(threads.run, work)
    assert max(most) == 2
    assert len(most) == 20


async def test_what_waits_can_be_cancelled_and_what_runs_is_waited_for() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        ran.append("first")

    threads = Threads(1, "test")
    running, waiting = trio.CancelScope(), trio.CancelScope()
    ended: list[str] = []

    async def call(name: str, scope: trio.CancelScope, function: Callable[[], None]) -> None:
        with scope:
            await threads.run(function)
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "running", running, first)
        await trio.to_thread.run_sync(begun.wait, DEADLINE_S)
        nursery.start_soon(call, "waiting", waiting, partial(ran.append, "second"))
        await trio.testing.wait_all_tasks_blocked()
        waiting.cancel()
        running.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["waiting"]
        go_on.set()
    assert ended == ["waiting", "running"]
    assert ran == ["first"]
    assert await threads.run(int, "5") == 5


async def test_what_may_be_abandoned_is_not_waited_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    threads = Threads(1, "test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run_abandonable, hang)
        await trio.to_thread.run_sync(begun.wait, DEADLINE_S)
        nursery.cancel_scope.cancel()
    go_on.set()
    assert await threads.run_abandonable(int, "5") == 5


def test_they_end_with_the_run_they_were_made_in() -> None:
    names: list[str] = []

    async def main() -> None:
        threads = Threads(4, "ending")
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(threads.run, time.sleep, 0.001)
        names.extend(each.name for each in threading.enumerate() if each.name.startswith("ending"))

    trio.run(main)
    assert 1 <= len(names) <= 4
    end = time.monotonic() + DEADLINE_S
    while any(each.name.startswith("ending") for each in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_what_is_withdrawn_keeps_nothing_though_all_threads_hang() -> None:
    class Payload:
        pass

    threads = Threads(1, "test")
    go_on = threading.Event()
    payloads: list[weakref.ref[Payload]] = []
    tasks: list[weakref.ref[trio.lowlevel.Task]] = []

    async def ask() -> None:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        tasks.append(weakref.ref(trio.lowlevel.current_task()))
        with trio.move_on_after(0.001):
            await threads.run(id, payload)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, go_on.wait, DEADLINE_S)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(ask)
        gc.collect()
        alive = [sum(each() is not None for each in kept) for kept in (payloads, tasks)]
        go_on.set()
    assert max(alive) <= 1, "the last one may still be in trio's hands"


@pytest.mark.allow_logs("what follows a call in a thread failed")
async def test_a_fault_in_what_follows_one_call_is_not_the_end_of_the_others() -> None:
    def fail(_: Outcome[int]) -> None:
        raise OSError("a fault")

    threads = Threads(2, "test")
    threads.start(fail, int, "5")
    with trio.fail_after(DEADLINE_S):
        assert await threads.run(int, "6") == 6
        assert threads.free
