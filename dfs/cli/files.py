"""`dfs cat`, `mkdir`, `rm`, `mv`, `cp` and `ln`: whole files and names, as coreutils have them."""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dfs.cli import render
from dfs.cli.arguments import Recursive, RemotePaths, examples
from dfs.cli.attributes import current_umask
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.modes import ModeChange
from dfs.cli.names import base, join, remote_path, show, tidy
from dfs.core.errors import ConfigError, DfsError
from dfs.core.ids import ROOT_INODE, InodeId

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.core.inode import Inode

Force = Annotated[bool, typer.Option("-f", "--force", help="Replace what is there.")]
NoClobber = Annotated[
    bool, typer.Option("-n", "--no-clobber", help="Leave what is there as it is.")
]
AsFile = Annotated[
    bool,
    typer.Option(
        "-T", "--no-target-directory", help="Take the last path as the new name itself, always."
    ),
]


def register(app: typer.Typer) -> None:
    app.command("cat", epilog=examples("dfs cat /notes/todo", "dfs cat /logs/* | less"))(cat)
    app.command("mkdir", epilog=examples("dfs mkdir -p /photos/2024/may"))(mkdir)
    app.command("rm", epilog=examples("dfs rm /notes/todo", "dfs rm -r /photos/2019"))(rm)
    app.command(
        "mv", epilog=examples("dfs mv /a /b", "dfs mv /a.jpg /b.jpg /photos    into the directory")
    )(mv)
    app.command("cp", epilog=examples("dfs cp /a /b", "dfs cp -r /photos /photos-copy"))(cp)
    app.command(
        "ln", epilog=examples("dfs ln /a /b              another name", "dfs ln -s ../a /dir/link")
    )(ln)


# ------------------------------------------------------------------ cat


def cat(paths: RemotePaths) -> int:
    """Write the content of files to stdout, one after the other."""
    names = [remote_path(path) for path in paths]

    async def body(client: "Client") -> int:
        from dfs.cli.streams import write_to_stdout

        return await write_to_stdout(client, names)

    return run(body)


# ------------------------------------------------------------------ mkdir


def mkdir(
    paths: RemotePaths,
    parents: Annotated[
        bool,
        typer.Option(
            "-p", "--parents", help="Also the directories above; what is there already is fine."
        ),
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option("-m", "--mode", metavar="MODE", help="As chmod takes it; 777 less the umask."),
    ] = None,
) -> int:
    """Make directories."""
    names = [remote_path(path) for path in paths]
    umask = current_umask()
    plain = 0o777 & ~umask
    wanted = plain if mode is None else ModeChange(mode, umask).apply(0o040777)

    async def body(client: "Client") -> int:
        failures = Failures()
        for path in names:
            try:
                if parents and len(tidy(path).split(b"/")) > 2:
                    # Directories on the way get the usual mode; only the last one -m's.
                    above = tidy(path).rpartition(b"/")[0]
                    await client.mkdir(above, plain | 0o300, parents=True, exist_ok=True)
                await client.mkdir(path, wanted, exist_ok=parents)
            except DfsError as error:
                failures.add(error)
        return failures.status

    return run(body)


# ------------------------------------------------------------------ rm


def rm(
    paths: RemotePaths,
    recursive: Recursive = False,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="What is not there is no failure.")
    ] = False,
    directory: Annotated[bool, typer.Option("-d", "--dir", help="Also empty directories.")] = False,
) -> int:
    """Remove files, and with -r directories with all in them.

    The room they took is given back in the background.
    """
    names = [remote_path(path) for path in paths]
    for path in names:
        if base(path) in (b".", b"..") or tidy(path) == b"/":
            raise ConfigError(f"{show(path)}: refused: name what is to be removed by its own name")

    async def body(client: "Client") -> int:
        failures = Failures()
        with render.ProgressBar("Removing", in_bytes=False) as bar:
            for path in names:
                try:
                    inode = await client.stat(path, follow=False)
                    if not inode.is_dir:
                        await client.unlink(path)
                    elif recursive:
                        summary = await client.rmtree(path, progress=bar.update)
                        for failure in summary.failures:
                            failures.add(str(failure))
                    elif directory:
                        await client.rmdir(path)
                    else:
                        failures.add(f"{show(path)}: is a directory; -r removes it with all in it")
                except DfsError as error:
                    if not (force and error.errno == errno.ENOENT):
                        failures.add(error)
        return failures.status

    return run(body)


# ------------------------------------------------------------------ mv, cp, ln


def mv(
    paths: Annotated[list[str], typer.Argument(metavar="FROM... TO", help="Paths in the cluster.")],
    no_clobber: NoClobber = False,
    as_file: AsFile = False,
) -> int:
    """Rename files and directories, or move them into a directory.

    Atomic: at any moment there is the old name or the new one. A file of the new name is replaced.
    """
    sources, target = _split(paths)

    async def move(client: "Client", source: bytes, destination: bytes) -> None:
        there = await _stat_or_none(client, destination)
        if there is not None:
            if no_clobber:
                return
            if (await client.stat(source, follow=False)).ino == there.ino:
                raise DfsError(f"{show(source)} and {show(destination)} are the same file")
        try:
            await client.rename(source, destination)
        except DfsError as error:
            if error.errno != errno.EINVAL:
                raise
            moved = await client.stat(source, follow=False)
            if not await _is_inside(client, destination, moved.ino):
                raise
            raise DfsError(
                f"{show(source)}: cannot be moved into itself, {show(destination)}"
            ) from error

    return run(lambda client: _each_into(client, sources, target, move, as_file=as_file))


def cp(
    paths: Annotated[list[str], typer.Argument(metavar="FROM... TO", help="Paths in the cluster.")],
    recursive: Recursive = False,
    no_clobber: NoClobber = False,
    as_file: AsFile = False,
) -> int:
    """Copy files, and with -r directories, inside the cluster: no byte moves.

    The copy shares the bytes of the original until one of the two is changed. Modes are kept; times
    are new. A directory is merged into one that is there.
    """
    sources, target = _split(paths)
    failed = Failures()

    async def copy(client: "Client", source: bytes, destination: bytes) -> None:
        origin = await client.stat(source, follow=not recursive)
        if origin.is_dir and not recursive:
            raise DfsError(f"{show(source)}: is a directory; -r copies it with all in it")
        there = await _stat_or_none(client, destination)
        if there is not None:
            if no_clobber:
                return
            if there.ino == origin.ino:
                raise DfsError(f"{show(source)} and {show(destination)} are the same file")
        if origin.is_dir and await _is_inside(client, destination, origin.ino):
            raise DfsError(f"{show(source)}: cannot be copied into itself, {show(destination)}")
        with render.ProgressBar("Copying", in_bytes=False) as bar:
            summary = await client.copy(
                source, destination, recursive=recursive, progress=bar.update
            )
        for failure in summary.failures:
            failed.add(str(failure))

    async def body(client: "Client") -> int:
        status = await _each_into(client, sources, target, copy, as_file=as_file)
        return max(status, failed.status)

    return run(body)


def ln(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET... LINK",
            help="The target (with -s any text), and the new name, or a directory for it.",
        ),
    ],
    symbolic: Annotated[
        bool, typer.Option("-s", "--symbolic", help="A symlink that names TARGET.")
    ] = False,
    force: Force = False,
    as_file: AsFile = False,
) -> int:
    """Give a file another name, or make a symlink."""
    if len(paths) < 2:
        raise ConfigError("ln: TARGET and LINK are needed")
    target = remote_path(paths[-1])
    originals = [os.fsencode(each) if symbolic else remote_path(each) for each in paths[:-1]]

    async def link(client: "Client", original: bytes, new: bytes) -> None:
        if force and await _stat_or_none(client, new) is not None:
            # Under another name first, then renamed over it: the name is never gone.
            temporary = new.rstrip(b"/") + b".%08x" % int.from_bytes(os.urandom(4), "big")
            await make(client, original, temporary)
            try:
                await client.rename(temporary, new)
                # Renaming one name of a file to another name of it leaves both.
                await _unlink_if_there(client, temporary)
            except DfsError:
                await _unlink_if_there(client, temporary)
                raise
            return
        await make(client, original, new)

    async def make(client: "Client", original: bytes, new: bytes) -> None:
        if symbolic:
            await client.symlink(original, new)
        else:
            await client.link(original, new)

    return run(lambda client: _each_into(client, originals, target, link, as_file=as_file))


# ------------------------------------------------------------------ shared


def _split(paths: list[str]) -> tuple[list[bytes], bytes]:
    if len(paths) < 2:
        raise ConfigError("FROM and TO are needed", hint="give at least two paths")
    names = [remote_path(path) for path in paths]
    return names[:-1], names[-1]


async def _each_into(
    client: "Client",
    sources: list[bytes],
    target: bytes,
    act: Callable[["Client", bytes, bytes], Awaitable[None]],
    *,
    as_file: bool,
) -> int:
    """`act` on each source and its destination: `target`, or a name in it if it is a directory."""
    failures = Failures()
    into = False
    if not as_file:
        try:
            into = (await client.stat(target)).is_dir
        except DfsError:
            into = False
        if not into and (len(sources) > 1 or not await _may_become(client, sources[0], target)):
            raise DfsError(f"{show(target)}: is not a directory")
    taken: set[bytes] = set()
    for source in sources:
        destination = join(target, base(source)) if into else target
        try:
            if destination in taken:
                there = await _stat_or_none(client, destination)
                if there is not None and not there.is_dir:
                    raise DfsError(f"{show(source)}: left out: another source has the same name")
            taken.add(destination)
            await act(client, source, destination)
        except DfsError as error:
            failures.add(error)
    return failures.status


async def _may_become(client: "Client", source: bytes, target: bytes) -> bool:
    """Whether `source` may get the name `target`: one that ends in a slash is a directory's."""
    if not target.endswith(b"/"):
        return True
    inode = await _stat_or_none(client, source)
    return inode is not None and inode.is_dir


async def _stat_or_none(client: "Client", path: bytes) -> "Inode | None":
    """The inode of that very name, not of what a symlink points to; None if it is not there."""
    try:
        return await client.stat(path, follow=False)
    except DfsError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


async def _unlink_if_there(client: "Client", path: bytes) -> None:
    try:
        await client.unlink(path)
    except DfsError as error:
        if error.errno != errno.ENOENT:
            raise


async def _is_inside(client: "Client", path: bytes, directory: InodeId) -> bool:
    """Whether the name `path` would lie in `directory`, or anywhere below it."""
    inode = await client.stat(tidy(path).rpartition(b"/")[0] or b"/")
    while inode.ino != directory:
        if inode.ino == ROOT_INODE or not inode.is_dir:
            return False
        inode = await client.meta.get_inode(inode.parent)
    return True
