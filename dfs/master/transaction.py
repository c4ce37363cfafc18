"""A transaction: changes laid over a store, or over another transaction.

One command is one root transaction over the store; each of its operations is a child, so that a
refused operation leaves nothing behind while the others stand. Nothing here touches the
disk: the owner (`State`) writes `changes` of the root as one atomic batch.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from dfs.core.ids import InodeId
from dfs.master.keyspace import Reader


class _Missing:
    pass


_MISSING: Final = _Missing()


class Tails(dict[InodeId, int]):
    """Where the extent begins that was last laid in a file; a guess, of few files.

    A file that grows piece by piece needs the extent before the next piece each time: this finds
    it by its key, where a search would cost as much as all the rest. Whoever uses it looks whether
    it is the right one, so the state does not depend on it.
    """

    _MOST: Final = 4096

    def note(self, ino: InodeId, file_offset: int) -> None:
        if len(self) >= self._MOST:
            self.clear()
        self[ino] = file_offset


class Transaction:
    """Reads see the changes made through it; `changes` holds them, None for a deleted key.

    Not for use by two writers at once: while a child is open, only the child may change.
    """

    __slots__ = ("_base", "_base_get", "_parent", "_sorted", "changes", "tails")

    def __init__(self, base: Reader, tails: Tails | None = None) -> None:
        self._base = base
        self._base_get = base.get
        self._parent = base if isinstance(base, Transaction) else None
        self._sorted: list[bytes] | None = None
        """Keys of `changes` in order; built by the first scan, kept up from then on."""
        self.changes: dict[bytes, bytes | None] = {}
        self.tails = Tails() if tails is None else tails

    def get(self, key: bytes) -> bytes | None:
        value = self.changes.get(key, _MISSING)
        if value is _MISSING:
            return self._base_get(key)
        return value  # type: ignore[return-value]  # not _MISSING: mypy cannot narrow on identity

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order."""
        if not self.changes:
            return self._base.get_many(keys)
        return [self.get(key) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        if self._sorted is not None and key not in self.changes:
            insort(self._sorted, key)
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        """Deleting what is not there is allowed."""
        if self._sorted is not None and key not in self.changes:
            insort(self._sorted, key)
        self.changes[key] = None

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows of [start, end) in order of key, as they are when the scan starts.

        Changes that this transaction makes later are not seen by it.
        """
        if not self.changes:
            return self._base.scan(start, end, reverse=reverse)
        if self._sorted is None:
            self._sorted = sorted(self.changes)
        keys = self._sorted
        mine = keys[bisect_left(keys, start) : bisect_left(keys, end)]
        base = self._base.scan(start, end, reverse=reverse)
        if not mine:
            return base
        if reverse:
            mine.reverse()
        changes = self.changes
        return _merge([(key, changes[key]) for key in mine], base, reverse=reverse)

    def child(self) -> "Transaction":
        return Transaction(self, self.tails)

    def commit(self) -> None:
        """Hand the changes to the parent transaction. Only for a child."""
        parent = self._parent
        assert parent is not None, "a root transaction is written by its State"
        if parent._sorted is not None:
            for key in self.changes:
                if key not in parent.changes:
                    insort(parent._sorted, key)
        parent.changes.update(self.changes)

    def discard(self) -> None:
        """Forget all changes."""
        self.changes.clear()
        self._sorted = None


def _merge(
    mine: list[tuple[bytes, bytes | None]],
    base: Iterator[tuple[bytes, bytes]],
    *,
    reverse: bool,
) -> Iterator[tuple[bytes, bytes]]:
    """Both in order of key; `mine` wins where both have a key, and None hides the base's row."""
    row = next(base, None)
    for key, value in mine:
        while row is not None and (row[0] > key if reverse else row[0] < key):
            yield row
            row = next(base, None)
        if row is not None and row[0] == key:
            row = next(base, None)
        if value is not None:
            yield key, value
    while row is not None:
        yield row
        row = next(base, None)
