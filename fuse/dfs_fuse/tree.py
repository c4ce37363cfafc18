"""Changes of the tree: names come, go and move."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs_fuse.caller import Caller
from dfs_fuse.nodes import Nodes

_RENAME_EXCHANGE: Final = 2
_REMOVED_MAX: Final = 1000


class Tree(Nodes):
    """The part of the file system that changes names."""

    async def mknod(
        self, parent: InodeId, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        inode = await self._meta.mknod(parent, name, mode, rdev, cred=cred)
        return self._added(parent, name, inode)

    async def mkdir(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.mkdir(parent, name, mode, cred=cred))

    async def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.symlink(parent, name, target, cred=cred))

    async def link(self, ino: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._added(parent, name, await self._meta.hard_link(ino, parent, name, cred=cred))

    async def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        await self._remove(self._meta.unlink, parent, name, caller, subdirectories=0)

    async def rmdir(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        removed = self.cache.lookup(parent, name)
        await self._remove(self._meta.rmdir, parent, name, caller, subdirectories=1)
        self._remember_removed(removed)

    async def _remove(
        self,
        remove: Callable[..., Awaitable[int]],
        parent: InodeId,
        name: bytes,
        caller: Caller,
        *,
        subdirectories: int,
    ) -> None:
        try:
            time_ns = await remove(parent, name, cred=self._credentials.of(caller))
        except BaseException:
            self._replaced(parent, name)
            self.cache.forget(parent)
            raise
        self._removed(parent, name, time_ns, subdirectories)

    async def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """`flags` as renameat2(2) has them: NOREPLACE and EXCHANGE, else EINVAL."""
        self._check_writable()
        cred = self._credentials.of(caller)
        moved = self.cache.child(parent, name)
        exchanged = self.cache.child(new_parent, new_name)
        try:
            victim = None if exchanged is None else self.cache.attributes(exchanged)
            await self._meta.rename(parent, name, new_parent, new_name, flags, cred=cred)
            self._renamed(moved, new_parent, new_name)
            if flags & _RENAME_EXCHANGE:
                self._renamed(exchanged, parent, name)
            elif moved != exchanged:
                self._remember_removed(victim)
        except BaseException:
            self._shuffled((parent, name), (new_parent, new_name))
            raise
        self._shuffled(
            (parent, name),
            (new_parent, new_name),
            moved=True,
            exchanged=bool(flags & _RENAME_EXCHANGE),
        )

    def _shuffled(
        self,
        old: tuple[InodeId, bytes],
        new: tuple[InodeId, bytes],
        *,
        moved: bool = False,
        exchanged: bool = False,
    ) -> None:
        """A rename has ended: nothing is believed, but which names are affected is kept."""
        first, second = self.cache.last_child(*old), self.cache.last_child(*new)
        for directory, entry in (old, new):
            self._replaced(directory, entry)
            self.cache.forget(directory)
        if moved and not exchanged:
            second = None
        for place, ino in ((new if moved else old, first), (old if moved else new, second)):
            if ino is not None:
                self.cache.note_name(*place, ino)

    def _renamed(self, ino: InodeId | None, parent: InodeId, name: bytes) -> None:
        """The kernel knows the inode by this name from now on, and does not look it up."""
        if ino is not None and ino in self._names:
            self._names[ino] = (parent, name, time.monotonic())

    def _remember_removed(self, inode: Inode | None) -> None:
        """Where it is a directory that has just gone: what fstat says of it from now on."""
        if inode is not None and inode.is_dir:
            self._removed_directories[inode.ino] = changed(inode, nlink=0)
            if len(self._removed_directories) > _REMOVED_MAX:
                self._removed_directories.popitem(last=False)
