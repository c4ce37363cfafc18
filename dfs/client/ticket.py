"""What a writer gets for pieces it hands to a chunk writer: where they are, once they are there."""

from collections.abc import Callable, Sequence

import trio

from dfs.client.open_chunk import OpenChunk
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId


class Ticket:
    """Pieces on their way to the disks. Created by `ChunkWriter.submit`."""

    __slots__ = (
        "_done", "_lengths", "_missing", "_on_done", "_settled", "ends", "error", "places", "size",
        "sync",
    )  # fmt: skip

    def __init__(
        self, lengths: Sequence[int], on_done: Callable[["Ticket"], None], *, sync: bool = False
    ) -> None:
        self.sync = sync
        """Acknowledged is what is on the disks, as far as those can say so along with it."""
        self.places: list[tuple[ChunkId, int]] = [(0, 0)] * len(lengths)
        """Chunk and raw offset of each piece; valid after `wait`."""
        self.ends: dict[OpenChunk, int] = {}
        """The chunks that hold the pieces, and where the last of them ends in each."""
        self.size = sum(lengths)
        self.error: DfsError | None = None
        self._missing = len(lengths)
        self._lengths = lengths
        self._done = trio.Event()
        self._on_done = on_done
        self._settled = False
        """Holds no chunk any more, whatever of it still arrives on the disks."""
        if not lengths:
            self._finish()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    async def wait(self) -> None:
        """Until all pieces are acknowledged. Raises DfsError when they could not be written."""
        await self._done.wait()
        if self.error is not None:
            raise self.error.again()

    def settle(self) -> None:
        """The extents are committed, or will never be: the chunks may be sealed. Repeatable."""
        self._settled = True
        ends, self.ends = self.ends, {}
        for chunk in ends:
            chunk.release()

    def abandon(self) -> None:
        """As `settle`, for chunks that the master no longer takes: they get nothing more."""
        for chunk in self.ends:
            chunk.close()
        self.settle()

    def place(self, position: int, chunk: OpenChunk, offset: int) -> None:
        """For the chunk writer: one piece is acknowledged, at raw `offset` of `chunk`."""
        self.places[position] = (chunk.chunk, offset)
        if not self._settled:
            known = self.ends.get(chunk)
            if known is None:
                chunk.hold()
            self.ends[chunk] = max(known or 0, offset + self._lengths[position])
        self._missing -= 1
        if not self._missing and not self.done:
            self._finish()

    def fail(self, error: DfsError) -> None:
        """For the chunk writer: what is not acknowledged yet will not be."""
        if not self._done.is_set():
            self.error = error
            self.settle()
            self._finish()

    def _finish(self) -> None:
        self._done.set()
        self._on_done(self)
