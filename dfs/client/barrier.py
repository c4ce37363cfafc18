"""What the master has answered and may still lose, and what of that it turned out to have lost.

The master answers a change when it would survive the death of its process. Only a barrier says
that it would survive a power cut, so until then the client remembers how far the answers reach.
Sessions have no part in that: a loss is found whatever became of the one that made the change.

A loss is told once to everybody who would else believe in what is gone, as the kernel tells of a
failed write: to each file that was open when it was found, and to one of those who ask for no
file's sake.
"""

from typing import Final

from dfs.client.master_link import MasterLink
from dfs.core.errors import DfsError, LostChangesError, from_wire
from dfs.wire.messages import Empty, LogPosition, SyncBarrier

_SYNC_TIMEOUT_S: Final = 30.0


class Barrier:
    """Owned by Meta."""

    def __init__(self, link: MasterLink) -> None:
        self._link = link
        self._answered: dict[int, int] = {}
        """By run of the master, the highest position it answered since the last barrier."""
        self.losses = 0
        """How often the master turned out to have lost changes."""
        self._told = 0
        """Of them, those that were told to one who asks for no file's sake."""
        self._loss: DfsError | None = None

    def note(self, position: LogPosition | None) -> None:
        """A change was answered."""
        if position is not None:
            known = self._answered.get(position.run, -1)
            self._answered[position.run] = max(known, position.position)

    async def wait(self, since: int | None = None) -> None:
        """Return when every change answered before this call is on the master's disk.

        Raises:
            LostChangesError: `losses` has gone past `since` (None: past what was told so far).
        """
        answered = dict(self._answered)
        request = SyncBarrier(tuple(LogPosition(*each) for each in answered.items()))
        try:
            await self._link.call(request, Empty, timeout_s=_SYNC_TIMEOUT_S)
        except LostChangesError as error:
            # Another barrier may have found the same.
            if self._settle(answered):
                self.losses += 1
                self._loss = error
        else:
            self._settle(answered)
        if since is None:
            since, self._told = self._told, self.losses
        if self.losses > since:
            assert self._loss is not None
            raise from_wire(self._loss.to_wire())

    def _settle(self, answered: dict[int, int]) -> bool:
        """Nothing more is to be found out about these. Whether it was to be."""
        settled = [run for run, upto in answered.items() if self._answered.get(run) == upto]
        for run in settled:
            del self._answered[run]
        return bool(settled)
