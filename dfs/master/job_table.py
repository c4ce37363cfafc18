"""Jobs as the store keeps them, so that they outlive the master: pure, over a transaction.

The standing jobs, repair, scrub and compact, are always there: they can be paused, and never end.
The others are started by a person and run to their end; the last `KEPT` ended ones stay listed.
"""

from typing import Final

from msgspec.structs import replace

from dfs.core.ids import DiskId
from dfs.master.commands import JobProgress, SetBudget, SetJobState, StartJob, UpdateJobs
from dfs.master.keyspace import (
    COMPACT_JOB,
    JOB,
    META_BUDGET,
    REPAIR_JOB,
    SCRUB_JOB,
    JobRecord,
    Reader,
    Writer,
    decode_job,
    encode,
    from_u64,
    get_counters,
    job_key,
    put_counters,
    scan_prefix,
    u64,
)
from dfs.wire.messages import FIRST_FREE_JOB, JobState

KEPT: Final = 50
"""Ended jobs that stay listed."""

_STANDING: Final = {REPAIR_JOB: "repair", SCRUB_JOB: "scrub", COMPACT_JOB: "compact"}

ENDED: Final = frozenset((JobState.DONE, JobState.CANCELLED, JobState.FAILED))


def put_standing(txn: Writer, time_ns: int) -> None:
    """Write down those standing jobs that the store has not."""
    for number, kind in _STANDING.items():
        if get_job(txn, number) is not None:
            continue
        _put(
            txn,
            JobRecord(
                job=number, kind=kind, state=JobState.RUNNING, subject="", created_ns=time_ns
            ),
        )


def start(txn: Writer, command: StartJob) -> JobRecord:
    """See `StartJob`."""
    ended = []
    for job in all_jobs(txn):
        if job.state in ENDED:
            ended.append(job.job)
        elif job.kind == command.kind and job.subject == command.subject and not is_standing(job):
            return job
    for number in ended[: max(0, len(ended) - KEPT + 1)]:
        txn.delete(job_key(number))
    counters = get_counters(txn)
    put_counters(txn, replace(counters, next_job=counters.next_job + 1))
    job = JobRecord(
        job=counters.next_job,
        kind=command.kind,
        state=JobState.RUNNING,
        subject=command.subject,
        created_ns=command.time_ns,
        disks=command.disks,
        threshold=command.threshold,
        bandwidth=command.bandwidth,
        ino=command.ino,
        items_total=command.items_total,
        bytes_total=command.bytes_total,
        policy=command.policy,
    )
    _put(txn, job)
    return job


def update(txn: Writer, command: UpdateJobs) -> None:
    """See `UpdateJobs`."""
    for progress in command.jobs:
        job = get_job(txn, progress.job)
        if job is not None and job.state not in ENDED:
            _put(txn, advanced(job, progress))


def advanced(job: JobRecord, progress: JobProgress) -> JobRecord:
    """The job with what `progress` says of it."""
    return replace(
        job,
        items_done=progress.items_done,
        items_total=progress.items_total,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        failures=progress.failures,
        position=progress.position,
        note=progress.note,
        place=progress.place,
    )


def set_state(txn: Writer, command: SetJobState) -> bool:
    """See `SetJobState`."""
    job = get_job(txn, command.job)
    if job is None or job.state in ENDED:
        return False
    ended_ns = command.time_ns if command.state in ENDED else 0
    _put(txn, replace(job, state=command.state, note=command.note or job.note, ended_ns=ended_ns))
    return True


def set_budget(txn: Writer, command: SetBudget) -> None:
    """See `SetBudget`."""
    txn.put(META_BUDGET, u64(command.bandwidth))


def _put(txn: Writer, job: JobRecord) -> None:
    txn.put(job_key(job.job), encode(job))


# ------------------------------------------------------------------ reading


def is_standing(job: JobRecord) -> bool:
    return job.job < FIRST_FREE_JOB


def get_job(reader: Reader, job: int) -> JobRecord | None:
    raw = reader.get(job_key(job))
    return None if raw is None else decode_job(raw)


def all_jobs(reader: Reader) -> list[JobRecord]:
    """In order of number."""
    return [decode_job(value) for _, value in scan_prefix(reader, JOB)]


def budget(reader: Reader) -> int:
    """Bytes a second for all background work; 0: no bound."""
    raw = reader.get(META_BUDGET)
    return 0 if raw is None else from_u64(raw)


def draining_by(reader: Reader, disk: DiskId) -> JobRecord | None:
    """The job that empties this disk and has not ended."""
    for job in all_jobs(reader):
        if job.kind == "drain" and job.state not in ENDED and disk in job.disks:
            return job
    return None
