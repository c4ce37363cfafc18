"""Bytes of one file that were written and are not committed: in blocks, until no more come for one.

Blocks are cut at multiples of BLOCK_BYTES of the file. A piece of one grows while writes continue
it; full, or released, it is pending, until the file's writer submits it. What is submitted is held
on, with its ticket, until it is committed (`drop`), and pending again where it has to be written
once more (`take_back`).

Invariant: every byte is in `overlay`, and every piece in `overlay` grows, is pending, or has a
ticket; but for those that the writer has taken and not submitted yet. Nothing here yields.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import trio

from dfs.client.interval_map import IntervalMap
from dfs.client.pieces import Piece
from dfs.core.block import BLOCK_BYTES

GROWING_MAX_BYTES: Final = 8 * 1024 * 1024
GROWING_MAX_PIECES: Final = 256
"""Blocks of a file that may wait to be filled."""
PIECE_BYTES: Final = 1024
"""What a piece is counted with besides its bytes: tiny ones cost memory, and the master's time."""


class WriteBuffer:
    """Owned by a FileWriter."""

    def __init__(self, on_held: Callable[[int], None]) -> None:
        """`on_held` is told by how much more is held; it may have all released (`release_all`)."""
        self.overlay: IntervalMap[Piece] = IntervalMap()
        self.pieces: set[Piece] = set()
        self.pending: deque[Piece] = deque()
        self.held_bytes = 0
        self.growing_bytes = 0
        self.dirty_since: float | None = None
        """When the first of what is held was written."""
        self._growing: dict[int, Piece] = {}
        """By block of the file."""
        self._on_held = on_held

    def take(self, offset: int, view: memoryview) -> None:
        """Put bytes into blocks. Whole blocks are kept as they are: they must never change."""
        at, end = offset, offset + len(view)
        while at < end:
            block = at // BLOCK_BYTES
            stop = min(end, (block + 1) * BLOCK_BYTES)
            part = view[at - offset : stop - offset]
            if len(part) == BLOCK_BYTES:
                self._forget_growing(block)
                piece = Piece(at, part)
                self._add(piece)
                self.pending.append(piece)
                self.overlay.set(at, stop, piece)
            else:
                self._grow(block, at, part)
            at = stop
        if self.growing_bytes > GROWING_MAX_BYTES or len(self._growing) > GROWING_MAX_PIECES:
            self.release_all()

    def _grow(self, block: int, at: int, part: memoryview) -> None:
        piece = self._growing.get(block)
        if piece is not None and not piece.start <= at <= piece.end:
            self._release(block)
            piece = None
        if piece is None:
            piece = Piece(at, bytearray(part))
            self._add(piece)
            self._growing[block] = piece
            self.growing_bytes += len(part)
            grown = 0
        else:
            assert isinstance(piece.data, bytearray)
            before = len(piece.data)
            skip = at - piece.start
            piece.data[skip : skip + len(part)] = part
            grown = len(piece.data) - before
            self.growing_bytes += grown
        self.overlay.set(at, at + len(part), piece, at - piece.start)
        if piece.end == (block + 1) * BLOCK_BYTES:
            self._release(block)
        # Last: with too much held a commit begins, which takes what grows.
        self.hold(grown)

    def _release(self, block: int) -> None:
        piece = self._growing.pop(block)
        self.growing_bytes -= len(piece.data)
        self.pending.append(piece)

    def release_all(self) -> None:
        """No piece grows any more."""
        for block in list(self._growing):
            self._release(block)

    def _forget_growing(self, block: int) -> None:
        """The whole block is written anew: what there was of it need not be sent."""
        piece = self._growing.pop(block, None)
        if piece is not None:
            self.growing_bytes -= len(piece.data)
            self.drop([piece])

    def _add(self, piece: Piece) -> None:
        self.pieces.add(piece)
        self.hold(len(piece.data) + PIECE_BYTES)

    def hold(self, change: int) -> None:
        """So many more bytes are held for the file, here or by its writer."""
        self.held_bytes += change
        if not self.held_bytes:
            self.dirty_since = None
        elif self.dirty_since is None:
            self.dirty_since = trio.current_time()
        self._on_held(change)

    # ---------------------------------------------------------------- submitting, committing

    def take_pending(self, most: int) -> list[Piece]:
        """The first pieces to be submitted, in order. Give them tickets, or put them back."""
        pending = self.pending
        return [pending.popleft() for _ in range(min(most, len(pending)))]

    def put_back(self, pieces: list[Piece]) -> None:
        """These were not submitted."""
        self.pending.extendleft(piece for piece in reversed(pieces) if piece in self.pieces)

    def take_back(self, pieces: Iterable[Piece]) -> None:
        """Submit these again: their extents are of no use."""
        again = sorted(
            (piece for piece in pieces if piece in self.pieces), key=lambda piece: piece.start
        )
        for piece in again:
            if piece.ticket is not None:
                piece.ticket.settle()
                piece.ticket = None
        self.pending.extendleft(reversed(again))

    def drop(self, pieces: Iterable[Piece]) -> None:
        """These need not be held any longer."""
        for piece in pieces:
            if piece in self.pieces:
                self.pieces.discard(piece)
                self.hold(-len(piece.data) - PIECE_BYTES)

    def discard(self) -> None:
        """Give up all of it."""
        for piece in self.pieces:
            if piece.ticket is not None:
                piece.ticket.settle()
        self.overlay.wipe()
        self._growing.clear()
        self.growing_bytes = 0
        self.pending.clear()
        self.drop(list(self.pieces))
