"""`dfs chmod`, `chown` and `touch`: modes, owners and times."""

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dfs.cli.arguments import RemotePaths, examples
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.modes import ModeChange
from dfs.cli.names import remote_path, show
from dfs.cli.owners import parse_owner
from dfs.core.errors import ConfigError, DfsError

if TYPE_CHECKING:
    from dfs.cli.walking import Node
    from dfs.client import Client
    from dfs.core.inode import Inode
    from dfs.wire.messages import SetAttr, SetPolicy

_BATCH: Final = 500
"""Changes sent together."""

Deep = Annotated[bool, typer.Option("-R", "--recursive", help="Also everything below directories.")]


def register(app: typer.Typer) -> None:
    app.command(
        "chmod",
        epilog=examples("dfs chmod 640 /notes/todo", "dfs chmod -R u+rwX,go-w /photos"),
        # So that a mode may begin with a minus: `dfs chmod -w FILE`.
        context_settings={"ignore_unknown_options": True},
    )(chmod)
    app.command(
        "chown", epilog=examples("dfs chown alice /notes", "dfs chown -R alice:staff /photos")
    )(chown)
    app.command(
        "touch", epilog=examples("dfs touch /notes/todo", "dfs touch -d 2024-05-01T12:00 /notes")
    )(touch)


def current_umask() -> int:
    """The umask can be read only by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# ------------------------------------------------------------------ chmod, chown


def chmod(
    mode: Annotated[
        str, typer.Argument(metavar="MODE", help="Octal such as 644, or such as u+rwx,go-w.")
    ],
    paths: RemotePaths,
    recursive: Deep = False,
) -> int:
    """Change the modes of files."""
    change = ModeChange(mode, current_umask())
    names = [remote_path(path) for path in paths]

    def operation(inode: "Inode") -> "SetAttr | None":
        from dfs.wire.messages import SetAttr

        # A symlink has no mode of its own.
        return None if inode.is_symlink else SetAttr(inode.ino, mode=change.apply(inode.mode))

    return run(
        lambda client: change_each(client, names, operation, recursive=recursive, follow=True)
    )


def chown(
    owner: Annotated[
        str,
        typer.Argument(
            metavar="USER[:GROUP]",
            help="Names or numbers; USER: is the user's own group, :GROUP leaves the user.",
        ),
    ],
    paths: RemotePaths,
    recursive: Deep = False,
    no_dereference: Annotated[
        bool,
        typer.Option("-h", "--no-dereference", help="Symlinks themselves, not what they name."),
    ] = False,
) -> int:
    """Change the owners of files."""
    uid, gid = parse_owner(owner)
    names = [remote_path(path) for path in paths]

    def operation(inode: "Inode") -> "SetAttr":
        from dfs.wire.messages import SetAttr

        return SetAttr(inode.ino, uid=uid, gid=gid)

    return run(
        lambda client: change_each(
            client,
            names,
            operation,
            recursive=recursive,
            follow=not (no_dereference or recursive),
        )
    )


async def change_each(
    client: "Client",
    paths: list[bytes],
    operation: "Callable[[Inode], SetAttr | SetPolicy | None]",
    *,
    recursive: bool,
    follow: bool,
) -> int:
    """Apply `operation` of each inode named, and with `recursive` of all below. Exit status."""
    import trio

    from dfs.cli.walking import Node, TreeWalk

    failures = Failures()
    batch = _Batch(client, failures)
    async with trio.open_nursery() as nursery:
        walk = TreeWalk(client, nursery, failures)
        for path in paths:
            try:
                root = Node(path, await client.stat(path, follow=follow), 0)
            except DfsError as error:
                failures.add(error)
                continue
            async for node in walk.nodes(root, max_depth=None if recursive else 0):
                op = operation(node.inode)
                if op is not None:
                    await batch.add(node, op)
                # A directory's change may be what allows us to read it, or not.
                if node.inode.is_dir and recursive:
                    await batch.flush()
        await batch.flush()
        nursery.cancel_scope.cancel()
    return failures.status


class _Batch:
    """Collects operations, and says which of them failed."""

    def __init__(self, client: "Client", failures: Failures) -> None:
        self._client = client
        self._failures = failures
        self._waiting: list[tuple[Node, SetAttr | SetPolicy]] = []

    async def add(self, node: "Node", op: "SetAttr | SetPolicy") -> None:
        self._waiting.append((node, op))
        if len(self._waiting) >= _BATCH:
            await self.flush()

    async def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        results = await self._client.meta.apply(*(op for _, op in waiting))
        for (node, _), result in zip(waiting, results, strict=True):
            if result.error is not None:
                self._failures.add(f"{show(node.path)}: {os.strerror(result.error.errno)}")


# ------------------------------------------------------------------ touch


def touch(
    paths: RemotePaths,
    no_create: Annotated[
        bool, typer.Option("-c", "--no-create", help="Do not make files that are not there.")
    ] = False,
    access: Annotated[bool, typer.Option("-a", help="The access time only.")] = False,
    modification: Annotated[bool, typer.Option("-m", help="The modification time only.")] = False,
    date: Annotated[
        str | None,
        typer.Option(
            "-d",
            "--date",
            metavar="TIME",
            help="Such as 2024-05-01, 2024-05-01T12:30:00 (local, or with +02:00), or @SECONDS.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("-r", "--reference", metavar="PATH", help="The times of PATH.")
    ] = None,
) -> int:
    """Set the times of files to now; make them, empty, where they are not there."""
    names = [remote_path(path) for path in paths]
    when_ns = None if date is None else parse_time(date)
    model = None if reference is None else remote_path(reference)
    both = access == modification

    async def body(client: "Client") -> int:
        from dfs.wire.messages import SetAttr

        failures = Failures()
        atime_ns = mtime_ns = when_ns
        if model is not None:
            found = await client.stat(model)
            atime_ns, mtime_ns = found.atime_ns, found.mtime_ns
        for path in names:
            try:
                inode = await _find_or_create(client, path, create=not no_create)
                if inode is None:
                    continue
                times = SetAttr(
                    inode.ino,
                    atime_ns=atime_ns if both or access else None,
                    mtime_ns=mtime_ns if both or modification else None,
                    atime_now=(both or access) and atime_ns is None,
                    mtime_now=(both or modification) and mtime_ns is None,
                )
                await client.meta.set_attr(times)
            except DfsError as error:
                failures.add(error)
        return failures.status

    return run(body)


async def _find_or_create(client: "Client", path: bytes, *, create: bool) -> "Inode | None":
    try:
        return await client.stat(path)
    except DfsError as error:
        if error.errno != errno.ENOENT:
            raise
    if not create:
        return None
    async with await client.open(path, "a", mode=0o666 & ~current_umask()):
        pass
    return await client.stat(path)


def parse_time(text: str) -> int:
    """Nanoseconds since 1970. Raises ConfigError."""
    from datetime import datetime
    from decimal import Decimal, InvalidOperation

    try:
        if text.startswith("@"):
            return int(Decimal(text[1:]) * 1_000_000_000)
        moment = datetime.fromisoformat(text)
        return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    except (ValueError, InvalidOperation, OverflowError):
        raise ConfigError(
            f"--date {text}: not a time", hint="write such as 2024-05-01T12:30:00 or @1714566600"
        ) from None
