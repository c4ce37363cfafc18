"""Extended attributes."""

import errno

from dfs.core.errors import refuse
from dfs.core.ids import InodeId
from dfs.core.inode import InodeFlag
from dfs.wire.messages import Cred, XattrMode
from dfs_fuse.caller import Caller
from dfs_fuse.nodes import Nodes


class ExtendedAttributes(Nodes):
    """The part of the file system that knows them."""

    def has_no_xattrs(self, ino: InodeId) -> bool:
        """Whether the inode certainly has none. From any thread; the kernel asks at every write."""
        inode = self.cache.attributes(ino)
        return inode is not None and not inode.flags & InodeFlag.XATTRS

    async def getxattr(self, ino: InodeId, name: bytes) -> bytes:
        """Raises ENODATA, EOPNOTSUPP for a namespace that is not supported."""
        if ino == self.root and name == b"user.dfs.mount":
            return self.about
        if name.startswith(b"system."):
            raise refuse(errno.EOPNOTSUPP, name.decode(errors="backslashreplace"))
        if not (await self.getattr(ino)).flags & InodeFlag.XATTRS:
            raise refuse(errno.ENODATA, f"inode {ino}")
        return await self._meta.get_xattr(ino, name, cred=Cred(0, 0))

    async def listxattr(self, ino: InodeId) -> tuple[bytes, ...]:
        if not (await self.getattr(ino)).flags & InodeFlag.XATTRS:
            return ()
        return await self._meta.list_xattr(ino)

    async def setxattr(
        self, ino: InodeId, name: bytes, value: bytes, mode: XattrMode, caller: Caller
    ) -> None:
        self._check_writable()
        cred = self._credentials.of(caller)
        try:
            await self._meta.set_xattr(ino, name, value, mode, cred=cred)
        finally:
            self.cache.forget(ino)

    async def removexattr(self, ino: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        try:
            await self._meta.remove_xattr(ino, name, cred=self._credentials.of(caller))
        finally:
            self.cache.forget(ino)
