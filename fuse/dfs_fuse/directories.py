"""Open directories: walks over their names, a page at a time."""

import errno
import time
from typing import Any, Final

from dfs.core.errors import refuse
from dfs.core.ids import InodeId
from dfs.wire.messages import Cred, DirEntry
from dfs_fuse.caller import Caller
from dfs_fuse.handles import DirHandle
from dfs_fuse.nodes import Nodes

_READDIR_PAGE: Final = 1000


class Directories(Nodes):
    """The part of the file system that lists directories."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._directories: dict[int, DirHandle] = {}

    def directory(self, number: int) -> DirHandle:
        """An open directory by its number. Raises EBADF."""
        try:
            return self._directories[number]
        except KeyError:
            raise refuse(errno.EBADF, f"directory handle {number}") from None

    async def opendir(self, ino: InodeId, caller: Caller) -> DirHandle:
        # The kernel has checked the right to list it; from now on it may be listed, as POSIX says.
        handle = DirHandle(next(self._numbers), ino, Cred(0, caller.gid))
        self._directories[handle.number] = handle
        return handle

    async def readdir(self, handle: DirHandle, position: int) -> list[DirEntry]:
        """Entries from a position on (0: the first), none at the end; without "." and "..".

        Entries that stay are seen once, whatever else changes meanwhile.
        """
        if position == 0:
            handle.names.clear()
            handle.page, handle.page_start, handle.complete = [], 0, False
        skip = position - handle.page_start
        if 0 <= skip < len(handle.page):
            return handle.page[skip:]
        if position > len(handle.names):
            raise refuse(errno.EINVAL, f"position {position} of a directory")
        if handle.complete and position == len(handle.names):
            return []
        after = handle.names[position - 1] if position else b""
        asked = time.monotonic()
        reply = await self._meta.readdir(
            handle.ino, after=after, limit=_READDIR_PAGE, cred=handle.cred
        )
        # Names further on stay: a program may go there again.
        names = [entry.name for entry in reply.entries]
        handle.names[position : position + len(names)] = names
        handle.page, handle.page_start = list(reply.entries), position
        handle.complete = not reply.more
        self._learn_page(handle.ino, reply.entries, asked)
        return handle.page

    async def releasedir(self, handle: DirHandle) -> None:
        self._directories.pop(handle.number, None)

    async def fsyncdir(self, ino: InodeId) -> None:
        """Return when the directory's changes are on disk; of the root: all this mount holds."""
        if ino == self.root:
            await self.client.sync()
        else:
            await self._delegations.log.settled((ino,))
            await self._meta.barrier.wait()
            self._delegations.log.check(ino)
