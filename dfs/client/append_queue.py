"""Appended bytes of one file whose place in it is not known yet, as long as they wait.

All that is published at a time stands together in the file. A program's write may come in parts,
since the kernel cuts it where it crosses a page, and at the size of a request: what is published
between two parts of one write would let another client's append come between them. So who appends
says where more may follow, and `settle` waits for it.
"""

from collections import deque
from typing import Final

import trio
from trio.lowlevel import ParkingLot

from dfs.client.ticket import Ticket
from dfs.core.inode import AppendMark

QUIET_S: Final = 0.02
QUIET_MAX: Final = 5
"""So often in a row nothing came for QUIET_S, and the write has been whole. Counted, since a
process that was held up finds that the time is over before it finds what has come meanwhile."""
SETTLE_MAX_S: Final = 1.0
"""Who publishes waits no longer, whatever comes."""


class AppendQueue:
    """Owned by a FileWriter."""

    def __init__(self) -> None:
        self.length = 0
        """Bytes."""
        self.unfinished = False
        """More of the last write may follow."""
        self.last_length = 0
        """Bytes of the last write, as far as it has come."""
        self._parts: deque[bytes] = deque()
        self._waiting = ParkingLot()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, data: bytes, *, more: bool) -> None:
        """Take what follows; with `more` it may be the beginning of something."""
        self._parts.append(data)
        self.length += len(data)
        self.last_length = len(data) + (self.last_length if self.unfinished else 0)
        self.unfinished = more
        if self._waiting:
            self._waiting.unpark_all()

    def finish(self) -> None:
        """Nothing more of the last write follows."""
        self.unfinished = False
        if self._waiting:
            self._waiting.unpark_all()

    async def settle(self) -> None:
        """Wait until the last write is whole, or no more of it came for a while."""
        quiet = 0
        with trio.move_on_after(SETTLE_MAX_S):
            while self.unfinished and quiet < QUIET_MAX:
                with trio.move_on_after(QUIET_S) as scope:
                    await self._waiting.park()
                quiet = quiet + 1 if scope.cancelled_caught else 0
        self.finish()

    def parts(self) -> list[bytes]:
        """All of them, in order."""
        return list(self._parts)

    def drop(self, count: int) -> None:
        """The first `count` parts have their place."""
        for _ in range(count):
            self.length -= len(self._parts.popleft())

    def clear(self) -> None:
        """Give them up."""
        self._parts.clear()
        self.length = 0
        self.finish()


class Attempt:
    """Appended bytes on their way: kept until it is known whether the file has them."""

    __slots__ = ("count", "in_doubt", "length", "mark", "since", "ticket")

    def __init__(self, ticket: Ticket, mark: AppendMark, count: int, length: int) -> None:
        self.ticket = ticket
        self.mark = mark
        self.count = count
        """Of the appends it consists of."""
        self.length = length
        self.in_doubt = False
        """A commit was sent, and its answer never came."""
        self.since = -1
        """The file's version that was known before."""
