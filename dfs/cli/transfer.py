"""`dfs upload` and `dfs download`: between this machine and the cluster."""

import os
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, Recursive, examples
from dfs.cli.attributes import current_umask
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED, say
from dfs.cli.names import document, remote_path
from dfs.core.errors import ConfigError

if TYPE_CHECKING:
    from dfs.client import Client, Summary

_STREAM: Final = "-"


def register(app: typer.Typer) -> None:
    app.command(
        "upload",
        epilog=examples(
            "dfs upload a.jpg b.jpg /photos",
            "dfs upload -r ~/Pictures /photos --policy ec",
            "pg_dump db | dfs upload - /backup/db.sql",
        ),
    )(upload)
    app.command(
        "download",
        epilog=examples(
            "dfs download /photos/a.jpg .",
            "dfs download -r /photos ~/Pictures",
            "dfs download /backup/db.sql - | psql db",
        ),
    )(download)


def upload(
    local: Annotated[
        list[str],
        typer.Argument(metavar="LOCAL...", help="Files here; - is stdin.", show_default=False),
    ],
    remote: Annotated[
        str,
        typer.Argument(
            metavar="REMOTE",
            help="The new path in the cluster, or a directory to put them into.",
            show_default=False,
        ),
    ],
    recursive: Recursive = False,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep them so, instead of as their directory says."),
    ] = None,
    json: Json = False,
) -> int:
    """Copy files into the cluster; modes and times are kept.

    Reads its arguments as `cp` does. A file appears under its name when it is complete. When the
    command succeeds, all of it is stored as safely as the policy asks. Running it again starts over
    without harm.
    """
    target = remote_path(remote)

    async def body(client: "Client") -> int:
        begun = time.monotonic()
        if _STREAM in local:
            if local != [_STREAM]:
                raise ConfigError("upload: - goes alone, with the path of the new file")
            from dfs.cli.streams import StandardInput

            with render.ProgressBar("Uploading") as bar:
                summary = await client.upload_stream(
                    StandardInput().read,
                    target,
                    policy=policy,
                    mode=0o666 & ~current_umask(),
                    progress=bar.update,
                )
        else:
            with render.ProgressBar("Uploading") as bar:
                summary = await client.upload(
                    local, target, recursive=recursive, policy=policy, progress=bar.update
                )
        return _report(summary, begun, json=json)

    return run(body)


def download(
    remote: Annotated[
        list[str],
        typer.Argument(metavar="REMOTE...", help="Paths in the cluster.", show_default=False),
    ],
    local: Annotated[
        str,
        typer.Argument(
            metavar="LOCAL",
            help="The new file here, or a directory to put them into; - is stdout.",
            show_default=False,
        ),
    ],
    recursive: Recursive = False,
    json: Json = False,
) -> int:
    """Copy files out of the cluster; modes and times are kept.

    Reads its arguments as `cp` does. A file is written under a temporary name and renamed when it
    is complete. Running it again starts over without harm.
    """
    sources = [remote_path(path) for path in remote]

    async def body(client: "Client") -> int:
        begun = time.monotonic()
        if local == _STREAM:
            from dfs.cli.streams import write_to_stdout

            return await write_to_stdout(client, sources)
        with render.ProgressBar("Downloading") as bar:
            summary = await client.download(
                sources, local, recursive=recursive, progress=bar.update
            )
        return _report(summary, begun, json=json)

    if local == _STREAM and (json or recursive):
        raise ConfigError("download: with - there is only the content: no --json, no -r")
    return run(body)


# ------------------------------------------------------------------ what came of it


def _report(summary: "Summary", begun: float, *, json: bool) -> int:
    """Say what failed and what was left out; the exit status."""
    for warning in summary.warnings:
        say(warning)
    for failure in summary.failures:
        say(str(failure))
    if json:
        render.emit_json(
            {
                "files": summary.files,
                "directories": summary.directories,
                "symlinks": summary.symlinks,
                "bytes": summary.bytes,
                "seconds": round(time.monotonic() - begun, 3),
                "failures": [
                    {**document("path", os.fsencode(failure.path)), "reason": failure.reason}
                    for failure in summary.failures
                ],
                "warnings": list(summary.warnings),
            }
        )
    return DONE if summary.ok else FAILED
