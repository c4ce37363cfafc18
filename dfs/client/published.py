"""What the master has of a file, asked where this client does not know it.

After a commit whose answer never came, and for chunks of which it is forgotten whose bytes they
hold. Called by those who publish bytes; keeps nothing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dfs.client.pieces import share_bytes
from dfs.core.ids import ChunkId, InodeId
from dfs.core.inode import AppendMark, Extent, Inode
from dfs.wire.messages import ExtentsReply

if TYPE_CHECKING:
    from dfs.client.meta import Meta


async def find(
    meta: "Meta", ino: InodeId, extents: Sequence[Extent], mark: AppendMark | None = None
) -> Inode | None:
    """The inode, if it has an append's mark, or bytes of the extents somewhere, and would by now.

    Of many clients it does not keep the marks, and the master may move bytes elsewhere.
    """
    await meta.session.settle()

    def has_them(reply: ExtentsReply) -> bool:
        return (mark is not None and mark in reply.inode.appends) or any(
            share_bytes(found, wanted) for found in reply.extents for wanted in extents
        )

    return await _first(meta, ino, has_them)


async def refers_to(meta: "Meta", ino: InodeId, chunk: ChunkId) -> bool:
    """Whether any byte of the file is in the chunk."""

    def has_some(reply: ExtentsReply) -> bool:
        return any(extent.chunk == chunk for extent in reply.extents)

    return await _first(meta, ino, has_some) is not None


async def _first(
    meta: "Meta", ino: InodeId, wanted: Callable[[ExtentsReply], bool]
) -> Inode | None:
    """The inode, with the first page of its extents that is wanted."""
    after = 0
    while True:
        reply = await meta.extents(ino, after)
        if wanted(reply):
            return reply.inode
        if not reply.more or not reply.extents:
            return None
        after = reply.extents[-1].end
