"""Whose pages the kernel has at each path, under libfuse 2.

Its inodes there are paths: another mount may put another file at one, or move a file from one to
another, and the kernel's inode of the path keeps the pages of before. Used by FUSE's threads.
"""

import threading
from typing import Final

from dfs.core.ids import InodeId

_PATHS_MAX: Final = 30_000


class PathPages:
    """Owned by the driver. What it does not know is taken for other pages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Of both tables: files by path, and the path each was last opened by."""
        self._inodes: dict[str, InodeId] = {}
        self._paths: dict[InodeId, str] = {}

    def opened(self, path: str, ino: InodeId) -> bool:
        """Whether the pages at `path` are of `ino`, and it has none elsewhere; now they are."""
        with self._lock:
            same = self._inodes.get(path) == ino and self._paths.get(ino) == path
            if len(self._inodes) >= _PATHS_MAX or len(self._paths) >= _PATHS_MAX:
                self._forget_all()
            self._inodes[path] = ino
            self._paths[ino] = path
            return same

    def renamed(self, old: str, new: str) -> None:
        """This mount has renamed `old`: the kernel's inodes have gone with it."""
        with self._lock:
            self._inodes.pop(new, None)
            if self._inodes.pop(old, None) is None:
                # It may be a directory, with all that is in it.
                self._forget_all()

    def _forget_all(self) -> None:
        self._inodes.clear()
        self._paths.clear()
