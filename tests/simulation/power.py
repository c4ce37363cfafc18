"""A store in memory that can lose what was not synced, as a power cut makes a real one."""

from dfs.master.keyspace import Changes
from dfs.master.store import MemoryStore


class PowerCutStore(MemoryStore):
    """Remembers how to undo each write since the last sync."""

    def __init__(self) -> None:
        super().__init__()
        self._undo: list[Changes] = []

    def write(self, changes: Changes) -> None:
        self._undo.append({key: self.get(key) for key in changes})
        super().write(changes)

    def sync(self) -> None:
        self._undo.clear()

    def cut_power(self, *, keep: int = 0) -> None:
        """Lose all writes since the last sync but the first `keep`."""
        while len(self._undo) > keep:
            super().write(self._undo.pop())
            self.position -= 2  # the write, and the one that undid it
