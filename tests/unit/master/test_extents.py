"""What a file is made of: commits, holes, clones, truncation, and the purge behind them."""

import errno
from collections.abc import Iterator

import pytest

from dfs.core.chunk import CHUNK_MAX_BYTES, ChunkState
from dfs.core.errors import DfsError
from dfs.core.ids import ROOT_INODE
from dfs.core.inode import APPENDS_MAX, AppendMark, Extent, InodeFlag
from dfs.master import commands, context, extents, file_data, queries, removal
from dfs.master.keyspace import get_chunk
from dfs.master.store import MemoryStore
from dfs.wire.messages import (
    CloneRange,
    Commit,
    GetExtents,
    Open,
    PunchHole,
    ReadDir,
    Release,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
)
from tests.unit.master.rig import ANN, BOB, ROOT, Rig

E = errno
TOP = ROOT_INODE


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def file(rig: Rig) -> int:
    return rig.create(b"f", 0o644)


@pytest.fixture
def chunk(rig: Rig) -> int:
    return rig.chunk()


# ------------------------------------------------------------------ commit


def test_commit_publishes_bytes_and_counts_them(rig: Rig, file: int, chunk: int) -> None:
    inode = rig.commit(file, (10, 5, chunk, 0), (100, 7, chunk, 5))
    assert (inode.size, inode.allocated, inode.version) == (107, 12, 1)
    assert inode.mtime_ns == inode.ctime_ns == rig.now
    assert rig.extents(file) == [(10, 5, chunk, 0), (100, 7, chunk, 5)]
    record = get_chunk(rig.store, chunk)
    assert record is not None
    assert (record.live, record.length) == (12, 12)
    assert rig.state.counters.live == 12
    rig.check()


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 30, [(0, 30, 100)]),
        (10, 10, [(0, 10, 0), (10, 10, 100), (20, 10, 20)]),
        (5, 10, [(0, 5, 0), (5, 10, 100), (15, 15, 15)]),
        (0, 10, [(0, 10, 100), (10, 20, 10)]),
        (20, 10, [(0, 20, 0), (20, 10, 100)]),
        (25, 10, [(0, 25, 0), (25, 10, 100)]),
        (30, 10, [(0, 30, 0), (30, 10, 100)]),
        (40, 10, [(0, 30, 0), (40, 10, 100)]),
    ],
)
def test_commit_replaces_what_it_covers_and_splits_the_rest(
    rig: Rig, file: int, chunk: int, start: int, length: int, expected: list[tuple[int, int, int]]
) -> None:
    rig.commit(file, (0, 30, chunk, 0))
    rig.commit(file, (start, length, chunk, 100))
    assert rig.extents(file) == [(offset, size, chunk, place) for offset, size, place in expected]
    rig.check()


def test_commit_merges_what_continues_on_both_sides(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 10, chunk, 0))
    rig.commit(file, (20, 10, chunk, 20))
    assert len(rig.extents(file)) == 2
    rig.commit(file, (10, 10, chunk, 10))
    assert rig.extents(file) == [(0, 30, chunk, 0)]
    rig.commit(file, (30, 10, chunk, 50))
    rig.commit(file, (40, 10, rig.chunk(), 60))
    assert len(rig.extents(file)) == 3
    rig.check()


def test_commit_of_the_same_mapping_again_changes_no_byte(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 30, chunk, 0))
    rig.seal(chunk, 30)
    assert rig.commit(file, (0, 30, chunk, 0)).allocated == 30
    assert rig.commit(file, (10, 5, chunk, 10)).allocated == 30
    assert rig.extents(file) == [(0, 30, chunk, 0)]
    assert rig.live(chunk) == 30
    rig.check()


def test_a_commit_may_ask_for_bytes_that_nobody_has_changed(
    rig: Rig, file: int, chunk: int
) -> None:
    first = Commit(file, (Extent(0, 10, chunk, 0),), version=0)
    rig.made(SetAttr(file, mode=0o600, mtime_ns=5))
    version = rig.made(first).version
    rig.refuses(E.ECANCELED, first)
    assert rig.extents(file) == [(0, 10, chunk, 0)]
    rig.made(SetAttr(file, size=0))
    rig.refuses(E.ECANCELED, first)
    rig.refuses(E.ECANCELED, Commit(file, (Extent(0, 10, chunk, 0),), version=version))
    assert rig.extents(file) == []
    rig.check()


def test_later_extents_of_one_commit_win(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 10, chunk, 0), (5, 10, chunk, 10))
    assert rig.extents(file) == [(0, 5, chunk, 0), (5, 10, chunk, 10)]
    assert rig.live(chunk) == 15
    rig.check()


def test_append_is_placed_by_the_master(rig: Rig, file: int, chunk: int) -> None:
    rig.made(SetAttr(file, size=100))
    inode = rig.made(Commit(file, (Extent(0, 5, chunk, 0),), append=True))
    assert inode.size == 105
    inode = rig.made(Commit(file, (Extent(0, 5, chunk, 5),), size=20, append=True))
    assert inode.size == 125
    assert rig.extents(file) == [(100, 10, chunk, 0)]
    rig.check()


def test_a_file_knows_the_last_append_of_each_of_its_last_clients(rig: Rig) -> None:
    file, chunk = rig.create(b"a"), rig.chunk()

    def append(client: int, number: int) -> tuple[AppendMark, ...]:
        mark = AppendMark(client, number)
        return rig.made(Commit(file, (Extent(0, 1, chunk, 0),), append=True, mark=mark)).appends

    for client in range(APPENDS_MAX):
        assert append(client, 1)[-1] == AppendMark(client, 1)
    assert append(0, 2) == (*(AppendMark(n, 1) for n in range(1, APPENDS_MAX)), AppendMark(0, 2))
    assert append(99, 7)[-2:] == (AppendMark(0, 2), AppendMark(99, 7))
    assert len(rig.inode(file).appends) == APPENDS_MAX
    assert AppendMark(1, 1) not in rig.inode(file).appends


def test_commit_can_extend_by_a_hole_and_set_the_time(rig: Rig, file: int, chunk: int) -> None:
    inode = rig.made(Commit(file, (), size=50, mtime_ns=-3))
    assert (inode.size, inode.mtime_ns, inode.ctime_ns) == (50, -3, rig.now)
    before = rig.inode(file)
    assert rig.made(Commit(file, (), size=10)) == before, "never shorter, and nothing to do"
    assert rig.made(Commit(file, (Extent(0, 5, chunk, 0),), size=10)).size == 50


def test_commit_to_an_unlinked_file_that_is_open(rig: Rig, file: int, chunk: int) -> None:
    rig.made(Open(file, 6))
    rig.do(Unlink(TOP, b"f"))
    rig.commit(file, (0, 5, chunk, 0))
    rig.check()
    rig.do(Release(file))
    assert rig.live(chunk) == 0
    rig.refuses(E.ENOENT, Commit(file, ()))
    rig.check()


def test_commit_refusals(rig: Rig, file: int, chunk: int) -> None:
    def refuses(number: int, *extent: int) -> None:
        rig.refuses(number, Commit(file, (Extent(*extent),)))

    refuses(E.EINVAL, -1, 5, chunk, 0)
    refuses(E.EINVAL, 0, 0, chunk, 0)
    refuses(E.EINVAL, 0, -5, chunk, 0)
    refuses(E.EINVAL, 0, 5, chunk, -1)
    refuses(E.EINVAL, 0, 5, chunk, CHUNK_MAX_BYTES - 4)
    refuses(E.EFBIG, (1 << 62) - 4, 5, chunk, 0)
    refuses(E.ESTALE, 0, 5, 99, 0)
    refuses(E.ESTALE, 0, 5, -7, 0)
    refuses(E.ESTALE, 0, 5, rig.chunk(rig.open_session()), 0)
    rig.refuses(E.EACCES, Commit(file, ()), ANN)
    rig.refuses(E.EISDIR, Commit(TOP, ()))
    rig.refuses(E.EINVAL, Commit(rig.made(Symlink(TOP, b"l", b"t")).ino, ()))
    rig.refuses(E.EFBIG, Commit(file, (), size=(1 << 62) + 1))
    rig.refuses(E.EINVAL, Commit(file, (), size=-1))
    rig.refuses(E.EINVAL, Commit(file, (), mtime_ns=1 << 63))
    rig.commit(file, (0, 5, chunk, CHUNK_MAX_BYTES - 5))
    rig.check()


def test_commit_to_a_sealed_chunk_stays_within_it(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 5, chunk, 0))
    rig.seal(chunk, 10)
    rig.commit(file, (5, 5, chunk, 5))
    rig.refuses(E.ESTALE, Commit(file, (Extent(10, 5, chunk, 6),)))
    rig.do(Unlink(TOP, b"f"))
    record = get_chunk(rig.store, chunk)
    assert record is not None
    assert record.state is ChunkState.DOOMED
    rig.refuses(E.ESTALE, Commit(rig.create(b"g"), (Extent(0, 5, chunk, 0),)))
    rig.check()


# ------------------------------------------------------------------ truncate and punch


def test_truncate_cuts_an_extent_and_what_grows_back_is_a_hole(
    rig: Rig, file: int, chunk: int
) -> None:
    rig.commit(file, (0, 10, chunk, 0), (20, 10, chunk, 20))
    inode = rig.made(SetAttr(file, size=5))
    assert (inode.size, inode.allocated, inode.version) == (5, 5, 2)
    assert rig.made(SetAttr(file, size=40)).allocated == 5
    assert rig.extents(file) == [(0, 5, chunk, 0)]
    rig.check()


def test_punch_hole_keeps_the_size(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 30, chunk, 0))
    inode = rig.made(PunchHole(file, 10, 10))
    assert (inode.size, inode.allocated) == (30, 20)
    assert rig.extents(file) == [(0, 10, chunk, 0), (20, 10, chunk, 20)]
    assert rig.made(PunchHole(file, 25, 1000)).size == 30
    rig.refuses(E.EINVAL, PunchHole(file, -1, 5))
    rig.refuses(E.EINVAL, PunchHole(file, 0, 0))
    rig.refuses(E.EFBIG, PunchHole(file, 1 << 62, 1))
    rig.refuses(E.EACCES, PunchHole(file, 0, 5), BOB)
    rig.refuses(E.EISDIR, PunchHole(TOP, 0, 5))
    rig.check()


# ------------------------------------------------------------------ clone


def test_clone_shares_bytes(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 10, chunk, 0), (20, 10, chunk, 20))
    target = rig.create(b"g")
    rig.commit(target, (0, 60, rig.chunk(), 0))
    inode = rig.made(CloneRange(file, 5, target, 7, 20))
    assert (inode.ino, inode.size, inode.allocated) == (target, 60, 50)
    assert [e for e in rig.extents(target) if e[2] == chunk] == [
        (7, 5, chunk, 5),
        (22, 5, chunk, 20),
    ]
    assert rig.live(chunk) == 30
    rig.do(Unlink(TOP, b"f"))
    assert rig.live(chunk) == 10
    rig.check()


def test_clone_of_all_and_within_one_file(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 10, chunk, 0))
    assert rig.made(CloneRange(file, 0, file, 10, 0)).size == 20
    assert rig.extents(file) == [(0, 10, chunk, 0), (10, 10, chunk, 0)]
    assert rig.made(CloneRange(file, 20, file, 50, 0)).size == 20, "nothing to clone"
    rig.check()


def test_clone_refusals(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 30, chunk, 0))
    other = rig.create(b"g", 0o600, ANN, rig.mkdir(b"home"))
    for args in ((0, 29, 0), (0, 5, 10), (5, 0, 10), (0, 0, 5)):
        offset, new_offset, length = args
        rig.refuses(E.EINVAL, CloneRange(file, offset, file, new_offset, length))
    rig.refuses(E.EINVAL, CloneRange(file, 31, other, 0, 0))
    rig.refuses(E.EINVAL, CloneRange(file, 20, other, 0, 11))
    rig.refuses(E.EINVAL, CloneRange(file, -1, other, 0, 5))
    rig.refuses(E.EFBIG, CloneRange(file, 0, other, 1 << 62, 5))
    rig.refuses(E.EACCES, CloneRange(file, 0, other, 0, 5), BOB)
    rig.refuses(E.EACCES, CloneRange(other, 0, file, 0, 5), BOB)
    rig.refuses(E.EISDIR, CloneRange(TOP, 0, other, 0, 5))
    rig.refuses(E.ENOENT, CloneRange(file, 0, 99, 0, 5))
    rig.check()


def allow_clones(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (context, file_data):
        monkeypatch.setattr(module, "CLONE_ROWS_PER_COMMAND", rows)


def test_a_clone_of_too_many_extents_asks_for_smaller_ranges(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, file: int, chunk: int
) -> None:
    allow_clones(monkeypatch, 3)
    other = rig.create(b"g")
    scattered(rig, file, chunk, 4)
    rig.refuses(E.EFBIG, CloneRange(file, 0, other, 0, 0))
    rig.made(CloneRange(file, 0, other, 0, 30))
    rig.made(CloneRange(other, 0, file, 0, 20))
    rig.made(SetAttr(other, size=40))
    rig.refuses(E.EFBIG, CloneRange(other, 0, file, 0, 40))
    rig.check()


def test_the_clones_of_one_request_share_a_bounded_number_of_extents(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, file: int, chunk: int
) -> None:
    allow_clones(monkeypatch, 6)
    scattered(rig, file, chunk, 3)
    others = [rig.create(b"%d" % number) for number in range(4)]
    clones = [CloneRange(file, 0, other, 0, 0) for other in others]
    results = rig.apply(*clones)
    assert [result.error is None for result in results] == [True, True, False, False]
    for result in results[2:]:
        assert result.error is not None
        assert (result.error.errno, result.error.retry) == (E.EBUSY, True)
    rig.made(clones[2])
    rig.made(clones[2])
    rig.check()


# ------------------------------------------------------------------ much to free


def scattered(rig: Rig, ino: int, chunk: int, count: int) -> None:
    """`count` extents of 5 bytes, 10 bytes apart, that cannot be merged."""
    rig.commit(ino, *[(10 * n, 5, chunk, 10 * n) for n in range(count)])
    assert len(rig.extents(ino)) == count


@pytest.fixture
def big(rig: Rig, file: int, chunk: int) -> int:
    """A file of more extents than are freed inline."""
    scattered(rig, file, chunk, removal.INLINE_ROWS + 50)
    return file


def test_removing_a_big_file_costs_few_steps_and_the_purge_does_the_rest(
    rig: Rig, big: int, chunk: int
) -> None:
    total = rig.live(chunk)
    before = rig.rows()
    rig.do(Unlink(TOP, b"f"))
    after = rig.rows()
    assert sum(after.get(key) != value for key, value in before.items()) < 10
    assert not rig.exists(big)
    assert rig.live(chunk) == total
    rig.check()
    assert rig.purge(10) > 10
    assert rig.live(chunk) == 0
    assert not list(rig.store.scan(b"q", b"r"))
    rig.check()


def test_a_purge_step_frees_no_more_than_it_may(rig: Rig, big: int, chunk: int) -> None:
    rig.do(Unlink(TOP, b"f"))
    live = rig.live(chunk)
    while True:
        result = rig.state.apply(commands.PurgeStep(rig.tick(), 7))
        assert result.freed <= 7
        assert live - rig.live(chunk) <= 7 * 5
        live = rig.live(chunk)
        rig.check()
        if not result.more:
            break
    assert live == 0


def test_a_big_truncation_hides_the_bytes_at_once(rig: Rig, big: int, chunk: int) -> None:
    size = rig.inode(big).size
    inode = rig.made(SetAttr(big, size=23))
    assert inode.flags & InodeFlag.TRIMMED
    assert rig.extents(big) == [(0, 5, chunk, 0), (10, 5, chunk, 10), (20, 3, chunk, 20)]
    rig.made(SetAttr(big, size=size))
    assert len(rig.extents(big)) == 3
    rig.check()
    rig.purge(10)
    inode = rig.inode(big)
    assert (inode.flags, inode.allocated, inode.size) == (0, 13, size)
    assert len(rig.extents(big)) == 3
    rig.check()


def test_bytes_written_into_a_trim_are_seen_and_outlive_the_purge(
    rig: Rig, big: int, chunk: int
) -> None:
    rig.made(SetAttr(big, size=0))
    # Over the middle of dead extents, and next to dead ones that it would continue.
    rig.commit(big, (502, 2, chunk, 502), (505, 5, chunk, 505), (1000, 10, chunk, 5000))
    expected = [(502, 2, chunk, 502), (505, 5, chunk, 505), (1000, 10, chunk, 5000)]
    assert rig.extents(big) == expected
    rig.check()
    rig.purge(9)
    assert rig.extents(big) == expected
    assert rig.inode(big).allocated == 17
    rig.check()


def test_a_big_hole_and_a_truncation_after_it_become_one(rig: Rig, big: int, chunk: int) -> None:
    rig.made(PunchHole(big, 12, 1720))
    assert rig.extents(big)[:3] == [(0, 5, chunk, 0), (10, 2, chunk, 10), (1732, 3, chunk, 1732)]
    rig.check()
    rig.made(SetAttr(big, size=3))
    assert rig.extents(big) == [(0, 3, chunk, 0)]
    rig.check()
    rig.do(Unlink(TOP, b"f"))
    rig.check()
    rig.purge(10)
    assert rig.live(chunk) == 0
    assert not list(rig.store.scan(b"t", b"u"))
    rig.check()


def test_a_trim_with_no_extent_left_in_it_hides_nothing_new(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, file: int, chunk: int
) -> None:
    rig.commit(file, (10, 5, chunk, 0))
    monkeypatch.setattr(removal, "INLINE_ROWS", 0)
    rig.made(PunchHole(file, 10, 1000))
    rig.commit(file, (10, 5, chunk, 5))
    monkeypatch.setattr(removal, "INLINE_ROWS", 128)
    rig.made(PunchHole(file, 10, 5))
    assert rig.inode(file).allocated == 0
    assert rig.inode(file).flags & InodeFlag.TRIMMED
    rig.commit(file, (500, 5, chunk, 700))
    assert rig.extents(file) == [(500, 5, chunk, 700)]
    rig.check()
    rig.purge()
    assert rig.extents(file) == [(500, 5, chunk, 700)]
    rig.check()


class ScansSeen(MemoryStore):
    """Notes where scans of one table begin, and how many went on to their end."""

    def __init__(self, table: bytes) -> None:
        super().__init__()
        self.table = table
        self.begins: list[bytes] = []
        self.ended = 0

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        if not start.startswith(self.table):
            yield from super().scan(start, end, reverse=reverse)
            return
        self.begins.append(start)
        yield from super().scan(start, end, reverse=reverse)
        self.ended += 1


def test_the_purge_never_looks_twice_where_it_has_been() -> None:
    """RocksDB steps over every deleted row: to look for the first anew makes n rows cost n^2."""
    store = ScansSeen(b"q")
    rig = Rig(store)
    chunk = rig.chunk()
    for number in range(30):
        ino = rig.create(b"%d" % number)
        scattered(rig, ino, chunk, removal.INLINE_ROWS + 1)
        rig.do(Unlink(TOP, b"%d" % number))
    upto = 0
    while True:
        result = rig.state.apply(commands.PurgeStep(rig.tick(), 500, upto))
        if not result.more:
            break
        assert result.upto > upto
        upto = result.upto
    assert store.begins == sorted(set(store.begins))
    assert rig.live(chunk) == 0
    rig.check()


def test_the_purge_comes_back_for_what_was_queued_behind_it(rig: Rig, chunk: int) -> None:
    files = [rig.create(b"%d" % number) for number in range(3)]
    for ino in files:
        scattered(rig, ino, chunk, removal.INLINE_ROWS + 1)
    rig.do(Unlink(TOP, b"2"))
    first = rig.state.apply(commands.PurgeStep(rig.tick(), 10))
    assert first.more
    rig.do(Unlink(TOP, b"0"))
    result = rig.state.apply(commands.PurgeStep(rig.tick(), 1000, files[1]))
    assert (result.more, result.upto) == (True, 0)
    result = rig.state.apply(commands.PurgeStep(rig.tick(), 1000, result.upto))
    assert not result.more
    rig.check()


def test_overwriting_a_file_from_its_start_does_not_look_at_those_before_it() -> None:
    """They may have been removed by the thousand, and RocksDB steps over every deleted row."""
    store = ScansSeen(b"e")
    rig = Rig(store)
    chunk = rig.chunk()
    for name in (b"before", b"f"):
        rig.commit(rig.create(name), (0, 5, chunk, 0))
    store.ended = 0
    rig.commit(rig.resolve(b"/f").ino, (0, 5, chunk, 10))
    assert store.ended == 0
    rig.check()


def test_a_file_that_grows_finds_its_end_without_a_search() -> None:
    store = ScansSeen(b"e")
    rig = Rig(store)
    chunk, other = rig.chunk(), rig.chunk()
    ino = rig.create(b"f")
    rig.commit(ino, (0, 5, chunk, 0))
    rig.commit(ino, (5, 5, chunk, 5))
    rig.commit(ino, (10, 5, chunk, 100))  # elsewhere: an extent of its own
    rig.commit(ino, (15, 5, chunk, 105), (20, 5, other, 0))
    rig.commit(ino, (25, 5, other, 5))
    assert store.begins == []
    found = [(0, 10, chunk, 0), (10, 10, chunk, 100), (20, 10, other, 0)]
    assert rig.extents(ino) == found
    # A guess that is wrong is none.
    rig.commit(ino, (3, 4, other, 50))
    rig.commit(ino, (30, 5, other, 10))
    assert rig.extents(ino)[-1] == (20, 15, other, 0)
    rig.made(SetAttr(ino, size=22))
    rig.commit(ino, (22, 5, other, 2))
    assert rig.extents(ino)[-1] == (20, 7, other, 0)
    rig.made(SetAttr(ino, size=40))
    rig.commit(ino, (40, 5, other, 60))
    assert rig.extents(ino)[-2:] == [(20, 7, other, 0), (40, 5, other, 60)]
    rig.check()


def test_overwriting_a_file_in_order_does_not_look_through_what_was_replaced() -> None:
    store = ScansSeen(b"e")
    rig = Rig(store)
    chunk = rig.chunk()
    ino = rig.create(b"f")
    rig.commit(ino, (0, 100, chunk, 0))
    rig.commit(ino, (0, 5, chunk, 100))
    rows = 0
    scan = store.scan

    def counted(
        start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        nonlocal rows
        for row in scan(start, end, reverse=reverse):
            rows += 1
            yield row

    store.scan = counted  # type: ignore[method-assign]
    for at in range(5, 100, 5):
        rows = 0
        rig.commit(ino, (at, 5, chunk, 100 + at))
        assert rows <= 1, "only what it covers"
    del store.scan
    assert rig.extents(ino) == [(0, 100, chunk, 100)]
    rig.check()


def test_one_command_frees_a_bounded_number_of_rows(rig: Rig, chunk: int) -> None:
    home = rig.mkdir(b"home")
    for number in range(40):
        ino = rig.create(b"%d" % number, parent=home)
        rig.commit(ino, *[(10 * n, 5, chunk, 10 * n) for n in range(removal.INLINE_ROWS)])
    rig.apply(*[Unlink(home, b"%d" % number) for number in range(40)])
    assert len(list(rig.store.scan(b"q", b"r"))) == 8
    rig.check()
    rig.purge()
    assert rig.live(chunk) == 0
    rig.check()


def test_clones_of_trimmed_files_take_what_is_seen(rig: Rig, big: int, chunk: int) -> None:
    rig.made(SetAttr(big, size=23))
    rig.made(SetAttr(big, size=100))
    other = rig.create(b"g")
    rig.made(CloneRange(big, 0, other, 0, 0))
    assert [e[:2] for e in rig.extents(other)] == [(0, 5), (10, 5), (20, 3)]
    rig.made(CloneRange(other, 0, big, 50, 20))
    assert [e[0] for e in rig.extents(big)] == [0, 10, 20, 50, 60]
    rig.check()
    rig.purge()
    assert [e[0] for e in rig.extents(big)] == [0, 10, 20, 50, 60]
    rig.check()


def test_attributes_of_a_removed_file_go(rig: Rig, file: int) -> None:
    rig.made(SetXattr(file, b"user.a", b"1"))
    rig.do(Unlink(TOP, b"f"))
    assert not list(rig.store.scan(b"a", b"b"))
    rig.check()


# ------------------------------------------------------------------ reading


def test_get_extents_pages_through_what_overlaps(rig: Rig, file: int, chunk: int) -> None:
    scattered(rig, file, chunk, 6)

    def ask(offset: int, length: int, limit: int = 100) -> tuple[list[int], bool]:
        page = queries.get_extents(rig.store, GetExtents(file, offset, length, limit))
        return [extent.file_offset for extent in page.extents], page.more

    assert ask(0, 1 << 62) == ([0, 10, 20, 30, 40, 50], False)
    assert ask(4, 7) == ([0, 10], False)
    assert ask(5, 5) == ([], False)
    assert ask(12, 1) == ([10], False)
    assert ask(0, 100, 2) == ([0, 10], True)
    assert ask(40, 100, 2) == ([40, 50], False)
    assert ask(0, 0) == ([], False)
    for bad in (GetExtents(file, -1), GetExtents(file, 0, -1), GetExtents(file, limit=0)):
        with pytest.raises(DfsError) as caught:
            queries.get_extents(rig.store, bad)
        assert caught.value.errno == E.EINVAL
    with pytest.raises(DfsError, match="Is a directory"):
        queries.get_extents(rig.store, GetExtents(TOP))


def test_read_dir_brings_the_extents_of_small_files(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (0, 5, chunk, 0))
    many, few, late = rig.create(b"many"), rig.create(b"few"), rig.create(b"late")
    scattered(rig, many, chunk, 5)
    scattered(rig, few, chunk, 4)
    rig.commit(late, (3, 5, chunk, 100))
    rig.mkdir(b"d")
    rig.create(b"none")
    page = queries.read_dir(rig.store, ReadDir(ROOT, TOP, with_extents=True))
    counts = {name: None if few is None else len(few) for name, _, few in page.entries}
    assert counts == {b"d": None, b"f": 1, b"few": 4, b"late": 1, b"many": None, b"none": 0}
    assert page.chunks == {chunk}


def test_extents_reach_to_the_end_of_the_greatest_file(rig: Rig, file: int, chunk: int) -> None:
    rig.commit(file, (extents.ALL - 5, 5, chunk, 0))
    assert rig.inode(file).size == 1 << 62
    assert len(rig.extents(file)) == 1
    rig.made(SetAttr(file, size=0))
    assert rig.live(chunk) == 0
    rig.check()
