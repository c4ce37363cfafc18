"""The checker itself: every table that is damaged is noticed."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dfs.core.ids import ROOT_INODE
from dfs.core.inode import Extent, InodeFlag
from dfs.master import commands, invariants, removal
from dfs.master import keyspace as keys
from dfs.wire.messages import Link, Open, PunchHole, SetXattr, Symlink, Unlink
from tests.unit.master.rig import Rig

TOP = ROOT_INODE
FILE, DIRECTORY, ORPHAN, TRIMMED = 2, 3, 5, 6
"""Inodes of the rig."""


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(removal, "INLINE_ROWS", 1)
    rig = Rig()
    chunk = rig.chunk()
    sealed = rig.chunk()
    assert rig.create(b"file") == FILE
    assert rig.mkdir(b"dir") == DIRECTORY
    rig.made(Symlink(TOP, b"link", b"target"))
    assert rig.create(b"orphan") == ORPHAN
    assert rig.create(b"trimmed") == TRIMMED
    rig.commit(FILE, (0, 10, chunk, 0), (20, 10, sealed, 0))
    rig.commit(TRIMMED, *[(10 * n, 5, chunk, 100 + 10 * n) for n in range(5)])
    rig.made(PunchHole(TRIMMED, 0, 23))
    rig.made(Open(ORPHAN))
    rig.do(Unlink(TOP, b"orphan"))
    rig.made(SetXattr(FILE, b"user.a", b"v"))
    rig.made(Link(FILE, DIRECTORY, b"again"))
    rig.seal(sealed, 10)
    rig.seal(rig.chunk(), 10)
    # A chunk whose only bytes have been copied to another.
    source = rig.chunk()
    rig.commit(FILE, (40, 10, source, 0))
    rig.seal(source, 10)
    placement = commands.Placement(1, 2, (1, 2, 3))
    copy = rig.state.apply(commands.AllocateTarget(rig.tick(), 1, placement)).chunk
    rig.state.apply(commands.Repoint(rig.tick(), copy, 10, (), source, ((0, 10),), 0))
    rig.check()
    return rig


def kept(rig: Rig) -> bytes:
    """Its key in the table of retired chunks."""
    ((key, _),) = keys.scan_prefix(rig.store, keys.RETIRED)
    return key


def inode(rig: Rig, number: int, /, **changes: object) -> dict[bytes, bytes | None]:
    return {keys.inode_key(number): keys.encode(replace(rig.inode(number), **changes))}


def chunk(rig: Rig, number: int, /, **changes: object) -> dict[bytes, bytes | None]:
    record = keys.get_chunk(rig.store, number)
    assert record is not None
    return {keys.chunk_key(number): keys.encode(replace(record, **changes))}


def counters(rig: Rig, **changes: object) -> dict[bytes, bytes | None]:
    return {keys.META_COUNTERS: keys.encode(replace(keys.get_counters(rig.store), **changes))}


def reserved(session: int, *ranges: tuple[int, int]) -> dict[bytes, bytes | None]:
    return {keys.reserved_key(session): keys.encode(keys.InodeRanges(ranges))}


Damage = Callable[[Rig], dict[bytes, bytes | None]]

DAMAGES: list[tuple[str, Damage]] = [
    ("root", lambda rig: {keys.inode_key(TOP): None}),
    ("does not exist", lambda rig: {keys.inode_key(DIRECTORY): None}),
    ("nlink", lambda rig: inode(rig, FILE, nlink=1)),
    ("nlink", lambda rig: inode(rig, TOP, nlink=9)),
    ("its size says", lambda rig: inode(rig, TOP, size=9)),
    ("but says", lambda rig: inode(rig, DIRECTORY, parent=FILE)),
    ("has a parent", lambda rig: inode(rig, FILE, parent=TOP)),
    ("its target", lambda rig: inode(rig, 4, size=3)),
    ("says 7", lambda rig: inode(rig, FILE, ino=7)),
    ("has policy 77", lambda rig: inode(rig, FILE, policy=77)),
    ("it says", lambda rig: inode(rig, FILE, allocated=3)),
    ("past the end of the file", lambda rig: inode(rig, FILE, size=3)),
    ("attributes and no flag", lambda rig: inode(rig, FILE, flags=0)),
    ("trims and no flag", lambda rig: inode(rig, TRIMMED, flags=0)),
    ("open and has no flag", lambda rig: inode(rig, ORPHAN, flags=0)),
    ("not in the purge queue", lambda rig: inode(rig, FILE, flags=InodeFlag.TRIMMED)),
    ("is no directory", lambda rig: {keys.dentry_key(FILE, b"x"): keys.u64(FILE)}),
    ("names 99", lambda rig: {keys.dentry_key(TOP, b"x"): keys.u64(99)}),
    ("cannot be", lambda rig: {keys.dentry_key(TOP, b"a/b"): keys.u64(FILE)}),
    ("2 names", lambda rig: {keys.dentry_key(TOP, b"x"): keys.u64(DIRECTORY)}),
    (
        "cannot be reached",
        lambda rig: {
            keys.dentry_key(TOP, b"dir"): None,
            keys.dentry_key(DIRECTORY, b"self"): keys.u64(DIRECTORY),
        },
    ),
    ("in the orphan table", lambda rig: {keys.orphan_key(ORPHAN): None}),
    ("in the orphan table", lambda rig: {keys.orphan_key(FILE): b"\0"}),
    ("is not open", lambda rig: {keys.open_key(ORPHAN, rig.session): None}),
    ("one of the two", lambda rig: {keys.open_key(FILE, rig.session): b"\4"}),
    (
        "session 99, which is unknown",
        lambda rig: {
            keys.open_key(FILE, 99): b"\4",
            keys.open_by_session_key(99, FILE): b"",
        },
    ),
    (
        "open and does not exist",
        lambda rig: {
            keys.open_key(99, rig.session): b"\4",
            keys.open_by_session_key(rig.session, 99): b"",
        },
    ),
    ("known and left over", lambda rig: {keys.leftovers_key(rig.session): b""}),
    ("a reply is kept", lambda rig: {keys.reply_key(99, 0): b""}),
    ("belongs to nobody", lambda rig: {keys.xattr_key(99, b"user.a"): b""}),
    ("extent-by-chunk", lambda rig: {keys.extent_key(FILE, 0): None}),
    ("not in extent-by-chunk", lambda rig: {keys.extent_by_chunk_key(1, 0, FILE, 0): None}),
    ("overlaps", lambda rig: {keys.extent_key(FILE, 5): keys.encode(Extent(5, 9, 1, 50))}),
    ("says 6", lambda rig: {keys.extent_key(FILE, 5): keys.encode(Extent(6, 1, 1, 50))}),
    ("has length 0", lambda rig: {keys.extent_key(FILE, 5): keys.encode(Extent(5, 0, 1, 0))}),
    ("is gone", lambda rig: {keys.extent_key(FILE, 50): keys.encode(Extent(50, 1, 9, 0))}),
    ("to nobody", lambda rig: {keys.extent_key(99, 0): keys.encode(Extent(0, 1, 1, 0))}),
    (
        "to no regular file",
        lambda rig: {keys.extent_key(DIRECTORY, 0): keys.encode(Extent(0, 1, 1, 0))},
    ),
    ("is empty", lambda rig: {keys.trim_key(TRIMMED, 900): keys.u64(900)}),
    ("overlap or touch", lambda rig: {keys.trim_key(TRIMMED, 20): keys.u64(30)}),
    ("straddles", lambda rig: {keys.trim_key(TRIMMED, 42): keys.u64(90)}),
    ("not in the purge queue", lambda rig: {keys.purge_key(TRIMMED): None}),
    ("no trim flag", lambda rig: {keys.purge_key(FILE): keys.u64(0)}),
    ("past the end of chunk", lambda rig: chunk(rig, 2, length=3)),
    ("live bytes", lambda rig: chunk(rig, 1, live=3)),
    ("is SEALED and owned", lambda rig: chunk(rig, 2, owner=rig.session)),
    ("not in fragment-by-disk", lambda rig: {keys.fragment_by_disk_key(1, 2): None}),
    ("for disk 9 by mistake", lambda rig: {keys.fragment_by_disk_key(9, 1): b"\0"}),
    ("among its session's", lambda rig: {keys.chunk_by_session_key(rig.session, 1): None}),
    ("for session 1 by mistake", lambda rig: {keys.chunk_by_session_key(1, 2): b""}),
    ("not so on disk 1", lambda rig: {keys.doomed_key(1, 3): None}),
    ("retired and not in that table", lambda rig: {kept(rig): None}),
    ("retired ones by mistake", lambda rig: {keys.retired_key(7, 2): b""}),
    ("a count", lambda rig: counters(rig, chunks_retired=5)),
    ("doomed on disk 1 by mistake", lambda rig: {keys.doomed_key(1, 1): b""}),
    (
        "is delegated and no directory",
        lambda rig: {
            keys.delegation_key(FILE): keys.u64(rig.session),
            keys.delegation_by_session_key(rig.session, FILE): b"",
        },
    ),
    (
        "to session 99, which is unknown",
        lambda rig: {
            keys.delegation_key(DIRECTORY): keys.u64(99),
            keys.delegation_by_session_key(99, DIRECTORY): b"",
        },
    ),
    (
        "which does not have it",
        lambda rig: {keys.delegation_key(DIRECTORY): keys.u64(rig.session)},
    ),
    (
        "which is not delegated to it",
        lambda rig: {keys.delegation_by_session_key(rig.session, DIRECTORY): b""},
    ),
    ("kept for session 99", lambda rig: reserved(99, (2, 3))),
    ("kept for session 1", lambda rig: reserved(rig.session, (3, 3))),
    ("would be given next", lambda rig: reserved(rig.session, (3, 1 << 40))),
    ("policies and their names", lambda rig: {keys.policy_by_name_key("x"): keys.u64(1)}),
    ("servers and their", lambda rig: {keys.server_by_uuid_key("x"): keys.u64(1)}),
    ("disks and their", lambda rig: {keys.disk_by_uuid_key("x"): keys.u64(1)}),
    ("sessions and their", lambda rig: {keys.session_by_nonce_key(1, "x"): keys.u64(1)}),
    ("a count", lambda rig: counters(rig, inodes=99)),
    ("a count", lambda rig: counters(rig, live=99)),
    ("would be given next", lambda rig: counters(rig, next_inode=2)),
    ("would be given next", lambda rig: counters(rig, next_session=1)),
]


@pytest.mark.parametrize(("said", "damage"), DAMAGES)
def test_damage_is_noticed(rig: Rig, said: str, damage: Damage, tmp_path: Path) -> None:
    rig.store.write(damage(rig))
    found = invariants.check(rig.store)
    assert any(said in sentence for sentence in found), found
    with_disk = invariants.problems(rig.store, scratch=tmp_path, run_records=3)
    assert [problem.text for problem in with_disk] == found


def test_every_record_of_the_schema_can_be_encoded_again(rig: Rig) -> None:
    for ino in (TOP, FILE, TRIMMED):
        raw = rig.store.get(keys.inode_key(ino))
        assert raw == msgspec.msgpack.encode(rig.inode(ino))
