"""Read requests: pure functions over a store (or a transaction). Nothing here changes anything.

Called by `service`. Refusals are FileSystemErrors with the errno Linux would give.
"""

import errno
import stat
from collections.abc import Iterable
from typing import Final

import msgspec

from dfs.core.chunk import Layout
from dfs.core.errors import DfsError, FileSystemError, refuse
from dfs.core.ids import (
    NAME_MAX_BYTES,
    PATH_MAX_BYTES,
    ROOT_INODE,
    ChunkId,
    InodeId,
)
from dfs.core.inode import Extent, Inode
from dfs.core.permissions import READ, SEARCH, may, refused, require, shown
from dfs.master import extents
from dfs.master.directories import check_name, directory, existing
from dfs.master.keyspace import (
    DENTRY,
    Reader,
    decode_extent,
    decode_inode,
    dentry_key,
    dentry_name,
    extent_key,
    get_dentry,
    get_inode,
    prefix_end,
    u64,
)
from dfs.master.removal import TRIMMED
from dfs.wire.messages import (
    EXTENTS_INLINE_MAX,
    READDIR_MAX,
    Cred,
    GetExtents,
    ReadDir,
    Resolve,
)

SYMLINKS_MAX: Final = 40
"""Symbolic links that one walk follows at most."""

EXTENTS_MAX: Final = 16384
"""Extents in one reply at most."""

PAGE_MAX_BYTES: Final = 8 * 1024 * 1024
"""Names and inodes of one ReadDir reply together: targets of symbolic links can be long, and a
frame has room for twice as much."""

_encode = msgspec.msgpack.Encoder().encode


def get(reader: Reader, ino: InodeId) -> Inode:
    """Raises ENOENT."""
    inode = get_inode(reader, ino) if ino >= 0 else None
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {ino}")
    return inode


def lookup(reader: Reader, cred: Cred, parent: InodeId, name: bytes) -> Inode:
    """One name in a directory. Raises ENOENT, ENOTDIR, EACCES, ENAMETOOLONG, EINVAL."""
    if parent < 0:
        raise refuse(errno.ENOENT, f"inode {parent}")
    holder = directory(reader, cred, parent)
    if name == b".":
        return holder
    if name == b"..":
        return get(reader, holder.parent)
    raw = reader.get(dentry_key(parent, name))
    if raw is None:
        check_name(name)
        raise refuse(errno.ENOENT, shown(name))
    raw = reader.get(b"i" + raw)
    if raw is None:
        raise DfsError(f"entry {shown(name)} names an inode that does not exist; run fsck")
    return decode_inode(raw)


# ------------------------------------------------------------------ paths


def resolve(reader: Reader, request: Resolve) -> Inode:
    """Walk a path from `request.start`; a leading slash means `start` too.

    Symbolic links on the way are followed, the last one if `follow` or a slash comes after it.
    Absolute targets begin at the root.

    Raises ENOENT, ENOTDIR, EACCES, ENAMETOOLONG, ELOOP, EINVAL.
    """
    path, cred = request.path, request.cred
    if not path:
        raise refuse(errno.ENOENT, "empty path")
    if len(path) >= PATH_MAX_BYTES:
        raise refuse(errno.ENAMETOOLONG, f"{shown(path[:32])}...")
    if b"\0" in path:
        raise refuse(errno.EINVAL, shown(path))
    inode = get(reader, request.start)
    must_be_directory = path.endswith(b"/")
    names = _backwards(path)
    links = 0
    while names:
        name = names.pop()
        if not stat.S_ISDIR(inode.mode):
            raise _refused_path(errno.ENOTDIR, path, inode)
        if not may(inode, cred, SEARCH):
            raise _refused_path(errno.EACCES, path, inode)
        if name == b".":
            continue
        if name == b"..":
            inode = get(reader, inode.parent)
            continue
        if len(name) > NAME_MAX_BYTES:
            raise refuse(errno.ENAMETOOLONG, shown(path))
        ino = get_dentry(reader, inode.ino, name)
        if ino is None:
            raise refuse(errno.ENOENT, shown(path))
        child = existing(reader, ino)
        if not stat.S_ISLNK(child.mode) or not (names or request.follow or must_be_directory):
            inode = child
            continue
        links += 1
        if links > SYMLINKS_MAX:
            raise refuse(errno.ELOOP, shown(path))
        if child.target.startswith(b"/"):
            inode = get(reader, ROOT_INODE)
        if not names and child.target.endswith(b"/"):
            must_be_directory = True
        names.extend(_backwards(child.target))
    if must_be_directory and not stat.S_ISDIR(inode.mode):
        raise _refused_path(errno.ENOTDIR, path, inode)
    return inode


def _backwards(path: bytes) -> list[bytes]:
    names = [name for name in path.split(b"/") if name]
    names.reverse()
    return names


def _refused_path(number: int, path: bytes, at: Inode) -> FileSystemError:
    return refuse(number, f"{shown(path)} (at inode {at.ino})")


# ------------------------------------------------------------------ directories


class DirPage(msgspec.Struct, frozen=True):
    """A page of a directory. Inodes stay the bytes that are stored."""

    entries: list[tuple[bytes, msgspec.Raw, tuple[Extent, ...] | None]]
    more: bool
    chunks: set[ChunkId]
    """Chunks of the extents, for the layout of the reply."""

    def encode(self, layout: Layout) -> bytes:
        """The body of messages.DirReply."""
        return _encode((self.entries, self.more, layout))


def read_dir(reader: Reader, request: ReadDir) -> DirPage:
    """Raises ENOENT, ENOTDIR, EACCES (needs the right to read, not to search), EINVAL."""
    if request.limit < 1:
        raise refuse(errno.EINVAL, f"a page of {request.limit} entries")
    holder = get(reader, request.ino)
    if not stat.S_ISDIR(holder.mode):
        raise refused(errno.ENOTDIR, holder)
    require(holder, request.cred, READ)
    limit = min(request.limit, READDIR_MAX)
    prefix = DENTRY + u64(request.ino)
    start = prefix + request.after + b"\0" if request.after else prefix
    names: list[bytes] = []
    keys: list[bytes] = []
    more = False
    for key, value in reader.scan(start, prefix_end(prefix)):
        if len(names) == limit:
            more = True
            break
        names.append(dentry_name(key))
        keys.append(b"i" + value)
    inodes: list[bytes] = []
    room = PAGE_MAX_BYTES
    for name, raw in zip(names, reader.get_many(keys), strict=True):
        if raw is None:
            raise DfsError(f"entry {shown(name)} names an inode that does not exist; run fsck")
        room -= len(name) + len(raw)
        if room < 0:
            names, more = names[: len(inodes)], True
            break
        inodes.append(raw)
    chunks: set[ChunkId] = set()
    pieces: Iterable[tuple[Extent, ...] | None] = [None] * len(names)
    if request.with_extents:
        pieces = few_extents(reader, [decode_inode(raw) for raw in inodes])
        for few in pieces:
            chunks.update(extent.chunk for extent in few or ())
    raws = map(msgspec.Raw, inodes)
    return DirPage(list(zip(names, raws, pieces, strict=True)), more, chunks)


def few_extents(reader: Reader, inodes: list[Inode]) -> list[tuple[Extent, ...] | None]:
    """The extents of each regular file that has at most EXTENTS_INLINE_MAX; else None."""
    # Most files that have data have all of it in the extent at offset 0.
    firsts = reader.get_many([extent_key(inode.ino, 0) for inode in inodes if inode.allocated])
    following = iter(firsts)
    pieces: list[tuple[Extent, ...] | None] = []
    for inode in inodes:
        if not inode.allocated:
            pieces.append(() if stat.S_ISREG(inode.mode) else None)
            continue
        raw = next(following)
        if raw is not None and not inode.flags & TRIMMED:
            first = decode_extent(raw)
            if first.length == inode.allocated:
                pieces.append((first,))
                continue
        few, more = _extents_of(reader, inode, 0, extents.ALL, EXTENTS_INLINE_MAX)
        pieces.append(None if more else few)
    return pieces


# ------------------------------------------------------------------ extents


class ExtentPage(msgspec.Struct, frozen=True):
    inode: Inode
    extents: tuple[Extent, ...]
    more: bool


def get_extents(reader: Reader, request: GetExtents) -> ExtentPage:
    """Extents that overlap the range asked for, whole. Raises ENOENT, EISDIR, EINVAL."""
    inode = get(reader, request.ino)
    if not stat.S_ISREG(inode.mode):
        raise refused(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL, inode)
    if request.offset < 0 or request.length < 0 or request.limit < 1:
        raise refused(errno.EINVAL, inode)
    end = min(request.offset + request.length, extents.ALL)
    few, more = _extents_of(reader, inode, request.offset, end, min(request.limit, EXTENTS_MAX))
    return ExtentPage(inode, few, more)


def _extents_of(
    reader: Reader, inode: Inode, start: int, end: int, limit: int
) -> tuple[tuple[Extent, ...], bool]:
    """At most `limit` extents, and whether there are more."""
    found: list[Extent] = []
    if not inode.allocated or start >= end:
        return (), False
    trimmed = bool(inode.flags & TRIMMED)
    for extent in extents.visible(reader, inode.ino, start, end, trimmed=trimmed):
        if len(found) == limit:
            return tuple(found), True
        found.append(extent)
    return tuple(found), False
