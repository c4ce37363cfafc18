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
from dfs.core.errors import DfsError, LostChangesError
from dfs.wire.messages import Empty, LogPosition, SyncBarrier

SYNC_TIMEOUT_S: Final = 30.0
"""For the master's disk."""


class Barrier:
    """Owned by Meta."""

    def __init__(self, link: MasterLink) -> None:
        self._link = link
        self._answered: dict[int, int] = {}
        """By run of the master, the highest position it answered since the last barrier."""
        self._synced = LogPosition(-1, -1)
        """How far the log of the last run that said so is on its disk."""
        self.losses = 0
        """How often the master turned out to have lost changes."""
        self._told = 0
        """Of them, those that were told to one who asks for no file's sake."""
        self._loss: DfsError | None = None

    def note(self, position: LogPosition | None, *, synced: bool = False) -> None:
        """A change was answered; `synced`: and it is on the master's disk, with all before it."""
        if position is None:
            return
        run, reached = position.run, position.position
        known = self._answered.get(run, -1)
        if not synced:
            self._answered[run] = max(known, reached)
            return
        if known <= reached:
            self._answered.pop(run, None)
        if run != self._synced.run or reached > self._synced.position:
            self._synced = position

    def answered(self) -> dict[int, int]:
        """What was answered by now and may still be lost, by run of the master. For `wait`."""
        return dict(self._answered)

    def _is_synced(self, answered: dict[int, int]) -> bool:
        synced = self._synced
        return all(run == synced.run and upto <= synced.position for run, upto in answered.items())

    async def wait(self, since: int | None = None, answered: dict[int, int] | None = None) -> None:
        """Return when every change answered before this call is on the master's disk.

        With `answered`, only these; that costs no question where a synced change has since told.

        Raises:
            LostChangesError: `losses` has gone past `since` (None: past what was told so far).
        """
        if answered is None or not self._is_synced(answered):
            await self._ask(self.answered())
        if since is None:
            since, self._told = self._told, self.losses
        if self.losses > since:
            assert self._loss is not None
            raise self._loss.again()

    async def _ask(self, answered: dict[int, int]) -> None:
        """Find out what became of changes that were answered, and note it."""
        request = SyncBarrier(tuple(LogPosition(*each) for each in answered.items()))
        try:
            await self._link.call(request, Empty, timeout_s=SYNC_TIMEOUT_S)
        except LostChangesError as error:
            if len(answered) > 1:
                for run, upto in answered.items():
                    await self._ask({run: upto})
                return
            # With these, all went that the same run answered since. Another barrier may have
            # found that before.
            for run in answered:
                if self._answered.pop(run, None) is not None:
                    self.losses += 1
                    self._loss = error
        else:
            for run, upto in answered.items():
                if self._answered.get(run) == upto:
                    del self._answered[run]
