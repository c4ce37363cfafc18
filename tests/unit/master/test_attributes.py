"""chmod, chown, utimens, truncate, extended attributes and policies: rights and effects."""

import errno
import stat

import pytest

from dfs.core.errors import DfsError
from dfs.core.ids import EC_POLICY, ROOT_INODE
from dfs.core.policy import BUILT_IN, Policy
from dfs.core.redundancy import Redundancy
from dfs.master import commands, keyspace, xattrs
from dfs.wire.messages import (
    Commit,
    Cred,
    Mkdir,
    Mknod,
    Open,
    RemoveXattr,
    SetAttr,
    SetPolicy,
    SetXattr,
    Symlink,
    Unlink,
)
from tests.unit.master.rig import ANN, BOB, ROOT, TEAM, Rig
from tests.unit.master.test_namespace import extent

E = errno
TOP = ROOT_INODE


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def mine(rig: Rig) -> int:
    """A file of Ann's, mode 644."""
    home = rig.mkdir(b"home")
    return rig.create(b"f", 0o644, ANN, home)


def mode_of(rig: Rig, ino: int) -> int:
    return rig.inode(ino).mode & 0o7777


# ------------------------------------------------------------------ chmod


def test_chmod_is_for_the_owner_and_root(rig: Rig, mine: int) -> None:
    inode = rig.made(SetAttr(mine, mode=0o4711), ANN)
    assert inode.mode == stat.S_IFREG | 0o4711
    assert inode.ctime_ns == rig.now != inode.mtime_ns
    assert rig.made(SetAttr(mine, mode=stat.S_IFDIR | 0o600)).mode == stat.S_IFREG | 0o600
    rig.refuses(E.EPERM, SetAttr(mine, mode=0o777), BOB)
    rig.refuses(E.ENOENT, SetAttr(99, mode=0o777))


def test_chmod_of_a_symlink_is_not_supported(rig: Rig) -> None:
    rig.refuses(E.EOPNOTSUPP, SetAttr(rig.made(Symlink(TOP, b"l", b"t")).ino, mode=0o600))


def test_chmod_drops_setgid_for_who_is_not_in_the_group(rig: Rig, mine: int) -> None:
    rig.made(SetAttr(mine, gid=BOB.gid))
    assert rig.made(SetAttr(mine, mode=0o2755), ANN).mode & 0o7777 == 0o755
    rig.made(SetAttr(mine, gid=TEAM))
    assert rig.made(SetAttr(mine, mode=0o2755), ANN).mode & 0o7777 == 0o2755
    rig.made(SetAttr(mine, gid=BOB.gid))
    assert rig.made(SetAttr(mine, mode=0o2755)).mode & 0o7777 == 0o2755


# ------------------------------------------------------------------ chown


def test_chown_rules(rig: Rig, mine: int) -> None:
    rig.refuses(E.EPERM, SetAttr(mine, uid=BOB.uid), ANN)
    rig.refuses(E.EPERM, SetAttr(mine, gid=BOB.gid), ANN)
    rig.refuses(E.EPERM, SetAttr(mine, gid=BOB.gid), BOB)
    rig.refuses(E.EPERM, SetAttr(mine, uid=ANN.uid), BOB)
    rig.refuses(E.EINVAL, SetAttr(mine, uid=-1))
    rig.refuses(E.EINVAL, SetAttr(mine, gid=(1 << 32) - 1))
    assert rig.made(SetAttr(mine, uid=ANN.uid, gid=TEAM), ANN).gid == TEAM
    inode = rig.made(SetAttr(mine, uid=BOB.uid, gid=7))
    assert (inode.uid, inode.gid) == (BOB.uid, 7)
    assert rig.made(SetAttr(mine, gid=7), BOB).gid == 7, "the group it has needs no membership"


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755), (0o755, 0o755), (0o1755, 0o1755)],
)
def test_chown_clears_set_id_bits_of_files(rig: Rig, mine: int, before: int, after: int) -> None:
    rig.made(SetAttr(mine, mode=before))
    assert rig.made(SetAttr(mine, gid=TEAM), ANN).mode & 0o7777 == after
    rig.made(SetAttr(mine, mode=before))
    assert rig.made(SetAttr(mine, uid=ANN.uid)).mode & 0o7777 == after, "also for root"


def test_chown_keeps_setgid_of_directories_and_of_files_without_group_execute(
    rig: Rig, mine: int
) -> None:
    home = rig.mkdir(b"d")
    rig.made(SetAttr(home, mode=0o2755))
    assert rig.made(SetAttr(home, gid=TEAM)).mode & 0o7777 == 0o2755
    rig.made(SetAttr(mine, mode=0o6644, gid=TEAM))
    assert rig.made(SetAttr(mine, gid=TEAM), ANN).mode & 0o7777 == 0o2644


def test_chown_and_chmod_in_one_leave_the_mode_asked_for(rig: Rig, mine: int) -> None:
    assert rig.made(SetAttr(mine, uid=7, gid=7, mode=0o6755)).mode & 0o7777 == 0o6755


# ------------------------------------------------------------------ data changes and privileges


def test_writing_and_truncating_clear_set_id_bits_unless_root_does_it(rig: Rig, mine: int) -> None:
    chunk = rig.chunk()
    for op in (Commit(mine, (extent(chunk, 0, 5, 0),)), SetAttr(mine, size=3)):
        rig.made(SetAttr(mine, mode=0o6755))
        assert rig.made(op, ROOT).mode & 0o7777 == 0o6755
        assert rig.made(op, ANN).mode & 0o7777 == 0o755
        rig.made(SetAttr(mine, mode=0o2644, gid=TEAM))
        rig.made(SetAttr(mine, mode=0o2644))
        assert rig.made(op, ANN).mode & 0o7777 == 0o2644


def test_writing_takes_capabilities_away(rig: Rig, mine: int) -> None:
    rig.made(SetXattr(mine, b"security.capability", b"\1"))
    rig.made(SetXattr(mine, b"user.a", b"1"), ANN)
    rig.made(SetAttr(mine, size=3))
    assert xattrs.list_xattr(rig.store, mine) == (b"user.a",)
    rig.check()


def test_chown_takes_capabilities_away_but_not_from_directories(rig: Rig, mine: int) -> None:
    home = rig.mkdir(b"d")
    for ino in (mine, home):
        rig.made(SetXattr(ino, b"security.capability", b"\1"))
        rig.made(SetAttr(ino, mode=0o755))
        assert xattrs.list_xattr(rig.store, ino) == (b"security.capability",)
        rig.made(SetAttr(ino, gid=TEAM))
    assert xattrs.list_xattr(rig.store, mine) == ()
    assert xattrs.list_xattr(rig.store, home) == (b"security.capability",)
    rig.check()


# ------------------------------------------------------------------ truncate


def test_truncate_needs_the_right_to_write_or_an_open_for_writing(rig: Rig, mine: int) -> None:
    rig.refuses(E.EACCES, SetAttr(mine, size=1), BOB)
    rig.made(SetAttr(mine, mode=0o666))
    rig.made(Open(mine, 2), BOB)
    rig.made(SetAttr(mine, mode=0o400))
    inode = rig.made(SetAttr(mine, size=1 << 40), BOB)
    assert (inode.size, inode.allocated) == (1 << 40, 0)
    assert inode.mtime_ns == inode.ctime_ns == rig.now
    rig.refuses(E.EACCES, SetAttr(mine, size=1), BOB, rig.open_session())


def test_truncate_refusals(rig: Rig, mine: int) -> None:
    rig.refuses(E.EISDIR, SetAttr(TOP, size=0))
    rig.refuses(E.EINVAL, SetAttr(rig.made(Symlink(TOP, b"l", b"t")).ino, size=0))
    rig.refuses(E.EINVAL, SetAttr(rig.made(Mknod(TOP, b"p", stat.S_IFIFO | 0o666)).ino, size=0))
    rig.refuses(E.EINVAL, SetAttr(mine, size=-1))
    rig.refuses(E.EFBIG, SetAttr(mine, size=(1 << 62) + 1))
    rig.made(SetAttr(mine, size=1 << 62))


def test_one_refused_field_leaves_the_others_alone(rig: Rig, mine: int) -> None:
    rig.refuses(E.EPERM, SetAttr(mine, size=0, uid=0, mode=0o777), ANN)


# ------------------------------------------------------------------ times


def test_times_are_the_owners_to_set(rig: Rig, mine: int) -> None:
    inode = rig.made(SetAttr(mine, atime_ns=-7, mtime_ns=8), ANN)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (-7, 8, rig.now)
    rig.made(SetAttr(mine, mode=0o666))
    rig.refuses(E.EPERM, SetAttr(mine, mtime_ns=8), BOB)
    rig.refuses(E.EPERM, SetAttr(mine, mtime_now=True), BOB)
    inode = rig.made(SetAttr(mine, atime_now=True), ANN)
    assert (inode.atime_ns, inode.mtime_ns) == (rig.now, 8)
    rig.refuses(E.EINVAL, SetAttr(mine, mtime_ns=1 << 63))
    rig.refuses(E.EINVAL, SetAttr(mine, atime_ns=(1 << 64) - 1))


def test_touching_both_takes_the_right_to_write(rig: Rig, mine: int) -> None:
    now = SetAttr(mine, atime_now=True, mtime_now=True)
    rig.refuses(E.EACCES, now, BOB)
    rig.made(now, ANN)
    rig.made(SetAttr(mine, mode=0o666))
    inode = rig.made(now, BOB)
    assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == rig.now
    rig.made(SetAttr(mine, mode=0o400))
    rig.made(now, ANN)


def test_setting_nothing_changes_nothing(rig: Rig, mine: int) -> None:
    before = rig.inode(mine)
    assert rig.made(SetAttr(mine), BOB) == before


# ------------------------------------------------------------------ extended attributes


def test_xattrs_are_kept_listed_and_removed(rig: Rig, mine: int) -> None:
    for name in (b"user.b", b"user.a"):
        inode = rig.made(SetXattr(mine, name, b"v" + name), ANN)
        assert inode.ctime_ns == rig.now
    assert xattrs.list_xattr(rig.store, mine) == (b"user.a", b"user.b")
    assert xattrs.get_xattr(rig.store, BOB, mine, b"user.a") == b"vuser.a"
    rig.check()
    rig.made(RemoveXattr(mine, b"user.a"), ANN)
    rig.made(RemoveXattr(mine, b"user.b"), ANN)
    assert xattrs.list_xattr(rig.store, mine) == ()
    assert rig.inode(mine).flags == 0
    rig.check()


def test_xattr_refusals(rig: Rig, mine: int) -> None:
    rig.made(SetXattr(mine, b"user.a", b""), ANN)
    rig.refuses(E.EEXIST, SetXattr(mine, b"user.a", b"", mode=1), ANN)
    rig.refuses(E.ENODATA, SetXattr(mine, b"user.b", b"", mode=2), ANN)
    rig.refuses(E.EINVAL, SetXattr(mine, b"user.b", b"", mode=3), ANN)
    rig.refuses(E.ENODATA, RemoveXattr(mine, b"user.b"), ANN)
    rig.refuses(E.EACCES, SetXattr(mine, b"user.b", b""), BOB)
    rig.refuses(E.EACCES, RemoveXattr(mine, b"user.a"), BOB)
    rig.refuses(E.ENOENT, SetXattr(99, b"user.a", b""))
    for name, number in (
        (b"", E.ERANGE),
        (b"user." + b"x" * 251, E.ERANGE),
        (b"user.", E.EINVAL),
        (b"user.a\0", E.EINVAL),
        (b"user", E.EOPNOTSUPP),
        (b"other.a", E.EOPNOTSUPP),
        (b"system.posix_acl_access", E.EOPNOTSUPP),
    ):
        rig.refuses(number, SetXattr(mine, name, b""))
        assert get_errno(rig, ROOT, mine, name) == number
    rig.refuses(E.E2BIG, SetXattr(mine, b"user.b", bytes(65537)))
    rig.made(SetXattr(mine, b"user." + b"x" * 250, bytes(65536)))
    rig.check()


def get_errno(rig: Rig, cred: Cred, ino: int, name: bytes) -> int | None:
    with pytest.raises(DfsError) as caught:
        xattrs.get_xattr(rig.store, cred, ino, name)
    return caught.value.errno


def test_xattrs_of_no_inode(rig: Rig) -> None:
    for ino in (99, -1):
        assert get_errno(rig, ROOT, ino, b"user.a") == E.ENOENT
        with pytest.raises(DfsError, match="No such file"):
            xattrs.list_xattr(rig.store, ino)


def test_xattr_values_have_room_for_a_mebibyte(rig: Rig, mine: int) -> None:
    for number in range(16):
        rig.made(SetXattr(mine, b"user.%d" % number, bytes(65536)))
    rig.refuses(E.ENOSPC, SetXattr(mine, b"user.a", b"1"))
    rig.made(SetXattr(mine, b"user.0", bytes(65536)))
    rig.made(SetXattr(mine, b"user.0", bytes(65535)))
    rig.made(SetXattr(mine, b"user.a", b"1"))
    rig.refuses(E.ENOSPC, SetXattr(mine, b"user.0", bytes(65536)))


def test_xattr_names_have_room_for_a_list_of_64_kib(rig: Rig, mine: int) -> None:
    for number in range(256):
        rig.made(SetXattr(mine, b"user.%0250d" % number, b""))
    rig.refuses(E.ENOSPC, SetXattr(mine, b"user.a", b""))
    rig.made(SetXattr(mine, b"user.%0250d" % 0, b"again"))
    assert sum(len(name) + 1 for name in xattrs.list_xattr(rig.store, mine)) == 65536
    rig.do(Unlink(rig.resolve(b"/home").ino, b"f"))
    rig.check()
    rig.purge()
    assert not list(rig.store.scan(b"a", b"b"))
    rig.check()


def test_name_spaces_of_xattrs_have_their_rules(rig: Rig, mine: int) -> None:
    rig.refuses(E.EPERM, SetXattr(mine, b"trusted.a", b""), ANN)
    rig.refuses(E.EPERM, SetXattr(mine, b"security.a", b""), ANN)
    rig.made(SetXattr(mine, b"trusted.a", b"t"))
    rig.made(SetXattr(mine, b"security.a", b"s"))
    assert get_errno(rig, ANN, mine, b"trusted.a") == E.ENODATA
    assert xattrs.get_xattr(rig.store, BOB, mine, b"security.a") == b"s"
    link = rig.made(Symlink(TOP, b"l", b"t")).ino
    rig.refuses(E.EPERM, SetXattr(link, b"user.a", b""))
    rig.made(SetXattr(link, b"trusted.a", b""))
    assert get_errno(rig, ROOT, link, b"user.a") == E.ENODATA
    rig.made(SetAttr(mine, mode=0o200))
    assert get_errno(rig, BOB, mine, b"user.a") == E.EACCES


def test_in_a_sticky_directory_xattrs_are_the_owners(rig: Rig) -> None:
    tmp = rig.made(Mkdir(TOP, b"tmp", 0o1777)).ino
    rig.refuses(E.EPERM, SetXattr(tmp, b"user.a", b""), ANN)
    rig.made(SetXattr(tmp, b"user.a", b""))


# ------------------------------------------------------------------ policies


def test_policies_are_inherited_when_a_file_is_made(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    old = rig.create(b"old", parent=home)
    rig.made(SetPolicy(home, EC_POLICY))
    below = rig.mkdir(b"d", parent=home)
    assert rig.inode(below).policy == EC_POLICY
    assert rig.inode(rig.create(b"f", parent=below)).policy == EC_POLICY
    assert rig.inode(old).policy == rig.inode(TOP).policy == 1
    rig.check()


def test_set_policy_refusals(rig: Rig, mine: int) -> None:
    rig.refuses(E.EPERM, SetPolicy(mine, EC_POLICY), BOB)
    rig.refuses(E.EINVAL, SetPolicy(mine, 99), ANN)
    rig.refuses(E.EINVAL, SetPolicy(rig.made(Symlink(TOP, b"l", b"t")).ino, EC_POLICY))
    rig.refuses(E.ENOENT, SetPolicy(99, EC_POLICY))
    assert rig.made(SetPolicy(mine, EC_POLICY), ANN).ctime_ns == rig.now


def create_policy(rig: Rig, policy: Policy) -> Policy:
    command = commands.CreatePolicy(rig.tick(), rig.session, rig.next_sequence(), policy)
    return rig.state.apply(command)


def test_create_policy_gives_a_number_above_the_built_in_ones(rig: Rig) -> None:
    assert keyspace.policies(rig.store) == list(BUILT_IN)
    policy = create_policy(rig, Policy(1, "wide", Redundancy(8, 3), None))
    assert policy.policy == 16
    assert keyspace.get_policy(rig.store, 16) == policy
    assert keyspace.get_policy_named(rig.store, "wide") == policy
    rig.check()


@pytest.mark.parametrize(
    ("policy", "number"),
    [
        (Policy(0, "default", Redundancy(1, 1), 3), E.EEXIST),
        (Policy(0, "Bad", Redundancy(1, 1), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(1, 9), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(1, -1), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(0, 3), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(17, 2), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(4, 0), 3), E.EINVAL),
        (Policy(0, "a", Redundancy(4, 2), 20), E.EINVAL),
        (Policy(0, "a", Redundancy(4, 2), 0), E.EINVAL),
    ],
)
def test_create_policy_refusals(rig: Rig, policy: Policy, number: int) -> None:
    with pytest.raises(DfsError) as caught:
        create_policy(rig, policy)
    assert caught.value.errno == number
    assert keyspace.policies(rig.store) == list(BUILT_IN)
