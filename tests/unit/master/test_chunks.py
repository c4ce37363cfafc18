"""The life of a chunk: its state table, its indexes and counters."""

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfs.core.chunk import CHUNK_MAX_BYTES, ChunkState, FragmentState
from dfs.core.errors import DfsError, FileSystemError
from dfs.master import chunks, fragments
from dfs.master.chunks import Event
from dfs.master.commands import (
    AllocateChunks,
    DropFragments,
    FragmentMark,
    MarkFragments,
    Placement,
    SealAbandoned,
    SealChunk,
)
from dfs.master.keyspace import (
    CHUNK,
    CHUNK_BY_SESSION,
    DOOMED,
    FRAGMENT_BY_DISK,
    decode_chunk,
    get_chunk,
    get_counters,
    key_id,
    scan_prefix,
    second_id,
)
from dfs.master.store import MemoryStore
from dfs.master.transaction import Transaction

EXPECTED = {
    (None, Event.ALLOCATE): ChunkState.OPEN,
    (ChunkState.OPEN, Event.ABANDON): ChunkState.OPEN,
    (ChunkState.OPEN, Event.SEAL): ChunkState.SEALED,
    (ChunkState.OPEN, Event.EMPTY): ChunkState.DOOMED,
    (ChunkState.SEALED, Event.EMPTY): ChunkState.DOOMED,
    (ChunkState.SEALED, Event.RETIRE): ChunkState.RETIRED,
    (ChunkState.RETIRED, Event.EXPIRE): ChunkState.DOOMED,
    (ChunkState.DOOMED, Event.DROP): None,
}


def begin() -> Transaction:
    return Transaction(MemoryStore())


def allocate(txn: Transaction, session: int = 7, *disks: int) -> int:
    placement = Placement(1, 2, disks or (1, 2, 3))
    return chunks.allocate(txn, AllocateChunks(0, session, 1, 1, (placement,)))[0].chunk


def seal(txn: Transaction, chunk: int, length: int, *lost: int, session: int = 7) -> None:
    chunks.seal(txn, SealChunk(0, session, 1, chunk, length, lost))


def state_of(txn: Transaction, chunk: int) -> ChunkState | None:
    record = get_chunk(txn, chunk)
    return None if record is None else record.state


@pytest.mark.parametrize(("state", "event"), list(product([None, *ChunkState], Event)))
def test_every_pair_of_state_and_event(state: ChunkState | None, event: Event) -> None:
    if (state, event) in EXPECTED:
        assert chunks.after(state, event) == EXPECTED[state, event]
    else:
        with pytest.raises(FileSystemError):
            chunks.after(state, event)


def test_a_chunk_lives_from_allocation_to_the_last_dropped_fragment() -> None:
    txn = begin()
    chunk = allocate(txn)
    chunks.add_live(txn, chunk, 100, 4096)
    assert get_chunk(txn, chunk).length == 4096  # type: ignore[union-attr]
    seal(txn, chunk, 8192, 1)
    record = get_chunk(txn, chunk)
    assert record is not None
    assert (record.state, record.owner, record.length) == (ChunkState.SEALED, 0, 8192)
    assert [fragment.state.name for fragment in record.fragments] == ["GOOD", "LOST", "GOOD"]
    chunks.add_live(txn, chunk, -100)
    assert state_of(txn, chunk) is ChunkState.DOOMED
    for disk in (1, 2, 3):
        assert get_chunk(txn, chunk) is not None
        chunks.drop_fragments(txn, DropFragments(0, disk, (chunk, 999)))
    assert get_chunk(txn, chunk) is None
    assert {key: value for key, value in txn.changes.items() if value} == {
        key: value for key, value in txn.changes.items() if key == b"mcounters"
    }


def test_an_open_chunk_survives_without_live_bytes_while_its_session_lives() -> None:
    txn = begin()
    chunk = allocate(txn)
    chunks.add_live(txn, chunk, 100, 100)
    chunks.add_live(txn, chunk, -100)
    chunks.add_live(txn, chunk, 50, 150)
    assert state_of(txn, chunk) is ChunkState.OPEN
    chunks.add_live(txn, chunk, -50)
    seal(txn, chunk, 150)
    assert state_of(txn, chunk) is ChunkState.DOOMED


def test_only_the_owner_seals_and_never_below_what_is_committed() -> None:
    txn = begin()
    chunk = allocate(txn)
    chunks.add_live(txn, chunk, 100, 100)
    with pytest.raises(FileSystemError, match="not open for session 8"):
        seal(txn, chunk, 100, session=8)
    for length in (99, CHUNK_MAX_BYTES + 1):
        with pytest.raises(FileSystemError, match="cannot be sealed"):
            seal(txn, chunk, length)
    seal(txn, chunk, 100)
    with pytest.raises(FileSystemError):
        seal(txn, chunk, 100)


def test_a_released_session_leaves_chunks_to_the_master_in_bounded_steps() -> None:
    txn = begin()
    with_data = [allocate(txn) for _ in range(3)]
    without = [allocate(txn) for _ in range(3)]
    other = allocate(txn, 8)
    for chunk in with_data:
        chunks.add_live(txn, chunk, 10, 10)
    assert chunks.release_session(txn, 7, 4) == 4
    assert chunks.release_session(txn, 7, 4) == 2
    assert chunks.abandoned(txn, limit=2) == with_data[:2]
    assert chunks.abandoned(txn, after_chunk=with_data[1], limit=2) == with_data[2:]
    assert {state_of(txn, chunk) for chunk in without} == {ChunkState.DOOMED}
    assert state_of(txn, other) is ChunkState.OPEN
    chunks.seal_abandoned(txn, SealAbandoned(0, other, 0))
    chunks.seal_abandoned(txn, SealAbandoned(0, with_data[0], 5, (2,)))
    assert state_of(txn, other) is ChunkState.OPEN
    sealed = get_chunk(txn, with_data[0])
    assert sealed is not None
    assert (sealed.state, sealed.length) == (ChunkState.SEALED, 10)
    assert sealed.fragments[2].state is FragmentState.LOST


def test_marks_that_do_not_fit_are_left_out() -> None:
    txn = begin()
    chunk = allocate(txn)
    good, lost = FragmentState.GOOD, FragmentState.LOST
    marks = [FragmentMark(chunk, 2, lost), FragmentMark(chunk, 9, lost), FragmentMark(99, 1, lost)]
    fragments.mark(txn, MarkFragments(0, tuple(marks)))
    record = get_chunk(txn, chunk)
    assert record is not None
    assert [fragment.state for fragment in record.fragments] == [good, lost, good]
    # Of a fragment that was there before the one that is there now.
    fragments.mark(txn, MarkFragments(0, (FragmentMark(chunk, 1, lost, 2),)))
    fragments.mark(txn, MarkFragments(0, (FragmentMark(chunk, 2, good, 1),)))
    record = get_chunk(txn, chunk)
    assert record is not None
    assert all(fragment.state is good for fragment in record.fragments)


def test_accounting_that_contradicts_itself_is_refused() -> None:
    txn = begin()
    chunk = allocate(txn)
    for wrong, change in ((chunk, -1), (chunk + 1, 1)):
        with pytest.raises(DfsError, match="fsck"):
            chunks.add_live(txn, wrong, change)


class Chunks(RuleBasedStateMachine):
    """Random events against the invariants that the schema states."""

    def __init__(self) -> None:
        super().__init__()
        self.txn = begin()
        self.made: list[int] = []

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(self.made))

    @rule(session=st.integers(1, 3), disks=st.sets(st.integers(1, 5), max_size=4))
    def allocate(self, session: int, disks: set[int]) -> None:
        placement = Placement(1, 2, tuple(disks))
        command = AllocateChunks(0, session, 1, 1, (placement,))
        self.made.append(chunks.allocate(self.txn, command)[0].chunk)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), change=st.integers(-20, 20))
    def use(self, data: st.DataObject, change: int) -> None:
        chunk = get_chunk(self.txn, self.pick(data))
        if chunk is not None and chunk.state is not ChunkState.DOOMED:
            change = max(change, -chunk.live)
            end = data.draw(st.integers(0, 100)) if change > 0 else 0
            chunks.add_live(self.txn, chunk.chunk, change, end)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), lost=st.sets(st.integers(0, 4)))
    def seal(self, data: st.DataObject, lost: set[int]) -> None:
        chunk = get_chunk(self.txn, self.pick(data))
        if chunk is None or chunk.state is not ChunkState.OPEN:
            return
        if chunk.owner:
            command = SealChunk(0, chunk.owner, 1, chunk.chunk, chunk.length + 7, tuple(lost))
            chunks.seal(self.txn, command)
        else:
            chunks.seal_abandoned(self.txn, SealAbandoned(0, chunk.chunk, 0, tuple(lost)))

    @rule(session=st.integers(1, 3), limit=st.integers(1, 4))
    def release(self, session: int, limit: int) -> None:
        chunks.release_session(self.txn, session, limit)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), disk=st.integers(1, 5), state=st.sampled_from(FragmentState))
    def mark(self, data: st.DataObject, disk: int, state: FragmentState) -> None:
        mark = FragmentMark(self.pick(data), disk, state)
        fragments.mark(self.txn, MarkFragments(0, (mark,)))

    @precondition(lambda self: self.made)
    @rule(disk=st.integers(1, 5))
    def drop(self, disk: int) -> None:
        chunks.drop_fragments(self.txn, DropFragments(0, disk, tuple(self.made)))

    @invariant()
    def indexes_and_counters_agree_with_the_chunks(self) -> None:
        txn = self.txn
        records = [decode_chunk(value) for _, value in scan_prefix(txn, CHUNK)]
        by_disk = {
            (key_id(key), second_id(key)): value[0]
            for key, value in scan_prefix(txn, FRAGMENT_BY_DISK)
        }
        assert by_disk == {(f.disk, c.chunk): f.index for c in records for f in c.fragments}
        by_session = {
            (key_id(key), second_id(key)) for key, _ in scan_prefix(txn, CHUNK_BY_SESSION)
        }
        opened = [c for c in records if c.state is ChunkState.OPEN]
        assert by_session == {(c.owner, c.chunk) for c in opened}
        dead = [c for c in records if c.state is ChunkState.DOOMED]
        doomed = {(key_id(key), second_id(key)) for key, _ in scan_prefix(txn, DOOMED)}
        assert doomed == {(f.disk, c.chunk) for c in dead for f in c.fragments}
        assert all(c.live and not c.owner for c in records if c.state is ChunkState.SEALED)
        assert all(c.fragments for c in dead)
        counters = get_counters(txn)
        assert counters.chunks == len(records)
        assert counters.chunks_open == len(opened)
        assert counters.chunks_doomed == len(dead)
        assert counters.live == sum(c.live for c in records)


TestChunks = Chunks.TestCase
TestChunks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
