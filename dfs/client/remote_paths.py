"""Paths inside the cluster: absolute, bytes; and errors that name them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from dfs.core.errors import DfsError, FileSystemError, from_wire, refuse

AnyPath: TypeAlias = str | bytes
"""Absolute. `str` is turned to bytes as `os.fsencode` does."""


def encode(path: AnyPath) -> bytes:
    """Raises FileSystemError (EINVAL) for what cannot be a path here."""
    raw = os.fsencode(path)
    if not raw.startswith(b"/"):
        raise FileSystemError(
            f"{show(raw)!r}: not a remote path",
            errno=errno.EINVAL,
            hint="remote paths are absolute: they begin with /",
        )
    if b"\0" in raw:
        raise FileSystemError(f"{show(raw)!r}: a path cannot hold NUL", errno=errno.EINVAL)
    return raw


def show(path: bytes) -> str:
    """For people: bytes that are not UTF-8 as \\xff."""
    return path.decode("utf-8", "backslashreplace")


def split(path: bytes) -> tuple[bytes, bytes]:
    """The directory and the last name: b"/a/b/" -> (b"/a", b"b").

    Raises FileSystemError: the root, and paths that end in "." or "..", have no last name.
    """
    stripped = path.rstrip(b"/")
    directory, _, name = stripped.rpartition(b"/")
    if name in (b"", b".", b".."):
        raise refuse(errno.EBUSY if not stripped else errno.EINVAL, show(path))
    return directory or b"/", name


def join(directory: bytes, name: bytes) -> bytes:
    """A name in a directory."""
    return directory + name if directory.endswith(b"/") else directory + b"/" + name


@contextmanager
def about(path: bytes) -> Iterator[None]:
    """Let refusals name the path they are about, in place of an inode's number."""
    try:
        yield
    except FileSystemError as error:
        raise name_it(error, path) from error


def name_it(error: DfsError, path: bytes) -> DfsError:
    """The same error, saying that it is about `path`."""
    shown = show(path)
    if not isinstance(error, FileSystemError) or error.message.startswith(f"{shown}: "):
        return error
    reason = os.strerror(error.errno or 0)
    wire = error.to_wire()
    message = f"{shown}: {reason if error.message.endswith(reason) else error.message}"
    return from_wire(type(wire)(wire.code, wire.errno, message, wire.hint, wire.retry))
