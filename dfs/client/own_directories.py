"""Directories that this client has to itself: looking and changing without asking anybody.

`Held` is one of them: all its names, and its attributes. `OwnDirectories` answers what is asked
about them, and makes, removes and renames files in them: by the permissions that the master would
go by, with numbers that it has reserved, at its time. What was done goes into the log
(`write_behind`); where something cannot be decided here, a method returns None.

How directories come and go is in `delegations`, which is built on this. All methods may be called
from any thread, such as FUSE's.
"""

import stat
import time
from collections.abc import Callable
from typing import Final

import trio
from msgspec.structs import replace as changed

from dfs.client.write_behind import WriteBehind
from dfs.core.ids import NAME_MAX_BYTES, InodeId
from dfs.core.inode import Inode, InodeFlag
from dfs.core.permissions import WRITE_SEARCH, inherited, require, require_removable
from dfs.wire import messages as m

_OPENED: Final = int(InodeFlag.OPENED)


class Held:
    """A directory that this client has to itself, or is asking for."""

    __slots__ = (
        "changed",
        "closing",
        "directories",
        "inode",
        "made",
        "names",
        "recalled",
        "seen",
        "used",
    )

    def __init__(self, inode: Inode | None = None) -> None:
        self.inode = inode
        """Its attributes as they are; None: it is not held yet."""
        self.names: dict[bytes, InodeId] = {}
        """All of them."""
        self.directories: set[InodeId] = set()
        """Those that are directories."""
        self.made: set[InodeId] = set()
        """Files that were made here since: nobody else has seen them."""
        self.used = time.monotonic()
        self.recalled = False
        """Somebody wants it before it was held."""
        self.seen: dict[bytes, tuple[InodeId, bool] | None] = {}
        """What became of names while it was asked for: the inode, and whether it is a directory."""
        self.closing: trio.Event | None = None
        """New changes wait for this: it is held in a moment."""
        self.changed = trio.Event()
        """Set when a change that was with the master has ended, while it is asked for."""

    def touch(self, now_ns: int, entries: int, subdirectories: int = 0) -> None:
        """Entries came or went."""
        assert self.inode is not None
        self.inode = changed(
            self.inode,
            size=self.inode.size + entries,
            nlink=self.inode.nlink + subdirectories,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
        )

    def came(self, name: bytes, inode: Inode) -> None:
        """The master has put `inode` there."""
        before = self.names.get(name)
        if before == inode.ino:
            return
        replaced = before in self.directories
        self.directories.discard(before or 0)
        self.names[name] = inode.ino
        if inode.is_dir:
            self.directories.add(inode.ino)
        self.touch(inode.ctime_ns, before is None, inode.is_dir - replaced)

    def gone(self, name: bytes, time_ns: int) -> None:
        """The master has taken the name away."""
        ino = self.names.pop(name, None)
        if ino is not None:
            self.touch(time_ns, -1, -(ino in self.directories))
            self.directories.discard(ino)

    def close(self) -> None:
        """What was seen of names while they were read is how they are."""
        for name, seen in self.seen.items():
            self.directories.discard(self.names.pop(name, 0))
            if seen is not None:
                self.names[name] = seen[0]
                if seen[1]:
                    self.directories.add(seen[0])
        self.seen.clear()


class OwnDirectories:
    """See the module."""

    def __init__(self, log: WriteBehind) -> None:
        self.log = log
        self._lock = log.lock
        self._held: dict[InodeId, Held] = {}
        self._with_master: dict[InodeId, int] = {}
        """Inodes, and how many operations that name them are with the master."""
        self._numbers: list[range] = []
        """Reserved for new files."""
        self._ahead_ns = 0
        """What the master's clock is ahead of this machine's."""

    # ---------------------------------------------------------------- looking

    def child(self, parent: InodeId, name: bytes) -> InodeId | None:
        """The inode of a name; 0: there is no such name; None: ask the master."""
        held = self._held.get(parent)
        if held is None or parent in self._with_master:
            return None
        ino = held.names.get(name)
        if ino is None and _is_plain(name):
            return 0
        # Of a name that cannot be, the master says why.
        return ino

    def directory(self, ino: InodeId) -> Inode | None:
        """The attributes of a directory that is held, where they are known."""
        held = self._held.get(ino)
        return None if held is None or ino in self._with_master else held.inode

    def made_here(self, parent: InodeId, ino: InodeId) -> bool:
        """Whether nobody else has seen the file."""
        held = self._held.get(parent)
        return held is not None and ino in held.made

    # ---------------------------------------------------------------- changing

    def create(self, parent: InodeId, name: bytes, mode: int, cred: m.Cred) -> Inode | None:
        """A new regular file, open. None: ask the master. Raises EACCES."""
        if parent not in self._held or not _is_plain(name):
            return None
        with self._lock:
            held = self._usable(parent)
            if held is None or name in held.names:
                return None
            directory = held.inode
            assert directory is not None
            require(directory, cred, WRITE_SEARCH)
            ino = self._number()
            if not ino:
                return None
            now = self._now_ns(directory)
            owner = inherited(directory, stat.S_IFREG | mode & 0o7777, cred)
            inode = Inode(
                ino,
                owner.mode,
                1,
                cred.uid,
                owner.gid,
                0,
                now,
                now,
                now,
                directory.policy,
                flags=_OPENED,
            )
            held.names[name] = ino
            held.made.add(ino)
            held.touch(now, 1)
            op = m.Create(parent, name, mode, True, True, 6, ino, now)
            self.log.log(op, cred, ino, parent)
        return inode

    def unlink(
        self, parent: InodeId, name: bytes, cred: m.Cred, find: Callable[[InodeId], Inode | None]
    ) -> tuple[InodeId, int] | None:
        """Remove a file: which it was, and when. None: ask the master. Raises EACCES, EPERM.

        `find` gives the attributes of an inode, where they are known.
        """
        if parent not in self._held:
            return None
        with self._lock:
            held = self._usable(parent)
            ino = None if held is None else held.names.get(name)
            if held is None or ino is None or ino in held.directories:
                return None
            if not self._removable(held, ino, cred, find):
                return None
            now = self._now_ns(held.inode)
            del held.names[name]
            held.touch(now, -1)
            self.log.log(m.Unlink(parent, name, now), cred, ino, parent)
        return ino, now

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_name: bytes,
        cred: m.Cred,
        find: Callable[[InodeId], Inode | None],
    ) -> tuple[InodeId, InodeId, int] | None:
        """Rename a file within a directory: which, what was replaced (0: nothing), when.

        None: ask the master. Raises EACCES, EPERM.
        """
        if parent not in self._held or not _is_plain(new_name):
            return None
        with self._lock:
            held = self._usable(parent)
            ino = None if held is None else held.names.get(name)
            if held is None or ino is None or ino in held.directories:
                return None
            victim = held.names.get(new_name, 0)
            if victim == ino or victim in held.directories:
                return None
            for each in (ino, victim):
                if each and not self._removable(held, each, cred, find):
                    return None
            now = self._now_ns(held.inode)
            del held.names[name]
            held.names[new_name] = ino
            held.touch(now, -1 if victim else 0)
            op = m.Rename(parent, name, parent, new_name, 0, now)
            about = (ino, parent, victim) if victim else (ino, parent)
            self.log.log(op, cred, *about)
        return ino, victim, now

    def release(self, ino: InodeId, cred: m.Cred) -> bool:
        """The file is open no more. False: tell the master."""
        if not self.log.waits(ino):
            return False
        with self._lock:
            return self.log.release(ino, cred)

    def _usable(self, parent: InodeId) -> Held | None:
        """The directory, if it may be changed here now."""
        held = self._held.get(parent)
        if held is None or parent in self._with_master or self.log.full:
            return None
        held.used = time.monotonic()
        return held

    def _removable(
        self, held: Held, ino: InodeId, cred: m.Cred, find: Callable[[InodeId], Inode | None]
    ) -> bool:
        """Whether the entry may go; False: the master has to decide. Raises EACCES, EPERM."""
        directory = held.inode
        assert directory is not None
        if not directory.mode & stat.S_ISVTX or cred.uid in (0, directory.uid):
            require(directory, cred, WRITE_SEARCH)
            return True
        victim = find(ino)
        if victim is None:
            return False
        require_removable(directory, victim, cred)
        return True

    def _number(self) -> InodeId:
        """A number for a new file; 0: there is none at hand."""
        while self._numbers:
            left = self._numbers[0]
            if left:
                self._numbers[0] = left[1:]
                return left[0]
            self._numbers.pop(0)
        return 0

    def _now_ns(self, directory: Inode | None) -> int:
        """When something is done in the directory: by the master's clock, and after the last."""
        assert directory is not None
        return max(time.time_ns() + self._ahead_ns, directory.ctime_ns + 1)


def _is_plain(name: bytes) -> bool:
    """Whether an entry may be called so; else the master says what is wrong with it."""
    return (
        0 < len(name) <= NAME_MAX_BYTES
        and name not in (b".", b"..")
        and b"/" not in name
        and b"\0" not in name
    )
