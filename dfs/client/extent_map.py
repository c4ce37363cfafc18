"""What this client knows of one file's extents: fetched in windows, kept up by its own commits.

`version` is that of the inode whose extents these are. Whatever another client changed shows as
a version that does not follow; then all is forgotten and fetched again.
"""

from collections.abc import Sequence
from typing import Final

from dfs.client.interval_map import IntervalMap, Span
from dfs.client.meta import Meta
from dfs.client.resolver import Resolver
from dfs.core.ids import ChunkId, InodeId
from dfs.core.inode import Extent, Inode

_END: Final = 1 << 62
_PAGE: Final = 1000
_SPANS_MAX: Final = 50_000
"""A file in more pieces than this is known in part only."""


class ExtentMap:
    """Owned by an OpenFile. Between `ensure` and `slices` nothing may be awaited."""

    def __init__(self, ino: InodeId, meta: Meta, resolver: Resolver) -> None:
        self.version = -1
        self._ino = ino
        self._meta = meta
        self._resolver = resolver
        self._extents: IntervalMap[ChunkId] = IntervalMap()
        self._known: IntervalMap[bool] = IntervalMap()

    def knows(self, start: int, end: int) -> bool:
        """Whether `slices` of this range says all there is."""
        known = self._known.slices(start, end)
        return start >= end or (len(known) == 1 and known[0].start == start and known[0].end == end)

    async def ensure(self, start: int, end: int) -> Inode | None:
        """Fetch what is not known of [start, end); the inode as it is now, if it was asked for."""
        inode: Inode | None = None
        while not self.knows(start, end):
            known = self.version
            gap = self._known.gaps(start, end)[0][0]
            reply = await self._meta.extents(self._ino, gap, limit=_PAGE)
            inode = reply.inode
            if known <= inode.version < self.version:
                continue  # overtaken by a commit of our own
            # Less than was known before asking: a power cut took changes from the master.
            if inode.version != self.version or len(self._extents) > _SPANS_MAX:
                self.forget(inode.version)
            self._resolver.learn(reply.layout)
            for extent in reply.extents:
                self._extents.set(extent.file_offset, extent.end, extent.chunk, extent.chunk_offset)
            until = reply.extents[-1].end if reply.more and reply.extents else _END
            self._known.set(gap, until, True, gap)
        return inode

    def slices(self, start: int, end: int) -> list[Span[ChunkId]]:
        """Extents in [start, end), in order: value is the chunk, skip the offset in it."""
        return self._extents.slices(start, end)

    def seed(self, inode: Inode, extents: Sequence[Extent]) -> None:
        """Take over all extents of a file, as a directory listing gave them."""
        self.forget(inode.version)
        for extent in extents:
            self._extents.set(extent.file_offset, extent.end, extent.chunk, extent.chunk_offset)
        self._known.set(0, _END, True)

    def committed(self, inode: Inode, extents: Sequence[Extent], changes: int = 1) -> None:
        """This client has put `extents` into the file by `changes` operations: `inode` after."""
        # Also where it is older: better to ask again than to keep what the master may have lost.
        if inode.version != self.version + changes:
            self.forget(inode.version)
            return
        self.version = inode.version
        for extent in extents:
            self._extents.set(extent.file_offset, extent.end, extent.chunk, extent.chunk_offset)

    def forget(self, version: int = -1) -> None:
        """Know nothing any more."""
        self.version = version
        self._extents.wipe()
        self._known.wipe()
