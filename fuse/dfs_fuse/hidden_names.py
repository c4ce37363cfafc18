"""Files that are unlinked while a program has them open, as libfuse 2 has it.

libfuse 2 works with paths, so it renames such a file to `.fuse_hiddenXXXX` and unlinks that at
the last close. Here that name never enters the directory: the rename is an unlink (the open file
keeps the inode, as POSIX wants), and the name is kept in this table alone. So the directory can be
removed, and no listing shows it. Used by FUSE's threads; each step is one of a dict.
"""

import re
from typing import Final

from dfs.core.ids import InodeId

_PATTERN: Final = re.compile(rb"\.fuse_hidden[0-9a-f]{16}\Z")


class HiddenNames:
    """Owned by the driver. Names are unique in a mount, whatever directory libfuse has them in."""

    def __init__(self) -> None:
        self._inodes: dict[bytes, InodeId] = {}

    @staticmethod
    def matches(name: bytes) -> bool:
        """Whether libfuse makes such names. No program can have one in a directory of the mount."""
        return name.startswith(b".fuse_hidden") and _PATTERN.match(name) is not None

    def put(self, name: bytes, ino: InodeId) -> None:
        self._inodes[name] = ino

    def find(self, name: bytes) -> InodeId | None:
        return self._inodes.get(name)

    def remove(self, name: bytes) -> InodeId | None:
        return self._inodes.pop(name, None)
