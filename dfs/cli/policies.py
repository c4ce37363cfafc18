"""`dfs policy`: how the bytes of files are kept, and which files."""

import errno
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfs.cli import job_views, render, working
from dfs.cli.arguments import Json, RemotePath, RemotePaths, examples
from dfs.cli.attributes import change_each
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.names import document, remote_path, show
from dfs.core.errors import ConfigError, DfsError
from dfs.core.policy import Policy, Spread, format_compression, parse_compression, parse_name
from dfs.core.redundancy import Redundancy

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.core.inode import Inode
    from dfs.wire.messages import SetPolicy

app = typer.Typer(
    help="Storage policies: redundancy, compression, and what they hold for.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="policy")


Name = Annotated[str, typer.Argument(metavar="NAME", help="A policy.", show_default=False)]


class SpreadName(StrEnum):
    DISK = "disk"
    SERVER = "server"
    RACK = "rack"
    ZONE = "zone"


def policy_document(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "redundancy": str(policy.redundancy),
        "compression": format_compression(policy.compression),
        "spread": Spread(policy.spread).name.lower(),
        "fit": policy.fit,
        "expansion": policy.redundancy.expansion,
        "survives": policy.redundancy.m,
        "number": policy.policy,
    }


@app.command("list", epilog=examples("dfs policy list"))
def list_policies(json: Json = False) -> int:
    """List all policies."""

    async def body(client: "Client") -> int:
        _show(await client.meta.policies(), json=json, key="policies")
        return 0

    return run(body)


@app.command("show", epilog=examples("dfs policy show ec"))
def show_policy(name: Name, json: Json = False) -> int:
    """Show one policy."""

    async def body(client: "Client") -> int:
        policy = await find_policy(client, name)
        if json:
            render.emit_json(policy_document(policy))
        else:
            _show([policy], json=False, key="")
        return 0

    return run(body)


@app.command(
    "create",
    epilog=examples(
        "dfs policy create archive --redundancy ec:8+3 --compression zstd:12",
        "dfs policy create fast --redundancy rep:2 --compression none",
    ),
)
def create_policy(
    name: Name,
    redundancy: Annotated[
        str,
        typer.Option(
            metavar="rep:N|ec:K+M",
            help="N whole copies, or K data and M parity fragments.",
            show_default=False,
        ),
    ],
    compression: Annotated[
        str, typer.Option(metavar="zstd:LEVEL|none", help="How blocks are compressed.")
    ] = "zstd:3",
    spread: Annotated[
        SpreadName, typer.Option(help="What no two fragments share, while there is enough of it.")
    ] = SpreadName.SERVER,
    json: Json = False,
) -> int:
    """Make a policy. A policy never changes; files get another with `dfs policy set`."""
    try:
        wanted = Policy(
            0,
            parse_name(name),
            Redundancy.parse(redundancy),
            parse_compression(compression),
            Spread[spread.name],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None

    async def body(client: "Client") -> int:
        made = await client.meta.create_policy(wanted)
        if json:
            render.emit_json(policy_document(made))
        return 0

    return run(body)


@app.command(
    "set",
    epilog=examples(
        "dfs policy set /photos ec",
        "dfs policy set -r /archive archive",
        "dfs policy set -r /photos ec --convert --wait",
    ),
)
def set_policy(
    path: RemotePath,
    name: Name,
    recursive: Annotated[
        bool, typer.Option("-r", "-R", "--recursive", help="Also everything below directories.")
    ] = False,
    convert: Annotated[
        bool, typer.Option("--convert", help="Also write anew what is there, as a job.")
    ] = False,
    bandwidth: working.Bandwidth = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="With --convert: print the plan, and do nothing."),
    ] = False,
    wait: working.Wait = False,
    json: Json = False,
) -> int:
    """Give a file or a directory a policy.

    It holds for what is written from then on: new data of the file, what is made in the directory.
    What is there already stays as it is kept; with --convert it is written anew, while all goes on.
    """
    root = remote_path(path)
    pace = working.parse_bandwidth(bandwidth)
    if not convert and (dry_run or wait or bandwidth is not None or json):
        raise ConfigError("--bandwidth, --dry-run, --wait and --json are for --convert")

    async def body(client: "Client") -> int:
        policy = await find_policy(client, name)
        top = await client.stat(root)
        if convert and top.is_dir and not recursive:
            raise ConfigError(
                f"--convert: {show(root)} is a directory", hint="add -r for all that is below it"
            )
        wanted: dict[str, Any] = {
            "ino": top.ino,
            "policy": policy.policy,
            "bandwidth": pace,
            "path": show(root),
        }
        if dry_run:
            return job_views.show_plan(await client.admin.plan("convert", **wanted), json)

        def operation(inode: "Inode") -> "SetPolicy | None":
            from dfs.wire.messages import SetPolicy

            return SetPolicy(inode.ino, policy.policy) if inode.is_dir or inode.is_file else None

        status = await change_each(client, [root], operation, recursive=recursive, follow=True)
        if not convert:
            return status
        job = await client.admin.start("convert", **wanted)
        return await job_views.finish(client, job, wait, json) or status

    return run(body)


@app.command("get", epilog=examples("dfs policy get /photos"))
def get_policy(paths: RemotePaths, json: Json = False) -> int:
    """Show which policy files and directories have."""
    names = [remote_path(path) for path in paths]

    async def body(client: "Client") -> int:
        failures = Failures()
        policies = {policy.policy: policy for policy in await client.meta.policies()}
        found = []
        for path in names:
            try:
                inode = await client.stat(path)
            except DfsError as error:
                failures.add(error)
                continue
            policy = policies.get(inode.policy)
            called = policy.name if policy else str(inode.policy)
            found.append({**document("path", path), "policy": called})
            if not json:
                print(called if len(names) == 1 else f"{show(path)}: {called}")
        if json:
            render.emit_json({"entries": found})
        return failures.status

    return run(body)


async def find_policy(client: "Client", name: str) -> Policy:
    """Raises DfsError where there is none of that name."""
    policies = await client.meta.policies()
    for policy in policies:
        if policy.name == name:
            return policy
    raise DfsError(
        f"{name!r}: no such policy",
        errno=errno.ENOENT,
        hint=f"there are {', '.join(sorted(each.name for each in policies))}",
    )


def _show(policies: "tuple[Policy, ...] | list[Policy]", *, json: bool, key: str) -> None:
    if json:
        render.emit_json({key: [policy_document(policy) for policy in policies]})
        return
    rows = []
    for policy in policies:
        lost = policy.redundancy.m
        rows.append(
            [
                policy.name,
                str(policy.redundancy) + (" or fewer" if policy.fit else ""),
                format_compression(policy.compression),
                Spread(policy.spread).name.lower(),
                f"{lost} lost" if lost else "nothing",
                f"{policy.redundancy.expansion:g}",
            ]
        )
    render.print_table(
        ("Name", "Redundancy", "Compression", "Spread over", "Survives", "Disk bytes per byte"),
        rows,
        numbers=frozenset({"Disk bytes per byte"}),
    )
