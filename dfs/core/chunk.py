"""Chunk, fragment and disk-location records: where a chunk's bytes are."""

from enum import IntEnum
from typing import Final

import msgspec

from dfs.core.ids import ChunkId, DiskId, PolicyId, ServerId, SessionId

CHUNK_MAX_BYTES: Final = 64 * 1024 * 1024
"""Raw bytes a chunk holds at most."""

BLOCK_MAX_BYTES: Final = 1024 * 1024
"""Raw bytes of one block at most, by format; writers cut far smaller blocks."""


class ChunkState(IntEnum):
    """Life of a chunk: OPEN -> SEALED -> DOOMED -> gone; an OPEN one may become DOOMED at once.

    A SEALED one whose bytes were written anew elsewhere is RETIRED first.
    """

    OPEN = 1
    """Owned by one session, which appends to it."""
    SEALED = 2
    """Immutable."""
    DOOMED = 3
    """Holds no live byte; its fragments are being deleted."""
    RETIRED = 4
    """Holds no live byte; kept for a time, since older backups of the metadata refer to it."""


class FragmentState(IntEnum):
    GOOD = 1
    LOST = 2
    """Its disk failed, or does not hold it (in full); good again once the disk reports it whole."""
    CORRUPT = 3
    """Its bytes do not match their checksums; waits for repair, never good again by itself."""


class Fragment(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Fragment `index` of a chunk lives on `disk`."""

    index: int
    disk: DiskId
    state: FragmentState = FragmentState.GOOD


class Chunk(msgspec.Struct, array_like=True, frozen=True):
    """One chunk. `fragments` holds at most one GOOD fragment for an index and for a disk."""

    chunk: ChunkId
    state: ChunkState
    k: int
    m: int
    policy: PolicyId
    owner: SessionId
    """The session that appends to it; 0 once sealed, or when that session is gone."""
    length: int
    """Raw bytes: final once sealed; while open, the end of the last committed extent."""
    live: int
    """Raw bytes that extents refer to; a byte shared by two files (clone) counts twice."""
    fragments: tuple[Fragment, ...]
    verified_s: int = 0
    """When all of its fragments were last read and found whole; seconds since 1970, 0: never."""
    rewritten_s: int = 0
    """When files' extents last moved from here to a copy; seconds since 1970, 0: never."""

    @property
    def width(self) -> int:
        """Fragments it has at full redundancy."""
        return self.k + self.m

    @property
    def redundancy(self) -> int:
        """Raw bytes of its fragments beyond k, when all are there."""
        return self.m * self.fragment_length

    @property
    def fragment_length(self) -> int:
        """Raw bytes that each of its fragments stands for: a k-th of them, rounded up."""
        return -(-self.length // self.k)

    @property
    def good(self) -> tuple[Fragment, ...]:
        """The GOOD ones among its fragments."""
        return tuple(f for f in self.fragments if f.state is FragmentState.GOOD)

    def on(self, disk: DiskId) -> Fragment | None:
        """Its fragment on `disk`, in whatever state."""
        return next((fragment for fragment in self.fragments if fragment.disk == disk), None)


class DiskState(IntEnum):
    """What a reader or writer may expect of a disk right now."""

    UP = 1
    SUSPECT = 2
    """Its server missed heartbeats: read elsewhere first, place nothing."""
    DOWN = 3
    FAILED = 4
    """The disk itself answers with errors."""
    DRAINING = 5
    """Serves reads; takes no new data."""
    FULL = 6
    """Serves reads and deletes; takes no new data."""
    UNSTEADY = 7
    """Its server came back after several falls: serves reads; takes no new data for a while."""


class DiskLocation(msgspec.Struct, array_like=True, frozen=True):
    """How to reach a disk, and how near it is."""

    disk: DiskId
    server: ServerId
    address: str
    """`host:port` of the chunk server."""
    rack: str
    zone: str
    state: DiskState


class Layout(msgspec.Struct, array_like=True, frozen=True):
    """Chunks and the disks that they lie on, each disk named once."""

    chunks: tuple[Chunk, ...] = ()
    disks: tuple[DiskLocation, ...] = ()
