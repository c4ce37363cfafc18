"""Bringing the log to the disk at least every second, so that a power cut costs no more."""

from dfs.master.journal import Journal


class FlushLog:
    """Syncs what was appended since the last time; costs nothing when nothing was."""

    name = "flushing the metadata log"
    idle_s = 0.8

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def run_once(self) -> bool:
        await self._journal.sync()
        return False
