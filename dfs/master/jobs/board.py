"""The job model: every piece of background work that a person can see, pause, cancel and bound.

A kind of work (`Kind`) plans and runs; the board starts its jobs, writes their progress down every
few seconds, takes up what was under way when the last master ended, and holds all of them together
to one bandwidth budget. What a job moves it announces to `RunningJob.turn`, which lets it
wait while it is paused or ahead of its budget.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Protocol

import msgspec
import trio

from dfs.core.errors import DfsError, FileSystemError
from dfs.master import job_table
from dfs.master.commands import JobProgress, SetBudget, SetJobState, StartJob, UpdateJobs
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import JobRecord
from dfs.wire.messages import JobInfo, JobState, PlanReply
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

SAVE_EVERY_S: Final = 5.0
RATE_OVER_S: Final = 10.0
"""A job's rate is that of the last so many seconds."""
SAMPLE_S: Final = 0.1
"""Samples for the rate are at least so far apart: some jobs tell of thousands of items a second."""
NAP_S: Final = 0.25
"""A job that waits for its budget looks again after at most so long: it may have been changed."""
BURST_S: Final = 0.5
"""What a budget lets pass at once, in seconds of it."""
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0


class Kind(Protocol):
    """A kind of job."""

    name: str

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        """What would be done, and the command that starts it. Raises DfsError for bad input."""

    async def run(self, job: "RunningJob") -> str:
        """Do it, from `job.position` on; a last note. What it raises has it tried again."""


class Bucket:
    """A token bucket that may be overdrawn: who takes much waits afterwards."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        """Bytes a second; 0: no bound."""
        self._level = 0.0
        self._at = trio.current_time()

    def take(self, amount: int) -> None:
        self._fill()
        if self.rate:
            self._level -= amount

    def wait_s(self) -> float:
        """How long until it is not overdrawn."""
        self._fill()
        return -self._level / self.rate if self.rate and self._level < 0 else 0.0

    def _fill(self) -> None:
        now = trio.current_time()
        self._level = min(self.rate * BURST_S, self._level + (now - self._at) * self.rate)
        if not self.rate:
            self._level = 0.0
        self._at = now


class Bill:
    """What a piece of work has moved."""

    def __init__(self) -> None:
        self.moved = 0
        """Bytes."""


class RunningJob:
    """A job that has not ended: its progress, and its leave to go on."""

    def __init__(self, record: JobRecord, shared: Bucket) -> None:
        self.record = record
        self.state = record.state
        self.items_done = record.items_done
        self.items_total = record.items_total
        self.bytes_done = record.bytes_done
        self.bytes_total = record.bytes_total
        self.failures = record.failures
        self.position = record.position
        self.place = record.place
        self.note = record.note
        self.scope = trio.CancelScope()
        self._buckets = (shared, Bucket(record.bandwidth))
        self._resumed = trio.Event()
        self._samples: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        return f"<RunningJob {self.record.job} {self.record.kind} {self.state.name}>"

    def reset(self) -> None:
        """A standing job begins a new piece of work: count from nothing."""
        self.items_done = self.items_total = 0
        self.bytes_done = self.bytes_total = 0
        self.failures = 0
        self._samples.clear()

    async def turn(self, amount: int = 0) -> None:
        """Wait until the job may move on, then count `amount` bytes against its budgets."""
        await trio.lowlevel.checkpoint()
        while True:
            while self.state is JobState.PAUSED:
                await self._resumed.wait()
            wait_s = max(bucket.wait_s() for bucket in self._buckets)
            if not wait_s:
                break
            await trio.sleep(min(wait_s, NAP_S))
        for bucket in self._buckets:
            bucket.take(amount)

    @asynccontextmanager
    async def paid(self, expected: int) -> AsyncIterator[Bill]:
        """As `turn`, for work that moves about `expected` bytes: the bill says what it was."""
        await self.turn(expected)
        bill = Bill()
        try:
            yield bill
        finally:
            for bucket in self._buckets:
                bucket.take(bill.moved - expected)

    @property
    def bound(self) -> int:
        """Bytes a second that it may move just now; 0: no bound."""
        return min((bucket.rate for bucket in self._buckets if bucket.rate), default=0)

    def moved(self, items: int, amount: int) -> None:
        """So much is done."""
        now = trio.current_time()
        if not self._samples:
            self._samples.append((now, self.bytes_done))
        self.items_done += items
        self.bytes_done += amount
        if len(self._samples) == 1 or now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, self.bytes_done))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_OVER_S:
            self._samples.popleft()

    def set_state(self, state: JobState) -> None:
        self.state = state
        if state is JobState.RUNNING:
            self._resumed.set()
            self._resumed = trio.Event()
        else:
            self._samples.clear()

    @property
    def rate(self) -> float:
        """Bytes a second, lately."""
        if len(self._samples) < 2 or self.state is JobState.PAUSED:
            return 0.0
        since, then = self._samples[0]
        now = trio.current_time()
        if now - self._samples[-1][0] > RATE_OVER_S:
            return 0.0
        return (self.bytes_done - then) / max(now - since, 0.1)

    @property
    def progress(self) -> JobProgress:
        return JobProgress(
            self.record.job,
            self.items_done,
            self.items_total,
            self.bytes_done,
            self.bytes_total,
            self.failures,
            self.position,
            self.note,
            self.place,
        )

    def info(self) -> JobInfo:
        rate = self.rate
        left = self.bytes_total - self.bytes_done
        known = bool(rate) and self.bytes_total > 0
        record = msgspec.structs.replace(
            job_table.advanced(self.record, self.progress), state=self.state
        )
        return job_info(record, rate, max(0.0, left / rate) if known else -1.0)


def seconds_for(context: JobContext, amount: int, bandwidth: int) -> float:
    """How long moving `amount` bytes takes at the job's and the cluster's bound; below 0: none."""
    bounds = [rate for rate in (bandwidth, job_table.budget(context.reader)) if rate]
    return amount / min(bounds) if bounds else -1.0


def job_info(record: JobRecord, rate: float = 0.0, left_s: float = -1.0) -> JobInfo:
    """A job as people see it."""
    return JobInfo(
        job=record.job,
        kind=record.kind,
        state=record.state,
        subject=record.subject,
        created_ns=record.created_ns,
        ended_ns=record.ended_ns,
        items_done=record.items_done,
        items_total=record.items_total,
        bytes_done=record.bytes_done,
        bytes_total=record.bytes_total,
        failures=record.failures,
        rate=rate,
        left_s=left_s,
        note=record.note,
    )


class JobBoard:
    """All jobs of this master. `run` is a task of the daemon; the rest is called by the service."""

    def __init__(self, context: JobContext, kinds: Mapping[str, Kind]) -> None:
        self._context = context
        self._kinds = kinds
        self._shared = Bucket(job_table.budget(context.reader))
        self._running: dict[int, RunningJob] = {}
        self._saved: dict[int, JobProgress] = {}
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<JobBoard {len(self._running)} jobs>"

    async def run(self) -> None:
        """Take up every job that has not ended, and serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for record in job_table.all_jobs(self._context.reader):
                if record.state not in job_table.ENDED and record.kind in self._kinds:
                    self._begin(record)
            while True:
                await trio.sleep(SAVE_EVERY_S)
                try:
                    self._save()
                except DfsError as error:
                    log.warning("the progress of jobs is not written down: %s", error)

    def _begin(self, record: JobRecord) -> RunningJob:
        assert self._nursery is not None
        job = self._running[record.job] = RunningJob(record, self._shared)
        self._nursery.start_soon(self._carry_out, job)
        return job

    async def _carry_out(self, job: RunningJob) -> None:
        """Run a job to its end. Errors are logged, and it tries again."""
        kind = self._kinds[job.record.kind]
        pause_s = RETRY_FIRST_S
        with job.scope:
            while True:
                try:
                    await job.turn()
                    self._end(job, JobState.DONE, await kind.run(job))
                    return
                except DfsError as error:
                    job.note = f"{error}; trying again"
                    log.warning("%s: %s; trying again in %.0f s", kind.name, error, pause_s)
                except Exception:
                    job.note = "an error in dfs, see the master's log; trying again"
                    log.exception("%s failed; trying again in %.0f s", kind.name, pause_s)
                await trio.sleep(pause_s)
                pause_s = min(RETRY_MOST_S, 2 * pause_s)

    def _end(self, job: RunningJob, state: JobState, note: str) -> None:
        self._save()
        self._context.journal.append(
            SetJobState(self._context.now_ns(), job.record.job, state, note)
        )
        self._running.pop(job.record.job, None)
        self._saved.pop(job.record.job, None)
        log.info("%s %s: %s: %s", job.record.kind, job.record.subject, state.name.lower(), note)

    def _save(self) -> None:
        """Write down the progress of all jobs that have moved."""
        changed = []
        for number, job in self._running.items():
            progress = job.progress
            if self._saved.get(number) != progress:
                changed.append(progress)
        if changed:
            self._context.journal.append(UpdateJobs(self._context.now_ns(), tuple(changed)))
            self._saved.update((progress.job, progress) for progress in changed)

    # ------------------------------------------------------------------ for the service

    def kind(self, name: str) -> Kind:
        """Raises FileSystemError (EINVAL) for one that nobody can start."""
        kind = self._kinds.get(name)
        if kind is None:
            names = ", ".join(sorted(self._kinds))
            raise FileSystemError(f"there is no job {name!r}; there are {names}")
        return kind

    def start(self, command: StartJob) -> JobInfo:
        """Write a job down and start it; one that runs already is returned."""
        record = self._context.journal.append(command)
        job = self._running.get(record.job)
        if job is None:
            log.info("%s %s: started as job %d", record.kind, record.subject, record.job)
            job = self._begin(record)
        return job.info()

    def infos(self) -> tuple[JobInfo, ...]:
        """Every job that is written down, in order of number."""
        return tuple(
            self._running[record.job].info() if record.job in self._running else job_info(record)
            for record in job_table.all_jobs(self._context.reader)
        )

    def info(self, number: int) -> JobInfo:
        """Raises FileSystemError (EINVAL) for an unknown one."""
        job = self._running.get(number)
        if job is not None:
            return job.info()
        record = job_table.get_job(self._context.reader, number)
        if record is None:
            raise FileSystemError(f"there is no job {number}", hint="see dfs admin jobs list")
        return job_info(record)

    def control(self, number: int, action: str) -> JobInfo:
        """Pause, resume or cancel a job. Raises FileSystemError (EINVAL) where that cannot be."""
        info = self.info(number)
        job = self._running.get(number)
        if action not in _ACTIONS:
            raise FileSystemError(f"{action!r} is nothing that can be done to a job")
        if job is None:
            raise FileSystemError(
                f"job {number} ({info.kind}) has ended: it is {info.state.name.lower()}",
                hint="start it anew",
            )
        state = _ACTIONS[action]
        if state is JobState.CANCELLED and job_table.is_standing(job.record):
            raise FileSystemError(
                f"{info.kind} always runs and cannot be cancelled",
                hint=f"stop it for a time with `dfs admin jobs pause {number}`",
            )
        if state is JobState.CANCELLED:
            self._end(job, state, "cancelled")
            job.set_state(state)
            job.scope.cancel()
        elif state is not job.state:
            self._context.journal.append(SetJobState(self._context.now_ns(), number, state))
            job.set_state(state)
            log.info("job %d (%s): %s", number, info.kind, state.name.lower())
        return self.info(number)

    @property
    def budget(self) -> int:
        """Bytes a second for all jobs together; 0: no bound."""
        return self._shared.rate

    def set_budget(self, bandwidth: int) -> None:
        """Holds at once, and is written down."""
        if not 0 <= bandwidth < 1 << 50:
            raise FileSystemError(f"{bandwidth} bytes a second are no budget")
        self._context.journal.append(SetBudget(self._context.now_ns(), bandwidth))
        self._shared.rate = bandwidth
        log.info("background work may move %s bytes a second", bandwidth or "any number of")


_ACTIONS: Final = {
    "pause": JobState.PAUSED,
    "resume": JobState.RUNNING,
    "cancel": JobState.CANCELLED,
}
