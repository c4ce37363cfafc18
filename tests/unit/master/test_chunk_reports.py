"""A disk's list of fragments against the master's."""

import pytest

from dfs.core.chunk import FragmentState
from dfs.core.errors import ProtocolError
from dfs.master import chunk_reports, chunks, fragments
from dfs.master.chunk_reports import END, Plan, Stretch
from dfs.master.commands import (
    AllocateChunks,
    DropFragments,
    FragmentMark,
    MarkFragments,
    Placement,
    SealChunk,
)
from dfs.master.keyspace import get_counters
from dfs.master.store import MemoryStore
from dfs.master.transaction import Transaction
from dfs.wire.messages import HeldFragment

DISK = 1
LENGTH = 1000


@pytest.fixture
def txn() -> Transaction:
    return Transaction(MemoryStore())


def sealed(txn: Transaction, *disks: int, state: FragmentState = FragmentState.GOOD) -> int:
    """A chunk of LENGTH bytes on `disks`; `state` is that of the fragment on DISK."""
    chunk = opened(txn, *(disks or (DISK, 2, 3)))
    chunks.seal(txn, SealChunk(0, 7, 1, chunk, LENGTH))
    fragments.mark(txn, MarkFragments(0, (FragmentMark(chunk, DISK, state),)))
    return chunk


def opened(txn: Transaction, *disks: int) -> int:
    command = AllocateChunks(0, 7, 1, 1, (Placement(1, 2, disks),))
    chunk = chunks.allocate(txn, command)[0].chunk
    chunks.add_live(txn, chunk, LENGTH, LENGTH)
    return chunk


def held(chunk: int, index: int = 0, length: int = LENGTH, *, sealed: bool = True) -> HeldFragment:
    return HeldFragment(chunk, index, length, sealed)


def plan(
    txn: Transaction,
    *holds: HeldFragment,
    horizon: int | None = None,
    spared: frozenset[int] = frozenset(),
    dead: frozenset[int] = frozenset(),
) -> Plan:
    next_chunk = get_counters(txn).next_chunk
    return chunk_reports.plan(
        txn,
        Stretch(DISK, 0, END, holds),
        next_chunk=next_chunk,
        horizon=next_chunk if horizon is None else horizon,
        spared=spared,
        alive=lambda disk: disk not in dead,
        limit=100,
    )


NOTHING = Plan((), (), (), (), (), END)


def marked(found: Plan) -> dict[int, FragmentState]:
    return {mark.chunk: mark.state for mark in found.marks}


def test_a_disk_that_holds_what_it_should_is_left_alone(txn: Transaction) -> None:
    one, other = sealed(txn), sealed(txn)
    assert plan(txn, held(one), held(other)) == NOTHING


def test_fragments_of_chunks_that_are_gone_or_doomed_are_dropped(txn: Transaction) -> None:
    gone = sealed(txn, DISK)
    doomed = sealed(txn)
    for chunk in (gone, doomed):
        chunks.add_live(txn, chunk, -LENGTH)
    chunks.drop_fragments(txn, DropFragments(0, DISK, (gone,)))
    assert plan(txn, held(gone), held(doomed)).drop == (gone, doomed)


def test_a_chunk_the_master_has_not_made_yet_is_kept(txn: Transaction) -> None:
    """The master lost its newest memory, or was restored from a backup."""
    assert plan(txn, held(get_counters(txn).next_chunk)).drop == ()


def test_a_fragment_that_lies_elsewhere_by_now_is_stale(txn: Transaction) -> None:
    moved = sealed(txn, 2, 3, 4)
    found = plan(txn, held(moved, 1))
    assert (found.stale, found.adopt, found.drop) == (((moved, 1),), (), ())


def test_a_whole_fragment_that_the_chunk_lacks_is_adopted(txn: Transaction) -> None:
    spare, short = sealed(txn, 2, 3), sealed(txn, 2, 3)
    found = plan(txn, held(spare, 2), held(short, 2, LENGTH - 1))
    assert (found.stale, found.adopt, found.drop) == ((), ((spare, 2),), ())


def test_what_lies_elsewhere_on_a_dead_disk_only_is_adopted(txn: Transaction) -> None:
    """It moved while this disk was away, and then the disk that it moved to died."""
    moved = sealed(txn, 2, 3, 4)
    found = plan(txn, held(moved, 1), dead=frozenset([3]))
    assert (found.stale, found.adopt, found.drop) == ((), ((moved, 1),), ())


def test_a_lost_fragment_that_is_there_and_whole_is_good_again(txn: Transaction) -> None:
    whole = sealed(txn, state=FragmentState.LOST)
    short = sealed(txn, state=FragmentState.LOST)
    corrupt = sealed(txn, state=FragmentState.CORRUPT)
    found = plan(txn, held(whole), held(short, length=LENGTH - 1), held(corrupt))
    assert marked(found) == {whole: FragmentState.GOOD}
    assert found.drop == ()


def test_a_fragment_that_is_missing_short_or_anothers_is_lost(txn: Transaction) -> None:
    missing, short, swapped = sealed(txn), sealed(txn), sealed(txn)
    found = plan(txn, held(short, length=LENGTH - 1), held(swapped, 1))
    assert marked(found) == dict.fromkeys((short, swapped, missing), FragmentState.LOST)


def test_an_old_list_is_no_evidence_against_young_chunks(txn: Transaction) -> None:
    spared, young = sealed(txn), sealed(txn)
    found = plan(
        txn, held(young, length=5, sealed=False), horizon=young, spared=frozenset([spared])
    )
    assert found == NOTHING


def test_open_chunks_are_their_owners_matter(txn: Transaction) -> None:
    absent, short = opened(txn, DISK, 2), opened(txn, DISK, 2)
    assert plan(txn, held(short, length=1, sealed=False)) == NOTHING
    assert absent < short


def test_a_whole_fragment_without_its_seal_is_to_be_sealed(txn: Transaction) -> None:
    chunk = sealed(txn)
    found = plan(txn, held(chunk, length=LENGTH + 50, sealed=False))
    assert found == Plan((), (), (), (), ((chunk, LENGTH),), END)


def test_a_wiped_disk_is_gone_through_in_bounded_pieces(txn: Transaction) -> None:
    made = [sealed(txn) for _ in range(25)]
    rest = Stretch(DISK, 0, END, ())
    lost: list[int] = []
    rounds = 0
    while rest.after < rest.upto:
        found = chunk_reports.plan(
            txn, rest, next_chunk=99, horizon=99, spared=(), alive=bool, limit=10
        )
        assert len(found.marks) <= 10
        lost += marked(found)
        rest = rest.beyond(found.upto)
        rounds += 1
    assert lost == made
    assert rounds == 3


def test_pages_are_cut_into_stretches_without_gaps() -> None:
    page = [held(number) for number in (4, 6, 9, 12, 13)]
    stretches = chunk_reports.split(DISK, 3, page, True, 2)
    assert [(s.after, s.upto, len(s.held)) for s in stretches] == [
        (3, 6, 2),
        (6, 12, 2),
        (12, 13, 1),
        (13, END, 0),
    ]
    assert chunk_reports.split(DISK, 3, [], False, 2) == []


@pytest.mark.parametrize("ids", [(5, 4), (5, 5), (2,), (END,)])
def test_a_page_out_of_order_is_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="not in order"):
        chunk_reports.split(DISK, 2, [held(number) for number in ids], True, 2)
