"""Written bytes of a file, and the extents that say where the disks have them. Pure."""

from collections.abc import Iterable

from dfs.client.interval_map import Span
from dfs.client.ticket import Ticket
from dfs.core.block import BLOCK_BYTES
from dfs.core.inode import Extent


class Piece:
    """Bytes of a file that become one extent (or several, where later writes cover parts)."""

    __slots__ = ("data", "position", "start", "ticket")

    def __init__(self, start: int, data: bytes | bytearray | memoryview) -> None:
        self.start = start
        self.data = data
        self.ticket: Ticket | None = None
        self.position = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    @property
    def failed(self) -> bool:
        """It was submitted, and not all of what went with it could be written."""
        return self.ticket is not None and self.ticket.error is not None


def extents_of(spans: Iterable[Span[Piece]]) -> list[Extent]:
    """Where spans of acknowledged pieces lie; what continues each other is one extent."""
    extents: list[Extent] = []
    for span in spans:
        piece = span.value
        assert piece.ticket is not None
        chunk, offset = piece.ticket.places[piece.position]
        _push(extents, Extent(span.start, span.end - span.start, chunk, offset + span.skip))
    return extents


def appended_extents(ticket: Ticket, length: int) -> list[Extent]:
    """Where `length` bytes lie that were submitted in blocks; offsets count from the first."""
    extents: list[Extent] = []
    for position, (chunk, offset) in enumerate(ticket.places):
        start = position * BLOCK_BYTES
        _push(extents, Extent(start, min(BLOCK_BYTES, length - start), chunk, offset))
    return extents


def shifted(extents: Iterable[Extent], by: int) -> list[Extent]:
    """The same bytes, `by` further on in the file."""
    return [Extent(e.file_offset + by, e.length, e.chunk, e.chunk_offset) for e in extents]


def share_bytes(one: Extent, other: Extent) -> bool:
    """Whether they have bytes of a chunk in common."""
    return (
        one.chunk == other.chunk
        and one.chunk_offset < other.chunk_offset + other.length
        and other.chunk_offset < one.chunk_offset + one.length
    )


def _push(extents: list[Extent], extent: Extent) -> None:
    if extents:
        last = extents[-1]
        if (
            last.end == extent.file_offset
            and last.chunk == extent.chunk
            and last.chunk_offset + last.length == extent.chunk_offset
        ):
            extents[-1] = Extent(
                last.file_offset, last.length + extent.length, last.chunk, last.chunk_offset
            )
            return
    extents.append(extent)
