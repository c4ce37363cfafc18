"""How much a scrub does at a time, and that it judges what is there, not what was there once."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfs.core.ids import ChunkId, DiskId
from dfs.master.jobs.board import Bucket, RunningJob
from dfs.master.jobs.mover import Mover
from dfs.master.jobs.purge import PurgeFragments
from dfs.master.jobs.scrub import AT_ONCE, ROUND_S, Scrub, at_once_for
from dfs.master.keyspace import JobRecord
from dfs.wire.messages import FragmentVerdict, JobState, VerifyFragment
from tests.unit.master.bench import LENGTH, Bench


def test_a_round_of_a_big_cluster_ends_in_two_weeks() -> None:
    """If a chunk takes some seconds, as clients go first."""
    assert at_once_for(1000, 1) == 1
    assert at_once_for(1000, AT_ONCE) == AT_ONCE
    assert 10_000_000 * 4 / at_once_for(10_000_000, 1) < ROUND_S
    assert at_once_for(10**12, 1) < 1000


class Verifiers:
    """Servers that have what `bench` says they have; `before` an answer, things may happen."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._call = bench.servers.call
        self.before: Callable[[VerifyFragment], Awaitable[None]] = self._nothing
        self.asked = 0
        bench.servers.call = self.call  # type: ignore[method-assign]

    async def _nothing(self, _: VerifyFragment) -> None:
        await trio.lowlevel.checkpoint()

    async def call(self, address: str, request: Any, reply: type, *, timeout_s: float) -> Any:
        if not isinstance(request, VerifyFragment):
            return await self._call(address, request, reply, timeout_s=timeout_s)
        self.asked += 1
        await self.before(request)
        here = self._bench.chunk(request.chunk).on(request.disk)
        if here is None or here.index != request.index:
            return FragmentVerdict("missing", "there is another", 0)
        return FragmentVerdict("", "", LENGTH)


async def move(bench: Bench, chunk: ChunkId, index: int, disk: DiskId) -> None:
    """A fragment comes to another disk, and goes where it was."""
    assert bench.place(chunk, index, disk)
    await PurgeFragments(bench.context).run_once()


def scrub(bench: Bench, state: JobState = JobState.RUNNING) -> tuple[Scrub, RunningJob]:
    record = JobRecord(job=9, kind="scrub", state=state, subject="", created_ns=0)
    return Scrub(bench.context, Mover(bench.context)), RunningJob(record, Bucket(0))


async def test_a_scrub_that_goes_on_after_a_pause_judges_what_is_there_by_then(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    servers = Verifiers(bench)
    job_kind, job = scrub(bench, JobState.PAUSED)
    ended: list[str] = []

    async def run() -> None:
        ended.append(await job_kind.run(job))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await move(bench, chunk, 2, 4)
        await move(bench, chunk, 0, 3)
        job.set_state(JobState.RUNNING)
    assert ended == ["all fragments are whole"]
    assert servers.asked == 3
    assert len(bench.chunk(chunk).good) == 3
    assert bench.chunk(chunk).verified_s


async def test_what_was_moved_while_a_server_looked_for_it_is_not_called_lost(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    servers = Verifiers(bench)

    async def meanwhile(request: VerifyFragment) -> None:
        if request.disk == 3:
            await move(bench, chunk, 2, 4)
            await move(bench, chunk, 0, 3)

    servers.before = meanwhile
    job_kind, job = scrub(bench)
    assert await job_kind.run(job) == "all fragments are whole"
    assert len(bench.chunk(chunk).good) == 3
    assert not bench.chunk(chunk).verified_s, "not all of it was seen"
