"""The contract of `store`, over both stores; then what only RocksDB has to promise."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.core.errors import ConfigError
from dfs.master import store as store_module
from dfs.master.keyspace import META_SCHEMA, u64
from dfs.master.state import State
from dfs.master.store import MemoryStore, RocksStore, Store

Rows = list[tuple[bytes, bytes]]


@pytest.fixture(params=["memory", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else RocksStore(tmp_path / "db")
    yield made
    made.close()


def test_get_returns_what_was_written_last(store: Store) -> None:
    store.write({b"a": b"1", b"b": b""})
    store.write({b"a": b"2"})
    assert store.get(b"a") == b"2"
    assert store.get(b"b") == b""
    assert store.get(b"c") is None


def test_none_deletes_and_deleting_nothing_is_allowed(store: Store) -> None:
    store.write({b"a": b"1"})
    store.write({b"a": None, b"z": None})
    assert store.get(b"a") is None
    assert list(store.scan(b"\0", b"\xff")) == []


def test_get_many_keeps_the_order_of_the_keys(store: Store) -> None:
    store.write({b"a": b"1", b"b": b"2"})
    assert store.get_many([b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
    assert store.get_many([]) == []


@pytest.mark.parametrize(
    ("start", "end", "keys"),
    [
        (b"a", b"d", [b"a", b"ab", b"b", b"c"]),
        (b"a", b"c", [b"a", b"ab", b"b"]),
        (b"aa", b"bb", [b"ab", b"b"]),
        (b"a\0", b"b", [b"ab"]),
        (b"x", b"z", []),
        (b"c", b"a", []),
        (b"\0", b"\xff\xff", [b"a", b"ab", b"b", b"c", b"\xff"]),
    ],
)
def test_scan_takes_the_start_and_leaves_the_end(
    store: Store, start: bytes, end: bytes, keys: list[bytes]
) -> None:
    store.write({key: b"v" + key for key in (b"c", b"a", b"\xff", b"b", b"ab")})
    rows = [(key, b"v" + key) for key in keys]
    assert list(store.scan(start, end)) == rows
    assert list(store.scan(start, end, reverse=True)) == rows[::-1]


def test_a_scan_can_be_dropped_half_way(store: Store) -> None:
    store.write({u64(n): b"" for n in range(1000)})
    assert next(store.scan(u64(5), u64(900))) == (u64(5), b"")
    assert next(store.scan(u64(5), u64(900), reverse=True)) == (u64(899), b"")
    store.write({u64(5): None})
    assert next(store.scan(u64(5), u64(900))) == (u64(6), b"")


def test_the_last_row_is_found_at_once_whatever_was_deleted_before_it(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "db")
    keys = [u64(number) for number in range(20_001)]
    store.write(dict.fromkeys(keys, b"row"))
    store.write(dict.fromkeys(keys[:-1]))
    begun = time.process_time()
    for _ in range(20):
        assert next(iter(store.scan(keys[-1], u64(1 << 40), reverse=True))) == (keys[-1], b"row")
    # Through the graves of the others it takes some 10 ms.
    assert (time.process_time() - begun) / 20 < 0.002
    store.close()


def test_scans_stop_at_their_end_whatever_else_is_in_memory(store: Store) -> None:
    """rocksdict's iterators do not own the bytes of their bound."""
    store.write({u64(n): b"" for n in range(5000)})
    for count in range(1, 40):
        scan = store.scan(u64(0), u64(100 * count))
        rows = [next(scan)]
        for other in range(100):
            next(store.scan(u64(0), u64(other + 1)), None)
        rows += scan
        assert [key for key, _ in rows] == [u64(n) for n in range(100 * count)]


@given(
    st.lists(
        st.dictionaries(
            st.binary(min_size=1, max_size=3), st.none() | st.binary(max_size=3), max_size=8
        ),
        max_size=8,
    ),
    st.binary(min_size=1, max_size=3),
    st.binary(min_size=1, max_size=3),
)
def test_the_memory_store_is_a_sorted_dictionary(
    batches: list[dict[bytes, bytes | None]], start: bytes, end: bytes
) -> None:
    store, model = MemoryStore(), dict[bytes, bytes]()
    for batch in batches:
        store.write(batch)
        for key, value in batch.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    rows = [(key, model[key]) for key in sorted(model) if start <= key < end]
    assert list(store.scan(start, end)) == rows
    assert list(store.scan(start, end, reverse=True)) == rows[::-1]


@pytest.mark.parametrize("table", [b"i", b"d", b"r"])
def test_rows_written_and_read_at_random_are_never_old(
    store: Store, monkeypatch: pytest.MonkeyPatch, table: bytes
) -> None:
    monkeypatch.setattr(store_module, "_RECENT_ROWS", 5)
    random, model = Random(3), dict[bytes, bytes]()
    keys = [table + u64(number) for number in range(20)]
    for number in range(3000):
        key = random.choice(keys)
        assert store.get(key) == model.get(key)
        value = b"%d" % number * random.choice((1, 1, 1000))
        batch = {random.choice(keys): value, random.choice(keys): None}
        if number % 3 == 0:
            store.write(batch)
            for changed, now in batch.items():
                model.pop(changed, None)
                if now is not None:
                    model[changed] = now
    assert dict(store.scan(b"\0", b"\xff")) == model
    assert store.get_many(keys) == [model.get(key) for key in keys]


def test_a_checkpoint_is_a_store_as_of_then(store: Store, tmp_path: Path) -> None:
    store.write({b"a": b"1"})
    store.checkpoint(tmp_path / "copy")
    store.write({b"a": b"2"})
    copy = RocksStore(tmp_path / "copy")
    assert copy.get(b"a") == b"1"
    copy.close()


def test_the_position_goes_up_with_every_write_and_with_nothing_else(store: Store) -> None:
    before = store.position
    for number in range(5):
        store.write({b"a": b"%d" % number, b"b": None})
        assert store.position > before
        before = store.position
        store.get(b"a")
        store.sync()
        assert store.position == before


# ------------------------------------------------------------------ RocksDB


def test_a_store_that_lost_the_end_of_its_log_has_the_position_of_before(tmp_path: Path) -> None:
    """A power cut leaves what was synced, and of the rest of the log any beginning."""
    store = RocksStore(tmp_path / "db")
    (log,) = (tmp_path / "db").glob("*.log")
    ends = [(0, 0)]
    for changes in ({b"a": b"1", b"b": b"2"}, {b"c": b"3"}, {b"a": None}):
        store.write(changes)
        ends.append((log.stat().st_size, store.position))
    shutil.copytree(tmp_path / "db", tmp_path / "cut")
    store.close()
    # Each write whole, and torn: then it is not there at all.
    lengths = [*ends, *((size - 1, before) for (_, before), (size, _) in pairwise(ends))]
    for length, position in lengths:
        copy = shutil.copytree(tmp_path / "cut", tmp_path / f"cut{length}")
        os.truncate(copy / log.name, length)
        found = RocksStore(copy)
        assert found.position == position
        found.close()


def test_rows_are_there_after_closing_and_opening(tmp_path: Path) -> None:
    random = Random(1)
    rows = {random.randbytes(8): random.randbytes(100) for _ in range(2000)}
    store = RocksStore(tmp_path / "db")
    store.write(rows)
    store.close()
    store = RocksStore(tmp_path / "db")
    assert dict(store.scan(b"\0", b"\xff" * 9)) == rows
    store.close()


_WRITER = """
import sys
import time
from pathlib import Path
from dfs.master.store import RocksStore
store = RocksStore(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    store.write({b"n": b"%d" % number, b"%08d" % number: b"x" * 200})
    print(number, flush=True)
"""


def test_what_write_returned_from_survives_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "db")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(500):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split(b"\n")
    # Every whole line was printed after its write returned.
    last = int(rest[-2]) if len(rest) > 1 else 500
    store = RocksStore(tmp_path / "db")
    assert int(store.get(b"n") or 0) >= last
    assert all(store.get(b"%08d" % number) for number in range(1, last + 1))
    store.close()


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "db")
    message = refused(lambda: RocksStore(tmp_path / "db"))
    assert "in use by another process" in message
    store.close()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"")
    assert str(tmp_path / "db") in refused(lambda: RocksStore(tmp_path / "db"))


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "db")
    store.write({b"a": b"1"})
    store.close()
    (tmp_path / "db" / "CURRENT").write_bytes(b"nonsense\n")
    assert "cannot open" in refused(lambda: RocksStore(tmp_path / "db"))


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    store.write({META_SCHEMA: u64(99)})
    assert "schema version 99" in refused(lambda: State(store))


def test_a_reopened_store_has_the_cache_it_is_given(tmp_path: Path) -> None:
    for cache_bytes in (32 << 20, 64 << 20):
        store = RocksStore(tmp_path / "db", cache_bytes=cache_bytes)
        assert store._db.property_value("rocksdb.block-cache-capacity") == str(cache_bytes)
        store.close()


def test_a_big_table_does_not_unpack_its_whole_index_for_every_get(tmp_path: Path) -> None:
    """One filter for a table of a million keys does not fit the cache: that cost 0.5 ms a get."""
    store = RocksStore(tmp_path / "db", cache_bytes=32 << 20)
    for batch in range(0, 1_000_000, 10_000):
        store.write({u64(number): bytes(50) for number in range(batch, batch + 10_000)})
    store._db.flush()
    store._db.compact_range(None, None)
    random = Random(1)
    keys = [u64(random.randrange(1_000_000)) for _ in range(2000)]
    for key in keys:
        store.get(key)
    begun = time.thread_time()
    for key in keys:
        assert store.get(key) == bytes(50)
    assert (time.thread_time() - begun) / len(keys) < 50e-6
    store.close()
