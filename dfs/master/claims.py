"""What is being done to fragments at this very moment, so that two things never meet. In memory.

A chunk has one mover at a time: repair, drain and rebalance ask here first. A fragment whose
deletion has been sent to its disk is not taken back before the disk has answered.

Shared by the jobs and by the service that reads chunk reports. Nothing here blocks.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from dfs.core.ids import ChunkId, DiskId


class Claims:
    """Chunks under way, and deletions under way."""

    def __init__(self) -> None:
        self._moving: set[ChunkId] = set()
        self._deleting: set[tuple[DiskId, ChunkId]] = set()

    def __repr__(self) -> str:
        return f"<Claims {len(self._moving)} chunks moving, {len(self._deleting)} deletions>"

    @property
    def moving(self) -> Collection[ChunkId]:
        return self._moving

    @contextmanager
    def chunk(self, chunk: ChunkId) -> Iterator[bool]:
        """Claim a chunk for the time of the block. False: somebody else has it."""
        free = chunk not in self._moving
        if free:
            self._moving.add(chunk)
        try:
            yield free
        finally:
            if free:
                self._moving.discard(chunk)

    @contextmanager
    def deletion(self, disk: DiskId, chunks: Iterable[ChunkId]) -> Iterator[None]:
        """These fragments are being deleted for the time of the block."""
        fragments = {(disk, chunk) for chunk in chunks}
        self._deleting |= fragments
        try:
            yield
        finally:
            self._deleting -= fragments

    def is_deleting(self, disk: DiskId, chunk: ChunkId) -> bool:
        return (disk, chunk) in self._deleting
