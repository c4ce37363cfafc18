"""Sees that a program looks up one name of a directory after the other, in the order of a listing.

Such as `ls -l`, `find`, `rsync` or a backup in a directory with more entries than can be believed
for the moment that it takes: each would be asked for by itself. Instead a page of the listing,
attributes and all, is asked for where the program has come to. Owned by `Nodes`, in trio's thread.
"""

from collections import OrderedDict
from typing import Final

import trio

from dfs.core.ids import InodeId

STREAK: Final = 4
"""So many names in a row, each after the one before, and the next are expected to follow."""
PAGE_FIRST: Final = 64
PAGE_MAX: Final = 1024
_WALKS_MAX: Final = 64


class Walk:
    """Names of one directory that had to be asked for."""

    __slots__ = ("coming", "last", "page", "streak")

    def __init__(self) -> None:
        self.last = b""
        self.streak = 0
        self.page = 0
        """Entries asked for at a time; 0: none yet."""
        self.coming: trio.Event | None = None
        """A page is on its way; set when it is there."""

    def missed(self, name: bytes) -> bytes | None:
        """This name has to be asked for. Where it should be by a page: after which it begins."""
        last, self.last = self.last, name
        if name <= last:
            self.streak = self.page = 0
        self.streak += 1
        return last if self.streak > STREAK else None

    def begin(self) -> int:
        """A page is asked for: of how many entries. Followed by `end`."""
        self.coming = trio.Event()
        self.page = min(max(PAGE_FIRST, 2 * self.page), PAGE_MAX)
        return self.page

    def end(self, last: bytes | None) -> None:
        """It is there, up to a name; None: it did not come, or was empty."""
        if self.coming is not None:
            self.coming.set()
            self.coming = None
        if last is None:
            self.streak = self.page = 0
        else:
            self.last = max(self.last, last)


class StatAhead:
    """The walks of late."""

    def __init__(self) -> None:
        self._walks: OrderedDict[InodeId, Walk] = OrderedDict()

    def walk(self, parent: InodeId) -> Walk:
        """That in a directory."""
        walk = self._walks.get(parent)
        if walk is None:
            walk = self._walks[parent] = Walk()
            if len(self._walks) > _WALKS_MAX:
                self._walks.popitem(last=False)
        else:
            self._walks.move_to_end(parent)
        return walk
