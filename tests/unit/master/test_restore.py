"""A store, its backup, and the store that is made of it."""

import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dfs.core.archive import ArchiveReader, ArchiveWriter, Description, Kind
from dfs.core.chunk import ChunkState
from dfs.core.errors import ConfigError, CorruptError, SessionError
from dfs.master import commands, invariants, runs
from dfs.master import keyspace as keys
from dfs.master.backup import hold
from dfs.master.backup.process import archive_checkpoint
from dfs.master.backup.restore import restore
from dfs.master.state import State
from dfs.master.store import RocksStore
from dfs.wire.messages import Create, LogPosition, Open, SetXattr, Unlink
from tests.unit.master.rig import Rig

DAY_NS = 86_400 * 1_000_000_000


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.state.apply(commands.StartMaster(rig.tick(), run=7, position=0))
    full, started = rig.chunk(), rig.chunk()
    for number, name in enumerate((b"a", b"b", b"orphan")):
        ino = rig.create(name)
        rig.commit(ino, (0, 100, full, 100 * number))
    rig.made(SetXattr(ino, b"user.x", b"v"))
    rig.made(Open(ino))
    rig.do(Unlink(1, b"orphan"))
    rig.seal(full, 1000)
    rig.commit(rig.create(b"open"), (0, 50, started, 0))
    rig.chunk()
    return rig


def backup(rig: Rig, work: Path) -> bytes:
    rig.store.checkpoint(work / "checkpoint")
    out = io.BytesIO()
    archive_checkpoint(work / "checkpoint", rig.now, out)
    return out.getvalue()


def told(rows: int, about: Description) -> None:
    assert 0 < rows <= about.rows + 100


def made_again(data: bytes, work: Path, now_ns: int) -> Rig:
    restore(io.BytesIO(data), work / "new", told, now_ns)
    return Rig(RocksStore(work / "new" / "metadata"))


def remade(data: bytes, **changes: object) -> bytes:
    """The same rows under another description."""
    reader = ArchiveReader()
    blocks = reader.feed(data)
    assert reader.description is not None
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, msgspec.structs.replace(reader.description, **changes))
    for block in blocks:
        if block.kind is Kind.ROWS:
            for key, value in block.pairs():
                writer.add(key, value)
    writer.finish()
    return b"".join(pieces)


def test_what_was_there_is_there_again_and_no_session_is(rig: Rig, tmp_path: Path) -> None:
    data = backup(rig, tmp_path)
    again = made_again(data, tmp_path, rig.now + DAY_NS)
    assert invariants.check(again.store) == []
    assert again.state.cluster == rig.state.cluster
    assert again.names() == [b"a", b"b", b"open"]
    for name in (b"/a", b"/b", b"/open"):
        ino = rig.resolve(name).ino
        assert again.resolve(name) == rig.resolve(name)
        assert again.extents(ino) == rig.extents(ino)
    with pytest.raises(SessionError):
        again.do(Create(1, b"x", 0o644), session=rig.session)


def test_numbers_that_may_have_been_given_since_are_not_given_again(
    rig: Rig, tmp_path: Path
) -> None:
    data = backup(rig, tmp_path)
    before = keys.get_counters(rig.store)
    for _ in range(50):
        rig.mkdir(b"%d" % rig.now)
    newest_chunk, newest_inode = rig.chunk(), rig.mkdir(b"last")
    newest_session = rig.open_session()
    again = made_again(data, tmp_path, rig.now + DAY_NS)
    counters = keys.get_counters(again.store)
    least = 86_400 << 20
    assert counters.next_chunk > newest_chunk + least
    assert counters.next_inode > newest_inode + least
    assert again.session > newest_session + least
    record = hold.restored(again.store)
    assert record is not None
    assert record.next_chunk == before.next_chunk
    assert newest_chunk >= record.next_chunk


def test_a_second_restore_of_the_same_backup_does_not_meet_the_first(
    rig: Rig, tmp_path: Path
) -> None:
    data = backup(rig, tmp_path)
    first = made_again(data, tmp_path / "1", rig.now + DAY_NS)
    second = made_again(data, tmp_path / "2", rig.now + 2 * DAY_NS)
    gap = keys.get_counters(second.store).next_chunk - keys.get_counters(first.store).next_chunk
    assert gap == 86_400 << 20


def test_a_clock_that_went_back_still_leaves_a_gap(rig: Rig, tmp_path: Path) -> None:
    again = made_again(backup(rig, tmp_path), tmp_path, rig.now - DAY_NS)
    assert keys.get_counters(again.store).next_chunk > hold.IDS_AT_LEAST


def test_clients_are_told_which_of_their_changes_are_lost(rig: Rig, tmp_path: Path) -> None:
    data = backup(rig, tmp_path)
    reader = ArchiveReader()
    reader.feed(data)
    assert reader.description is not None
    kept = LogPosition(7, reader.description.position)
    lost = LogPosition(7, kept.position + 1)
    again = made_again(data, tmp_path, rig.now)
    again.state.apply(commands.StartMaster(again.tick(), run=9, position=again.store.position))
    assert runs.all_survived(again.store, [kept])
    assert not runs.all_survived(again.store, [lost])
    assert not runs.all_survived(again.store, [LogPosition(8, 1)])


def test_open_chunks_wait_to_be_sealed_and_empty_ones_are_doomed(rig: Rig, tmp_path: Path) -> None:
    again = made_again(backup(rig, tmp_path), tmp_path, rig.now)
    states = [keys.decode_chunk(raw) for _, raw in keys.scan_prefix(again.store, keys.CHUNK)]
    assert [(each.state, each.owner) for each in states] == [
        (ChunkState.SEALED, 0),
        (ChunkState.OPEN, 0),
        (ChunkState.DOOMED, 0),
    ]


def test_a_restore_is_held_until_it_is_confirmed(rig: Rig, tmp_path: Path) -> None:
    assert not hold.is_held(rig.store)
    again = made_again(backup(rig, tmp_path), tmp_path, rig.now)
    assert hold.is_held(again.store)
    assert again.state.apply(commands.ConfirmRestore(again.tick()))
    assert not hold.is_held(again.store)
    assert not again.state.apply(commands.ConfirmRestore(again.tick()))


def test_the_next_chunk_is_raised_and_never_lowered(rig: Rig) -> None:
    before = keys.get_counters(rig.store).next_chunk
    for number, expected in ((before - 1, before), (1 << 40, 1 << 40), (1 << 62, 1 << 40)):
        rig.state.apply(commands.RaiseNextChunk(rig.tick(), number))
        assert keys.get_counters(rig.store).next_chunk == expected


def test_only_an_empty_directory_is_restored_into(rig: Rig, tmp_path: Path) -> None:
    data = backup(rig, tmp_path)
    place = tmp_path / "new"
    (place / "metadata").mkdir(parents=True)
    with pytest.raises(ConfigError, match="not empty: it holds metadata"):
        restore(io.BytesIO(data), place, told)
    assert list((place / "metadata").iterdir()) == []
    with pytest.raises(ConfigError, match="cannot restore into"):
        restore(io.BytesIO(data), tmp_path / "checkpoint" / "CURRENT" / "x", told)


def test_what_a_stopped_restore_left_is_begun_anew(rig: Rig, tmp_path: Path) -> None:
    rest = tmp_path / "new" / "metadata.partial"
    rest.mkdir(parents=True)
    (rest / "CURRENT").write_text("nonsense")
    again = made_again(backup(rig, tmp_path), tmp_path, rig.now)
    assert again.names() == [b"a", b"b", b"open"]
    assert not rest.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:-60] + b"\0" + data[-59:], "damaged"),
        (lambda data: b"a text that is no backup" * 10, "no backup"),
        (lambda data: b"", "cut short"),
        (lambda data: remade(data, schema=99, dfs="9.9"), "schema version 99.*dfs 9.9"),
        (lambda data: remade(data, cluster="other"), "does not hold the metadata it says"),
    ],
)
def test_a_bad_backup_leaves_nothing_behind(
    rig: Rig,
    tmp_path: Path,
    spoil: Callable[[bytes], bytes],
    said: str,
) -> None:
    with pytest.raises((ConfigError, CorruptError), match=said):
        restore(io.BytesIO(spoil(backup(rig, tmp_path))), tmp_path / "new", told)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_restored_store_can_be_backed_up_and_restored_again(rig: Rig, tmp_path: Path) -> None:
    again = made_again(backup(rig, tmp_path), tmp_path, rig.now)
    twice = made_again(backup(again, tmp_path / "new"), tmp_path / "twice", again.now)
    assert twice.names() == [b"a", b"b", b"open"]
    assert invariants.check(twice.store) == []
    assert isinstance(twice.state, State)
