"""Inode and extent records, as the master stores them and as they travel.

Fields are positional (msgpack arrays): append new ones at the end with a default, never
reorder or reuse. The same bytes are stored and sent, so the master can pass a stored inode
through without decoding it.
"""

import stat
from enum import IntFlag
from typing import Final

import msgspec

from dfs.core.ids import ChunkId, InodeId, PolicyId


class InodeFlag(IntFlag):
    """What the master notes about an inode, to save itself look-ups."""

    TRIMMED = 1
    """Parts of it were cut off and wait to be freed; `allocated` still counts them."""
    XATTRS = 2
    """It may have extended attributes; without this flag it has none."""
    OPENED = 4
    """Some session opened it once, and may have it open; without this flag none has."""


APPENDS_MAX: Final = 16
"""Clients of whom an inode remembers the last append."""


class AppendMark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One append, as its client knows it: by which that finds out whether it took effect."""

    client: int
    """A random number of the client's; it outlives its sessions."""
    number: int
    """Of its appends, to whichever file."""


class Inode(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One inode: what `stat` shows, and what the file system needs beside it."""

    ino: InodeId
    mode: int
    """File type and permission bits, as `st_mode`."""
    nlink: int
    uid: int
    gid: int
    size: int
    """Bytes; for a directory the number of entries; for a symlink the target's length."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    policy: PolicyId
    """The policy new data of this file (or of new children) is written with."""
    version: int = 0
    """Goes up with every change of the file's data: equal versions mean equal bytes."""
    allocated: int = 0
    """Bytes covered by extents (st_blocks * 512, rounded up)."""
    rdev: int = 0
    parent: InodeId = 0
    """Directories only: the directory that holds this one (the root holds itself)."""
    target: bytes = b""
    """Symlinks only."""
    flags: int = 0
    """InodeFlag."""
    appends: tuple[AppendMark, ...] = ()
    """The last append of each of the last APPENDS_MAX clients, the latest at the end."""

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Extent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`length` bytes at `file_offset` of a file are the bytes at `chunk_offset` of `chunk`.

    Extents of one file never overlap; bytes no extent covers read as zero.
    """

    file_offset: int
    length: int
    chunk: ChunkId
    chunk_offset: int

    @property
    def end(self) -> int:
        return self.file_offset + self.length
