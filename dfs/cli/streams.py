"""stdin and stdout as byte streams that never block the event loop.

A reader like `less` may stop reading for an hour; meanwhile the session's lease has to be
renewed. So every read and write runs in a thread, which is abandoned if the command is stopped.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from dfs.cli.failures import Failures
from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError

if TYPE_CHECKING:
    from dfs.client import Client

_READ_BYTES: Final = 1024 * 1024
_IOV_MAX: Final = 1024
_STEP_BYTES: Final = 4 * 1024 * 1024


class StandardOutput:
    """Writes bytes to stdout. Raises BrokenPipeError when nobody reads any more."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise DfsError("standard output is closed")
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()

    async def write(self, parts: Sequence[Buffer]) -> None:
        """All of `parts`, in order. Raises OSError that names stdout; BrokenPipeError as it is."""
        try:
            await trio.to_thread.run_sync(self._write_all, parts, abandon_on_cancel=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error

    def _write_all(self, parts: Sequence[Buffer]) -> None:
        rest = [memoryview(part).cast("B") for part in parts if len(part)]
        while rest:
            written = os.writev(self._descriptor, rest[:_IOV_MAX])
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = rest[0][written:]


class StandardInput:
    """Reads bytes from stdin."""

    def __init__(self) -> None:
        if sys.stdin is None:
            raise DfsError("standard input is closed")
        self._descriptor = sys.stdin.fileno()

    async def read(self) -> bytes:
        """What comes next, up to a MiB; b"" at the end. Raises OSError that names stdin."""
        try:
            return await trio.to_thread.run_sync(
                os.read, self._descriptor, _READ_BYTES, abandon_on_cancel=True
            )
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard input") from error


async def write_to_stdout(client: "Client", paths: Sequence[bytes]) -> int:
    """The content of remote files, one after the other. Says what fails; the exit status."""
    failures = Failures()
    output = StandardOutput()
    for path in paths:
        try:
            async with await client.open(path, "r") as file:
                offset = 0
                while parts := await file.pread_parts(_STEP_BYTES, offset):
                    offset += sum(map(len, parts))
                    await output.write(parts)
        except DfsError as error:
            failures.add(error)
    return failures.status
