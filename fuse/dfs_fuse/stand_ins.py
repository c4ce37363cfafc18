"""What the kernel's inodes mean whose files were replaced just before they were opened.

libfuse 3 opens by inode. Where that has gone meanwhile, another that has its name now is opened in
its stead (`Vfs.open_following`); for as long as it is open, the kernel's inode means that one.
"""

from dfs.core.ids import InodeId


class _StandIn:
    """The file that has the name of one that is gone."""

    __slots__ = ("handles", "ino")

    def __init__(self, ino: InodeId) -> None:
        self.ino = ino
        self.handles = 0


class StandIns:
    """Owned by the driver by inodes."""

    def __init__(self) -> None:
        self._by_inode: dict[int, _StandIn] = {}
        self._by_handle: dict[int, int] = {}
        """The kernel's inode of each handle of those."""

    def ino(self, inode: int) -> InodeId:
        """The cluster's number of the kernel's inode."""
        stand_in = self._by_inode.get(inode)
        return inode if stand_in is None else stand_in.ino

    def put(self, inode: int, ino: InodeId) -> bool:
        """`ino` is to stand in. False: another does already, and one inode has one content."""
        if inode in self._by_inode:
            return False
        self._by_inode[inode] = _StandIn(ino)
        return True

    def opened(self, inode: int, handle: int) -> bool:
        """Whether what was opened stands in for the inode."""
        stand_in = self._by_inode.get(inode)
        if stand_in is None:
            return False
        stand_in.handles += 1
        self._by_handle[handle] = inode
        return True

    def has(self, handle: int) -> bool:
        """Whether it is of a file that stands in."""
        return handle in self._by_handle

    def closed(self, handle: int) -> None:
        """Nothing goes through the handle any more."""
        inode = self._by_handle.pop(handle, None)
        if inode is not None:
            stand_in = self._by_inode[inode]
            stand_in.handles -= 1
            if not stand_in.handles:
                del self._by_inode[inode]
