"""`dfs admin backup` and `restore`: copies of the metadata, and a master's data made of one."""

import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, examples, local_path
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED, say
from dfs.cli.names import show
from dfs.core.errors import ConfigError

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.core.archive import ArchiveReader

_STREAM: Final = "-"

Write = Callable[[memoryview], Awaitable[None]]


def register(app: typer.Typer) -> None:
    app.command(
        "backup",
        epilog=examples(
            "dfs admin backup /backup/dfs-$(date +%F)",
            "dfs admin backup - | ssh safe 'cat > dfs-metadata'",
        ),
    )(backup)
    app.command(
        "restore",
        epilog=examples(
            "dfs admin restore /backup/dfs-2026-11-28 --data /var/lib/dfs/master",
            "ssh safe cat dfs-metadata | dfs admin restore - --data /var/lib/dfs/master",
        ),
    )(restore)
    app.command("confirm-restore", epilog=examples("dfs admin confirm-restore --yes"))(
        confirm_restore
    )


def backup(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="The new file; - is stdout.", show_default=False),
    ],
    json: Json = False,
) -> int:
    """Write a consistent copy of the metadata to a file, while the cluster serves.

    It is checked as it arrives, and appears under its name when it is complete and on the disk. It
    does not hold what files contain: that stays on the chunk servers.
    """
    if file == _STREAM and json:
        raise ConfigError("backup: with - there is only the backup: no --json")
    if file == _STREAM and sys.stdout is not None and sys.stdout.isatty():
        raise ConfigError("backup: this is no text for a terminal", hint="redirect it to a file")

    async def body(client: "Client") -> int:
        if file == _STREAM:
            from dfs.cli.streams import StandardOutput

            output = StandardOutput()
            await _copy(client, lambda data: output.write([data]))
            return DONE
        document = await _to_file(client, file)
        if json:
            render.emit_json(document)
        else:
            print(
                f"Backed up {render.plural(document['rows'], 'row')} of cluster "
                f"{document['cluster']} to {show(file)} "
                f"({render.human(document['bytes'])}, {document['seconds']:.1f} s)"
            )
        return DONE

    return run(body)


def restore(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The backup; - is stdin.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR",
            help="The new master's --data: a directory that is empty, or not there.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> int:
    """Make a master's data directory of a backup. Needs no cluster; then start a master on it.

    The old master must not run any more. Clients have to begin anew; what was written after the
    backup is not there, but nothing is deleted on the disks until `dfs admin confirm-restore`.
    """
    from dfs.client.progress import Progress
    from dfs.core.archive import Description
    from dfs.master.backup.restore import restore as restore_into

    directory = Path(local_path(data, "--data")).absolute()

    with contextlib.ExitStack() as used:
        source = sys.stdin.buffer if file == _STREAM else used.enter_context(open(file, "rb"))
        bar = used.enter_context(render.ProgressBar("Restoring", in_bytes=False))

        def told(rows: int, described: Description) -> None:
            bar.update(Progress(files_done=rows, files_total=max(rows, described.rows)))

        report = restore_into(source, directory, told)
    if json:
        render.emit_json(
            {
                "data": data,
                "cluster": report.cluster,
                "created_ns": report.created_ns,
                "rows": report.rows,
                "inodes": report.inodes,
                "chunks": report.chunks,
                "sessions_ended": report.sessions,
            }
        )
        return DONE
    place, made = show(data), render.time_ns(report.created_ns)
    print(
        f"Restored cluster {report.cluster} as of {made} into {place}\n"
        f"with {render.plural(report.inodes, 'inode')}, {render.plural(report.chunks, 'chunk')}\n"
        f"Now:\n"
        f"  1. make sure that the old master does not run\n"
        f"  2. dfs master --data {place} --listen (where the old one was)\n"
        f"  3. dfs admin status, dfs admin fsck: what is missing, what is newer than the backup\n"
        f"  4. dfs admin confirm-restore, when it shall stay so; mount anew what was mounted"
    )
    return DONE


def confirm_restore(
    yes: Annotated[
        bool, typer.Option("--yes", help="Confirm; without it, only say what that would do.")
    ] = False,
    json: Json = False,
) -> int:
    """Accept a restored master's metadata: what they do not know is deleted on the disks.

    Until then a restored master keeps everything, so that newer metadata could still be put in its
    place. Exit status 1: there is something to confirm, and --yes is missing.
    """

    async def body(client: "Client") -> int:
        from dfs.wire.messages import ConfirmRestore, RestoreReply

        reply = await client.meta.link.call(ConfirmRestore(yes), RestoreReply)
        if json:
            render.emit_json(
                {
                    "restored": reply.restored,
                    "confirmed": yes and reply.restored,
                    "backup_ns": reply.backup_ns,
                    "restored_ns": reply.restored_ns,
                    "disks": reply.disks,
                    "disks_heard": reply.disks_heard,
                    "fragments": reply.fragments,
                    "newer": reply.newer,
                    "bytes": reply.bytes,
                }
            )
        elif not reply.restored:
            print("There is no restore to confirm")
        else:
            print(
                f"Restored from a backup of {render.time_ns(reply.backup_ns)}; "
                f"{reply.disks_heard} of {render.plural(reply.disks, 'disk')} have said what they "
                f"hold\n{render.plural(reply.fragments, 'fragment')} "
                f"({render.human(reply.bytes)} of content) that the metadata do not know, "
                f"{reply.newer} of them newer than the backup: "
                f"{'deleted from now on' if yes else 'kept'}"
            )
        if yes or not reply.restored:
            return DONE
        say("nothing was confirmed: that cannot be undone, say --yes to do it")
        return FAILED

    return run(body)


async def _to_file(client: "Client", path: str) -> dict[str, Any]:
    import trio

    from dfs.cli.whole_file import WholeFile

    begun = time.monotonic()
    length = 0
    with WholeFile(path) as file:

        async def write(data: memoryview) -> None:
            nonlocal length
            length += len(data)
            await trio.to_thread.run_sync(file.write, data)

        archive = await _copy(client, write)
        await trio.to_thread.run_sync(file.finish)
    described = archive.description
    assert described is not None
    return {
        "file": path,
        "cluster": described.cluster,
        "created_ns": described.created_ns,
        "rows": archive.rows,
        "bytes": length,
        "seconds": round(time.monotonic() - begun, 3),
    }


async def _copy(client: "Client", write: Write) -> "ArchiveReader":
    """A new backup to `write`, with a progress bar; what there is to know of it."""
    from contextlib import aclosing

    from dfs.client.backup import read_backup
    from dfs.client.progress import Progress
    from dfs.core.archive import ArchiveReader

    archive = ArchiveReader()
    with render.ProgressBar("Backing up", in_bytes=False) as bar:
        async with aclosing(read_backup(client.meta.link, archive)) as pieces:
            async for data in pieces:
                await write(data)
                expected = archive.description.rows if archive.description else 0
                bar.update(Progress(files_done=archive.rows, files_total=expected or None))
    return archive
