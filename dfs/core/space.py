"""What the bytes on the disks of a cluster are for."""

import msgspec


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


def divide(
    capacity: int, used: int, free: int, *, live: int, length: int, redundancy: int
) -> Space:
    """Divide what the disks say is used by what the master knows of its chunks.

    `live`, `length` (what chunks hold, dead or alive) and `redundancy` are bytes before
    compression, which differs from chunk to chunk: so each part is an estimate, by proportion.
    Their sum is exact.
    """
    whole = length + redundancy
    on_live = used * live // whole if whole else 0
    on_redundancy = used * redundancy // whole if whole else 0
    return Space(
        live=on_live,
        dead=used - on_live - on_redundancy,
        redundancy=on_redundancy,
        free=free,
        other=max(0, capacity - used - free),
    )
