"""`dfs ls`, `dfs tree` and `dfs stat`: what is there, and what it is."""

import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Human, Json, RemotePaths, examples
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.modes import type_name
from dfs.cli.names import base, document, remote_path, show, tidy
from dfs.core.errors import DfsError
from dfs.core.inode import Inode

if TYPE_CHECKING:
    from dfs.cli.walking import Node
    from dfs.client import Client
    from dfs.core.policy import Policy

_STYLES: Final = {
    stat.S_IFDIR: "1;34",
    stat.S_IFLNK: "1;36",
    stat.S_IFIFO: "33",
    stat.S_IFSOCK: "1;35",
    stat.S_IFCHR: "1;33",
    stat.S_IFBLK: "1;33",
}
_EXECUTABLE: Final = "1;32"


def register(app: typer.Typer) -> None:
    app.command(
        "ls", epilog=examples("dfs ls -l /photos", "dfs ls -R --json /photos | jq .entries[].path")
    )(ls)
    app.command("tree", epilog=examples("dfs tree -L 2 /photos"))(tree)
    app.command("stat", epilog=examples("dfs stat /photos/a.jpg", "dfs stat --json /photos"))(
        stat_command
    )


# ------------------------------------------------------------------ one inode


def inode_document(path: bytes, inode: Inode, policies: "dict[int, Policy]") -> dict[str, Any]:
    """The JSON document of one file, the same in every command."""
    policy = policies.get(inode.policy)
    found: dict[str, Any] = {
        **document("path", path),
        **document("name", base(path)),
        "type": type_name(inode.mode),
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "nlink": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "allocated": inode.allocated,
        "atime_ns": inode.atime_ns,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
        "inode": inode.ino,
        "policy": policy.name if policy else str(inode.policy),
    }
    if inode.is_symlink:
        found.update(document("target", inode.target))
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        found["rdev"] = inode.rdev
    return found


async def policies_by_number(client: "Client") -> "dict[int, Policy]":
    return {policy.policy: policy for policy in await client.meta.policies()}


def style_of(inode: Inode) -> str:
    if inode.is_file:
        return _EXECUTABLE if inode.mode & 0o111 else ""
    return _STYLES.get(stat.S_IFMT(inode.mode), "")


# ------------------------------------------------------------------ ls


def ls(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH...]", help="Paths in the cluster; / by default."),
    ] = None,
    long: Annotated[
        bool, typer.Option("-l", help="Mode, links, owner, size and time of each.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("-R", "--recursive", help="Also directories below.")
    ] = False,
    all_names: Annotated[
        bool, typer.Option("-a", "-A", "--all", help="Also names that begin with a dot.")
    ] = False,
    directory: Annotated[
        bool, typer.Option("-d", "--directory", help="Directories themselves, not what is in them.")
    ] = False,
    human: Human = False,
    numeric: Annotated[
        bool, typer.Option("-n", "--numeric", help="As -l, with numbers of owners.")
    ] = False,
    by_time: Annotated[bool, typer.Option("-t", help="Newest first.")] = False,
    by_size: Annotated[bool, typer.Option("-S", help="Largest first.")] = False,
    reverse: Annotated[bool, typer.Option("-r", "--reverse", help="In reverse order.")] = False,
    one: Annotated[bool, typer.Option("-1", help="One name a line.")] = False,
    json: Json = False,
) -> int:
    """List directories, and files by name.

    With --json every entry is listed, also those that begin with a dot.
    """
    listing = _Listing(
        long=long or numeric,
        all_names=all_names or json,
        human=human,
        numeric=numeric,
        order=_order(by_time, by_size),
        reverse=reverse,
        one=one,
    )
    roots = [remote_path(path) for path in paths or ["/"]]

    async def body(client: "Client") -> int:
        failures = Failures()
        files, directories = await _resolve_roots(
            client, roots, failures, keep_links=long or numeric
        )
        if directory:
            files, directories = files + directories, []
        if json:
            await _ls_json(client, files, directories, failures, recursive=recursive)
        else:
            await _ls_text(
                client,
                listing,
                files,
                directories,
                failures,
                recursive=recursive,
                titled=len(roots) > 1 or recursive,
            )
        return failures.status

    return run(body)


async def _resolve_roots(
    client: "Client", roots: list[bytes], failures: Failures, *, keep_links: bool
) -> "tuple[list[Node], list[Node]]":
    """What is named: (all but directories, directories).

    A symlink to a directory is listed as the directory, unless -l shows the link, as in `ls`.
    """
    from dfs.cli.walking import Node

    files: list[Node] = []
    directories: list[Node] = []
    for path in roots:
        try:
            inode = await client.stat(path, follow=False)
            if inode.is_symlink and (not keep_links or path.endswith(b"/")):
                try:
                    target = await client.stat(path)
                except DfsError:
                    target = inode
                if target.is_dir:
                    inode = target
        except DfsError as error:
            failures.add(error)
            continue
        (directories if inode.is_dir else files).append(Node(path, inode, 0))
    return files, directories


async def _ls_json(
    client: "Client",
    files: "list[Node]",
    directories: "list[Node]",
    failures: Failures,
    *,
    recursive: bool,
) -> None:
    import trio

    from dfs.cli.walking import TreeWalk

    policies = await policies_by_number(client)
    found = list(files)
    async with trio.open_nursery() as nursery:
        walk = TreeWalk(client, nursery, failures)
        for root in directories:
            if recursive:
                async for _, children in walk.directories(root):
                    found += children
            else:
                found += await walk.children(root)
        nursery.cancel_scope.cancel()
    entries = [inode_document(each.path, each.inode, policies) for each in found]
    render.emit_json({"entries": entries})


async def _ls_text(
    client: "Client",
    listing: "_Listing",
    files: "list[Node]",
    directories: "list[Node]",
    failures: Failures,
    *,
    recursive: bool,
    titled: bool,
) -> None:
    import trio

    from dfs.cli.walking import TreeWalk

    first = True
    if files:
        listing.show(files, [show(each.path) for each in files], total=False)
        first = False
    async with trio.open_nursery() as nursery:
        walk = TreeWalk(client, nursery, failures)
        for root in directories:
            if recursive:
                async for node, children in walk.directories(root):
                    listing.show_directory(node.path, children, titled=True, first=first)
                    first = False
            else:
                children = await walk.children(root)
                listing.show_directory(root.path, children, titled=titled, first=first)
                first = False
        nursery.cancel_scope.cancel()


def _order(by_time: bool, by_size: bool) -> "Callable[[Node], int] | None":
    """A sort key; None for the order of names, which is the order of arrival."""
    if by_size:
        return lambda node: -node.inode.size
    if by_time:
        return lambda node: -node.inode.mtime_ns
    return None


class _Listing:
    """How entries are shown."""

    def __init__(
        self,
        *,
        long: bool,
        all_names: bool,
        human: bool,
        numeric: bool,
        order: "Callable[[Node], int] | None",
        reverse: bool,
        one: bool,
    ) -> None:
        self._long = long
        self._all_names = all_names
        self._human = human
        self._numeric = numeric
        self._order = order
        self._reverse = reverse
        self._one = one
        self._now_s = time.time()

    def show_directory(
        self, path: bytes, children: "list[Node]", *, titled: bool, first: bool
    ) -> None:
        if titled:
            print(f"{'' if first else os.linesep}{show(path)}:")
        if not self._all_names:
            children = [each for each in children if not base(each.path).startswith(b".")]
        if self._order is not None:
            children = sorted(children, key=self._order)
        if self._reverse:
            children = children[::-1]
        self.show(children, [show(base(each.path)) for each in children], total=True)

    def show(self, nodes: "list[Node]", names: list[str], *, total: bool) -> None:
        if not self._long:
            if self._one:
                for node, name in zip(nodes, names, strict=True):
                    print(render.paint(name, style_of(node.inode)))
                return
            render.print_columns(names, [style_of(node.inode) for node in nodes])
            return
        if total:
            blocks = sum(each.inode.allocated for each in nodes)
            print(f"total {render.human(blocks) if self._human else -(-blocks // 1024)}")
        rows = [self._cells(node.inode) for node in nodes]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for node, name, row in zip(nodes, names, rows, strict=True):
            mode, links, user, group, size, when = (
                cell.rjust(columns) if place in (1, 4) else cell.ljust(columns)
                for place, (cell, columns) in enumerate(zip(row, widths, strict=True))
            )
            shown = render.paint(name, style_of(node.inode))
            if node.inode.is_symlink:
                shown += f" -> {show(node.inode.target)}"
            print(f"{mode} {links} {user} {group} {size} {when} {shown}")

    def _cells(self, inode: Inode) -> tuple[str, ...]:
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            size = f"{os.major(inode.rdev)}, {os.minor(inode.rdev)}"
        else:
            size = render.human(inode.size) if self._human else str(inode.size)
        return (
            stat.filemode(inode.mode),
            str(inode.nlink),
            str(inode.uid) if self._numeric else render.user_name(inode.uid),
            str(inode.gid) if self._numeric else render.group_name(inode.gid),
            size,
            render.time_short(inode.mtime_ns, self._now_s),
        )


# ------------------------------------------------------------------ tree


def tree(
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="A path in the cluster; / by default.")
    ] = "/",
    level: Annotated[
        int | None, typer.Option("-L", "--level", min=1, metavar="N", help="At most N levels deep.")
    ] = None,
    directories_only: Annotated[bool, typer.Option("-d", help="Directories only.")] = False,
    all_names: Annotated[
        bool, typer.Option("-a", "--all", help="Also names that begin with a dot.")
    ] = False,
    json: Json = False,
) -> int:
    """Draw a directory and all below it."""
    root = remote_path(path)

    async def body(client: "Client") -> int:
        import trio

        from dfs.cli.walking import Node, TreeWalk

        failures = Failures()
        top = Node(root, await client.stat(root), 0)
        drawing = _TreeDocument() if json else _TreeDrawing()

        def wanted(node: Node) -> bool:
            if directories_only and not node.inode.is_dir:
                return False
            return all_names or json or not base(node.path).startswith(b".")

        async with trio.open_nursery() as nursery:
            walk = TreeWalk(client, nursery, failures)
            async for node in walk.nodes(top, max_depth=level, wanted=wanted):
                drawing.add(node)
            nursery.cancel_scope.cancel()
        drawing.finish()
        return failures.status

    return run(body)


class _TreeDrawing:
    """Lines, one a name, as they come."""

    def __init__(self) -> None:
        self._guides: list[str] = []
        self._directories = 0
        self._files = 0

    def add(self, node: "Node") -> None:
        name = show(node.path if node.depth == 0 else base(node.path))
        shown = render.paint(name, style_of(node.inode))
        if node.inode.is_symlink:
            shown += f" -> {show(node.inode.target)}"
        if node.depth == 0:
            print(shown)
            return
        if node.inode.is_dir:
            self._directories += 1
        else:
            self._files += 1
        del self._guides[node.depth - 1 :]
        print("".join(self._guides) + ("└── " if node.last else "├── ") + shown)
        self._guides.append("    " if node.last else "│   ")

    def finish(self) -> None:
        directories = render.plural(self._directories, "directory")
        print(f"\n{directories}, {render.plural(self._files, 'file')}")


class _TreeDocument:
    """The same as one nested JSON document."""

    def __init__(self) -> None:
        self._open: list[dict[str, Any]] = []
        self._directories = 0
        self._files = 0

    def add(self, node: "Node") -> None:
        found: dict[str, Any] = {
            **document("name", tidy(node.path) if node.depth == 0 else base(node.path)),
            "type": type_name(node.inode.mode),
        }
        if node.inode.is_dir:
            found["children"] = []
            self._directories += node.depth > 0
        else:
            found["size"] = node.inode.size
            self._files += 1
        if node.inode.is_symlink:
            found.update(document("target", node.inode.target))
        del self._open[node.depth :]
        if self._open:
            self._open[-1]["children"].append(found)
        self._open.append(found)

    def finish(self) -> None:
        render.emit_json(
            {"tree": self._open[0], "directories": self._directories, "files": self._files}
        )


# ------------------------------------------------------------------ stat


def stat_command(
    paths: RemotePaths,
    dereference: Annotated[
        bool, typer.Option("-L", "--dereference", help="Follow symlinks.")
    ] = False,
    json: Json = False,
) -> int:
    """Show all that is known of files: type, mode, owner, size, inode, policy, times."""
    names = [remote_path(path) for path in paths]

    async def body(client: "Client") -> int:
        failures = Failures()
        policies = await policies_by_number(client)
        found = []
        for path in names:
            try:
                inode = await client.stat(path, follow=dereference)
            except DfsError as error:
                failures.add(error)
                continue
            found.append(inode_document(path, inode, policies))
            if not json:
                _print_stat(path, inode, policies.get(inode.policy))
        if json:
            render.emit_json({"entries": found})
        return failures.status

    return run(body)


def _print_stat(path: bytes, inode: Inode, policy: "Policy | None") -> None:
    from dfs.core.policy import format_compression

    name = show(path) + (f" -> {show(inode.target)}" if inode.is_symlink else "")
    entries = " entries" if inode.is_dir else ""
    keeps = str(inode.policy)
    if policy is not None:
        compression = format_compression(policy.compression)
        keeps = f"{policy.name} ({policy.redundancy}, {compression})"
    print(f"  File: {name}")
    print(f"  Size: {inode.size}{entries}   Allocated: {inode.allocated}   {type_name(inode.mode)}")
    print(f" Inode: {inode.ino}   Links: {inode.nlink}   Version: {inode.version}")
    print(
        f"Access: ({stat.S_IMODE(inode.mode):04o}/{stat.filemode(inode.mode)})   "
        f"Uid: ({inode.uid}/{render.user_name(inode.uid)})   "
        f"Gid: ({inode.gid}/{render.group_name(inode.gid)})"
    )
    print(f"Policy: {keeps}")
    for title, value in (
        ("Access", inode.atime_ns),
        ("Modify", inode.mtime_ns),
        ("Change", inode.ctime_ns),
    ):
        print(f"{title}: {render.time_ns(value)}")
