"""`dfs admin plan lose|drain|policy`: what would follow, without doing it.

Walks the tree, since only the files know which chunks are theirs: on a big cluster that takes a
while, and asks the master for nothing that it would not answer anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace as changed

from dfs.cli import render, working
from dfs.cli.arguments import Json, RemotePath, examples
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED, Failures
from dfs.cli.locating import is_readable
from dfs.cli.names import document, remote_path, show
from dfs.cli.safety import Survey, look_at
from dfs.core.chunk import DiskLocation, DiskState
from dfs.core.errors import ConfigError
from dfs.core.redundancy import Redundancy

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.wire.messages import ServerInfo

app = typer.Typer(
    help="What would follow if something were lost, emptied or kept otherwise. Changes nothing.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Lost = Annotated[
    list[str],
    typer.Argument(
        metavar="SERVER|DISK|RACK|ZONE...",
        help="A server's number or address, `disk:7`, `rack:NAME` or `zone:NAME`.",
        show_default=False,
    ),
]


def _disks_lost(servers: "Sequence[ServerInfo]", words: Sequence[str]) -> set[int]:
    """Raises ConfigError for a word that names nothing."""
    lost: set[int] = set()
    for word in words:
        kind, colon, name = word.partition(":")
        if colon and kind in ("rack", "zone"):
            found = [
                disk.disk
                for server in servers
                if getattr(server, kind) == name
                for disk in server.disks
            ]
            if not found:
                known = sorted({getattr(server, kind) for server in servers} - {""})
                raise ConfigError(
                    f"no server is in {kind} {name!r}",
                    hint=f"there are {', '.join(known)}" if known else f"no {kind} is named",
                )
            lost.update(found)
        else:
            lost.update(working.find_disks(servers, [word]))
    return lost


@app.command("lose", epilog=examples("dfs admin plan lose 3", "dfs admin plan lose rack:r1"))
def plan_lose(what: Lost, json: Json = False) -> int:
    """Say which files could not be read, or would be at risk, and what repair would have to move.

    Exit status 1 where files could not be read.
    """

    async def body(client: "Client") -> int:
        failures = Failures()
        servers = await client.meta.servers()
        lost = _disks_lost(servers, what)
        survey = await look_at(client, b"/", failures)
        after = replace(survey, disks=_without(survey.disks, lost))
        unreadable = after.with_margin(lambda spare: spare < 0)
        at_risk = after.with_margin(lambda spare: spare == 0)
        moved = _to_make_anew(survey, lost)
        left = [d for server in servers for d in server.disks if d.disk not in lost]
        free = sum(disk.free for disk in left if disk.state == DiskState.UP)
        budget = (await client.admin.jobs()).budget
        found: dict[str, Any] = {
            "disks": sorted(lost),
            "unreadable": {"files": unreadable[0], "bytes": unreadable[1]},
            "at_risk": {"files": at_risk[0], "bytes": at_risk[1]},
            "bytes_to_move": moved,
            "free": free,
            "seconds": moved / budget if budget else None,
        }
        if json:
            render.emit_json(found)
        else:
            _print_loss(found, survey)
        return FAILED if unreadable[1] else failures.status

    return run(body)


def _without(disks: Mapping[int, DiskLocation], lost: set[int]) -> dict[int, DiskLocation]:
    return {
        number: changed(disk, state=DiskState.DOWN) if number in lost else disk
        for number, disk in disks.items()
    }


def _to_make_anew(survey: Survey, lost: set[int]) -> int:
    """Bytes, before compression, of the fragments there that chunks which stay readable lose."""
    moved = 0
    for chunk in survey.chunks.values():
        readable = [each for each in chunk.fragments if is_readable(each, survey.disks)]
        gone = [each for each in readable if each.disk in lost]
        if gone and len(readable) - len(gone) >= chunk.k:
            moved += len(gone) * chunk.fragment_length
    return moved


def _print_loss(found: dict[str, Any], survey: Survey) -> None:
    unreadable, at_risk = found["unreadable"], found["at_risk"]
    print(f"Without {render.plural(len(found['disks']), 'disk')}, of {survey.files} files:")
    pace = found["seconds"]
    when = f", in about {render.duration(pace)} at the budget" if pace is not None else ""
    short = "" if found["bytes_to_move"] <= found["free"] else ": MORE THAN THE FREE SPACE LEFT"
    for title, part in (("cannot be read", unreadable), ("one failure from loss", at_risk)):
        amount = render.human(part["bytes"])
        print(f"  {title:<22} {render.plural(part['files'], 'file')}, {amount}")
    moved, free = render.human(found["bytes_to_move"]), render.human(found["free"])
    print(f"  {'repair would move':<22} up to {moved}{when}; {free} are free{short}")


@app.command("drain", epilog=examples("dfs admin plan drain 3"))
def plan_drain(where: working.Where, json: Json = False) -> int:
    """Say what emptying a server or disk would move, or why it would be refused."""
    return working.drain_command(where, dry_run=True, json=json)


@app.command("policy", epilog=examples("dfs admin plan policy /photos ec"))
def plan_policy(
    path: RemotePath,
    name: Annotated[str, typer.Argument(metavar="POLICY", show_default=False)],
    json: Json = False,
) -> int:
    """Say what the files below PATH take on disks now, and would take under another policy."""
    where = remote_path(path)

    async def body(client: "Client") -> int:
        failures = Failures()
        policies = {policy.name: policy for policy in await client.meta.policies()}
        if name not in policies:
            raise ConfigError(f"there is no policy {name!r}", hint="see dfs policy list")
        wanted = policies[name].redundancy
        survey = await look_at(client, where, failures)
        now = _stored(survey, None)
        after = _stored(survey, wanted)
        differ = sum(
            survey.bytes_of[number]
            for number, chunk in survey.chunks.items()
            if Redundancy(chunk.k, chunk.m) != wanted
        )
        found = {
            **document("path", where),
            "policy": name,
            "files": survey.files,
            "bytes_kept_otherwise": differ,
            "stored_now": now,
            "stored_after": after,
        }
        if json:
            render.emit_json(found)
            return failures.status or DONE
        print(
            f"{show(where)}: {render.plural(survey.files, 'file')}, before compression "
            f"{render.human(now)} on disks now, {render.human(after)} under {name} ({wanted})"
        )
        print(f"  {render.human(differ)} of content would have to be written anew")
        if differ:
            print(f"  to do it: dfs policy set -r {show(where)} {name} --convert")
        return failures.status or DONE

    return run(body)


def _stored(survey: Survey, redundancy: Redundancy | None) -> int:
    """Bytes on disks, before compression, of what the files refer to."""
    total = 0.0
    for number, chunk in survey.chunks.items():
        kept = Redundancy(chunk.k, chunk.m) if redundancy is None else redundancy
        total += survey.bytes_of[number] * kept.expansion
    return round(total)
