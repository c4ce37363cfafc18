"""The reader's side of a check: tables in order of key, handed out id by id, in bounded memory.

A check must see a store that does not change meanwhile: a checkpoint, or a stopped master's. It
goes through each table once or twice in order, side by side with others of the same order; what
is needed in another order goes through a `Sorter`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from dfs.core.chunk import Chunk
from dfs.core.ids import ChunkId, InodeId
from dfs.core.inode import Inode
from dfs.master import keyspace as keys
from dfs.master.check.sorter import RUN_RECORDS, Sorter
from dfs.master.keyspace import Reader, key_id, scan_prefix

T = TypeVar("T")
Row = tuple[bytes, bytes]

END: Final = 1 << 64
"""Past every id."""
TICK_ROWS: Final = 2048
MISPLACED_MAX: Final = 100_000
"""Directories whose record names another parent, remembered at most."""


class Cursor:
    """Rows in order of their first id, taken id by id: each id's rows must be taken in full."""

    __slots__ = ("_row", "_rows", "id")

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self._row: Row = (b"", b"")
        self.id = 0
        """Of the next row; END after the last."""
        self._advance()

    def _advance(self) -> None:
        row = next(self._rows, None)
        if row is None:
            self.id = END
        else:
            self._row = row
            self.id = int.from_bytes(row[0][1:9], "big")

    def of(self, number: int) -> Iterator[Row]:
        """The rows of `number`, which is the least id that is left."""
        while self.id == number:
            row = self._row
            self._advance()
            yield row

    def one(self, number: int) -> bytes | None:
        """The value of the only row of `number`, if there is one."""
        if self.id != number:
            return None
        value = self._row[1]
        self._advance()
        return value


class Walk:
    """One check: what it reads from, and what its parts gather for each other."""

    def __init__(
        self,
        reader: Reader,
        *,
        scratch: Path | None = None,
        tick: Callable[[int], None] | None = None,
        run_records: int = RUN_RECORDS,
    ) -> None:
        """`scratch`: a directory for what does not fit into memory. `tick` hears of rows done."""
        self.reader = reader
        self._tick = tick
        self.sessions = {key_id(key) for key, _ in scan_prefix(reader, keys.SESSION)}
        self.leftovers = {key_id(key) for key, _ in scan_prefix(reader, keys.LEFTOVERS)}
        self.policies = {key_id(key) for key, _ in scan_prefix(reader, keys.POLICY)}
        self._sorters: list[Sorter] = []

        def sorter() -> Sorter:
            made = Sorter(scratch, run_records)
            self._sorters.append(made)
            return made

        self.names = sorter()
        """Of each dentry: 0, ino, parent, name."""
        self.entries = sorter()
        """Of each parent: 0, parent, number of dentries."""
        self.directories = sorter()
        """Of each directory: 0, ino, nlink, number of names."""
        self.subdirectories = sorter()
        """Of each directory's name: 0, parent, ino."""
        self.misplaced: dict[InodeId, tuple[InodeId, bytes]] = {}
        """Where directories are whose record says something else: (parent, name)."""
        self.seen: Counter[str] = Counter()
        """Rows and totals, for the counters and for tables that mirror each other."""
        self.last_inode: InodeId = 0
        self.last_chunk: ChunkId = 0
        self.unindexed = False
        """Some extent is not in extent-by-chunk."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sorter in self._sorters:
            sorter.close()

    def rows(self, table: bytes) -> Iterator[Row]:
        """A whole table, in order."""
        tick = self._tick
        if tick is None:
            yield from scan_prefix(self.reader, table)
            return
        number = 0
        for number, row in enumerate(scan_prefix(self.reader, table), 1):
            if number % TICK_ROWS == 0:
                tick(TICK_ROWS)
            yield row
        tick(number % TICK_ROWS)

    def cursor(self, table: bytes) -> Cursor:
        return Cursor(self.rows(table))

    def inode(self, ino: InodeId) -> Inode | None:
        """None also for a record that cannot be read."""
        raw = self.reader.get(keys.inode_key(ino))
        return None if raw is None else decoded(keys.decode_inode, raw)

    def chunk(self, chunk: ChunkId) -> Chunk | None:
        """None also for a record that cannot be read."""
        raw = self.reader.get(keys.chunk_key(chunk))
        return None if raw is None else decoded(keys.decode_chunk, raw)


def sorted_rows(sorter: Sorter) -> Cursor:
    return Cursor((record, b"") for record in sorter)


def decoded(decode: Callable[[bytes], T], value: bytes) -> T | None:
    """None for bytes that are no such record."""
    try:
        return decode(value)
    except (msgspec.DecodeError, ValueError):
        return None
