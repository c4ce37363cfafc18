"""`dfs admin`: the state of the cluster, for those who run it."""

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from dfs.cli import backups, checking, job_views, planning, render, rewriting, working
from dfs.cli.arguments import Json, examples
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED, say
from dfs.cli.locating import AT_RISK, DEGRADED, HEALTHY, LOST, STYLES, describe_chunk, disk_state
from dfs.cli.names import show
from dfs.core.space import divide

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.wire.messages import DiskInfo, JobInfo, ServerInfo, SessionInfo, StatusReply

app = typer.Typer(
    help="The state of the cluster: health, servers, disks, chunks, sessions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.add_typer(working.app)
app.add_typer(rewriting.app)
app.add_typer(planning.app, name="plan")


def register(parent: typer.Typer) -> None:
    checking.register(app)
    backups.register(app)
    parent.add_typer(app, name="admin")


_CHUNK_PAGE: Final = 1000


class Health(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    AT_RISK = "at-risk"
    LOST = "lost"


_HEALTH: Final = {
    Health.HEALTHY: HEALTHY,
    Health.DEGRADED: DEGRADED,
    Health.AT_RISK: AT_RISK,
    Health.LOST: LOST,
}


# ------------------------------------------------------------------ documents


def disk_document(disk: "DiskInfo") -> dict[str, Any]:
    return {
        "disk": disk.disk,
        "uuid": disk.uuid,
        "server": disk.server,
        "path": disk.path,
        "state": disk_state(disk.state),
        "capacity": disk.capacity,
        "used": disk.used,
        "free": disk.free,
        "fragments": disk.fragments,
        "error": disk.error,
    }


def server_document(server: "ServerInfo") -> dict[str, Any]:
    return {
        "server": server.server,
        "uuid": server.uuid,
        "address": server.address,
        "rack": server.rack,
        "zone": server.zone,
        "state": disk_state(server.state),
        "version": server.version,
        "last_heartbeat_s": server.last_heartbeat_s,
        "capacity": sum(disk.capacity for disk in server.disks),
        "used": sum(disk.used for disk in server.disks),
        "free": sum(disk.free for disk in server.disks),
        "fragments": sum(disk.fragments for disk in server.disks),
        "disks": [disk_document(disk) for disk in server.disks],
    }


def session_document(session: "SessionInfo") -> dict[str, Any]:
    return {
        "session": session.session,
        "client": session.client,
        "address": session.address,
        "opened_ns": session.opened_ns,
        "renewed_s": session.renewed_s,
        "open_files": session.open_files,
        "open_chunks": session.open_chunks,
    }


def status_document(status: "StatusReply", jobs: "tuple[JobInfo, ...]") -> dict[str, Any]:
    return {
        "cluster": status.cluster,
        "version": status.version,
        "uptime_s": status.uptime_s,
        "health": _verdict(status),
        "problems": list(status.problems),
        "capacity": status.capacity,
        "used": status.used,
        "free": status.free,
        "space": msgspec.structs.asdict(divide(status)),
        "inodes": status.inodes,
        "live": status.live,
        "chunks": {
            "total": status.chunks,
            "open": status.chunks_open,
            "retired": status.chunks_retired,
            "healthy": status.chunks_healthy,
            "degraded": status.chunks_degraded,
            "at_risk": status.chunks_at_risk,
            "lost": status.chunks_lost,
            "deleting": status.purge_queue,
        },
        "purge_queue": status.purge_queue,
        "jobs": [job_views.job_document(job) for job in jobs],
        "servers": [server_document(server) for server in status.servers],
    }


def _verdict(status: "StatusReply") -> str:
    if status.chunks_lost:
        return LOST
    if status.chunks_at_risk:
        return AT_RISK
    if status.chunks_degraded or status.problems:
        return DEGRADED
    return HEALTHY


# ------------------------------------------------------------------ commands


@app.command("status", epilog=examples("dfs admin status", "dfs admin status --json"))
def status_command(json: Json = False) -> int:
    """Show the cluster's health on one screen; exit status 1 when data is at risk or lost."""

    async def body(client: "Client") -> int:
        status = await client.meta.status()
        jobs = (await client.admin.jobs()).jobs
        if json:
            render.emit_json(status_document(status, jobs))
        else:
            _print_status(status, jobs)
        if not (status.chunks_at_risk or status.chunks_lost):
            return DONE
        say(
            f"data is at risk: {status.chunks_at_risk} chunks have nothing to spare, "
            f"{status.chunks_lost} are lost; bring servers back, see `dfs admin servers`"
        )
        return FAILED

    return run(body)


def _print_status(status: "StatusReply", jobs: "tuple[JobInfo, ...]") -> None:
    verdict = _verdict(status)
    space = divide(status)
    live = render.human(status.live)
    purge = f", {status.purge_queue} being deleted" if status.purge_queue else ""
    if status.chunks_retired:
        purge += f"; {status.chunks_retired} more are kept for older backups"
    lines = (
        ("Cluster", f"{status.cluster}, dfs {status.version}, {_up(status.uptime_s)}"),
        ("Health", render.paint(verdict, STYLES[verdict])),
        (
            "Capacity",
            f"{render.human(status.capacity)}: {render.human(status.used)} used "
            f"({render.percent(status.used, status.capacity)}), "
            f"{render.human(status.free)} free",
        ),
        (
            "Space",
            f"{render.human(space.live)} live, {render.human(space.dead)} dead, "
            f"{render.human(space.redundancy)} redundancy",
        ),
        ("Files", f"{status.inodes} inodes, {live} of content"),
        (
            "Chunks",
            f"{status.chunks}: {status.chunks_healthy} healthy, {status.chunks_degraded} degraded, "
            f"{status.chunks_at_risk} at risk, {status.chunks_lost} lost"
            f" ({status.chunks_open} open{purge})",
        ),
    )
    for title, value in lines:
        print(f"{title:<9} {value}")
    for problem in status.problems:
        print(f"{'':<9} - {show(problem)}")
    _print_work([job for job in jobs if job_views.is_at_work(job)])
    print()
    _print_servers(status.servers)


def _print_work(jobs: "list[JobInfo]") -> None:
    """What is being done, a line each."""
    lines = []
    for job in jobs:
        about = f" of {show(job.subject)}" if job.subject else ""
        state = " (paused)" if job.state.name == "PAUSED" else ""
        note = f"; {show(job.note)}" if job.note else ""
        lines.append(f"{job.kind}{about}{state}: {job_views.progress_text(job)}{note}")
    for number, line in enumerate(lines or ["nothing to do"]):
        print(f"{'' if number else 'Work':<9} {line}")


def _up(seconds: float) -> str:
    return f"master up {render.duration(seconds)}"


@app.command("servers", epilog=examples("dfs admin servers"))
def servers_command(json: Json = False) -> int:
    """List the chunk servers: state, room, last heartbeat."""

    async def body(client: "Client") -> int:
        servers = await client.meta.servers()
        if json:
            render.emit_json({"servers": [server_document(each) for each in servers]})
        else:
            _print_servers(servers)
        return DONE

    return run(body)


def _print_servers(servers: "tuple[ServerInfo, ...]") -> None:
    rows = []
    for server in servers:
        capacity = sum(disk.capacity for disk in server.disks)
        used = sum(disk.used for disk in server.disks)
        heard = server.last_heartbeat_s
        rows.append(
            [
                str(server.server),
                server.address,
                disk_state(server.state),
                f"{render.duration(heard)} ago" if heard >= 0 else "not yet",
                "/".join(filter(None, (server.zone, server.rack))) or "-",
                str(len(server.disks)),
                render.human(capacity),
                render.human(used),
                render.percent(used, capacity),
                server.version,
            ]
        )
    titles = (
        "Server", "Address", "State", "Heard", "Zone/rack", "Disks", "Size", "Used", "Use%",
        "Version",
    )  # fmt: skip
    numbers = frozenset({"Server", "Disks", "Size", "Used", "Use%"})
    render.print_table(titles, rows, numbers=numbers, styles=STYLES)


@app.command("disks", epilog=examples("dfs admin disks"))
def disks_command(json: Json = False) -> int:
    """List the disks of all chunk servers: state, room, fragments, errors."""

    async def body(client: "Client") -> int:
        servers = await client.meta.servers()
        disks = [(server, disk) for server in servers for disk in server.disks]
        if json:
            documents = [
                {**disk_document(disk), "address": server.address} for server, disk in disks
            ]
            render.emit_json({"disks": documents})
            return DONE
        rows = [
            [
                str(disk.disk),
                server.address,
                show(disk.path),
                disk_state(disk.state),
                render.human(disk.capacity),
                render.human(disk.used),
                render.human(disk.free),
                render.percent(disk.used, disk.capacity),
                str(disk.fragments),
                show(disk.error),
            ]
            for server, disk in disks
        ]
        titles = (
            "Disk", "Server", "Path", "State", "Size", "Used", "Free", "Use%", "Fragments", "Error",
        )  # fmt: skip
        numbers = frozenset({"Disk", "Size", "Used", "Free", "Use%", "Fragments"})
        render.print_table(titles, rows, numbers=numbers, styles=STYLES)
        return DONE

    return run(body)


@app.command(
    "chunks", epilog=examples("dfs admin chunks --health at-risk --health lost", "dfs admin chunks")
)
def chunks_command(
    wanted: Annotated[
        list[Health] | None,
        typer.Option("--health", help="Only chunks of this health. Repeated: any."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="At most so many.")
    ] = 1_000_000,
    json: Json = False,
) -> int:
    """List chunks: redundancy, health, length, and which disks hold them."""
    healths = {_HEALTH[each] for each in wanted or Health}

    async def body(client: "Client") -> int:
        found: list[dict[str, Any]] = []
        after, more = 0, True
        while more and len(found) < limit:
            page = await client.meta.chunks(after, _CHUNK_PAGE)
            disks = {disk.disk: disk for disk in page.layout.disks}
            for chunk in page.chunks:
                described = describe_chunk(chunk, disks)
                if described["health"] in healths and len(found) < limit:
                    fragments = [
                        {"index": each.index, "disk": each.disk, "state": each.state.name.lower()}
                        for each in chunk.fragments
                    ]
                    found.append({**described, "owner": chunk.owner, "fragments": fragments})
            more = page.more and bool(page.chunks)
            after = page.chunks[-1].chunk if page.chunks else after
        if json:
            render.emit_json({"chunks": found})
        else:
            _print_chunks(found)
        return DONE

    return run(body)


def _print_chunks(chunks: list[dict[str, Any]]) -> None:
    rows = [
        [
            str(chunk["chunk"]),
            chunk["state"],
            chunk["redundancy"],
            chunk["health"],
            render.human(chunk["length"]),
            render.percent(chunk["live"], chunk["length"]),
            " ".join(
                f"{each['disk']}" + ("" if each["state"] == "good" else f"({each['state']})")
                for each in chunk["fragments"]
            ),
        ]
        for chunk in chunks
    ]
    titles = ("Chunk", "State", "Redundancy", "Health", "Length", "Live", "Disks")
    numbers = frozenset({"Chunk", "Length", "Live"})
    render.print_table(titles, rows, numbers=numbers, styles=STYLES)


@app.command("sessions", epilog=examples("dfs admin sessions"))
def sessions_command(json: Json = False) -> int:
    """List the clients that have a session: who, since when, what they hold open."""

    async def body(client: "Client") -> int:
        sessions = await client.meta.sessions()
        if json:
            render.emit_json({"sessions": [session_document(each) for each in sessions]})
            return DONE
        now_s = time.time()
        rows = [
            [
                str(each.session),
                show(each.client),
                each.address,
                render.duration(max(0.0, now_s - each.opened_ns / 1e9)),
                f"{render.duration(each.renewed_s)} ago",
                str(each.open_files),
                str(each.open_chunks),
            ]
            for each in sessions
        ]
        titles = ("Session", "Client", "Address", "Age", "Renewed", "Open files", "Open chunks")
        numbers = frozenset({"Session", "Open files", "Open chunks"})
        render.print_table(titles, rows, numbers=numbers)
        return DONE

    return run(body)
