"""Client processes at work at the same time, as those of many machines are."""

import multiprocessing
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Final, TypeAlias

import trio

import dfs.client
from dfs.client import Client
from scripts.benchmarks.harness import MIB

SMALL_BYTES: Final = 4096
_START_S: Final = 120.0

_Phases: TypeAlias = dict[str, tuple[float, float, list[float]]]
"""By name: operations, seconds, and the seconds of each."""


@dataclass(frozen=True)
class Done:
    """What all of them did: operations (or MiB) a second, and times of one, in milliseconds."""

    rate: float
    median_ms: float
    slow_ms: float
    """Of a hundred, one took longer."""


def small_files(master: str, home: str, clients: int, seconds: float) -> dict[str, Done]:
    """Each writes files of 4 KiB into a directory of its own, then reads some of them at random."""
    return _together(_small, master, home, clients, seconds)


def streams(master: str, home: str, clients: int, size_mib: int) -> dict[str, Done]:
    """Each writes a file, then reads the one its neighbour wrote."""
    return _together(_stream, master, home, clients, float(size_mib))


class _Worker:
    """What one process tells of its phases."""

    def __init__(self, number: int, amount: float, client: Client, home: str, start: Barrier):
        self.number = number
        self.amount = amount
        self.client = client
        self.home = f"{home}/{number}"
        self.start = start
        self.told: _Phases = {}

    @contextmanager
    def phase(self, name: str, times: list[float]) -> Iterator[None]:
        """All begin together."""
        self.start.wait(_START_S)
        begun = time.perf_counter()
        yield
        self.told[name] = (float(len(times)), time.perf_counter() - begun, times)


async def _small(worker: _Worker) -> None:
    client, rng = worker.client, random.Random(worker.number)
    await client.mkdir(worker.home)
    content = os.urandom(SMALL_BYTES)
    times: list[float] = []
    with worker.phase("small files written", times):
        end = time.perf_counter() + worker.amount
        while (begun := time.perf_counter()) < end:
            await client.write_file(f"{worker.home}/f{len(times)}", content)
            times.append(time.perf_counter() - begun)
    count, times = len(times), []
    with worker.phase("small files read", times):
        end = time.perf_counter() + worker.amount
        while (begun := time.perf_counter()) < end:
            if await client.read_file(f"{worker.home}/f{rng.randrange(count)}") != content:
                raise RuntimeError("what is read is not what was written")
            times.append(time.perf_counter() - begun)


async def _stream(worker: _Worker) -> None:
    client, content = worker.client, random.Random(1).randbytes(MIB)
    home = worker.home.rpartition("/")[0]
    times: list[float] = []
    with worker.phase("written", times):
        async with await client.open(worker.home, "w") as file:
            for _ in range(int(worker.amount)):
                begun = time.perf_counter()
                await file.write(content)
                times.append(time.perf_counter() - begun)
            await file.fsync()
    worker.start.wait(_START_S)
    names = sorted([entry.name.decode() async for entry in client.scandir(home)])
    neighbour = names[(names.index(str(worker.number)) + 1) % len(names)]
    times = []
    with worker.phase("read", times):
        async with await client.open(f"{home}/{neighbour}", "r") as file:
            for _ in range(int(worker.amount)):
                begun = time.perf_counter()
                if await file.read(MIB) != content:
                    raise RuntimeError("what is read is not what was written")
                times.append(time.perf_counter() - begun)


_Act: TypeAlias = Callable[[_Worker], Awaitable[None]]


def _together(act: _Act, master: str, home: str, clients: int, amount: float) -> dict[str, Done]:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(clients)
    told: SimpleQueue[_Phases | str] = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(act, master, home, number, amount, start, told))
        for number in range(clients)
    ]
    for worker in workers:
        worker.start()
    answers = [told.get() for _ in workers]
    for worker in workers:
        worker.join()
    phases: dict[str, list[tuple[float, float, list[float]]]] = {}
    for answer in answers:
        if isinstance(answer, str):
            raise RuntimeError(answer)
        for name, figures in answer.items():
            phases.setdefault(name, []).append(figures)
    return {name: _sum(figures) for name, figures in phases.items()}


def _work(
    act: _Act,
    master: str,
    home: str,
    number: int,
    amount: float,
    start: Barrier,
    told: "SimpleQueue[_Phases | str]",
) -> None:
    async def run() -> None:
        async with dfs.client.connect(master) as client:
            worker = _Worker(number, amount, client, home, start)
            await act(worker)
            told.put(worker.told)

    try:
        trio.run(run)
    except BaseException as error:
        start.abort()
        told.put(f"client {number} failed: {error!r}")


def _sum(figures: list[tuple[float, float, list[float]]]) -> Done:
    times = sorted(time for _, _, times in figures for time in times)
    rate = sum(count for count, _, _ in figures) / max(seconds for _, seconds, _ in figures)
    return Done(rate, 1e3 * times[len(times) // 2], 1e3 * times[len(times) * 99 // 100])
