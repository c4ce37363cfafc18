"""A transaction shows the store with its changes laid over it, at every depth."""

from hypothesis import given
from hypothesis import strategies as st

from dfs.master.store import MemoryStore
from dfs.master.transaction import Transaction

KEYS = st.sampled_from([b"a", b"b", b"ba", b"c", b"d"])
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=2)), max_size=8)


def over(rows: dict[bytes, bytes]) -> Transaction:
    store = MemoryStore()
    store.write(rows)
    return Transaction(store)


def change(txn: Transaction, changes: list[tuple[bytes, bytes | None]]) -> None:
    for key, value in changes:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)


def lay(model: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]]) -> None:
    for key, value in changes:
        model.pop(key, None)
        if value is not None:
            model[key] = value


@given(
    rows=st.dictionaries(KEYS, st.binary(max_size=2)),
    first=CHANGES,
    layers=st.lists(st.tuples(CHANGES, st.booleans(), st.booleans()), max_size=4),
    start=KEYS,
    end=KEYS,
)
def test_reads_see_the_changes_of_all_layers(
    rows: dict[bytes, bytes],
    first: list[tuple[bytes, bytes | None]],
    layers: list[tuple[list[tuple[bytes, bytes | None]], bool, bool]],
    start: bytes,
    end: bytes,
) -> None:
    root, model = over(rows), dict(rows)
    change(root, first)
    lay(model, first)

    def agrees(txn: Transaction, model: dict[bytes, bytes]) -> None:
        expected = sorted(row for row in model.items() if start <= row[0] < end)
        assert list(txn.scan(start, end)) == expected
        assert list(txn.scan(start, end, reverse=True)) == expected[::-1]
        keys = [b"a", b"b", b"ba", b"c", b"d", b"e"]
        assert txn.get_many(keys) == [model.get(key) for key in keys]
        assert [txn.get(key) for key in keys] == [model.get(key) for key in keys]

    for changes, scan_first, commit in layers:
        child, inner = root.child(), dict(model)
        if scan_first:
            agrees(child, inner)
        change(child, changes)
        lay(inner, changes)
        agrees(child, inner)
        if commit:
            child.commit()
            model = inner
        agrees(root, model)
    store = MemoryStore()
    store.write(rows)
    store.write(root.changes)
    assert dict(store.scan(b"\0", b"\xff")) == model


def test_a_scan_shows_the_rows_of_when_it_began() -> None:
    txn = over({b"a": b"1", b"c": b"3"})
    txn.put(b"b", b"2")
    seen = []
    for key, _ in txn.scan(b"a", b"z"):
        seen.append(key)
        txn.delete(b"b")
        txn.put(b"d", b"4")
    assert seen == [b"a", b"b", b"c"]
