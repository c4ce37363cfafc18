"""stdin and stdout as byte streams that never block the event loop.

A reader like `less` may stop reading for an hour; meanwhile the session's lease has to be
renewed. So every read and write runs in a thread, which is abandoned if the command is stopped.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import trio

from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError

_READ_BYTES: Final = 1024 * 1024
_IOV_MAX: Final = 1024


class StandardOutput:
    """Writes bytes to stdout. Raises BrokenPipeError when nobody reads any more."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise DfsError("standard output is closed")
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()

    async def write(self, parts: Sequence[Buffer]) -> None:
        """All of `parts`, in order."""
        await trio.to_thread.run_sync(self._write_all, parts, abandon_on_cancel=True)

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
        """What comes next, up to a MiB; b"" at the end."""
        return await trio.to_thread.run_sync(
            os.read, self._descriptor, _READ_BYTES, abandon_on_cancel=True
        )
