"""The one shape of background work, and the jobs that need no chunk server."""

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from dfs.core.errors import SessionError, UnavailableError
from dfs.master.commands import OpenSession
from dfs.master.jobs.flush import FlushLog
from dfs.master.jobs.loop import BACKOFF_FIRST_S, BACKOFF_MOST_S, Job, run_forever
from dfs.master.journal import LocalJournal
from dfs.master.leases import Leases
from dfs.master.state import State
from dfs.master.store import MemoryStore
from tests.unit.master.grid import InlineWorkers


class Scripted:
    """A job that does what its script says, and notes when."""

    name = "testing"
    idle_s = 1.0

    def __init__(self, *script: bool | Exception) -> None:
        self.script = list(script)
        self.ran_at: list[float] = []

    async def run_once(self) -> bool:
        self.ran_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        step = self.script.pop(0) if self.script else False
        if isinstance(step, Exception):
            raise step
        return step


async def run_for(job: Job, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await run_forever(job)


async def test_a_job_runs_on_while_there_is_more_and_rests_otherwise(
    autojump_clock: MockClock,
) -> None:
    job = Scripted(True, True, False, True, False)
    await run_for(job, 3.5)
    assert job.ran_at == [0, 0, 0, 1, 1, 2, 3]


@pytest.mark.allow_logs("testing: away", "testing failed")
async def test_a_failing_job_backs_off_logs_and_goes_on(autojump_clock: MockClock) -> None:
    failures = [UnavailableError("away"), ValueError("a bug")] * 6
    job = Scripted(*failures)
    await run_for(job, 1000)
    pauses = [later - before for before, later in pairwise(job.ran_at)]
    assert pauses[:3] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]
    assert max(pauses) == BACKOFF_MOST_S
    assert pauses[-1] == job.idle_s


class CountingStore(MemoryStore):
    """Counts syncs."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0

    def sync(self) -> None:
        self.syncs += 1


async def test_the_log_is_flushed_within_a_second_and_only_when_there_is_something(
    autojump_clock: MockClock,
) -> None:
    store = CountingStore()
    journal = LocalJournal(State(store), InlineWorkers())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_forever, FlushLog(journal))
        await trio.sleep(3.1)
        assert store.syncs == 0
        for turn in range(3):
            journal.append(OpenSession(0, "c", turn))
            await trio.sleep(1.0)
            assert store.syncs == turn + 1
        nursery.cancel_scope.cancel()


def test_leases_run_out_the_longest_silent_first() -> None:
    now = 0.0
    leases = Leases(10.0, lambda: now)
    leases.grant([1, 2])
    ended: dict[float, list[int]] = {}
    for now in range(18):
        if now == 5:
            leases.heard(3)
            leases.renew(1)
        ended[now] = leases.expired()
    assert ended[10] == []
    assert ended[11] == [2]
    assert ended[15] == [2]
    assert ended[16] == [2, 1, 3]
    assert leases.silent_s(2) == 17
    leases.forget(2)
    with pytest.raises(SessionError):
        leases.renew(2)
    assert leases.expired() == [1, 3]


def test_no_lease_runs_out_while_the_master_itself_was_held_up() -> None:
    now = 0.0
    leases = Leases(10.0, lambda: now)
    leases.grant([1])
    now = 4.0
    assert leases.expired() == []
    now = 500.0
    assert leases.expired() == []
    now = 504.0
    assert leases.expired() == []
    now = 507.0
    assert leases.expired() == [1]
