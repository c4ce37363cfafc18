"""What a writer gets for pieces it hands to a chunk writer: where they are, once they are there."""

from collections.abc import Callable, Sequence

import trio

from dfs.client.open_chunk import OpenChunk
from dfs.core.errors import DfsError, from_wire
from dfs.core.ids import ChunkId


class Ticket:
    """Pieces on their way to the disks. Created by `ChunkWriter.submit`."""

    __slots__ = ("_chunks", "_done", "_missing", "_on_done", "_settled", "error", "places", "size")

    def __init__(self, lengths: Sequence[int], on_done: Callable[["Ticket"], None]) -> None:
        self.places: list[tuple[ChunkId, int]] = [(0, 0)] * len(lengths)
        """Chunk and raw offset of each piece; valid after `wait`."""
        self.size = sum(lengths)
        self.error: DfsError | None = None
        self._missing = len(lengths)
        self._chunks: list[OpenChunk] = []
        self._done = trio.Event()
        self._on_done = on_done
        self._settled = False
        """Holds no chunk any more, whatever of it still arrives on the disks."""
        if not lengths:
            self._finish()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def chunks(self) -> Sequence[OpenChunk]:
        """The chunks that hold the pieces."""
        return self._chunks

    async def wait(self) -> None:
        """Until all pieces are acknowledged. Raises DfsError when they could not be written."""
        await self._done.wait()
        if self.error is not None:
            raise from_wire(self.error.to_wire())

    def settle(self) -> None:
        """The extents are committed, or will never be: the chunks may be sealed. Repeatable."""
        self._settled = True
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            chunk.release()

    def abandon(self) -> None:
        """As `settle`, for chunks that the master no longer takes: they get nothing more."""
        for chunk in self._chunks:
            chunk.close()
        self.settle()

    def place(self, position: int, chunk: OpenChunk, offset: int) -> None:
        """For the chunk writer: one piece is acknowledged, at raw `offset` of `chunk`."""
        self.places[position] = (chunk.chunk, offset)
        if not self._settled and chunk not in self._chunks:
            self._chunks.append(chunk)
            chunk.hold()
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
