"""The bytes of one file that the master has not heard of: see `new_files`, which publishes them."""

from typing import TYPE_CHECKING

import trio

from dfs.core.errors import DfsError
from dfs.core.ids import InodeId
from dfs.core.inode import Extent
from dfs.wire.messages import Cred

if TYPE_CHECKING:
    from dfs.client.open_file import OpenFile


class NewFile:
    """What was written to a file that the master has not heard of, from its beginning on.

    Changed under the log's lock while its Create is in the log, and not after.
    """

    __slots__ = (
        "_changed",
        "_ended",
        "_error",
        "closed",
        "cred",
        "data",
        "extent",
        "file",
        "made_ns",
        "time_ns",
    )

    def __init__(self, file: "OpenFile", cred: Cred) -> None:
        self.file = file
        self.cred = cred
        """Whose rights it is made, and written, with."""
        self.made_ns = file.inode.mtime_ns
        """When it was made."""
        self.data = bytearray()
        self.time_ns = 0
        """When it was written to last."""
        self.closed = False
        """Its only handle is closed, and given back when the bytes are published."""
        self.extent: Extent | None = None
        """Where the disks have the bytes, and the file has them or may have."""
        self._ended = False
        self._error: DfsError | None = None
        """Why they are not published yet."""
        self._changed: trio.Event | None = None

    @property
    def ino(self) -> InodeId:
        return self.file.ino

    async def ended(self, deadline: float) -> None:
        """Return when the bytes are published, taken over, or lost.

        Raises DfsError where it has been tried, and is not so by `deadline`.
        """
        while not self._ended:
            error = self._error
            if error is not None and trio.current_time() >= deadline:
                raise error.again()
            if self._changed is None:
                self._changed = trio.Event()
            with trio.move_on_at(float("inf") if error is None else deadline):
                await self._changed.wait()

    def end(self) -> None:
        """They are, and the file says so."""
        self._ended = True
        self._wake()

    def fail(self, error: DfsError) -> None:
        """They are not yet."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
