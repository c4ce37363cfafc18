"""What a FileWriter shares with the others of its client, and with its file."""

from typing import TYPE_CHECKING, Protocol

import trio

from dfs.client.unsynced import Unsynced
from dfs.core.ids import InodeId
from dfs.core.inode import AppendMark, Extent, Inode

if TYPE_CHECKING:
    from dfs.client.writer import FileWriter


class Holder(Protocol):
    """What the bytes held by all writers of a client are counted with."""

    @property
    def unsynced(self) -> Unsynced:
        """What was committed and may not be on the disks yet."""

    def held(self, writer: "FileWriter", change: int) -> None: ...

    async def make_room(self) -> None:
        """Wait until more may be held. Raises DfsError."""

    def committing(self, ino: InodeId) -> trio.Lock:
        """One lock for a file, held while it is committed."""

    def mark(self) -> AppendMark:
        """For one more append, by which it is known again."""


class Owner(Protocol):
    """The OpenFile of a FileWriter."""

    @property
    def version(self) -> int:
        """The inode's, as last heard of."""

    def committed(
        self, inode: Inode, extents: list[Extent] | None, operations: int, since: int
    ) -> None:
        """`inode` is how the file is after a commit.

        `extents` were put into it by `operations` changes (None: who knows which changes);
        `since` is the version that was known before the master was asked.
        """
