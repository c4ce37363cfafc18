"""One fragment file: what is stored comes back, and nothing that goes wrong leaves it torn."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dfs.chunkserver import fragment_file
from dfs.chunkserver.fragment_file import (
    REPLY_MAX_BYTES,
    FragmentFile,
    FragmentGoneError,
    Reached,
)
from dfs.chunkserver.fragment_format import FILE_HEADER_BYTES, FragmentHeader, FragmentName
from dfs.core.block import RecordHeader, parse_records
from dfs.core.errors import CorruptError, DfsError, FragmentError, NoSpaceError
from tests.unit.chunkserver.sample import CLUSTER, CODED, batch, encode, header

OPEN_NAME = FragmentName(7, 0, None)
ROOT = Path(__file__).resolve().parents[3]


class Claims:
    """Room that counts."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.used = 0

    def __call__(self, count: int) -> None:
        if self.used + count > self.room:
            raise NoSpaceError("the disk is full")
        self.used += count


def create(
    directory: Path, lengths: list[int], of: FragmentHeader | None = None, *, seal: bool = False
) -> FragmentFile:
    """A fragment with blocks of these raw lengths."""
    of = of or header()
    file = FragmentFile(str(directory), of)
    reached = file.append([batch(encode(lengths, of=of))], Claims())
    assert reached == [Reached(len(lengths), sum(lengths))]
    if seal:
        file.seal(sum(lengths), Claims())
    return file


def reopen(file: FragmentFile) -> FragmentFile:
    file.close()
    return FragmentFile.open(str(Path(file.path).parent), file.name, CLUSTER)


def read(file: FragmentFile, offset: int = 0, length: int = 1 << 26) -> list[tuple[int, int]]:
    """(raw offset, raw length) of the records that answer a read, verified."""
    start, size, count = file.locate(offset, length)
    data = memoryview(os.pread(file.fd, size, start))
    records = parse_records(data, chunk=file.header.chunk, content_index=file.header.content_index)
    assert len(records) == count
    return [(record.header.raw_offset, record.header.raw_length) for record in records]


def read_all(file: FragmentFile) -> list[tuple[int, int]]:
    """As `read`, of the whole fragment, in as many answers as it takes."""
    blocks: list[tuple[int, int]] = []
    while (end := sum(blocks[-1]) if blocks else 0) < file.reached.length:
        more = read(file, end)
        assert more
        blocks += more
    return blocks


def refusal(outcome: Reached | DfsError) -> str:
    assert isinstance(outcome, DfsError)
    return str(outcome)


# ------------------------------------------------------------------ appending


def test_appended_blocks_are_found_by_raw_range(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000, 3])
    assert read(file) == [(0, 1000), (1000, 5000), (6000, 3)]
    assert read(file, 999, 1) == [(0, 1000)]
    assert read(file, 999, 2) == [(0, 1000), (1000, 5000)]
    assert read(file, 6002, 100) == [(6000, 3)]
    assert read(file, 6003, 100) == []
    assert read(file, 1000, 0) == []
    file.close()


def test_nothing_is_on_disk_before_the_first_append(tmp_path: Path) -> None:
    file = FragmentFile(str(tmp_path), header())
    assert not file.exists
    (outcome,) = file.append([batch(encode([10])[:1], 1)], Claims())
    assert "comes where block 1 belongs" in refusal(outcome) or "gap" in refusal(outcome)
    assert os.listdir(tmp_path) == []


def test_claims_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    claims = Claims()
    file = FragmentFile(str(tmp_path), header())
    file.append([batch(encode([1000, 5000]))], claims)
    assert claims.used == os.stat(file.path).st_size == file.stored_bytes
    file.append([batch(encode([7], first_block=2, offset=6000), 2)], claims)
    assert claims.used == os.stat(file.path).st_size == file.stored_bytes
    file.seal(6007, claims)
    assert claims.used == os.stat(file.path).st_size == file.stored_bytes
    file.close()


def test_a_repeated_append_is_compared_and_skipped(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000])
    size = os.stat(file.path).st_size
    records = encode([1000, 5000, 300])
    assert file.append([batch(records[:2])], Claims()) == [Reached(2, 6000)]
    assert os.stat(file.path).st_size == size
    assert file.append([batch(records[1:], 1)], Claims()) == [Reached(3, 6300)]
    assert read(file) == [(0, 1000), (1000, 5000), (6000, 300)]
    file.close()


def test_a_repeat_with_other_bytes_is_refused(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000])
    (outcome,) = file.append([batch(encode([999, 5000]))], Claims())
    assert "stored already, with other bytes" in refusal(outcome)
    assert file.reached == Reached(2, 6000)
    file.close()


def test_a_gap_names_the_next_block(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000])
    (outcome,) = file.append([batch(encode([8], first_block=5, offset=9000), 5)], Claims())
    assert "block 5 was sent, the next is 2" in refusal(outcome)
    file.close()


def test_several_batches_are_stored_together_and_answered_apart(tmp_path: Path) -> None:
    file = FragmentFile(str(tmp_path), header())
    records = encode([10, 20, 30, 40])
    broken = bytearray(encode([50], first_block=4, offset=100)[0])
    broken[-1] ^= 1
    outcomes = file.append(
        [
            batch(records[:2]),
            batch(records[1:3], 1),
            batch(records[3:], 3),
            batch([bytes(broken)], 4),
            batch(encode([60], first_block=5, offset=150), 5),
        ],
        Claims(),
    )
    assert outcomes[:3] == [Reached(2, 30), Reached(3, 60), Reached(4, 100)]
    assert isinstance(outcomes[3], CorruptError)
    assert "the next is 4" in refusal(outcomes[4])
    assert read(file) == [(0, 10), (10, 20), (30, 30), (60, 40)]
    file.close()


def test_wrong_records_are_refused_and_change_nothing(tmp_path: Path) -> None:
    file = create(tmp_path, [100])
    good = encode([8, 8], first_block=1, offset=100)
    wrong = {
        "of another chunk": encode([8], of=header(8), first_block=1, offset=100),
        "does not match its checksum": [good[0][:-1] + bytes([good[0][-1] ^ 1])],
        "cut short": [good[0][:-1]],
        "announces 1 blocks and brings 2": [good[0] + good[1]],
        "no record starts here": [bytes(60)],
        "announces 1 blocks and brings 0": [b""],
        "starts at 90": encode([8], first_block=1, offset=90),
        "comes where block 1 belongs": encode([8], first_block=2, offset=100),
    }
    for message, records in wrong.items():
        (outcome,) = file.append([batch(records, 1)], Claims())
        assert message in refusal(outcome)
        assert os.stat(file.path).st_size == file.stored_bytes
    assert file.append([batch(good, 1)], Claims()) == [Reached(3, 116)]
    file.close()


def test_pieces_of_another_redundancy_are_refused(tmp_path: Path) -> None:
    of = header(index=2, redundancy=CODED)
    file = create(tmp_path, [100], of)
    other = FragmentHeader(CLUSTER, of.chunk, 2, 2, 1)
    records = encode([100], of=other, first_block=1, offset=100)
    (outcome,) = file.append([batch(records, 1)], Claims())
    assert "not split into 4 pieces" in refusal(outcome)
    file.close()


def test_an_erasure_coded_fragment_holds_its_own_pieces(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 4001], header(index=5, redundancy=CODED), seal=True)
    file = reopen(file)
    assert read(file, 1000, 1) == [(1000, 4001)]
    assert file.stored_bytes < 2000
    file.close()


def test_without_room_nothing_is_written(tmp_path: Path) -> None:
    file = FragmentFile(str(tmp_path), header())
    with pytest.raises(NoSpaceError):
        file.append([batch(encode([10]))], Claims(room=100))
    assert os.listdir(tmp_path) == []
    file = create(tmp_path, [10])
    size = file.stored_bytes
    with pytest.raises(NoSpaceError):
        file.append([batch(encode([10], first_block=1, offset=10), 1)], Claims(room=10))
    assert os.stat(file.path).st_size == file.stored_bytes == size
    file.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` fail with EFBIG, after a part of them is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path) -> None:
    claims = Claims()
    file = FragmentFile(str(tmp_path), header())
    with file_size_limit(5000), pytest.raises(OSError, match="File too large"):
        file.append([batch(encode([9000], level=None))], claims)
    assert os.listdir(tmp_path) == []
    assert claims.used == 0
    file.append([batch(encode([1000], level=None))], claims)
    used = claims.used
    more = batch(encode([9000], first_block=1, offset=1000, level=None), 1)
    with file_size_limit(5000), pytest.raises(OSError, match="File too large"):
        file.append([more], claims)
    assert claims.used == used == os.stat(file.path).st_size
    assert file.append([more], claims) == [Reached(2, 10000)]
    file.close()


def test_leftovers_of_a_failed_write_are_cut_by_the_next(tmp_path: Path) -> None:
    file = create(tmp_path, [100])
    with open(file.path, "ab") as leftover:
        leftover.write(bytes(10_000))
    file.append([batch(encode([8], first_block=1, offset=100), 1)], Claims())
    assert os.stat(file.path).st_size == file.stored_bytes
    file.close()


# ------------------------------------------------------------------ sealing


def test_a_sealed_fragment_opens_by_its_footer(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000, 3], seal=True)
    assert os.listdir(tmp_path) == ["0000000000000007-00-00001773.sealed"]
    file = reopen(file)
    assert file.sealed
    assert file.reached == Reached(3, 6003)
    assert read(file, 5999, 2) == [(1000, 5000), (6000, 3)]
    file.close()


def test_sealing_cuts_after_the_block_that_ends_there(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000, 3])
    file.seal(6000, Claims())
    assert read(file) == [(0, 1000), (1000, 5000)]
    assert read(reopen(file)) == [(0, 1000), (1000, 5000)]


def test_sealing_inside_a_block_keeps_the_whole_block(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000, 3])
    file.seal(1001, Claims())
    assert file.reached == Reached(2, 6000)
    file.close()


def test_sealing_at_zero_keeps_nothing(tmp_path: Path) -> None:
    file = create(tmp_path, [1000])
    file.seal(0, Claims())
    file = reopen(file)
    assert file.reached == Reached(0, 0)
    assert read(file) == []
    file.close()


def test_sealing_beyond_the_end_is_refused(tmp_path: Path) -> None:
    file = create(tmp_path, [1000])
    with pytest.raises(FragmentError, match="short: it ends at 1000, and has to reach 1001"):
        file.seal(1001, Claims())
    assert not file.sealed
    file.close()


def test_sealing_again_changes_nothing(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000], seal=True)
    claims = Claims()
    file.seal(6000, claims)
    file.seal(1000, claims)
    assert claims.used == 0
    assert file.reached == Reached(2, 6000)
    with pytest.raises(FragmentError, match="short"):
        file.seal(6001, claims)
    file.close()


def test_a_sealed_fragment_takes_repeats_and_nothing_new(tmp_path: Path) -> None:
    file = create(tmp_path, [1000, 5000], seal=True)
    records = encode([1000, 5000, 3])
    assert file.append([batch(records[:2])], Claims()) == [Reached(2, 6000)]
    (outcome,) = file.append([batch(records)], Claims())
    assert "is sealed with 2 blocks, 6000 bytes" in refusal(outcome)
    file.close()


def test_a_footer_under_the_open_name_is_a_sealed_fragment(tmp_path: Path) -> None:
    file = create(tmp_path, [1000], seal=True)
    file.close()
    (tmp_path / str(file.name)).rename(tmp_path / "0000000000000007-00.open")
    again = FragmentFile.open(str(tmp_path), OPEN_NAME, CLUSTER)
    assert again.sealed
    assert os.listdir(tmp_path) == [str(file.name)]
    again.close()


@pytest.mark.parametrize("lost", [range(1), range(1, 2), range(3, 4), range(2, 4), range(4)])
def test_a_footer_that_a_power_cut_kept_without_its_records_is_not_believed(
    tmp_path: Path, lost: range
) -> None:
    file = create(tmp_path, [4000, 5000, 6000, 7000], seal=True)
    starts = [file.index.start_of(number) for number in range(5)]
    file.close()
    path = tmp_path / "0000000000000007-00.open"
    (tmp_path / str(file.name)).rename(path)
    with open(path, "r+b") as raw:
        for number in lost:
            # Pages that never reached the disk: zeros, from within the record on.
            raw.seek(starts[number] + 100)
            raw.write(bytes(starts[number + 1] - starts[number] - 100))
    again = FragmentFile.open(str(tmp_path), OPEN_NAME, CLUSTER)
    assert not again.sealed
    assert os.listdir(tmp_path) == [path.name]
    assert os.stat(path).st_size == again.stored_bytes
    # It ends with a record that is whole.
    assert again.reached.next_block == (4 if 3 not in lost else lost[0])
    missing = encode([4000, 5000, 6000, 7000])[again.reached.next_block :]
    if 3 in lost:
        batches = [batch(missing, again.reached.next_block)]
        assert again.append(batches, Claims()) == [Reached(4, 22_000)]
        again.seal(22_000, Claims())
        assert len(read(again)) == 4
    again.close()


def test_a_sealed_name_is_on_disk_only_after_some_name_of_the_fragment_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds the sealed name after a crash takes the fragment for durable."""
    file = create(tmp_path, [1000])
    names: list[list[str]] = []
    monkeypatch.setattr(
        fragment_file, "sync_directory", lambda path: names.append(os.listdir(path))
    )
    file.seal(1000, Claims())
    file.close()
    assert names == [["0000000000000007-00.open"]]


def test_a_sync_that_failed_for_lack_of_space_is_a_failed_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets what it could not write, so that a second fdatasync would succeed."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = create(tmp_path, [1000])
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space left on device in fdatasync") as info:
        file.sync()
    assert info.value.errno == errno.EIO
    with pytest.raises(OSError, match="No space left on device in fdatasync"):
        file.seal(1000, Claims())
    file.close()


def test_a_seal_that_fails_gives_back_the_room_of_what_it_cut(tmp_path: Path) -> None:
    claims = Claims()
    file = FragmentFile(str(tmp_path), header())
    file.append([batch(encode([1000, 5000], level=None))], claims)
    with file_size_limit(1100), pytest.raises(OSError, match="File too large"):
        file.seal(1000, claims)
    assert claims.used == file.stored_bytes == os.stat(file.path).st_size
    file.seal(1000, claims)
    assert claims.used == file.stored_bytes == os.stat(file.path).st_size
    file.close()


# ------------------------------------------------------------------ recovery and damage


def test_an_open_fragment_goes_on_after_a_reopen(tmp_path: Path) -> None:
    file = reopen(create(tmp_path, [1000, 5000]))
    assert file.reached == Reached(2, 6000)
    records = encode([3], first_block=2, offset=6000)
    assert file.append([batch(records, 2)], Claims()) == [Reached(3, 6003)]
    file.close()


@settings(max_examples=60)
@given(st.integers(0, 3000))
def test_a_torn_tail_is_cut_at_the_last_good_record(tmp_path_factory: object, cut: int) -> None:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    directory = tmp_path_factory.mktemp("torn")
    lengths = [100, 1, 700, 50, 600]
    file = create(directory, lengths)
    size = file.stored_bytes
    keep = max(FILE_HEADER_BYTES, size - cut)
    os.truncate(file.path, keep)
    again = reopen(file)
    ends = [again.index.start_of(number + 1) for number in range(len(again.index))]
    assert all(end <= keep for end in ends)
    assert os.stat(again.path).st_size == again.stored_bytes
    assert again.size_change == again.stored_bytes - keep
    if len(again.index) < len(lengths):
        records = encode(lengths)
        assert again.stored_bytes + len(records[len(again.index)]) > keep
    again.close()


def test_a_fragment_larger_than_the_scan_window_is_recovered(tmp_path: Path) -> None:
    lengths = [128 * 1024] * 80
    file = FragmentFile(str(tmp_path), header())
    file.append([batch(encode(lengths, level=None))], Claims())
    file = reopen(file)
    assert file.reached == Reached(80, sum(lengths))
    file.close()


def test_a_damaged_record_at_the_end_is_cut_and_one_in_the_middle_stays(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700, 50, 600])
    flip(file, file.index.start_of(2) - 1)
    flip(file, file.index.start_of(4) - 1)
    file = reopen(file)
    assert file.reached == Reached(3, 850)
    assert read(file, 0, 100) == [(0, 100)]
    assert read(file, 800, 50) == [(800, 50)]
    with pytest.raises(CorruptError):
        read(file, 100, 700)
    file.close()


def test_a_damaged_record_header_ends_an_open_fragment(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700, 50])
    flip(file, file.index.start_of(1) + 5)
    file = reopen(file)
    assert file.reached == Reached(1, 100)
    file.close()


def flip(file: FragmentFile, position: int) -> None:
    with open(file.path, "r+b") as raw:
        raw.seek(position)
        (byte,) = raw.read(1)
        raw.seek(position)
        raw.write(bytes([byte ^ 0x10]))


@pytest.mark.allow_logs("its records were read instead and reach 800 of 800 bytes")
def test_a_sealed_fragment_with_a_damaged_footer_is_read_by_its_records(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700], seal=True)
    flip(file, file.stored_bytes - 1)
    size = os.stat(file.path).st_size
    file = reopen(file)
    assert read(file) == [(0, 100), (100, 700)]
    assert os.stat(file.path).st_size == size
    file.close()


@pytest.mark.allow_logs("its records were read instead and reach 100 of 800 bytes")
def test_a_sealed_fragment_cut_short_serves_what_is_left(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700], seal=True)
    os.truncate(file.path, file.index.start_of(2) - 1)
    file = reopen(file)
    assert read(file, 0, 100) == [(0, 100)]
    with pytest.raises(FragmentError, match="short: 100 of 800 bytes are left"):
        file.locate(50, 100)
    assert file.locate(900, 100) == (0, 0, 0)
    file.close()


def test_a_file_cut_short_behind_our_back_is_noticed(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700])
    os.truncate(file.path, file.index.start_of(1) + 10)
    assert read(file, 0, 100) == [(0, 100)]
    with pytest.raises(FragmentError, match="is short"):
        file.locate(0, 101)
    with pytest.raises(FragmentError, match="is short"):
        file.append([batch(encode([8], first_block=2, offset=800), 2)], Claims())
    with pytest.raises(FragmentError, match="is short"):
        file.seal(800, Claims())
    file.close()


def test_a_file_deleted_behind_our_back_is_noticed(tmp_path: Path) -> None:
    file = create(tmp_path, [100, 700])
    os.unlink(file.path)
    for attempt in (
        lambda: file.locate(0, 1),
        lambda: file.append([batch(encode([8], first_block=2, offset=800), 2)], Claims()),
        lambda: file.seal(800, Claims()),
    ):
        with pytest.raises(FragmentError, match="missing: its file was deleted"):
            attempt()
    file.close()
    with pytest.raises(FragmentGoneError, match="is missing"):
        reopen(file)


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    one, other = create(tmp_path, [100], header(7)), create(tmp_path, [100], header(8))
    os.rename(one.path, tmp_path / "aside")
    os.rename(other.path, one.path)
    os.rename(tmp_path / "aside", other.path)
    for file in (one, other):
        with pytest.raises(FragmentError, match="not what its name says"):
            reopen(file)


def test_a_fragment_of_another_cluster_is_refused(tmp_path: Path) -> None:
    of = FragmentHeader(UUID(int=1), 7, 0, 1, 2)
    file = create(tmp_path, [100], of)
    with pytest.raises(FragmentError, match="of cluster 00000000-0000-0000-0000-000000000001"):
        reopen(file)


def test_an_empty_or_damaged_file_header_is_refused(tmp_path: Path) -> None:
    file = create(tmp_path, [100])
    flip(file, 20)
    with pytest.raises(FragmentError, match="unreadable: .* header is damaged"):
        reopen(file)
    os.truncate(file.path, 0)
    with pytest.raises(FragmentError, match="ends within its header"):
        reopen(file)


def test_a_reply_of_tiny_blocks_is_bounded(tmp_path: Path) -> None:
    file = FragmentFile(str(tmp_path), header())
    index = file.index
    for number in range(300_000):
        index.add(RecordHeader(number, number, 1, 1, 1, 0, 0, 0))
    start, size, records = index.locate(0, 1 << 23, REPLY_MAX_BYTES)
    assert (start, size) == (FILE_HEADER_BYTES, records * 49)
    assert REPLY_MAX_BYTES - 49 < size <= REPLY_MAX_BYTES


# ------------------------------------------------------------------ any order of events


class AnyOrder(RuleBasedStateMachine):
    """A fragment file against a list of blocks, with crashes in between."""

    @initialize(redundancy=st.sampled_from([header(), header(index=4, redundancy=CODED)]))
    def start(self, redundancy: FragmentHeader) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.of = redundancy
        self.file = FragmentFile(self.directory.name, redundancy)
        self.lengths: list[int] = []
        self.sealed = False
        self.claims = Claims()

    @rule(
        back=st.integers(0, 3),
        more=st.lists(st.integers(1, 3000), max_size=4),
        damage=st.booleans(),
    )
    def append(self, back: int, more: list[int], damage: bool) -> None:
        first = max(0, len(self.lengths) - back)
        lengths = self.lengths[first:] + more
        if not lengths:
            return
        records = encode(lengths, of=self.of, first_block=first, offset=sum(self.lengths[:first]))
        if damage:
            records[-1] = records[-1][:-1] + bytes([records[-1][-1] ^ 1])
        (outcome,) = self.file.append([batch(records, first)], self.claims)
        if damage or (self.sealed and more):
            assert isinstance(outcome, DfsError)
        else:
            self.lengths += more
            assert outcome == Reached(len(self.lengths), sum(self.lengths))

    @precondition(lambda self: self.lengths)
    @rule()
    def reopen(self) -> None:
        self.file = reopen(self.file)
        self.claims.used += self.file.size_change

    @precondition(lambda self: self.lengths and not self.sealed)
    @rule(cut=st.integers(1, 4000))
    def crash_and_lose_the_tail(self, cut: int) -> None:
        size = os.stat(self.file.path).st_size
        keep = max(FILE_HEADER_BYTES, size - cut)
        self.claims.used -= size - keep
        os.truncate(self.file.path, keep)
        self.reopen()
        kept = len(self.file.index)
        assert kept <= len(self.lengths)
        del self.lengths[kept:]

    @precondition(lambda self: self.lengths)
    @rule(share=st.floats(0, 1))
    def seal(self, share: float) -> None:
        length = int(sum(self.lengths) * share)
        self.file.seal(length, self.claims)
        if not self.sealed:
            while sum(self.lengths[:-1]) >= length and self.lengths:
                self.lengths.pop()
        self.sealed = True

    @precondition(lambda self: self.file.exists)
    @rule(offset=st.integers(0, 20_000), length=st.integers(0, 20_000))
    def look(self, offset: int, length: int) -> None:
        expected, at = [], 0
        for each in self.lengths:
            if at < offset + length and at + each > offset and length:
                expected.append((at, each))
            at += each
        assert read(self.file, offset, length) == expected
        assert self.file.sealed == self.sealed
        assert os.stat(self.file.path).st_size == self.file.stored_bytes == self.claims.used

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
            self.directory.cleanup()


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
test_any_order_of_events_agrees_with_a_list_of_blocks = AnyOrder.TestCase


# ------------------------------------------------------------------ a process that dies

APPENDER = """
import sys
from dfs.chunkserver.fragment_file import FragmentFile
from tests.unit.chunkserver.sample import batch, encode, header

file = FragmentFile(sys.argv[1], header())
offset = 0
for number in range(1_000_000):
    length = 20_000 + number * 7919 % 100_000
    records = encode([length], first_block=number, offset=offset)
    file.append([batch(records, number)], lambda _: None)
    offset += length
    print(number, offset, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.3])
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, delay_s: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert child.stdout is not None
    acknowledged = child.stdout.readline()
    time.sleep(delay_s)
    child.kill()
    for line in child.stdout:
        acknowledged = line if line.endswith("\n") else acknowledged
    child.wait()
    child.stdout.close()
    number, length = map(int, acknowledged.split())
    file = FragmentFile.open(str(tmp_path), OPEN_NAME, CLUSTER)
    assert file.reached.next_block > number
    assert file.reached.length >= length
    assert len(read_all(file)) == file.reached.next_block
    file.close()
