"""Extents move to the chunk that has copies of their bytes, whatever happened meanwhile."""

import errno

import pytest

from dfs.core.chunk import Chunk, ChunkState, FragmentState
from dfs.core.errors import FileSystemError
from dfs.core.ids import MASTER_SESSION
from dfs.core.inode import Extent
from dfs.master import chunks, commands, fragments
from dfs.master.commands import Place, Placement, Repoint, Repointed
from dfs.master.keyspace import get_chunk
from dfs.wire.messages import CloneRange, Commit, SetPolicy, Unlink
from tests.unit.master.rig import Rig


def target(rig: Rig, policy: int = 1) -> int:
    placement = Placement(1, 2, (4, 5, 6))
    return rig.state.apply(commands.AllocateTarget(rig.tick(), policy, placement)).chunk


def chunk_of(rig: Rig, number: int) -> Chunk:
    chunk = get_chunk(rig.store, number)
    assert chunk is not None
    return chunk


def sealed(rig: Rig, ino: int, *pieces: tuple[int, int]) -> int:
    """A chunk of 100 bytes; (offset, length) of them are in the file, where they are in it."""
    chunk = rig.chunk()
    for offset, length in pieces:
        rig.commit(ino, (offset, length, chunk, offset))
    rig.seal(chunk, 100)
    return chunk


def repoint(
    rig: Rig, source: int, to: int, *parts: tuple[int, int], length: int = 0, only: int = 0,
    limit: int = 500, after: Place | None = None, lost: tuple[int, ...] = (),
) -> Repointed:  # fmt: skip
    length = length or sum(each for _, each in parts)
    command = Repoint(rig.tick(), to, length, lost, source, parts, 0, only, after, limit)
    return rig.state.apply(command)


def test_all_files_that_share_the_bytes_move_and_the_source_is_retired() -> None:
    rig = Rig()
    one, other = rig.create(b"one"), rig.create(b"other")
    source = sealed(rig, one, (0, 10), (60, 20))
    rig.do(CloneRange(one, 65, other, 0, 5))
    to = target(rig)
    done = repoint(rig, source, to, (0, 10), (60, 20), lost=(2,))
    assert (done.rows, done.bytes, done.upto) == (3, 35, None)
    assert rig.extents(one) == [(0, 10, to, 0), (60, 20, to, 10)]
    assert rig.extents(other) == [(0, 5, to, 15)]
    assert chunk_of(rig, source).state is ChunkState.RETIRED
    moved = chunk_of(rig, to)
    assert (moved.state, moved.length, moved.live, moved.owner) == (ChunkState.SEALED, 30, 35, 0)
    assert [f.state for f in moved.fragments][2] is FragmentState.LOST
    assert [chunk for chunk, _ in fragments.wanting(rig.store, 0, 9)] == [to]
    rig.check()


def test_what_changed_meanwhile_keeps_its_own_truth() -> None:
    rig = Rig()
    file, gone = rig.create(b"file"), rig.create(b"gone")
    source = sealed(rig, file, (0, 50))
    rig.do(CloneRange(file, 0, gone, 0, 50))
    to = target(rig)
    # Copied by now. Then the file is overwritten, cut, and the other one removed.
    fresh = rig.chunk()
    rig.commit(file, (10, 10, fresh, 0))
    rig.do(Unlink(1, b"gone"))
    assert repoint(rig, source, to, (0, 50)).rows == 2
    assert rig.extents(file) == [(0, 10, to, 0), (10, 10, fresh, 0), (20, 30, to, 20)]
    rig.check()


def test_what_was_not_copied_stays_where_it_is() -> None:
    rig = Rig()
    file, late = rig.create(b"file"), rig.create(b"late")
    source = sealed(rig, file, (0, 10), (20, 10))
    to = target(rig)
    # A client publishes more of the chunk than was known when it was copied.
    rig.commit(late, (0, 20, source, 5))
    assert repoint(rig, source, to, (0, 10), (20, 10)).rows == 2
    assert rig.extents(late) == [(0, 20, source, 5)]
    assert (rig.live(source), rig.live(to)) == (20, 20)
    rig.check()


def test_it_goes_in_steps_and_each_leaves_all_in_order() -> None:
    rig = Rig()
    file = rig.create(b"file")
    source = sealed(rig, file, *((n * 10, 4) for n in range(10)))
    to, after, steps = target(rig), None, 0
    parts = tuple((n * 10, 4) for n in range(10))
    while True:
        done = repoint(rig, source, to, *parts, limit=3, after=after)
        steps += 1
        rig.check()
        assert rig.live(to) + max(0, rig.live(source)) == 40
        after = done.upto
        if after is None:
            break
    assert steps == 4
    assert rig.extents(file) == [(n * 10, 4, to, n * 4) for n in range(10)]


def test_only_files_of_one_policy_move() -> None:
    rig = Rig()
    ours, theirs = rig.create(b"ours"), rig.create(b"theirs")
    source = sealed(rig, ours, (0, 50))
    rig.do(CloneRange(ours, 0, theirs, 0, 50))
    rig.do(SetPolicy(ours, 3))
    to = target(rig, 3)
    assert repoint(rig, source, to, (0, 50), only=3).rows == 1
    assert rig.extents(theirs) == [(0, 50, source, 0)]
    assert rig.extents(ours) == [(0, 50, to, 0)]
    rig.check()


def test_nothing_moves_to_or_from_a_chunk_that_is_gone() -> None:
    rig = Rig()
    file = rig.create(b"file")
    source = sealed(rig, file, (0, 50))
    to = target(rig)
    rig.state.apply(commands.AbandonTarget(rig.tick(), to))
    assert repoint(rig, source, to, (0, 50)) == Repointed(0, 0, None)
    rig.do(Unlink(1, b"file"))
    to = target(rig)
    assert repoint(rig, source, to, (0, 50)) == Repointed(0, 0, None)
    assert chunk_of(rig, to).state is ChunkState.OPEN
    rig.check()


def test_parts_that_do_not_fit_are_refused() -> None:
    rig = Rig()
    file = rig.create(b"file")
    source = sealed(rig, file, (0, 50))
    to = target(rig)
    with pytest.raises(FileSystemError, match="do not fit"):
        repoint(rig, source, to, (0, 50), length=49)
    rig.check()


def test_a_target_is_nobody_elses_and_ends_with_its_master() -> None:
    rig = Rig()
    file = rig.create(b"file")
    to = target(rig)
    assert chunk_of(rig, to).owner == MASTER_SESSION
    rig.check()
    rig.refuses(errno.ESTALE, Commit(file, (Extent(0, 5, to, 0),)))
    rig.state.apply(commands.StartMaster(rig.tick(), 100))
    assert chunk_of(rig, to).state is ChunkState.DOOMED
    rig.check()


def test_a_target_in_use_is_not_abandoned() -> None:
    rig = Rig()
    file = rig.create(b"file")
    source = sealed(rig, file, (0, 50))
    to = target(rig)
    repoint(rig, source, to, (0, 50))
    rig.state.apply(commands.AbandonTarget(rig.tick(), to))
    rig.state.apply(commands.StartMaster(rig.tick(), 100))
    assert chunk_of(rig, to).state is ChunkState.SEALED
    rig.check()


def test_what_was_copied_from_is_kept_however_its_last_byte_goes() -> None:
    """A backup from before the copy refers to it, and so would a chunk without copies not."""
    rig = Rig()
    copied, rest = rig.create(b"copied"), rig.create(b"rest")
    source = sealed(rig, copied, (0, 50))
    rig.commit(rest, (0, 50, source, 50))
    to = target(rig)
    repoint(rig, source, to, (0, 50))
    assert chunk_of(rig, source).state is ChunkState.SEALED
    rig.do(Unlink(1, b"rest"))
    retired = chunk_of(rig, source)
    assert retired.state is ChunkState.RETIRED
    rig.check()
    rig.refuses(errno.ESTALE, Commit(copied, (Extent(0, 5, source, 0),)))
    assert chunks.retired(rig.store, 9) == [(retired.rewritten_s, source)]
    rig.state.apply(commands.ExpireRetired(rig.tick(), (source, to, 999)))
    assert chunk_of(rig, source).state is ChunkState.DOOMED
    assert chunk_of(rig, to).state is ChunkState.SEALED
    assert chunks.retired(rig.store, 9) == []
    rig.check()
