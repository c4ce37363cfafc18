"""Whose pages the kernel has at each path, under libfuse 2.

Its inodes there are paths: another mount may put another file at one, or move a file from one to
another, and the kernel's inode of the path keeps the pages of before. While two files that had the
same path are open, both fill the same pages. Used by FUSE's threads.
"""

import threading
import time
from typing import Final

from dfs.core.ids import InodeId

_PATHS_MAX: Final = 30_000
_REPLACED_S: Final = 2.0
"""A file that was just replaced by another mount probably is again."""


class PathPages:
    """Owned by the driver. What it does not know is taken for other pages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Of both tables: files by path, and the path each was last opened by."""
        self._inodes: dict[str, InodeId] = {}
        self._paths: dict[InodeId, str] = {}
        self._open: dict[str, dict[int, InodeId]] = {}
        """By path, the handles that were opened by it, and their files."""
        self._opened_at: dict[int, str] = {}
        self._replaced: dict[str, float] = {}
        """When another mount was last found to have put another file at a path."""

    def opened(self, path: str, ino: InodeId, handle: int) -> bool:
        """Whether the pages at `path` are of `ino`, and it has none elsewhere; now they are."""
        with self._lock:
            self._open.setdefault(path, {})[handle] = ino
            self._opened_at[handle] = path
            same = self._inodes.get(path) == ino and self._paths.get(ino) == path
            if self._inodes.get(path, ino) != ino:
                self._replaced[path] = time.monotonic()
            if len(self._inodes) >= _PATHS_MAX or len(self._paths) >= _PATHS_MAX:
                self._forget_all()
            self._inodes[path] = ino
            self._paths[ino] = path
            return same

    def mixed(self, path: str, ino: InodeId) -> bool:
        """Whether another file that was opened by `path` is still open, or soon may be.

        Its reads fill the pages, and its size and this one's take turns in the kernel: nobody
        knows any more whose they are.
        """
        with self._lock:
            replaced = self._replaced.get(path)
            if replaced is not None and time.monotonic() - replaced > _REPLACED_S:
                del self._replaced[path]
                replaced = None
            if replaced is None and set(self._open.get(path, {}).values()) <= {ino}:
                return False
            self._inodes[path] = ino
            self._paths.pop(ino, None)
            return True

    def closed(self, handle: int) -> None:
        """The handle is open no more."""
        with self._lock:
            path = self._opened_at.pop(handle, None)
            if path is not None:
                self._open[path].pop(handle, None)
                if not self._open[path]:
                    del self._open[path]

    def removed(self, path: str) -> None:
        """This mount has removed what was there: the kernel's inode has gone with it."""
        with self._lock:
            self._leave(path)

    def _leave(self, path: str) -> None:
        # What is still open has pages of its own from now on.
        for handle in self._open.pop(path, {}):
            del self._opened_at[handle]
        self._replaced.pop(path, None)
        self._inodes.pop(path, None)

    def renamed(self, old: str, new: str) -> None:
        """This mount has renamed `old`: the kernel's inodes have gone with it."""
        with self._lock:
            self._leave(new)
            moved = self._open.pop(old, None)
            if moved:
                self._open[new] = moved
                self._opened_at.update(dict.fromkeys(moved, new))
            if self._inodes.pop(old, None) is None:
                # It may be a directory, with all that is in it.
                self._forget_all()

    def _forget_all(self) -> None:
        self._inodes.clear()
        self._replaced.clear()
        self._paths.clear()
