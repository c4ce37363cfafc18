"""The ordered key-value store under the master: one contract, on RocksDB and in memory.

Contract (one conformance suite runs over both):

- `get`, `get_many` and `scan` see everything written before. Keys are ordered as bytes.
- `write` is atomic: all of the changes or none. When it returns, they survive the death of the
  process; when `sync` returns, everything written before it began survives a power cut.
- `position` goes up with every write. A store that has lost the end of its log in a power cut
  has the position of the last write that it still has.
- A scan is finished or dropped before the next write; what it shows of a write made while it runs
  is not defined.
- All calls come from one thread, but `sync` and `checkpoint`, which may run in a worker thread
  beside them.

The master owns its store: one process opens it at a time.
"""

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from dfs.core.errors import ConfigError, DfsError, NoSpaceError
from dfs.master.keyspace import (
    CHUNK,
    EXTENT,
    INODE,
    META_COUNTERS,
    POLICY,
    REPLY,
    SESSION,
    Changes,
    Reader,
)

MIB: Final = 1024 * 1024

_RECENT_TABLES: Final = frozenset(
    META_COUNTERS[:1] + SESSION + REPLY + INODE + EXTENT + CHUNK + POLICY
)
_RECENT_ROWS: Final = 8192
"""A few rows are read with almost every request (the counters, the session, the directory it
is about, the end of a file that grows): a dictionary answers in a tenth of the time of RocksDB's
cache."""
_RECENT_BYTES: Final = 1024
"""Of a row; the answer to a batch may have many KiB."""

_FLUSH_MOST_S: Final = 10.0
_FLUSH_POLL_S: Final = 0.005

_CACHED_BLOCK_BYTES: Final = 3 * 1024
"""A low estimate of the mean block in the cache; the cost of one too low is a few MiB."""


class Store(Reader, Protocol):
    """See the contract above."""

    @property
    def position(self) -> int: ...

    def write(self, changes: Changes, /) -> None:
        """Apply all changes atomically.

        Raises NoSpaceError when the disk is full, DfsError when it fails otherwise; nothing has
        changed then.
        """

    def sync(self) -> None:
        """Block until everything written before is on the disk. Raises like `write`."""

    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy, as of now, to the new directory `path`."""

    def close(self) -> None: ...


class MemoryStore:
    """For tests and simulations. Writes never fail; a sync has nothing to do."""

    def __init__(self) -> None:
        self.position = 0
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        low, high = bisect_left(self._keys, start), bisect_left(self._keys, end)
        positions = range(high - 1, low - 1, -1) if reverse else range(low, high)
        for position in positions:
            key = self._keys[position]
            yield key, self._values[key]

    def write(self, changes: Changes) -> None:
        self.position += 1
        for key, value in changes.items():
            if value is not None:
                if key not in self._values:
                    insort(self._keys, key)
                self._values[key] = value
            elif key in self._values:
                del self._values[key]
                del self._keys[bisect_right(self._keys, key) - 1]

    def sync(self) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        """A RocksStore's directory with the same rows, so that one can start from the other."""
        store = RocksStore(path)
        store.write(self._values)
        store.sync()
        store.close()

    def close(self) -> None:
        pass


class RocksStore:
    """RocksDB in `path`, made if it is not there.

    Every write goes through RocksDB's own log (WAL) into the page cache before it returns.

    Raises:
        ConfigError: another process has it open, or `path` cannot be used.
    """

    def __init__(self, path: Path, *, cache_bytes: int = 16 * MIB, read_only: bool = False) -> None:
        """`read_only`: for a checkpoint; it must be there, and nothing in it is touched."""
        self.path = path
        try:
            if not read_only:
                path.mkdir(parents=True, exist_ok=True)
            options = _options(cache_bytes)
            # Without naming the column family, rocksdict opens an existing database with the
            # options it was left with, and a cache of 8 MiB.
            self._db = Rdict(
                str(path),
                options,
                column_families={"default": options},
                access_type=AccessType.read_only() if read_only else AccessType.read_write(),
            )
        except OSError as error:
            raise ConfigError(
                f"cannot use {path} for the master's metadata: {error.strerror or error}",
                errno=error.errno,
                hint="name a directory that this user may write",
            ) from error
        except Exception as error:  # rocksdict raises bare Exception for RocksDB's errors
            raise _cannot_open(path, error) from error
        self._get = cast(Callable[[bytes], bytes | None], self._db.get)
        self.get_many = cast(Callable[[list[bytes]], list[bytes | None]], self._db.get)
        self._recent: dict[bytes, bytes] = {}
        """Rows of `_RECENT_TABLES` that were read or written lately, as they are in the store."""
        self._rows = cast(Callable[..., Iterator[tuple[bytes, bytes]]], self._db.items)

    @property
    def position(self) -> int:
        return self._db.latest_sequence_number()

    def get(self, key: bytes) -> bytes | None:
        value = self._recent.get(key)
        if value is None:
            value = self._get(key)
            if value is not None and key[0] in _RECENT_TABLES and len(value) <= _RECENT_BYTES:
                if len(self._recent) >= _RECENT_ROWS:
                    self._recent.clear()
                self._recent[key] = value
        return value

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # RocksDB stops at the upper bound without wading through deleted rows behind it. Two
        # traps of rocksdict: its iterators refer to the bound's bytes without owning them, so
        # `bounds` has to live as long as the generator; and its set_iterate_lower_bound sets
        # the upper one.
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        if not reverse:
            yield from self._rows(from_key=start, read_opt=bounds)
            return
        # Not `items(backwards=True)`: that one looks a row ahead, and without a lower bound the
        # row before the first of a file may lie behind those of thousands that were deleted.
        rows = self._db.iter(bounds)
        rows.seek_to_last()
        while rows.valid():
            key = cast(bytes, rows.key())
            if key < start:
                return
            yield key, cast(bytes, rows.value())
            rows.prev()
        rows.status()

    def write(self, changes: Changes) -> None:
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in changes.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        recent = self._recent
        try:
            self._db.write(batch)
        except Exception as error:
            recent.clear()
            raise self._failed("write", error) from error
        for key in recent.keys() & changes.keys():
            value = changes[key]
            if value is None or len(value) > _RECENT_BYTES:
                del recent[key]
            else:
                recent[key] = value

    def sync(self) -> None:
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise self._failed("sync", error) from error

    def approximate_rows(self) -> int:
        """How many there are, roughly, at no cost."""
        return self._db.property_int_value("rocksdb.estimate-num-keys") or 0

    def checkpoint(self, path: Path) -> None:
        try:
            self._flush_ahead()
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise self._failed("checkpoint", error) from error

    def _flush_ahead(self) -> None:
        """A checkpoint begins by writing down what is in memory, and holds Python's lock all the
        while: let RocksDB do most of that in the background first."""
        self._db.flush(wait=False)
        deadline = time.monotonic() + _FLUSH_MOST_S
        while time.monotonic() < deadline and (
            self._db.property_int_value("rocksdb.mem-table-flush-pending")
            or self._db.property_int_value("rocksdb.num-immutable-mem-table")
        ):
            time.sleep(_FLUSH_POLL_S)

    def close(self) -> None:
        # It fails where the last flush does. Nothing is lost: all of it is in the log.
        with suppress(Exception):
            self._db.close()

    def _failed(self, action: str, error: Exception) -> DfsError:
        text = _one_line(error)
        message = f"the master cannot {action} its metadata in {self.path}: {text}"
        if "No space left" in text:
            # RocksDB looks for room again every few seconds, and then goes on by itself.
            return NoSpaceError(message, hint="free space on that disk", retry=True)
        return DfsError(message, hint="repair that disk, then restart the master")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _cannot_open(path: Path, error: Exception) -> ConfigError:
    text = _one_line(error)
    if "lock" in text.lower():
        return ConfigError(
            f"the metadata in {path} is in use by another process",
            hint="stop the master that runs there, or name another directory",
        )
    return ConfigError(
        f"cannot open the master's metadata in {path}: {text}",
        hint="check the disk; a directory that is no dfs metadata cannot be used",
    )


def _options(cache_bytes: int) -> Options:
    table = BlockBasedOptions()
    # The clock cache: random look-ups among a million files take two thirds of the time they
    # take with the LRU one, and its few, big shards hold whole filters. LRU's are of 2 MiB: a
    # filter that does not fit is read and unpacked anew for every get. (Its automatic mode, an
    # estimate of 0, is called experimental before RocksDB 10.7.)
    table.set_block_cache(Cache.new_hyper_clock_cache(cache_bytes, _CACHED_BLOCK_BYTES))
    table.set_block_size(4 * 1024)
    table.set_bloom_filter(10, False)
    # Indexes and filters count against the cache too: memory stays flat as files grow.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_format_version(5)

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    # At every level: a block that is not cached is unpacked for one row of it. zstd at the bottom
    # would save a third of about 115 bytes a file, and cost 10 us for each such block.
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(8 * MIB)
    options.set_max_write_buffer_number(2)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_bytes_for_level_base(32 * MIB)
    options.set_target_file_size_base(16 * MIB)
    options.set_max_background_jobs(2)
    options.set_bytes_per_sync(MIB)
    options.set_max_open_files(512)
    # One thread writes: no hand-over between writers to pay for.
    options.set_allow_concurrent_memtable_write(False)
    options.set_enable_write_thread_adaptive_yield(False)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options
