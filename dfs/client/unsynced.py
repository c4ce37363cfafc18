"""What was committed to files and may not be on the disks yet: for an fsync, whoever asks for it.

A file may be synced through another open than the one that wrote to it, so this outlives both.
Bounded: of files that were written to long ago it is forgotten which they were; then an fsync of
any file syncs their chunks too, which is more than it needs. Where one cannot be synced, the master
is asked whether the file has bytes there: else that is no matter of this file's.
"""

from collections import OrderedDict
from typing import Final

from dfs.client.open_chunk import OpenChunk
from dfs.core.ids import InodeId

_FILES_MAX: Final = 10_000

Ends = dict[OpenChunk, int]


class Unsynced:
    """Owned by ChunkWriters."""

    def __init__(self) -> None:
        self._files: OrderedDict[InodeId, Ends] = OrderedDict()
        self._of_any: Ends = {}
        """Of files that are not known any more."""
        self.failed: set[OpenChunk] = set()
        """Of these, chunks that could not be synced."""

    def note(self, ino: InodeId, chunk: OpenChunk, end: int) -> None:
        """Bytes of the file lie in the chunk, before `end`."""
        if end <= chunk.synced_length:
            return
        ends = self._files.get(ino)
        if ends is None:
            ends = self._files[ino] = {}
            if len(self._files) > _FILES_MAX:
                self._forget(self._files.popitem(last=False)[1])
        if end > ends.get(chunk, 0):
            ends[chunk] = end

    def _forget(self, ends: Ends) -> None:
        for chunk, end in ends.items():
            self._of_any[chunk] = max(end, self._of_any.get(chunk, 0))
        self._forget_synced()

    def _forget_synced(self) -> None:
        self._of_any = _left(self._of_any)
        self.failed.intersection_update(self._of_any)

    def of(self, ino: InodeId) -> Ends:
        """How far each chunk has to be on the disks for the file's bytes to be there."""
        ends = _left(self._files.get(ino, {}))
        if ends:
            self._files[ino] = ends
        else:
            self._files.pop(ino, None)
        return ends

    def of_any(self) -> Ends:
        """The same, of files that were written to long ago: this may be one of them."""
        self._forget_synced()
        return dict(self._of_any)


def _left(ends: Ends) -> Ends:
    """Those that are not on the disks yet."""
    return {chunk: end for chunk, end in ends.items() if end > chunk.synced_length}
