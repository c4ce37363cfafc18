"""Repairs of the metadata, as values: what `commands.MendMetadata` carries.

A check reads a snapshot, the repair meets the state of now. So a fix never says "set it to 5": it
names a row whose facts are derived anew from the rows they follow from, or it is a difference,
which holds whatever the count has been changed by since.

Fixes have stages: what is counted in a later one rests on what an earlier one mends. A repair
makes those of one stage, then checks again. Numbers are never reused.
"""

from typing import ClassVar, TypeAlias

import msgspec

from dfs.core.ids import ChunkId, DiskId, InodeId, SessionId


class Fix(msgspec.Struct, array_like=True, frozen=True, tag_field="fix"):
    """Base of all."""

    stage: ClassVar[int] = 1


# ------------------------------------------------------------------ stage 1: rows that mirror rows


class TidyInode(Fix, frozen=True, tag=1):
    """Derive anew what an inode's record and its rows elsewhere say of each other.

    Its flags, its place in the orphan table and the purge queue, its trims, the length of a
    symbolic link, a parent that only directories have, a policy that exists.
    """

    ino: InodeId


class TidyOpen(Fix, frozen=True, tag=2):
    """Make the two tables of open inodes agree about one inode and session."""

    ino: InodeId
    session: SessionId


class IndexExtent(Fix, frozen=True, tag=3):
    """Enter an extent into extent-by-chunk."""

    ino: InodeId
    file_offset: int


class SettleExtent(Fix, frozen=True, tag=4):
    """A row of extent-by-chunk has no extent: restore the extent where the file lacks its bytes
    (`allocated` tells), else drop the row."""

    chunk: ChunkId
    chunk_offset: int
    ino: InodeId
    file_offset: int


class IndexChunk(Fix, frozen=True, tag=5):
    """Enter a chunk into the tables that mirror it: by disk, by session, doomed, wanting."""

    chunk: ChunkId


class IndexRecord(Fix, frozen=True, tag=6):
    """Enter the record under `key` (a policy, server, disk or session) into its index."""

    key: bytes


class DropRow(Fix, frozen=True, tag=7):
    """Drop an index row that mirrors nothing."""

    key: bytes


class RebuildChunk(Fix, frozen=True, tag=8):
    """Make the lost record of a chunk that extents refer to, of what disks hold of it.

    As a chunk without a session: the master asks each disk how far its fragment goes, and seals
    it.
    """

    chunk: ChunkId
    k: int
    m: int
    fragments: tuple[tuple[int, DiskId], ...]
    """(index, disk)."""


class TidyDelegation(Fix, frozen=True, tag=9):
    """Make the two tables of delegated directories agree about one, or take it back."""

    ino: InodeId


# ------------------------------------------------------------------ stage 2: the tree


class RecreateInode(Fix, frozen=True, tag=20):
    """Make the lost record of an inode of which extents, attributes or entries are left.

    A directory if `parent` is set or `directory`; owned by root, and for root only. It is put into
    lost+found unless it has `names`.
    """

    stage: ClassVar[int] = 2

    ino: InodeId
    directory: bool
    names: int
    parent: InodeId = 0
    """Of a directory: where its name is."""


class DropEntry(Fix, frozen=True, tag=21):
    """Take away an entry that leads nowhere, or a second one of a directory."""

    stage: ClassVar[int] = 2

    parent: InodeId
    name: bytes
    ino: InodeId


class SetParent(Fix, frozen=True, tag=22):
    """A directory says that it is in another one than holds it."""

    stage: ClassVar[int] = 2

    ino: InodeId
    parent: InodeId
    name: bytes


class Rescue(Fix, frozen=True, tag=23):
    """Give an inode without a name one in lost+found; or one whose name, in `parent`, cannot be
    reached. `nlink` is added to its own."""

    stage: ClassVar[int] = 2

    ino: InodeId
    nlink: int
    parent: InodeId = 0
    name: bytes = b""


# ------------------------------------------------------------------ stage 3: counts


class AdjustInode(Fix, frozen=True, tag=30):
    """Add differences to what an inode's record counts."""

    stage: ClassVar[int] = 3

    ino: InodeId
    nlink: int = 0
    size: int = 0
    allocated: int = 0


class AdjustChunk(Fix, frozen=True, tag=31):
    """Add a difference to a chunk's live bytes. A SEALED one that no extent refers to is doomed."""

    stage: ClassVar[int] = 3

    chunk: ChunkId
    live: int = 0


class AdjustCounters(Fix, frozen=True, tag=32):
    """Add differences to the totals; raise the next ids to at least these."""

    stage: ClassVar[int] = 3

    inodes: int = 0
    live: int = 0
    chunks: int = 0
    chunks_open: int = 0
    chunks_doomed: int = 0
    purging: int = 0
    next_inode: int = 0
    next_chunk: int = 0
    next_session: int = 0
    wanting: int = 0
    stale: int = 0
    next_job: int = 0
    length: int = 0
    redundancy: int = 0
    chunks_retired: int = 0


AnyFix: TypeAlias = (
    TidyInode
    | TidyOpen
    | IndexExtent
    | SettleExtent
    | IndexChunk
    | IndexRecord
    | DropRow
    | RebuildChunk
    | TidyDelegation
    | RecreateInode
    | DropEntry
    | SetParent
    | Rescue
    | AdjustInode
    | AdjustChunk
    | AdjustCounters
)
