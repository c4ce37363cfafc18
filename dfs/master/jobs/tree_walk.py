"""Going through all files below an inode, a few at a time, from a place that can be written down.

Depth first, in order of name. What is renamed meanwhile may be met twice or not at all: whoever
must miss nothing walks again, until there is nothing left to do.
"""

from collections.abc import AsyncGenerator
from itertools import islice
from typing import Final

import trio

from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.master.keyspace import (
    DENTRY,
    Reader,
    dentry_key,
    dentry_name,
    from_u64,
    get_inode,
    prefix_end,
    u64,
)

Place = tuple[tuple[InodeId, bytes], ...]
"""Directories from the root of the walk down, each with the last of its names that is done."""

SLICE: Final = 256
"""Names read in one go."""


class TreeWalk:
    """One walk. `place` is where it is; a later one goes on behind that."""

    def __init__(self, reader: Reader, root: InodeId, place: Place = ()) -> None:
        self._reader = reader
        self._root = root
        self._stack = list(place)

    @property
    def place(self) -> Place:
        return tuple(self._stack)

    async def files(self) -> AsyncGenerator[Inode, None]:
        """Regular files. One with several names may come several times."""
        root = get_inode(self._reader, self._root)
        if root is not None and root.is_file:
            yield root
            return
        stack = self._stack
        if root is not None and root.is_dir and not stack:
            stack.append((root.ino, b""))
        while stack:
            directory, after = stack[-1]
            rows = self._next(directory, after)
            if not rows:
                stack.pop()
            for name, ino in rows:
                stack[-1] = directory, name
                inode = get_inode(self._reader, ino)
                if inode is not None and inode.is_file:
                    yield inode
                elif inode is not None and inode.is_dir:
                    stack.append((ino, b""))
                    break
            await trio.lowlevel.checkpoint()

    def _next(self, directory: InodeId, after: bytes) -> list[tuple[bytes, InodeId]]:
        start = dentry_key(directory, after) + (b"\0" if after else b"")
        rows = self._reader.scan(start, prefix_end(DENTRY + u64(directory)))
        return [(dentry_name(key), from_u64(value)) for key, value in islice(rows, SLICE)]
