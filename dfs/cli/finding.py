"""`dfs find`: the files of a tree that meet conditions."""

import fnmatch
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, examples
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.modes import TYPE_NAMES
from dfs.cli.names import base, remote_path, show
from dfs.cli.owners import group_id, user_id
from dfs.core.errors import ConfigError, DfsError

if TYPE_CHECKING:
    from dfs.cli.walking import Node
    from dfs.client import Client

Test: TypeAlias = "Callable[[Node], bool]"

_TYPE_LETTERS: Final = {
    "f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket",
    "c": "character device", "b": "block device",
}  # fmt: skip
_TYPE_BITS: Final = {name: bits for bits, name in TYPE_NAMES.items()}
_SIZE: Final = re.compile(r"([+-]?)(\d+(?:\.\d+)?)([kKMGTP]?)(?:i?[bB])?|([+-]?)(\d+)c", re.ASCII)
_AGE: Final = re.compile(r"([+-]?)(\d+(?:\.\d+)?)([smhdw]?)", re.ASCII)
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def register(app: typer.Typer) -> None:
    app.command(
        "find",
        epilog=examples(
            "dfs find /photos --name '*.jpg' --size +10M",
            "dfs find / --type f --mtime -7        changed in the last seven days",
            "dfs find /tmp --mtime +12h --print0 | xargs -0 dfs rm",
        ),
    )(find)


def find(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH...]", help="Where to look; / by default."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", "-name", metavar="GLOB", help="The name matches. Repeated: any."),
    ] = None,
    iname: Annotated[
        list[str] | None,
        typer.Option("--iname", "-iname", metavar="GLOB", help="As --name, in any letter case."),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", "-path", metavar="GLOB", help="The whole path matches."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            "-type",
            metavar="TYPES",
            help="One of these: f,d,l,p,s,c,b; such as f or f,l.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            "-size",
            metavar="[+-]N[KMGT]",
            help="Larger (+), smaller (-), or exactly so many bytes; powers of 1024. "
            "Repeated: all.",
        ),
    ] = None,
    mtime: Annotated[
        list[str] | None,
        typer.Option(
            "--mtime",
            "-mtime",
            metavar="[+-]N[smhdw]",
            help="Changed longer (+) or less (-) ago; in days without a letter. A plain number "
            "N: between N and N+1 units ago.",
        ),
    ] = None,
    empty: Annotated[
        bool, typer.Option("--empty", "-empty", help="Empty files and directories.")
    ] = False,
    user: Annotated[
        str | None, typer.Option("--user", "-user", metavar="NAME", help="The owner.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", "-group", metavar="NAME", help="The group.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="The policy, by name.")
    ] = None,
    min_depth: Annotated[
        int, typer.Option("--min-depth", "-mindepth", min=0, metavar="N", help="From level N on.")
    ] = 0,
    max_depth: Annotated[
        int | None,
        typer.Option("--max-depth", "-maxdepth", min=0, metavar="N", help="Down to level N."),
    ] = None,
    print0: Annotated[
        bool,
        typer.Option("--print0", "-print0", help="End each path, unescaped, with a NUL byte."),
    ] = False,
    json: Json = False,
) -> int:
    """List what lies below PATH and meets all conditions given."""
    roots = [remote_path(each) for each in paths or ["/"]]
    tests: list[Test] = [
        *_name_tests(name, iname, path),
        *_attribute_tests(kind, size, mtime, empty, user, group),
    ]
    if min_depth:
        tests.append(lambda node: node.depth >= min_depth)

    async def body(client: "Client") -> int:
        import trio

        from dfs.cli.listing import inode_document, policies_by_number
        from dfs.cli.policies import find_policy
        from dfs.cli.walking import Node, TreeWalk

        failures = Failures()
        conditions = list(tests)
        policies = await policies_by_number(client) if json else {}
        if policy is not None:
            number = (await find_policy(client, policy)).policy
            conditions.append(lambda node: node.inode.policy == number)
        found = []
        async with trio.open_nursery() as nursery:
            walk = TreeWalk(client, nursery, failures)
            for root in roots:
                try:
                    top = Node(root, await client.stat(root, follow=False), 0)
                except DfsError as error:
                    failures.add(error)
                    continue
                async for node in walk.nodes(top, max_depth=max_depth):
                    if not all(test(node) for test in conditions):
                        continue
                    if json:
                        found.append(inode_document(node.path, node.inode, policies))
                    elif print0:
                        sys.stdout.buffer.write(node.path + b"\0")
                    else:
                        print(show(node.path))
            nursery.cancel_scope.cancel()
        if json:
            render.emit_json({"entries": found})
        return failures.status

    return run(body)


# ------------------------------------------------------------------ conditions


def _name_tests(
    names: list[str] | None, any_case: list[str] | None, paths: list[str] | None
) -> list[Test]:
    tests: list[Test] = []
    if names:
        plain = _globs(names)
        tests.append(lambda node: bool(plain.fullmatch(base(node.path))))
    if any_case:
        folded = _globs(any_case, re.IGNORECASE)
        tests.append(lambda node: bool(folded.fullmatch(base(node.path))))
    if paths:
        whole = _globs(paths)
        tests.append(lambda node: bool(whole.fullmatch(node.path)))
    return tests


def _globs(patterns: list[str], flags: int = 0) -> "re.Pattern[bytes]":
    """Matches any of the shell patterns; against bytes, so that names need not be UTF-8."""
    either = "|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in patterns)
    return re.compile(either.encode("utf-8", "surrogateescape"), flags)


def _attribute_tests(
    kind: str | None,
    sizes: list[str] | None,
    ages: list[str] | None,
    empty: bool,
    user: str | None,
    group: str | None,
) -> list[Test]:
    tests: list[Test] = []
    if kind is not None:
        wanted = _types(kind)
        tests.append(lambda node: node.inode.mode & 0o170000 in wanted)
    tests += [size_test(text) for text in sizes or ()]
    now_s = time.time()
    tests += [age_test(text, now_s) for text in ages or ()]
    if empty:
        tests.append(
            lambda node: node.inode.size == 0 and (node.inode.is_file or node.inode.is_dir)
        )
    if user is not None:
        uid = user_id(user)
        tests.append(lambda node: node.inode.uid == uid)
    if group is not None:
        gid = group_id(group)
        tests.append(lambda node: node.inode.gid == gid)
    return tests


def _types(text: str) -> frozenset[int]:
    wanted = set()
    for letter in text.split(","):
        name = _TYPE_LETTERS.get(letter, letter)
        if name not in _TYPE_BITS:
            raise ConfigError(
                f"--type {text}: {letter!r} is no type",
                hint="use f (file), d (directory), l (symlink), p, s, c or b, comma-separated",
            )
        wanted.add(_TYPE_BITS[name])
    return frozenset(wanted)


def size_test(text: str) -> Test:
    """`+10M`, `-1K`, `512`. Only regular files have a size. Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ConfigError(f"--size {text}: not a size", hint="write such as +10M, -1K or 512")
    sign = match[1] or match[4] or ""
    limit = float(match[5] or match[2]) * _FACTORS[(match[3] or "").upper()]
    if sign == "+":
        return lambda node: node.inode.is_file and node.inode.size > limit
    if sign == "-":
        return lambda node: node.inode.is_file and node.inode.size < limit
    return lambda node: node.inode.is_file and node.inode.size == limit


def age_test(text: str, now_s: float) -> Test:
    """`+7` and `-12h`: changed longer, or less, than that before `now_s`. Raises ConfigError."""
    match = _AGE.fullmatch(text)
    if not match:
        raise ConfigError(f"--mtime {text}: not an age", hint="write such as -7 (days), +12h, -30m")
    unit_s = _SECONDS[match[3] or "d"]
    limit_s = float(match[2]) * unit_s

    def age_s(node: "Node") -> float:
        return now_s - node.inode.mtime_ns / 1e9

    if match[1] == "+":
        return lambda node: age_s(node) > limit_s
    if match[1] == "-":
        return lambda node: age_s(node) < limit_s
    return lambda node: limit_s <= age_s(node) < limit_s + unit_s
