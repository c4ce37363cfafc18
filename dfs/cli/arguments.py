"""Arguments and options that many commands share, and how their help is written."""

from typing import Annotated

import typer

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


def examples(*lines: str) -> str:
    """An epilog of examples, a line each, that help does not wrap together."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
