"""`dfs du` and `dfs df`: how much room things take, and how much there is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from dfs.cli import render
from dfs.cli.arguments import Human, Json, examples
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.names import document, remote_path, show
from dfs.core.errors import DfsError
from dfs.core.inode import Inode
from dfs.core.space import divide

if TYPE_CHECKING:
    from dfs.cli.walking import Node
    from dfs.client import Client


def register(app: typer.Typer) -> None:
    app.command("du", epilog=examples("dfs du -sh /photos", "dfs du -h -d 1 /"))(du)
    app.command("df", epilog=examples("dfs df -h", "dfs df --json"))(df)


# ------------------------------------------------------------------ du


@dataclass(slots=True)
class _Total:
    node: "Node"
    allocated: int = 0
    size: int = 0
    files: int = 0
    directories: int = 0

    def count(self, inode: Inode) -> None:
        self.allocated += inode.allocated
        if inode.is_dir:
            self.directories += 1
        else:
            self.files += 1
            self.size += inode.size

    def add(self, below: "_Total") -> None:
        self.allocated += below.allocated
        self.size += below.size
        self.files += below.files
        self.directories += below.directories


def du(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH...]", help="Paths in the cluster; / by default."),
    ] = None,
    summarize: Annotated[
        bool, typer.Option("-s", "--summarize", help="One line for each PATH.")
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option("-d", "--max-depth", min=0, metavar="N", help="Lines down to N levels."),
    ] = None,
    all_files: Annotated[bool, typer.Option("-a", "--all", help="Files too.")] = False,
    human: Human = False,
    in_bytes: Annotated[
        bool, typer.Option("-b", "--bytes", help="Exact bytes of content, instead of KiB stored.")
    ] = False,
    json: Json = False,
) -> int:
    """Add up the bytes stored in files, directory by directory.

    What is counted are bytes of files, before compression and redundancy; holes are not. A file
    with several names counts once. `dfs df` tells of the disks.
    """
    roots = [remote_path(path) for path in paths or ["/"]]
    deepest = 0 if summarize else depth

    found: list[dict[str, Any]] = []

    def report(total: _Total) -> None:
        node = total.node
        if node.depth > 0 and not (node.inode.is_dir or all_files):
            return
        if deepest is not None and node.depth > deepest:
            return
        if json:
            found.append(_total_document(total))
            return
        size = total.size if in_bytes else total.allocated
        if human:
            shown = render.human(size)
        else:
            shown = str(size if in_bytes else -(-size // 1024))
        print(f"{shown}\t{show(node.path)}")

    async def body(client: "Client") -> int:
        from dfs.cli.walking import Node

        failures = Failures()
        seen: set[int] = set()
        for root in roots:
            try:
                inode = await client.stat(root, follow=False)
            except DfsError as error:
                failures.add(error)
                continue
            await _add_up(client, Node(root, inode, 0), seen, failures, report)
        if json:
            render.emit_json({"entries": found})
        return failures.status

    return run(body)


def _total_document(total: _Total) -> dict[str, Any]:
    return {
        **document("path", total.node.path),
        "allocated": total.allocated,
        "size": total.size,
        "files": total.files,
        "directories": total.directories,
    }


async def _add_up(
    client: "Client",
    root: "Node",
    seen: set[int],
    failures: Failures,
    report: Callable[[_Total], None],
) -> None:
    """Report the total of each file and directory, after what is in it."""
    import trio

    from dfs.cli.walking import TreeWalk

    open_totals: list[_Total] = []

    def close(depth: int) -> None:
        while len(open_totals) > depth:
            total = open_totals.pop()
            if open_totals:
                open_totals[-1].add(total)
            report(total)

    async with trio.open_nursery() as nursery:
        walk = TreeWalk(client, nursery, failures)
        async for node in walk.nodes(root):
            close(node.depth)
            total = _Total(node)
            if node.inode.is_dir or node.inode.nlink == 1 or node.inode.ino not in seen:
                total.count(node.inode)
            if not node.inode.is_dir and node.inode.nlink > 1:
                seen.add(node.inode.ino)
            open_totals.append(total)
        close(0)
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ df


def df(human: Human = False, json: Json = False) -> int:
    """Show the room on the cluster's disks, and what is stored there.

    Sizes are bytes on disks: a file under rep:3 takes three times its (compressed) size, under
    ec:4+2 one and a half times. What is used is live (files refer to it), dead (deleted or
    overwritten, and not yet taken away) or redundancy (copies and parity of both): about, since
    compression differs.
    """

    async def body(client: "Client") -> int:
        stats = await client.meta.statfs()
        space = divide(stats)
        if json:
            render.emit_json(
                {
                    "capacity": stats.capacity,
                    "used": stats.used,
                    "free": stats.free,
                    "space": msgspec.structs.asdict(space),
                    "inodes": stats.inodes,
                    "chunks": stats.chunks,
                    "live": stats.live,
                    "expansion": stats.policy_expansion,
                }
            )
            return 0

        def size(value: float) -> str:
            return render.human(value) if human else str(-(-int(value) // 1024))

        first = "Size" if human else "1K-blocks"
        titles = (
            *(first, "Used", "Avail", "Use%", "Files", "Stored", "Room"),
            *("Live", "Dead", "Redundancy"),
        )
        row = (
            size(stats.capacity),
            size(stats.used),
            size(stats.free),
            render.percent(stats.used, stats.capacity),
            str(stats.inodes),
            size(stats.live),
            size(stats.free / max(stats.policy_expansion, 1.0)),
            size(space.live),
            size(space.dead),
            size(space.redundancy),
        )
        render.print_table(titles, [row], numbers=frozenset(titles))
        if render.is_terminal():
            print(
                "\nStored: bytes of files. Room: bytes of files that still fit, uncompressed, "
                "under the policy of /. Used is Live, Dead and Redundancy."
            )
        return 0

    return run(body)
