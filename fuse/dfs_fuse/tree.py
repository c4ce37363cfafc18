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
        return self._made(parent, name, inode)

    def _made(self, parent: InodeId, name: bytes, inode: Inode) -> Inode:
        self._delegations.note_change(parent)
        return self._added(parent, name, inode)

    async def mkdir(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._made(parent, name, await self._meta.mkdir(parent, name, mode, cred=cred))

    async def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._made(parent, name, await self._meta.symlink(parent, name, target, cred=cred))

    async def link(self, ino: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        self._check_writable()
        cred = self._credentials.of(caller)
        return self._made(parent, name, await self._meta.hard_link(ino, parent, name, cred=cred))

    async def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        if not self.unlink_here(parent, name, caller):
            await self._remove(self._meta.unlink, parent, name, caller, subdirectories=0)

    def unlink_here(self, parent: InodeId, name: bytes, caller: Caller) -> bool:
        """As `unlink`, where the directory is this mount's. False: it is not. From any thread."""
        if self.read_only:
            return False
        cred = self._credentials.of(caller)
        done = self._delegations.unlink(parent, name, cred, self.cache.attributes)
        if done is None:
            return False
        ino, time_ns = done
        self.cache.forget_name(parent, name)
        self._lost_name(ino, parent, name, time_ns)
        return True

    def _lost_name(self, ino: InodeId, parent: InodeId, name: bytes, time_ns: int) -> None:
        """This mount has taken a name from a file, in a directory of its own."""
        if self._names.get(ino, ())[:2] == (parent, name):
            self._lose_place(ino)
        inode = self.cache.attributes(ino)
        if inode is None or (inode.nlink == 1 and self._files.get(ino) is None):
            self.cache.forget(ino)
        else:
            self.cache.adjust(changed(inode, nlink=inode.nlink - 1, ctime_ns=time_ns))

    async def rmdir(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        removed = self.cache.lookup(parent, name)
        if removed is not None:
            self._delegations.give_back(removed.ino)
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
        self._delegations.note_change(parent)
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
        if self.rename_here(parent, name, new_parent, new_name, flags, caller):
            return
        cred = self._credentials.of(caller)
        moved = self.cached_child(parent, name)
        exchanged = self.cached_child(new_parent, new_name)
        for ino in (moved, exchanged):
            if ino is not None:
                self._delegations.give_back(ino)
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
        self._delegations.note_change(parent)

    def rename_here(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> bool:
        """As `rename`, within a directory of this mount. False: it is not. From any thread."""
        if self.read_only or flags or parent != new_parent:
            return False
        cred = self._credentials.of(caller)
        done = self._delegations.rename(parent, name, new_name, cred, self.cache.attributes)
        if done is None:
            return False
        ino, victim, time_ns = done
        for entry in (name, new_name):
            self.cache.forget_name(parent, entry)
        if victim:
            self._lost_name(victim, parent, new_name, time_ns)
        inode = self.cache.attributes(ino)
        if inode is not None:
            self.cache.adjust(changed(inode, ctime_ns=time_ns))
        self._note_name(parent, new_name, ino)
        return True

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
