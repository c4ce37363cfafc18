"""`dfs dev`: a cluster on this machine, in one command."""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from dfs.cli import ports, render
from dfs.cli.arguments import Json, examples
from dfs.cli.devcluster import (
    MOUNT,
    STOP_TIMEOUT_S,
    Definition,
    DevCluster,
    Member,
    Running,
    accepts_connections,
    default_directory,
)
from dfs.cli.failures import DONE, FAILED, StoppedError, leaves, say
from dfs.cli.names import show
from dfs.cli.process import Child, ProcessId, is_running, stop
from dfs.core.errors import ConfigError, DfsError

DEFAULT_SERVERS: Final = 4
_POLL_S: Final = 0.1
_ASK_TIMEOUT_S: Final = 2.0

app = typer.Typer(
    help="A cluster on this machine: one master and some chunk servers, each a process.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="dev")


Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir", metavar="DIR", help="Where the cluster is kept; ~/.local/share/dfs/dev by default."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=1.0, help="How long the servers may take until they serve."
    ),
]


# ------------------------------------------------------------------ start


@app.command("start", epilog=examples("dfs dev start", "dfs dev start --servers 6 --dir /data/dev"))
def start_command(
    directory: Directory = None,
    servers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help=f"Chunk servers; {DEFAULT_SERVERS} at first. More than there are: adds them.",
        ),
    ] = None,
    disks: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="Disks of each new chunk server.")
    ] = 1,
    mount: Annotated[
        str | None,
        typer.Option(metavar="POINT", help="Also mount it on this directory, until it stops."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop the cluster on Ctrl-C.")
    ] = False,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> int:
    """Start a cluster on this machine, or what does not run of it; return when it serves.

    A cluster that was stopped, or that a crash or a reboot ended, comes back with its data and its
    addresses. DIR/cluster.json tells scripts the addresses and pids.
    """
    cluster = DevCluster(directory or default_directory())
    with cluster.locked():
        definition = cluster.define(servers, disks, default_servers=DEFAULT_SERVERS)
        started = _start(cluster, definition, timeout_s=timeout)
        _mount(cluster, definition, mount)
    if json:
        render.emit_json(msgspec.to_builtins(cluster.running()))
    else:
        _say_started(cluster, definition, started)
    return _stay(cluster, talk=not json) if foreground else DONE


def _say_started(cluster: DevCluster, definition: Definition, started: list[str]) -> None:
    count = len(definition.servers)
    verb = "runs" if started else "runs already"
    print(
        f"The dev cluster {verb}: master {definition.master.address}, "
        f"{render.plural(count, 'chunk server')}, data in {cluster}"
    )
    if started and len(started) <= count:
        print(f"Started: {', '.join(started)}")
    if mounted := cluster.mount():
        print(f"Mounted on {show(mounted.point)}")
    is_default = cluster.directory == default_directory()
    if not is_default:
        print(f"  export DFS_MASTER={definition.master.address}")
    where = "" if is_default else f" --dir {shlex.quote(str(cluster.directory))}"
    print("  dfs upload -r DIRECTORY /     then: dfs ls -l /, dfs admin status")
    print(f"  dfs dev stop{where}")


def _mount(cluster: DevCluster, definition: Definition, path: str | None) -> None:
    """Mount it on `path`, unless it is; also what was mounted and lost its process.

    Raises:
        DfsError: it cannot be mounted, or is mounted elsewhere.
    """
    mounted = cluster.mount()
    if path is not None:
        from dfs_fuse.mount_table import canonical

        point = canonical(path)
    elif mounted is not None:
        point = mounted.point
    else:
        return
    if mounted is not None and MOUNT in cluster.alive():
        if mounted.point != point:
            raise DfsError(
                f"{cluster}: is mounted on {show(mounted.point)} already",
                hint=f"`dfs umount {shlex.quote(mounted.point)}` first",
            )
        return
    cluster.unmount()
    cluster.start_mount(definition, point)


def _start(cluster: DevCluster, definition: Definition, *, timeout_s: float) -> list[str]:
    """Start the members that do not run; wait until all serve. Returns their names.

    Where one fails, those that this call started are stopped again.
    """
    alive = cluster.alive()
    missing = [member for member in definition.members if member.name not in alive]
    if not missing:
        return []
    if cluster.move_taken_ports(definition, alive) and alive:
        # The chunk servers that run know the master by its old address.
        cluster.stop()
        alive = {}
        missing = definition.members
    return _launch(cluster, definition, missing, alive, timeout_s=timeout_s)


def _launch(
    cluster: DevCluster,
    definition: Definition,
    members: list[Member],
    alive: dict[str, ProcessId],
    *,
    timeout_s: float,
) -> list[str]:
    children: dict[str, Child] = {}
    try:
        for member in members:
            children[member.name] = cluster.launch(definition, member)
        identities = {name: child.identity for name, child in children.items()}
        cluster.record(definition, {**alive, **identities})
        _wait_serving(cluster, definition, children, timeout_s=timeout_s)
    except BaseException:
        stop([child.identity for child in children.values()], timeout_s=STOP_TIMEOUT_S)
        cluster.record(definition, alive)
        raise
    finally:
        for child in children.values():
            child.release()
    return list(children)


def _wait_serving(
    cluster: DevCluster, definition: Definition, children: dict[str, Child], *, timeout_s: float
) -> None:
    """Return when the master counts every chunk server as up, and all take connections.

    Raises:
        DfsError: a process ended, or it took longer than `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while True:
        for name, child in children.items():
            status = child.exit_status()
            if status is not None:
                raise DfsError(_describe_death(cluster, name, status))
        waiting = _not_serving(definition)
        if not waiting:
            return
        if time.monotonic() > end:
            raise DfsError(
                f"{waiting} does not serve after {timeout_s:g} s",
                hint=f"see {show(str(cluster.log_file(waiting)))}",
            )
        time.sleep(_POLL_S)


def _not_serving(definition: Definition) -> str:
    """The name of a member that does not serve yet; "" when all do."""
    for member in definition.members:
        if not accepts_connections(member.address):
            return member.name
    up = _servers_up(definition.master.address)
    if up is None:
        return definition.master.name
    for member in definition.servers:
        if member.address not in up:
            return member.name
    return ""


def _servers_up(master: str) -> set[str] | None:
    """Addresses of the chunk servers that the master counts as up; None if it does not answer."""
    import trio

    from dfs.client import connect
    from dfs.core.chunk import DiskState

    async def ask() -> set[str]:
        async with connect(master, on_unavailable="error") as client:
            return {
                server.address
                for server in await client.meta.servers()
                if server.state == DiskState.UP
                and all(disk.state != DiskState.FAILED for disk in server.disks)
            }

    try:
        return trio.run(ask)
    except Exception as error:
        if all(isinstance(cause, DfsError) for cause in leaves(error)):
            return None
        raise


def _describe_death(cluster: DevCluster, name: str, status: int) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    print(cluster.log_tail(name), file=sys.stderr)
    return f"{name} {how} while starting; above are the last lines of its log"


def _stay(cluster: DevCluster, *, talk: bool) -> int:
    """Watch the cluster until a signal comes, then stop it. On stdout only with `talk`."""

    def tell(line: str) -> None:
        if talk:
            print(line, flush=True)

    def interrupt(number: int, _: object) -> None:
        raise StoppedError(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    tell("Ctrl-C stops the cluster.")
    said: set[ProcessId] = set()
    try:
        while (running := cluster.running()) is not None:
            for each in running.processes:
                process = each.process(running.boot_id)
                if process not in said and not is_running(process):
                    said.add(process)
                    if each.role == MOUNT and cluster.mount() is None:
                        continue  # unmounted by somebody
                    say(
                        f"{each.name} (pid {each.pid}) has ended; see {each.log}, and start it "
                        f"again with `dfs dev restart {each.name} --dir "
                        f"{shlex.quote(str(cluster.directory))}`"
                    )
            time.sleep(_POLL_S * 5)
    except StoppedError:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with cluster.locked():
            cluster.stop()
        tell("Stopped.")
        return DONE
    tell("Stopped by another command.")
    return DONE


# ------------------------------------------------------------------ stop, restart, destroy


@app.command("stop", epilog=examples("dfs dev stop"))
def stop_command(directory: Directory = None) -> int:
    """Stop all processes of the cluster; its data stays."""
    cluster = DevCluster(directory or default_directory())
    cluster.require()
    with cluster.locked():
        stopped = cluster.stop()
    if stopped:
        print(f"Stopped: {', '.join(stopped)}. `dfs dev start` brings the same data back.")
    else:
        print(f"The dev cluster in {cluster} does not run.")
    return DONE


@app.command("restart", epilog=examples("dfs dev restart cs2", "dfs dev restart master"))
def restart_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A process: master, cs1, cs2, ...")],
    directory: Directory = None,
    timeout: Timeout = 60.0,
) -> int:
    """Stop one process, if it runs, and start it again; return when it serves."""
    cluster = DevCluster(directory or default_directory())
    cluster.require()
    with cluster.locked():
        definition = cluster.require()
        members = {member.name: member for member in definition.members}
        mounted = cluster.mount()
        if name == MOUNT and mounted is not None:
            cluster.unmount()
            cluster.start_mount(definition, mounted.point)
            print(f"Mounted on {show(mounted.point)} again.")
            return DONE
        if name not in members:
            known = [*members, MOUNT] if mounted else members
            raise ConfigError(
                f"{show(name)}: no such process here", hint=f"there are {', '.join(known)}"
            )
        alive = cluster.alive()
        if process := alive.pop(name, None):
            stop([process], timeout_s=STOP_TIMEOUT_S)
            cluster.record(definition, alive)
        if name == definition.master.name and alive and not ports.is_free(definition.master.port):
            # Moving it would leave the chunk servers that run without a master.
            raise DfsError(
                f"{definition.master.address}: another program has the port of the master",
                hint="`dfs dev stop`, then `dfs dev start`, gives it another and tells all servers",
            )
        cluster.move_taken_ports(definition, members.keys() - {name})
        _launch_one(cluster, definition, members[name], alive, timeout_s=timeout)
    print(f"{name} runs again.")
    return DONE


def _launch_one(
    cluster: DevCluster,
    definition: Definition,
    member: Member,
    alive: dict[str, ProcessId],
    *,
    timeout_s: float,
) -> None:
    """Start one member, and wait for it and those that run already; others may be down."""
    present = [each for each in definition.servers if each.name in alive or each is member]
    if member is not definition.master and definition.master.name not in alive:
        raise DfsError("the master does not run", hint="`dfs dev restart master` first")
    expected = Definition(definition.format, definition.master, present)
    children: dict[str, Child] = {member.name: cluster.launch(definition, member)}
    child = children[member.name]
    cluster.record(definition, {**alive, member.name: child.identity})
    try:
        _wait_serving(cluster, expected, children, timeout_s=timeout_s)
    finally:
        child.release()


@app.command("destroy", epilog=examples("dfs dev destroy --dir /data/dev --yes"))
def destroy_command(
    directory: Directory = None,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, delete all its data.")] = False,
) -> int:
    """Stop the cluster and delete it, with all that is stored in it."""
    cluster = DevCluster(directory or default_directory())
    definition = cluster.require()
    if not yes:
        raise ConfigError(
            f"{cluster}: destroying it deletes all that is stored in it", hint="add --yes to do so"
        )
    with cluster.locked():
        left = cluster.destroy(definition)
    print(f"Destroyed: {cluster}")
    if left:
        print(f"Other things lie there, and stay: {', '.join(show(name) for name in left)}")
    return DONE


# ------------------------------------------------------------------ status


@app.command("status", epilog=examples("dfs dev status", "dfs dev status --json"))
def status_command(directory: Directory = None, json: Json = False) -> int:
    """Show which processes of the cluster run; exit status 1 when one does not."""
    cluster = DevCluster(directory or default_directory())
    definition = cluster.require()
    alive = cluster.alive()
    states = [_member_state(cluster, member, alive) for member in definition.members]
    if mounted := cluster.mount():
        states.append(_mount_state(mounted, alive))
    missing = [state["name"] for state in states if state["state"] != "running"]
    if json:
        render.emit_json(
            {
                "directory": str(cluster.directory),
                "master": definition.master.address,
                "running": not missing,
                "processes": states,
            }
        )
    else:
        print(f"Dev cluster in {cluster}")
        _print_states(states)
    if not missing:
        return DONE
    say(f"not running: {', '.join(missing)}; `dfs dev start` starts what is missing")
    return FAILED


def _member_state(
    cluster: DevCluster, member: Member, alive: dict[str, ProcessId]
) -> dict[str, Any]:
    process = alive.get(member.name)
    if process is None:
        state = "stopped"
    else:
        state = "running" if accepts_connections(member.address) else "not serving"
    return {
        "name": member.name,
        "role": member.role,
        "state": state,
        "pid": process.pid if process else None,
        "address": member.address,
        "memory": memory_bytes(process.pid) if process else None,
        "disks": cluster.disk_paths(member),
        "log": str(cluster.log_file(member.name)),
    }


def _mount_state(mounted: Running, alive: dict[str, ProcessId]) -> dict[str, Any]:
    from dfs_fuse.about import ask

    process = alive.get(MOUNT)
    state = "stopped"
    if process is not None:
        state = "not serving"
        with contextlib.suppress(OSError):
            if ask(mounted.point, _ASK_TIMEOUT_S).pid == process.pid:
                state = "running"
    return {
        "name": mounted.name,
        "role": mounted.role,
        "state": state,
        "pid": process.pid if process else None,
        "address": "",
        "point": mounted.point,
        "memory": memory_bytes(process.pid) if process else None,
        "disks": [],
        "log": mounted.log,
    }


def memory_bytes(pid: int) -> int | None:
    """Resident bytes of a process; None where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def _print_states(states: Iterable[dict[str, Any]]) -> None:
    rows = [
        [
            state["name"],
            state["state"],
            str(state["pid"] or "-"),
            state["address"] or show(state["point"]),
            render.human(state["memory"]) if state["memory"] else "-",
            show(state["log"]),
        ]
        for state in states
    ]
    styles = {"running": "32", "stopped": "1;31", "not serving": "33"}
    render.print_table(
        ("Name", "State", "Pid", "Address", "Memory", "Log"),
        rows,
        numbers=frozenset({"Pid", "Memory"}),
        styles=styles,
    )
