"""Open files and directories of the mount. State only; what is done with them is in `vfs`."""

import mmap
import os
from dataclasses import dataclass, field
from typing import Final

from dfs.client.files import ReadAhead
from dfs.client.open_file import OpenFile
from dfs.core.ids import InodeId
from dfs.wire.messages import Access, Cred, DirEntry

_PAGE_BYTES: Final = mmap.PAGESIZE
_REQUEST_BYTES: Final = 128 * 1024
"""The kernel sends at least so much at a time of what is longer."""
FMODE_EXEC: Final = 0x20
"""The kernel's own open flag: to be executed, which takes no right to read."""


@dataclass(eq=False, slots=True)
class FileHandle:
    """One open(2) of a regular file. `dup`ed descriptors share it."""

    number: int
    file: OpenFile
    cred: Cred
    """Of whoever opened it: what is written through it is written with these rights."""
    flags: int
    """As open(2) has them."""
    keep_cache: bool = False
    """The kernel's pages of an earlier open are still right."""
    ahead: ReadAhead = field(default_factory=ReadAhead)

    @property
    def ino(self) -> InodeId:
        return self.file.ino

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def append(self) -> bool:
        return bool(self.flags & os.O_APPEND)

    def may_be_cut(self, offset: int, length: int) -> bool:
        """Whether a request to write may be a part of a program's write(2), with more to follow.

        The kernel goes through its pages: it sends the first by itself where that is not written
        from its beginning, and then as many whole ones as go into a request.
        """
        if self.flags & os.O_DIRECT:
            return length > _REQUEST_BYTES - _PAGE_BYTES
        if (offset + length) % _PAGE_BYTES:
            return False
        return offset % _PAGE_BYTES != 0 or length >= _REQUEST_BYTES


@dataclass(eq=False, slots=True)
class DirHandle:
    """One opendir(3): a walk over the names in order.

    `names` are those handed out so far; a position in the walk is an index into them, so that a
    program may go back to any.
    """

    number: int
    ino: InodeId
    cred: Cred
    names: list[bytes] = field(default_factory=list)
    page: list[DirEntry] = field(default_factory=list)
    page_start: int = 0
    """The position of the first entry of `page`."""
    complete: bool = False
    """`page` ends the directory."""


_EXECUTE: Final = int(Access.EXECUTE)
_BOTH: Final = int(Access.READ | Access.WRITE)
_ACCESS: Final = {
    os.O_RDONLY: int(Access.READ),
    os.O_WRONLY: int(Access.WRITE),
    os.O_RDWR: _BOTH,
}


def access_of(flags: int) -> int:
    """What open flags ask for (Access)."""
    if flags & FMODE_EXEC:
        return _EXECUTE
    return _ACCESS.get(flags & os.O_ACCMODE, _BOTH)
