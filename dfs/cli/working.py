"""`dfs admin jobs|rebalance|drain|undrain|remove|repair|scrub`: background work, by order."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, examples
from dfs.cli.connect import options, run
from dfs.cli.failures import DONE, FAILED
from dfs.cli.job_views import (
    DISK_NUMBERS,
    DISK_TITLES,
    LOOK_EVERY_S,
    disk_cells,
    finish,
    job_document,
    plan_document,
    print_jobs,
    print_plan,
    progress_text,
    show_plan,
)
from dfs.cli.names import show
from dfs.core.errors import ConfigError
from dfs.core.units import format_size, parse_size

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.wire.messages import JobInfo, ServerInfo

app = typer.Typer(rich_markup_mode=None)
"""Part of `dfs admin`."""

jobs_app = typer.Typer(
    help="Background work: repair, scrub, compaction, rebalance, drain.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(jobs_app, name="jobs")

_NONE: Final = frozenset(("0", "none", "unlimited"))

Bandwidth = Annotated[
    str | None,
    typer.Option(
        "--bandwidth",
        metavar="SIZE",
        help="Bytes a second at most, such as 50MiB.",
        show_default="",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan, and do nothing.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it is done.")]
Job = Annotated[int, typer.Argument(metavar="JOB", min=1, help="Its number, see `jobs list`.")]
Where = Annotated[
    list[str],
    typer.Argument(
        metavar="SERVER|DISK...",
        help="A server's number or address (all of its disks), or a disk: `disk:7`.",
        show_default=False,
    ),
]


# ------------------------------------------------------------------ jobs


@jobs_app.command("list", epilog=examples("dfs admin jobs list", "dfs admin jobs list --json"))
def list_jobs(json: Json = False) -> int:
    """List what runs, what is paused, and what ended lately; and the bandwidth budget."""

    async def body(client: "Client") -> int:
        reply = await client.admin.jobs()
        if json:
            documents = [job_document(job) for job in reply.jobs]
            render.emit_json({"jobs": documents, "budget": reply.budget or None})
            return DONE
        print_jobs(reply.jobs)
        bound = f"{format_size(reply.budget)}/s" if reply.budget else "no bound"
        print(f"\nBudget of all background work: {bound}")
        return DONE

    return run(body)


def _control(number: int, action: str, json: bool) -> int:
    async def body(client: "Client") -> int:
        job = await client.admin.control(number, action)
        if json:
            render.emit_json(job_document(job))
        else:
            print(f"job {job.job} ({job.kind}) is {job.state.name.lower()}")
        return DONE

    return run(body)


@jobs_app.command("pause", epilog=examples("dfs admin jobs pause 17"))
def pause_job(job: Job, json: Json = False) -> int:
    """Let a job rest; what it has under way is finished first."""
    return _control(job, "pause", json)


@jobs_app.command("resume", epilog=examples("dfs admin jobs resume 17"))
def resume_job(job: Job, json: Json = False) -> int:
    """Let a paused job go on."""
    return _control(job, "resume", json)


@jobs_app.command("cancel", epilog=examples("dfs admin jobs cancel 17"))
def cancel_job(job: Job, json: Json = False) -> int:
    """End a job; what it has done stays done. A drained disk stays out of use until `undrain`."""
    return _control(job, "cancel", json)


@jobs_app.command(
    "budget", epilog=examples("dfs admin jobs budget 100MiB", "dfs admin jobs budget 0")
)
def budget_command(
    bandwidth: Annotated[
        str | None,
        typer.Argument(
            metavar="[SIZE]",
            help="Bytes a second, such as 100MiB; 0: no bound.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Show or set how many bytes a second all background work together may move."""
    wanted = None if bandwidth is None else parse_bandwidth(bandwidth)

    async def body(client: "Client") -> int:
        if wanted is not None:
            await client.admin.set_budget(wanted)
        budget = (await client.admin.jobs()).budget
        if json:
            render.emit_json({"budget": budget or None})
        else:
            print(f"{format_size(budget)}/s" if budget else "no bound")
        return DONE

    return run(body)


def parse_bandwidth(text: str | None) -> int:
    """Bytes a second; 0 for no bound. Raises ConfigError."""
    if text is None or text.lower() in _NONE:
        return 0
    size = parse_size(text.removesuffix("/s"))
    if size < 1024:
        raise ConfigError(
            f"{text} a second is too little to get anywhere", hint="write 50MiB, or 0 for no bound"
        )
    return size


# ------------------------------------------------------------------ which disks


def find_disks(servers: "Sequence[ServerInfo]", words: Sequence[str]) -> list[int]:
    """Numbers of the disks that `words` name. Raises ConfigError for one that names none."""
    found: list[int] = []
    for word in words:
        if word.startswith("disk:"):
            matching = [d for s in servers for d in s.disks if str(d.disk) == word[5:]]
        else:
            matching = [
                disk
                for server in servers
                if word in (str(server.server), server.address, server.uuid)
                for disk in server.disks
            ] or [d for s in servers for d in s.disks if word in (d.uuid, f"{s.address}:{d.path}")]
        if not matching:
            raise ConfigError(
                f"there is no server or disk {word!r}",
                hint="name a server by its number or address, a disk as disk:NUMBER; see "
                "`dfs admin servers` and `dfs admin disks`",
            )
        found += [disk.disk for disk in matching]
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------ commands


@app.command(
    "rebalance",
    epilog=examples(
        "dfs admin rebalance --dry-run", "dfs admin rebalance --threshold 2% --bandwidth 50MiB"
    ),
)
def rebalance_command(
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold", metavar="PERCENT", help="How far off the average a disk's fill may be."
        ),
    ] = "5%",
    bandwidth: Bandwidth = None,
    dry_run: DryRun = False,
    wait: Wait = True,
    json: Json = False,
) -> int:
    """Fill all disks evenly, with the fewest bytes moved; nothing is ever less redundant."""
    share, pace = parse_share(threshold), parse_bandwidth(bandwidth)

    async def body(client: "Client") -> int:
        plan = await client.admin.plan("rebalance", threshold=share, bandwidth=pace)
        if dry_run:
            return show_plan(plan, json)
        if not json:
            print_plan(plan)
        if not plan.bytes:
            if json:
                render.emit_json(plan_document(plan))
            return DONE
        job = await client.admin.start("rebalance", threshold=share, bandwidth=pace)
        status = await finish(client, job, wait, json)
        if wait and not json:
            await _print_fill(client)
        return status

    return run(body)


def parse_share(text: str) -> float:
    """`5%` or `0.05`. Raises ConfigError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0.001 <= share <= 1:
        raise ConfigError(f"--threshold: {text!r} is no share", hint="write 5%, or 0.05")
    return share


async def _print_fill(client: "Client") -> None:
    rows = [
        disk_cells(disk, server.address)
        for server in await client.meta.servers()
        for disk in server.disks
    ]
    print()
    render.print_table(DISK_TITLES, rows, numbers=DISK_NUMBERS)


@app.command(
    "drain",
    epilog=examples(
        "dfs admin drain 3 --wait", "dfs admin drain node3:9421", "dfs admin drain disk:7"
    ),
)
def drain_command(
    where: Where,
    bandwidth: Bandwidth = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json: Json = False,
) -> int:
    """Move everything off a server or disk, so that it can be removed.

    Clients go on meanwhile. Refused where the rest has no room or too few servers for it.
    """
    pace = parse_bandwidth(bandwidth)

    async def body(client: "Client") -> int:
        disks = find_disks(await client.meta.servers(), where)
        if dry_run:
            plan = await client.admin.plan("drain", disks=tuple(disks), bandwidth=pace)
            return show_plan(plan, json)
        job = await client.admin.start("drain", disks=disks, bandwidth=pace)
        return await finish(client, job, wait, json)

    return run(body)


@app.command("undrain", epilog=examples("dfs admin undrain 3"))
def undrain_command(where: Where) -> int:
    """Put a server or disk that is being emptied back into use."""

    async def body(client: "Client") -> int:
        disks = find_disks(await client.meta.servers(), where)
        await client.admin.set_draining(disks, False)
        if not options.quiet:
            print(f"in use again: {', '.join(f'disk {disk}' for disk in disks)}")
        return DONE

    return run(body)


@app.command("remove", epilog=examples("dfs admin remove 3", "dfs admin remove disk:7"))
def remove_command(where: Where) -> int:
    """Forget a server or disk for good. Refused while something is only there: drain it first."""

    async def body(client: "Client") -> int:
        disks = find_disks(await client.meta.servers(), where)
        await client.admin.remove(disks=disks)
        if not options.quiet:
            print(f"removed: {', '.join(f'disk {disk}' for disk in disks)}")
        return DONE

    return run(body)


@app.command("repair", epilog=examples("dfs admin repair --wait"))
def repair_command(wait: Wait = False, json: Json = False) -> int:
    """Restore missing fragments now. It happens by itself: this only skips the pauses."""

    async def body(client: "Client") -> int:
        job = await client.admin.start("repair")
        if wait:
            job = await _until_whole(client, job)
        if json:
            render.emit_json(job_document(job))
        else:
            print(f"repair: {progress_text(job)}" + (f"; {show(job.note)}" if job.note else ""))
        return FAILED if wait and job.note else DONE

    return run(body)


async def _until_whole(client: "Client", job: "JobInfo") -> "JobInfo":
    """Until repair has nothing to do, or cannot go on."""
    import trio

    from dfs.client import Progress

    still = 0
    with render.ProgressBar("repair", items="chunks") as bar:
        while still < _QUIET_LOOKS:
            await trio.sleep(LOOK_EVERY_S)
            job = await client.admin.job(job.job)
            idle = job.items_done >= job.items_total
            status = await client.meta.status()
            unhealthy = status.chunks_degraded + status.chunks_at_risk + status.chunks_lost
            if not unhealthy and idle:
                break
            still = still + 1 if idle else 0
            bar.update(
                Progress(job.bytes_done, job.bytes_total or None, job.items_done, job.items_total)
            )
    return job


_QUIET_LOOKS: Final = 20
"""So many looks without work, while chunks still lack something: nothing more can be done now."""


@app.command("scrub", epilog=examples("dfs admin scrub --wait --bandwidth 200MiB"))
def scrub_command(bandwidth: Bandwidth = None, wait: Wait = False, json: Json = False) -> int:
    """Read and check every fragment now. It also happens by itself, all of it within two weeks."""
    pace = parse_bandwidth(bandwidth)

    async def body(client: "Client") -> int:
        job = await client.admin.start("scrub", bandwidth=pace)
        return await finish(client, job, wait, json)

    return run(body)
