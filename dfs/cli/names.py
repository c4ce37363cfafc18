"""Names and paths between the command line, the cluster and the screen.

Inside the cluster names are bytes. An argument that is not UTF-8 arrives with surrogate escapes
(PEP 383) and goes out as the very bytes that were typed. On the screen every name is one line of
printable characters.
"""

import base64
import os
from typing import Final

from dfs.core.errors import ConfigError

_BRIEF: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def remote_path(argument: str) -> bytes:
    """The remote path an argument names.

    Raises:
        ConfigError: it is not absolute.
    """
    path = os.fsencode(argument)
    if not path.startswith(b"/"):
        shown = show(path) or "''"
        raise ConfigError(
            f"{shown}: not a remote path",
            hint="remote paths are absolute: they begin with /, such as /photos/2024",
        )
    return path


def show(name: bytes | str) -> str:
    """`name` on one line: bytes that are not UTF-8 as \\xff, control characters as \\n or \\x1b."""
    raw = os.fsencode(name) if isinstance(name, str) else name
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if brief := _BRIEF.get(char):
        return brief
    return char.encode("unicode_escape").decode("ascii")


def document(key: str, name: bytes) -> dict[str, str]:
    """`name` for a JSON document: exact under `key` where it is UTF-8.

    Where it is not, `key` holds what `show` shows, and `key_base64` the exact bytes.
    """
    try:
        return {key: name.decode("utf-8")}
    except UnicodeDecodeError:
        encoded = base64.b64encode(name).decode("ascii")
        return {key: show(name), f"{key}_base64": encoded}


def base(path: bytes) -> bytes:
    """The last name of a path; b"" for the root."""
    return path.rstrip(b"/").rpartition(b"/")[2]


def join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def tidy(path: bytes) -> bytes:
    """Without needless slashes and "." names; ".." stays: what it means is up to symlinks."""
    return b"/" + b"/".join(name for name in path.split(b"/") if name not in (b"", b"."))
