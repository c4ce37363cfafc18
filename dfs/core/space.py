"""What the bytes on the disks of a cluster are for."""

from typing import Protocol

import msgspec


class Stored(Protocol):
    """What a master says of its disks and its chunks, in bytes."""

    @property
    def capacity(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def redundancy(self) -> int: ...


class Space(msgspec.Struct, frozen=True):
    """Bytes on disks: `live`, `dead` and `redundancy` are in use; with the others, all there is."""

    live: int
    """Of what files refer to."""
    dead: int
    """Of what was deleted or overwritten, until purge and compaction have taken it away."""
    redundancy: int
    """Of copies beyond the first, and of parity: of what is live and what is dead."""
    free: int
    other: int
    """Where a disk has less free than its capacity says: the files of others."""


def divide(stored: Stored) -> Space:
    """Divide what the disks say is used by what the master knows of its chunks.

    `live`, `length` (what chunks hold, dead or alive) and `redundancy` are bytes before
    compression, which differs from chunk to chunk: so each part is an estimate, by proportion.
    Their sum is exact.
    """
    used = stored.used
    whole = stored.length + stored.redundancy
    live = used * stored.live // whole if whole else 0
    redundancy = used * stored.redundancy // whole if whole else 0
    return Space(
        live=live,
        dead=used - live - redundancy,
        redundancy=redundancy,
        free=stored.free,
        other=max(0, stored.capacity - used - stored.free),
    )
