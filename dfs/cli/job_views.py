"""Jobs of background work, and plans of them, as people and scripts see them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from dfs.cli import render
from dfs.cli.connect import options
from dfs.cli.failures import DONE, FAILED, say
from dfs.cli.names import show
from dfs.core.units import format_size

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.wire.messages import DiskInfo, JobInfo, PlannedDisk, PlanReply

LOOK_EVERY_S: Final = 0.5


def job_document(job: "JobInfo") -> dict[str, Any]:
    return {
        "job": job.job,
        "kind": job.kind,
        "state": job.state.name.lower(),
        "subject": job.subject,
        "created_ns": job.created_ns,
        "ended_ns": job.ended_ns,
        "items_done": job.items_done,
        "items_total": job.items_total,
        "bytes_done": job.bytes_done,
        "bytes_total": job.bytes_total,
        "failures": job.failures,
        "rate": job.rate,
        "left_s": None if job.left_s < 0 else job.left_s,
        "note": job.note,
    }


def plan_document(plan: "PlanReply") -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "subject": plan.subject,
        "items": plan.items,
        "bytes": plan.bytes,
        "seconds": None if plan.seconds < 0 else plan.seconds,
        "disks": [
            {
                "disk": disk.disk,
                "server": disk.server,
                "address": disk.address,
                "path": disk.path,
                "capacity": disk.capacity,
                "used": disk.used,
                "used_after": disk.used_after,
            }
            for disk in plan.disks
        ],
        "notes": list(plan.notes),
        "refusal": plan.refusal,
    }


def progress_text(job: "JobInfo") -> str:
    """How far a job is, in a few words."""
    if not job.items_total and not job.bytes_done:
        return "nothing to do" if job.state.name == "RUNNING" else "-"
    done = f"{job.items_done} of {job.items_total} {_items(job)}"
    if job.bytes_done or job.bytes_total:
        done += f", {format_size(job.bytes_done)} of {format_size(job.bytes_total)}"
    if job.rate:
        done += f", {format_size(job.rate)}/s"
    if job.left_s >= 0 and job.rate:
        done += f", {render.duration(job.left_s)} left"
    return done


def _items(job: "JobInfo") -> str:
    return f"{_item(job)}s"


def _item(job: "JobInfo") -> str:
    return "file" if job.kind == "convert" else "chunk"


def is_at_work(job: "JobInfo") -> bool:
    """It has something to do, or is held up."""
    from dfs.wire.messages import FIRST_FREE_JOB

    if job.state.name not in ("RUNNING", "PAUSED"):
        return False
    busy = job.items_done < job.items_total or bool(job.note)
    return job.state.name == "PAUSED" or busy or job.job >= FIRST_FREE_JOB


def print_jobs(jobs: "Sequence[JobInfo]") -> None:
    rows = [
        [
            str(job.job),
            job.kind,
            job.state.name.lower(),
            show(job.subject) or "-",
            progress_text(job),
            show(job.note),
        ]
        for job in jobs
    ]
    titles = ("Job", "Kind", "State", "About", "Progress", "Note")
    render.print_table(titles, rows, numbers=frozenset({"Job"}), styles=_STYLES)


_STYLES: Final = {"running": "32", "paused": "33", "failed": "31", "cancelled": "2", "done": "2"}


# ------------------------------------------------------------------ plans, and waiting


_MOVES_FRAGMENTS: Final = frozenset(("rebalance", "drain"))


def print_plan(plan: "PlanReply") -> None:
    pace = f", about {render.duration(plan.seconds)}" if plan.seconds >= 0 else ""
    about = f" {show(plan.subject)}" if plan.subject else ""
    item = "fragment" if plan.kind in _MOVES_FRAGMENTS else "chunk"
    moved = render.plural(plan.items, item)
    print(f"{plan.kind}{about}: {format_size(plan.bytes)} in {moved}{pace}")
    for note in plan.notes:
        print(f"  {show(note)}")
    if plan.disks:
        rows = [
            [
                *disk_cells(disk, disk.address),
                render.human(disk.used_after),
                _share(disk.used_after, disk.capacity),
            ]
            for disk in plan.disks
        ]
        print()
        render.print_table((*DISK_TITLES, "After", "After%"), rows, numbers=DISK_NUMBERS)
    if plan.refusal:
        print(f"\nIt would be refused: {show(plan.refusal)}")


DISK_TITLES: Final = ("Disk", "Server", "Path", "Size", "Used", "Use%")
DISK_NUMBERS: Final = frozenset({"Disk", "Size", "Used", "Use%", "After", "After%"})


def disk_cells(disk: "DiskInfo | PlannedDisk", address: str) -> list[str]:
    return [
        str(disk.disk),
        address,
        show(disk.path),
        render.human(disk.capacity),
        render.human(disk.used),
        _share(disk.used, disk.capacity),
    ]


def show_plan(plan: "PlanReply", json: bool) -> int:
    """What --dry-run says; its exit status."""
    if json:
        render.emit_json(plan_document(plan))
    else:
        print_plan(plan)
    return FAILED if plan.refusal else DONE


def _share(part: int, whole: int) -> str:
    """To a tenth of a percent: a rebalance is about small differences."""
    return f"{part * 100 / whole:.1f}%" if whole else "-"


async def _follow(client: "Client", job: "JobInfo") -> "JobInfo":
    """Show a job's progress until it has ended. Ctrl-C leaves it running."""
    import trio

    from dfs.client import Progress

    try:
        with render.ProgressBar(job.kind, items=_items(job)) as bar:
            while job.state.name in ("RUNNING", "PAUSED"):
                bar.update(
                    Progress(
                        job.bytes_done, job.bytes_total or None, job.items_done, job.items_total
                    )
                )
                await trio.sleep(LOOK_EVERY_S)
                job = await client.admin.job(job.job)
    except trio.Cancelled:
        if not options.quiet:
            say(f"the job goes on; to end it: dfs admin jobs cancel {job.job}")
        raise
    return job


async def finish(client: "Client", job: "JobInfo", wait: bool, json: bool) -> int:
    """What a command that started a job says; its exit status."""
    if wait:
        job = await _follow(client, job)
    if json:
        render.emit_json(job_document(job))
    elif not wait:
        print(f"{job.kind} is job {job.job}; see it with `dfs admin jobs list`")
    else:
        moved = f"{render.plural(job.items_done, _item(job))}, {format_size(job.bytes_done)}"
        print(f"{job.kind} {job.state.name.lower()}: {moved}; {show(job.note)}")
    return FAILED if job.state.name in ("FAILED", "CANCELLED") else DONE
