"""A running job: its rate, and what it pays of its budgets."""

import tracemalloc

import pytest
import trio
from trio.testing import MockClock

from dfs.core.errors import UnavailableError
from dfs.master.jobs.board import Bucket, RunningJob
from dfs.master.keyspace import JobRecord
from dfs.wire.messages import JobState


def make_job(*, bandwidth: int = 0, shared: int = 0) -> RunningJob:
    record = JobRecord(
        job=1,
        kind="scrub",
        state=JobState.RUNNING,
        subject="everything",
        created_ns=0,
        bandwidth=bandwidth,
    )
    return RunningJob(record, Bucket(shared))


async def test_the_rate_is_that_of_the_last_seconds(autojump_clock: MockClock) -> None:
    job = make_job()
    for amount in (1_000, 50):
        for _ in range(2_000):
            job.moved(1, amount)
            await trio.sleep(0.01)
    assert job.rate == pytest.approx(5_000, rel=0.02)
    await trio.sleep(11)
    assert job.rate == 0


async def test_a_job_that_tells_of_every_small_step_takes_no_memory_for_it(
    autojump_clock: MockClock,
) -> None:
    job = make_job()
    tracemalloc.start()
    try:
        for _ in range(50_000):
            job.moved(1, 10_000_000_000)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


async def test_what_was_not_moved_is_not_paid(autojump_clock: MockClock) -> None:
    job = make_job(bandwidth=1_000_000)

    async def move(expected: int, moved: int) -> None:
        async with job.paid(expected) as bill:
            if not moved:
                raise UnavailableError("the server is gone")
            bill.moved = moved

    with pytest.raises(UnavailableError):
        await move(60_000_000, 0)
    await move(1, 1)
    assert trio.current_time() < 1
    await move(1, 30_000_000)
    await move(1, 1)
    assert trio.current_time() == pytest.approx(30, abs=1)
