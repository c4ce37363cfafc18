"""Attributes and names that may be believed for a moment, so that not every stat asks the master.

Filled by every answer of the master, corrected by every change of this mount. Files that nobody
else has seen (see `dfs.client.delegations`) are believed until they are shared. Any thread may use
it at any time: each step is one of a dict, and at worst something is forgotten. Bounded: two
generations, of which the older is dropped as a whole.
"""

import math
import time
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.ids import InodeId
from dfs.core.inode import Inode

_GENERATION_MAX: Final = 20_000
"""Entries of a kind before the next generation starts; at most two of them are kept."""

_DIRECTORIES_MAX: Final = 1000

_Attributes = dict[InodeId, tuple[float, Inode]]
_Names = dict[tuple[InodeId, bytes], tuple[float, InodeId]]


class NodeCache:
    """See the module. `ttl_s`: how long an answer is believed; 0 believes nothing."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._attributes: _Attributes = {}
        self._older_attributes: _Attributes = {}
        self._names: _Names = {}
        self._older_names: _Names = {}
        self._lost_names: dict[InodeId, float] = {}
        """When a name of each directory was forgotten last."""
        self._lost_before = -math.inf
        """The same, of all that are not among those."""

    # ---------------------------------------------------------------- asking

    def attributes(self, ino: InodeId) -> Inode | None:
        """The inode as last heard of, if that was a moment ago."""
        found = self._attributes.get(ino) or self._older_attributes.get(ino)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def child(self, parent: InodeId, name: bytes) -> InodeId | None:
        """The inode that `name` in `parent` was a moment ago."""
        key = (parent, name)
        found = self._names.get(key) or self._older_names.get(key)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def lookup(self, parent: InodeId, name: bytes) -> Inode | None:
        """`child` and its `attributes`, where both are known."""
        ino = self.child(parent, name)
        return None if ino is None else self.attributes(ino)

    def last_child(self, parent: InodeId, name: bytes) -> InodeId | None:
        """What `name` was when it was last heard of: not to be believed, but to be forgotten."""
        key = (parent, name)
        found = self._names.get(key) or self._older_names.get(key)
        return None if found is None else found[1]

    # ---------------------------------------------------------------- telling

    def learn(self, inode: Inode, *, own: bool = False) -> None:
        """The master has just said so; `own`: or this mount, and nobody else knows of the inode.

        An answer that was overtaken by one of a later change is not believed: every change of an
        inode moves its ctime.
        """
        now = time.monotonic()
        until = math.inf if own else now + self.ttl_s
        found = self._attributes.get(inode.ino) or self._older_attributes.get(inode.ino)
        if found is not None and found[0] > now:
            known = found[1]
            if known.ctime_ns > inode.ctime_ns:
                if known.version >= inode.version:
                    return
                # This mount has changed its name since, and not heard of its data.
                inode = changed(inode, ctime_ns=known.ctime_ns, nlink=known.nlink)
            until = max(until, found[0])
        self._attributes[inode.ino] = (until, inode)
        if len(self._attributes) > _GENERATION_MAX:
            self._older_attributes, self._attributes = self._attributes, {}

    def adjust(self, inode: Inode) -> None:
        """A change of this mount has made it so; believed no longer than what was known before."""
        found = self._attributes.get(inode.ino) or self._older_attributes.get(inode.ino)
        if found is not None:
            self._attributes[inode.ino] = (found[0], inode)

    def share(self, inos: Iterable[InodeId]) -> None:
        """Others may see and change these inodes from now on."""
        until = time.monotonic() + self.ttl_s
        for ino in inos:
            found = self._attributes.get(ino) or self._older_attributes.get(ino)
            if found is not None and found[0] > until:
                self._attributes[ino] = (until, found[1])

    def learn_name(
        self, parent: InodeId, name: bytes, ino: InodeId, asked: float | None = None
    ) -> None:
        """The master has just said that `name` in `parent` is `ino`.

        What it was `asked` before a name there was forgotten may be of before, and is not believed.
        """
        if asked is not None and asked <= self._lost_names.get(parent, self._lost_before):
            return
        self._put_name(parent, name, ino, time.monotonic() + self.ttl_s)

    def note_name(self, parent: InodeId, name: bytes, ino: InodeId) -> None:
        """`name` in `parent` is probably `ino`: for `last_child` only."""
        self._put_name(parent, name, ino, -math.inf)

    def _put_name(self, parent: InodeId, name: bytes, ino: InodeId, until: float) -> None:
        self._names[parent, name] = (until, ino)
        if len(self._names) > _GENERATION_MAX:
            self._older_names, self._names = self._names, {}

    def forget(self, ino: InodeId) -> None:
        """The attributes have changed, nobody knows how."""
        # The older generation first: `attributes` in another thread looks there last.
        self._older_attributes.pop(ino, None)
        self._attributes.pop(ino, None)

    def forget_name(self, parent: InodeId, name: bytes) -> None:
        """The name has gone, or is another inode now."""
        if parent not in self._lost_names and len(self._lost_names) >= _DIRECTORIES_MAX:
            self._lost_before = time.monotonic()
            self._lost_names = {}
        self._lost_names[parent] = time.monotonic()
        self._older_names.pop((parent, name), None)
        self._names.pop((parent, name), None)
