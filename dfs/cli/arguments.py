"""Arguments and options that many commands share, what they may be, and how help is written."""

from typing import Annotated

import typer

from dfs.core.errors import ConfigError, DfsError

RemotePaths = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Paths in the cluster.", show_default=False)
]
RemotePath = Annotated[
    str, typer.Argument(metavar="PATH", help="A path in the cluster.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Human = Annotated[bool, typer.Option("-h", "--human-readable", help="Sizes such as 1.5K, 12M, 3G.")]
Recursive = Annotated[
    bool, typer.Option("-R", "-r", "--recursive", help="Also everything below directories.")
]


def local_path(text: str, source: str) -> str:
    """`text` as it was. Raises ConfigError where it is empty: that would be where we stand.

    An argument is empty where a script's variable is not set.
    """
    if not text:
        raise ConfigError(f"{source}: no path is given", hint="it is empty; name a directory")
    return text


def address(text: str, source: str, *, listening: bool = False) -> str:
    """`HOST:PORT` as it was. Raises ConfigError that names `source`.

    `listening`: the host may be left out, and the port be 0.
    """
    from dfs.wire.transport import parse_address

    try:
        parse_address(text, listening=listening)
    except DfsError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
    return text


def examples(*lines: str) -> str:
    """An epilog of examples, a line each, that help does not wrap together."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
