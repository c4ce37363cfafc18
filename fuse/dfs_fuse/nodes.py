"""Inodes and names as a mount has them: what may be believed without asking, and looking.

`Nodes` is the ground that the parts of the file system (`vfs`) stand on. Attributes and names are
believed for `attr_cache_s`; every change of this mount goes into what is believed at once, and
what is written and not published yet is overlaid by the open file.
"""

import errno
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Final

import trio
from msgspec.structs import replace as changed

from dfs.client.client import Client
from dfs.client.open_file import OpenFile
from dfs.core.errors import DfsError, FileSystemError, refuse
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import Cred, DirEntry, FsStats
from dfs_fuse.caller import Caller, Credentials
from dfs_fuse.node_cache import NodeCache
from dfs_fuse.profile import Profile
from dfs_fuse.stat_ahead import StatAhead

LOST_MAX: Final = 1000
NAMES_MAX: Final = 30_000
_READS_MAX: Final = 64


class Nodes:
    """See the module.

    Attributes:
        root: the inode that is mounted.
        about: what the drivers answer to getxattr `user.dfs.mount` on the root.
        profile: counts and times, kept by the drivers.
    """

    def __init__(
        self,
        client: Client,
        nursery: trio.Nursery,
        *,
        root: InodeId,
        read_only: bool = False,
        attr_cache_s: float = 1.0,
    ) -> None:
        self.root = root
        self.read_only = read_only
        self.attr_cache_s = attr_cache_s
        self.about = b""
        self.profile = Profile()
        self.client = client
        self.cache = NodeCache(attr_cache_s)
        self._meta = client.meta
        self._files = client.files
        self._delegations = client.meta.delegations
        self._delegations.on_returned = self.cache.learn
        self._delegations.on_shared = self.cache.share
        self._nursery = nursery
        self._credentials = Credentials()
        self._numbers = count(1)
        """Of handles."""
        self._lost: OrderedDict[InodeId, tuple[InodeId, bytes, float]] = OrderedDict()
        """The names that inodes had lately: who opens one that is gone gets what has its name."""
        self._names: OrderedDict[InodeId, tuple[InodeId, bytes, float]] = OrderedDict()
        """How each inode was last found, and when; in pyfuse3 an open names no name."""
        self._stat_ahead = StatAhead()
        self._reads_expected = 0
        """So many more look-ups are thought to be of small files that will be read at once."""
        self._removed_directories: OrderedDict[InodeId, Inode] = OrderedDict()
        """Those this mount removed: they may be open, or the working directory of a process."""

    # ---------------------------------------------------------------- what is believed

    def cached(self, ino: InodeId) -> Inode | None:
        """Attributes that need no question to the master. From any thread."""
        file = self._files.get(ino)
        if file is None or not file.dirty:
            return self._delegations.directory(ino) or self.cache.attributes(ino)
        new = file.new
        inode = self.cache.attributes(ino)
        if new is None or inode is None:
            return None
        return _with_bytes(inode, max(inode.size, len(new.data)), file.written_ns)

    def cached_child(self, parent: InodeId, name: bytes) -> InodeId | None:
        """The inode of a name, if that needs no question. From any thread."""
        child = self._delegations.child(parent, name)
        return self.cache.child(parent, name) if child is None else child or None

    def last_child(self, parent: InodeId, name: bytes) -> InodeId:
        """What the name was when it was last heard of; 0: unknown. From any thread."""
        child = self._delegations.child(parent, name)
        return child or self.cache.last_child(parent, name) or 0

    def is_absent(self, parent: InodeId, name: bytes) -> bool:
        """Whether there is certainly no such name. From any thread."""
        return self._delegations.child(parent, name) == 0

    def _learn(self, inode: Inode) -> Inode:
        """The master has said so. The inode as it is: changes here may have overtaken it."""
        self.cache.learn(inode)
        file = self._files.get(inode.ino)
        if file is None:
            return inode
        file.refresh(inode)
        return file.inode if file.version > inode.version else inode

    def _found(
        self, parent: InodeId, name: bytes, inode: Inode, asked: float | None = None
    ) -> Inode:
        """`name` in `parent` is `inode`, as the master has just said when it was `asked`."""
        inode = self._learn(inode)
        if self._delegations.child(parent, name) is None:
            self.cache.learn_name(parent, name, inode.ino, asked)
        else:
            # What is known of a directory of this mount's own is newer than any answer.
            self.cache.note_name(parent, name, inode.ino)
        self._note_name(parent, name, inode.ino, asked)
        return inode

    def _note_name(
        self, parent: InodeId, name: bytes, ino: InodeId, asked: float | None = None
    ) -> None:
        """The kernel has found the inode by this name."""
        self._names.pop(ino, None)
        self._names[ino] = (parent, name, time.monotonic() if asked is None else asked)
        if len(self._names) > NAMES_MAX:
            self._names.popitem(last=False)

    def _added(self, parent: InodeId, name: bytes, inode: Inode) -> Inode:
        """This mount has just put a new `name` into `parent`."""
        directory = self.cache.attributes(parent)
        if directory is not None:
            # The same change, at the same time: as the master has it now.
            self.cache.adjust(
                changed(
                    directory,
                    size=directory.size + 1,
                    nlink=directory.nlink + inode.is_dir,
                    mtime_ns=inode.ctime_ns,
                    ctime_ns=inode.ctime_ns,
                )
            )
        return self._found(parent, name, inode)

    def _removed(self, parent: InodeId, name: bytes, time_ns: int, subdirectories: int) -> None:
        """This mount has just taken `name` out of `parent`, at that time by the master's clock."""
        self._replaced(parent, name)
        directory = self.cache.attributes(parent)
        if directory is None or not time_ns:
            self.cache.forget(parent)
        else:
            self.cache.adjust(
                changed(
                    directory,
                    size=directory.size - 1,
                    nlink=directory.nlink - subdirectories,
                    mtime_ns=time_ns,
                    ctime_ns=time_ns,
                )
            )

    def _replaced(self, parent: InodeId, name: bytes) -> None:
        """`name` in `parent` may be nothing now, or another inode."""
        ino = self.cache.last_child(parent, name)
        if ino is not None:
            self.cache.forget(ino)
            if self._names.get(ino, ())[:2] == (parent, name):
                # It may have others: an open must not ask whether it still has this one.
                self._lose_place(ino)
        self.cache.forget_name(parent, name)

    def _lose_place(self, ino: InodeId) -> tuple[InodeId, bytes, float] | None:
        """The inode is not known by its name any more: which, if it was."""
        found = self._names.pop(ino, None)
        if found is not None:
            self._lost[ino] = found
            if len(self._lost) > LOST_MAX:
                self._lost.popitem(last=False)
        return found

    # ---------------------------------------------------------------- looking

    async def lookup(self, parent: InodeId, name: bytes, caller: Caller) -> Inode:
        """Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        if self.is_absent(parent, name):
            raise refuse(errno.ENOENT, name.decode(errors="backslashreplace"))
        if self.cached_child(parent, name) is None and self.attr_cache_s:
            await self._look_ahead(parent, name, caller)
        found = self.cached_child(parent, name)
        if found is not None:
            try:
                return await self.getattr(found)
            except FileSystemError as error:
                if error.errno != errno.ENOENT:
                    raise
                # Somebody else has replaced it within the moment that names are believed.
                self.cache.forget_name(parent, name)
        cred = self._searcher(caller)
        asked = time.monotonic()
        with_extents = self._expects_read()
        answer = await self._meta.look(parent, name, with_extents=with_extents, cred=cred)
        if answer.extents is not None:
            self._files.expect(answer.inode, answer.extents)
        inode = self._found(parent, name, answer.inode, asked)
        file = self._files.get(inode.ino)
        return inode if file is None or not file.dirty else await self._overlaid(file, inode)

    def _expects_read(self) -> bool:
        """Whether to ask where the bytes of what is looked up are: most of what was, was read."""
        self._reads_expected = max(0, self._reads_expected - 1)
        return self._reads_expected > 0

    def _note_read(self) -> None:
        """A small file was opened to be read: so may be the next ones that are looked up."""
        self._reads_expected = min(self._reads_expected + 2, _READS_MAX)

    async def _look_ahead(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        """Learn the name and those after it, where a program seems to go through all of them."""
        walk = self._stat_ahead.walk(parent)
        if walk.coming is not None:
            await walk.coming.wait()
            return
        after = walk.missed(name)
        if after is None:
            return
        last = None
        limit = walk.begin()
        try:
            asked = time.monotonic()
            cred = self._searcher(caller)
            page = await self._meta.readdir(
                parent,
                after=after,
                limit=limit,
                with_extents=self._reads_expected > 0,
                cred=cred,
            )
            self.client.resolver.learn(page.layout)
            # Names that come by the page may be wanted for their attributes alone.
            self._reads_expected = max(0, self._reads_expected - len(page.entries) // 8)
            self._learn_page(parent, page.entries, asked)
            if page.entries:
                last = page.entries[-1].name
        except FileSystemError:
            # Who asks for the name itself is told.
            return
        finally:
            walk.end(last)

    def _learn_page(self, parent: InodeId, entries: Sequence[DirEntry], asked: float) -> None:
        """These are in a directory, as the master has just said when it was `asked`."""
        for entry in entries:
            file = self._files.get(entry.inode.ino)
            if file is None or not file.dirty:
                self._found(parent, entry.name, entry.inode, asked)
                if entry.extents:
                    self._files.expect(entry.inode, entry.extents)

    async def walk(self, start: InodeId, names: Sequence[bytes], caller: Caller) -> InodeId:
        """The inode at the end of a path, symlinks not followed: a driver by paths asks."""
        ino = start
        for name in names:
            ino = (await self.lookup(ino, name, caller)).ino
        return ino

    def _searcher(self, caller: Caller) -> Cred:
        """Whose right to search a directory the master checks: the kernel has checked already."""
        return Cred(0, caller.gid)

    async def getattr(self, ino: InodeId) -> Inode:
        """The inode as this mount has it: with what was written and not published yet."""
        inode = self._delegations.directory(ino) or self.cache.attributes(ino)
        file = self._files.get(ino)
        if inode is None:
            try:
                inode = self._learn(await self._meta.get_inode(ino))
            except FileSystemError as error:
                removed = self._removed_directories.get(ino)
                if error.errno != errno.ENOENT or removed is None:
                    raise
                return removed
        return inode if file is None or not file.dirty else await self._overlaid(file, inode)

    async def _overlaid(self, file: OpenFile, inode: Inode) -> Inode:
        """`inode` with the size and times that unpublished writes give it."""
        if inode.mode & (stat.S_ISUID | stat.S_ISGID):
            # Publishing may clear them; what it does is the master's to say.
            await file.flush()
            return self._learn(
                file.inode if not file.dirty else await self._meta.get_inode(file.ino)
            )
        while file.placing:
            try:
                await file.flush()
            except DfsError:
                # It stays in doubt.
                break
            inode = self._learn(inode)
        size = max(inode.size, file.size_with_appends)
        return _with_bytes(inode, size, file.written_ns or inode.mtime_ns)

    async def readlink(self, ino: InodeId) -> bytes:
        inode = await self.getattr(ino)
        if not inode.is_symlink:
            raise refuse(errno.EINVAL, f"inode {ino}")
        return inode.target

    async def statfs(self) -> FsStats:
        return await self._meta.statfs()

    def _check_writable(self) -> None:
        if self.read_only:
            raise refuse(errno.EROFS, "this mount")

    def is_dirty(self, ino: InodeId) -> bool:
        """Whether this mount has written to it what is not published yet."""
        file = self._files.get(ino)
        return file is not None and file.dirty


def _with_bytes(inode: Inode, size: int, written_ns: int) -> Inode:
    """The inode with what was written to it and is not published yet."""
    return changed(inode, size=size, mtime_ns=written_ns, ctime_ns=max(written_ns, inode.ctime_ns))
