"""Repairs: each kind of damage is mended, or left alone where mending it could lose data."""

from random import Random

import pytest
from msgspec.structs import replace

from dfs.core.chunk import ChunkState
from dfs.master import commands, invariants
from dfs.master import keyspace as keys
from dfs.master.check.fixes import AnyFix, RebuildChunk
from dfs.master.check.repair import by_stage
from dfs.wire.messages import Unlink
from tests.unit.master.rig import Rig
from tests.unit.master.test_invariants import (
    DAMAGES,
    DIRECTORY,
    FILE,
    ORPHAN,
    TOP,
    TRIMMED,
    Damage,
    inode,
    rig,
)

__all__ = ["rig"]

LEFT = frozenset(
    (
        "says 7",
        "past the end of the file",
        "cannot be",
        "overlaps",
        "says 6",
        "has length 0",
        "is gone",
        "to no regular file",
        "past the end of chunk",
        "servers and their",
        "disks and their",
    )
)
"""Nothing can be done about these without a person who knows what is right."""


def mend(rig: Rig, *fixes: AnyFix) -> tuple[bool, ...]:
    return rig.state.apply(commands.MendMetadata(rig.tick(), fixes))


def repair(rig: Rig) -> list[str]:
    """Check and mend, round after round; what is left in the end."""
    for _ in range(20):
        found = list(invariants.problems(rig.store))
        changed = False
        for fixes in by_stage(found):
            changed = changed or any(mend(rig, *fixes))
        if not changed:
            return [problem.text for problem in found]
    raise AssertionError(f"no end: {found}")


@pytest.mark.parametrize(("said", "damage"), DAMAGES)
def test_damage_is_mended(rig: Rig, said: str, damage: Damage) -> None:
    rig.store.write(damage(rig))
    left = repair(rig)
    if said in LEFT:
        assert any(said in text for text in left), left
    else:
        assert left == []


def test_what_is_sound_is_not_touched(rig: Rig) -> None:
    before = rig.rows()
    assert repair(rig) == []
    assert rig.rows() == before


def test_a_lost_record_of_a_file_is_made_anew_under_its_name_with_its_data(rig: Rig) -> None:
    extents = rig.extents(FILE)
    rig.store.write({keys.inode_key(FILE): None})
    assert repair(rig) == []
    assert rig.resolve(b"/file").ino == FILE
    assert rig.resolve(b"/dir/again").nlink == 2
    assert rig.extents(FILE) == extents
    assert rig.inode(FILE).size == 50
    assert rig.inode(FILE).mode == 0o100600


def test_a_lost_record_of_a_directory_is_made_anew_with_its_entries(rig: Rig) -> None:
    below = rig.mkdir(b"below", parent=DIRECTORY)
    rig.store.write({keys.inode_key(DIRECTORY): None})
    assert repair(rig) == []
    assert rig.resolve(b"/dir").mode == 0o040700
    assert rig.names(DIRECTORY) == [b"again", b"below"]
    assert rig.resolve(b"/dir/below").ino == below


def test_the_root_is_made_anew(rig: Rig) -> None:
    names = rig.names()
    rig.store.write({keys.inode_key(TOP): None})
    assert repair(rig) == []
    assert rig.names() == names


def test_a_file_whose_name_is_lost_gets_one_in_lost_and_found(rig: Rig) -> None:
    rig.store.write(
        {keys.dentry_key(TOP, b"file"): None, keys.dentry_key(DIRECTORY, b"again"): None}
    )
    assert repair(rig) == []
    assert rig.resolve(b"/lost+found/#%d" % FILE).ino == FILE
    assert len(rig.extents(FILE)) == 3


def test_a_tree_whose_name_is_lost_is_kept_as_a_tree(rig: Rig) -> None:
    rig.mkdir(b"below", parent=DIRECTORY)
    rig.store.write({keys.dentry_key(TOP, b"dir"): None})
    assert repair(rig) == []
    assert rig.names(rig.resolve(b"/lost+found/#%d" % DIRECTORY).ino) == [b"again", b"below"]


def test_a_circle_of_directories_is_cut_and_kept(rig: Rig) -> None:
    one = rig.mkdir(b"one", parent=DIRECTORY)
    two = rig.mkdir(b"two", parent=one)
    rig.store.write(
        {
            keys.dentry_key(DIRECTORY, b"one"): None,
            keys.dentry_key(two, b"one"): keys.u64(one),
            **inode(rig, one, parent=two),
        }
    )
    assert any("cannot be reached" in text for text in invariants.check(rig.store))
    assert repair(rig) == []
    assert rig.resolve(b"/lost+found/#%d/two" % one).ino == two


def test_extents_that_belong_to_nobody_become_a_file(rig: Rig) -> None:
    extents = rig.extents(TRIMMED)
    rig.store.write(
        {
            keys.inode_key(TRIMMED): None,
            keys.dentry_key(TOP, b"trimmed"): None,
            keys.purge_key(TRIMMED): None,
        }
    )
    assert repair(rig) == []
    rescued = rig.resolve(b"/lost+found/#%d" % TRIMMED)
    assert rescued.size == 45
    assert [each for each in rig.extents(TRIMMED) if each[0] >= 23] == list(extents)


def test_a_lost_extent_comes_back_from_its_index(rig: Rig) -> None:
    extents = rig.extents(FILE)
    rig.store.write({keys.extent_key(FILE, 20): None})
    assert repair(rig) == []
    assert rig.extents(FILE) == extents


def test_an_index_row_of_bytes_that_the_file_does_not_lack_is_dropped(rig: Rig) -> None:
    rig.store.write({keys.extent_by_chunk_key(1, 500, FILE, 25): (3).to_bytes(4, "big")})
    before = rig.extents(FILE)
    assert repair(rig) == []
    assert rig.extents(FILE) == before


def test_an_orphan_that_nobody_has_open_is_not_deleted_but_named(rig: Rig) -> None:
    rig.store.write(
        {
            keys.open_key(ORPHAN, rig.session): None,
            keys.open_by_session_key(rig.session, ORPHAN): None,
        }
    )
    assert repair(rig) == []
    assert rig.resolve(b"/lost+found/#%d" % ORPHAN).nlink == 1


def test_a_file_that_is_called_lost_and_found_is_left_in_peace(rig: Rig) -> None:
    ino = rig.create(b"lost+found")
    rig.store.write({keys.dentry_key(TOP, b"dir"): None})
    assert repair(rig) == []
    assert rig.resolve(b"/lost+found").ino == ino
    assert rig.resolve(b"/lost+found~/#%d" % DIRECTORY).ino == DIRECTORY


def test_counts_that_changed_between_check_and_repair_come_out_right(rig: Rig) -> None:
    """A fix of a count is a difference: what happens meanwhile is not undone."""
    rig.store.write(inode(rig, FILE, nlink=7) | inode(rig, TOP, size=99))
    (fixes,) = by_stage(invariants.problems(rig.store))
    rig.create(b"meanwhile")
    other = rig.mkdir(b"other")
    rig.commit(FILE, (100, 10, rig.chunk(), 0))
    assert mend(rig, *fixes) == (True, True)
    rig.check()
    assert rig.inode(other).nlink == 2


def test_a_fix_of_what_is_gone_by_now_changes_nothing(rig: Rig) -> None:
    rig.store.write(inode(rig, FILE, nlink=7))
    (fixes,) = by_stage(invariants.problems(rig.store))
    rig.store.write(inode(rig, FILE, nlink=2))
    rig.check()
    rig.do(Unlink(TOP, b"file"))
    rig.do(Unlink(DIRECTORY, b"again"))
    assert not rig.exists(FILE)
    assert mend(rig, *fixes) == (False,)
    rig.check()


def test_a_chunk_that_nothing_refers_to_is_freed(rig: Rig) -> None:
    number = rig.chunk()
    rig.commit(FILE, (200, 10, number, 0))
    rig.seal(number, 10)
    rig.store.write(
        {
            keys.extent_key(FILE, 200): None,
            keys.extent_by_chunk_key(number, 0, FILE, 200): None,
            **inode(rig, FILE, allocated=rig.inode(FILE).allocated - 10),
        }
    )
    assert repair(rig) == []
    assert rig.live(number) == 0


def test_a_lost_record_of_a_chunk_is_made_anew_of_what_disks_hold(rig: Rig) -> None:
    rig.store.write({keys.chunk_key(2): None})
    fix = RebuildChunk(2, 1, 2, ((0, 1), (1, 2)))
    assert mend(rig, fix) == (True,)
    assert repair(rig) == []
    chunk = keys.get_chunk(rig.store, 2)
    assert chunk is not None
    assert (chunk.state, chunk.owner, chunk.length) == (ChunkState.OPEN, 0, 10)
    assert mend(rig, fix) == (False,)
    rig.store.write({keys.chunk_key(1): None})
    assert mend(rig, RebuildChunk(1, 1, 2, ((3, 1),)), RebuildChunk(77, 1, 2, ((0, 1),))) == (
        False,
        False,
    )


@pytest.mark.parametrize("damage", ["its record is lost", "it is no longer open"])
def test_a_damaged_open_chunk_keeps_no_master_from_its_start(rig: Rig, damage: str) -> None:
    """It gives up what the last one had under way; and sessions end that had chunks open."""
    placement = commands.Placement(1, 2, (4, 5, 6))
    targets = [
        rig.state.apply(commands.AllocateTarget(rig.tick(), 1, placement)).chunk for _ in range(2)
    ]
    mine = rig.chunk()
    batch: dict[bytes, bytes | None] = {}
    for number in (targets[0], mine):
        chunk = keys.get_chunk(rig.store, number)
        assert chunk is not None
        sealed = keys.encode(replace(chunk, state=ChunkState.SEALED, owner=0))
        batch[keys.chunk_key(number)] = None if "lost" in damage else sealed
    rig.store.write(batch)
    rig.state.apply(commands.StartMaster(rig.tick(), 100))
    rig.close_session()
    other = keys.get_chunk(rig.store, targets[1])
    assert other is not None
    assert other.state is ChunkState.DOOMED
    assert repair(rig) == []


def test_damage_upon_damage_comes_to_an_end(rig: Rig) -> None:
    """Everything that can be mended, at once."""
    together: dict[bytes, bytes | None] = {}
    for said, damage in DAMAGES:
        if said not in LEFT:
            together.update(damage(rig))
    rig.store.write(together)
    left = repair(rig)
    assert all(any(said in text for said in LEFT) for text in left), left


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_to_rows_a_repair_comes_to_an_end(rig: Rig, seed: int) -> None:
    """Rows deleted, swapped, cut and filled with noise; nothing but the meta table is spared."""
    chance = Random(seed)
    rows = {key: value for key, value in rig.rows().items() if key[:1] != b"m"}
    together: dict[bytes, bytes | None] = {}
    for key in chance.sample(sorted(rows), k=chance.randrange(1, 8)):
        alike = [other for other in rows if other[:1] == key[:1]]
        together[key] = chance.choice(
            [None, None, rows[chance.choice(alike)], rows[key][:-1], chance.randbytes(8)]
        )
    rig.store.write(together)
    repair(rig)


def content(rig: Rig) -> set[tuple[int, int, int]]:
    """(chunk, offset, length) of all that files hold, wherever they are by now."""
    found = set()
    for key, value in keys.scan_prefix(rig.store, keys.EXTENT):
        if keys.get_inode(rig.store, keys.key_id(key)) is not None:
            extent = keys.decode_extent(value)
            found.add((extent.chunk, extent.chunk_offset, extent.length))
    return found


def test_no_row_is_so_important_that_its_loss_takes_content_with_it(rig: Rig) -> None:
    """But the record of a file that is in the purge queue, and records of chunks (see `disks`)."""
    before, rows = content(rig), rig.rows()
    spared = {keys.inode_key(TRIMMED), *(key for key in rows if key[:1] in (b"c", b"m"))}
    assert len(rows) - len(spared) > 50
    for key in sorted(rows.keys() - spared):
        rig.store.write({key: None})
        repair(rig)
        assert content(rig) >= before, key
        after = rig.rows()
        rig.store.write({each: rows.get(each) for each in {*rows, *after}})
