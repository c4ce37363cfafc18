"""Operations on names: what they do, and the errno of every refusal."""

import errno
import stat

import pytest

from dfs.core.ids import LINK_MAX, ROOT_INODE
from dfs.core.inode import Extent
from dfs.master.keyspace import encode, get_inode, inode_key
from dfs.wire.messages import (
    AnyOp,
    Create,
    Cred,
    Link,
    Mkdir,
    Mknod,
    Open,
    Put,
    Release,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    Symlink,
    Unlink,
    Unnamed,
)
from tests.unit.master.rig import ANN, BOB, ROOT, TEAM, Rig

E = errno
LONG = b"n" * 256
TOP = ROOT_INODE


@pytest.fixture
def rig() -> Rig:
    return Rig()


def set_nlink(rig: Rig, ino: int, nlink: int) -> None:
    from msgspec.structs import replace

    inode = get_inode(rig.store, ino)
    assert inode is not None
    rig.store.write({inode_key(ino): encode(replace(inode, nlink=nlink))})


# ------------------------------------------------------------------ what is made


def test_create_makes_a_file_of_the_caller_with_the_masters_time(rig: Rig) -> None:
    home = rig.mkdir(b"home", 0o777)
    inode = rig.made(Create(home, b"f", 0o104755), ANN)
    assert inode.mode == stat.S_IFREG | 0o4755
    assert (inode.uid, inode.gid, inode.nlink, inode.size) == (1000, 1000, 1, 0)
    assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == rig.now
    parent = rig.inode(home)
    assert (parent.size, parent.nlink) == (1, 2)
    assert parent.mtime_ns == parent.ctime_ns == rig.now
    rig.check()


def test_create_without_exclusive_returns_the_file_that_is_there(rig: Rig) -> None:
    ino = rig.create(b"f", 0o600)
    assert rig.made(Create(TOP, b"f", 0o644, exclusive=False), BOB).ino == ino
    assert rig.inode(ino).mode == stat.S_IFREG | 0o600


def test_create_and_open_grants_writing_whatever_the_mode(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    inode = rig.made(Create(home, b"f", 0o400, open=True), ANN)
    rig.made(SetAttr(inode.ino, size=5), ANN)
    rig.made(Release(inode.ino), ANN)
    rig.refuses(E.EACCES, SetAttr(inode.ino, size=6), ANN)


def test_create_and_open_of_a_file_that_is_there_checks_what_is_asked_for(rig: Rig) -> None:
    rig.create(b"f", 0o644)
    rig.refuses(E.EACCES, Create(TOP, b"f", 0o644, exclusive=False, open=True), ANN)
    rig.made(Create(TOP, b"f", 0o644, exclusive=False, open=True, access=4), ANN)


def test_mkdir_counts_links_and_drops_set_id_bits(rig: Rig) -> None:
    inode = rig.made(Mkdir(TOP, b"d", 0o7777))
    assert inode.mode == stat.S_IFDIR | 0o1777
    assert (inode.nlink, inode.size, inode.parent) == (2, 0, TOP)
    assert rig.inode(TOP).nlink == 3
    rig.check()


def test_a_setgid_directory_hands_on_its_group(rig: Rig) -> None:
    shared = rig.mkdir(b"shared")
    rig.made(SetAttr(shared, mode=0o2777, gid=TEAM))
    assert rig.made(Create(shared, b"f", 0o644), BOB).gid == TEAM
    below = rig.made(Mkdir(shared, b"d", 0o755), BOB)
    assert below.gid == TEAM
    assert below.mode == stat.S_IFDIR | 0o2755


def test_setgid_on_a_new_executable_is_for_members_of_the_group(rig: Rig) -> None:
    shared = rig.mkdir(b"shared")
    rig.made(SetAttr(shared, mode=0o2777, gid=TEAM))
    assert rig.made(Create(shared, b"member", 0o2755), ANN).mode & 0o7777 == 0o2755
    assert rig.made(Create(shared, b"other", 0o2755), BOB).mode & 0o7777 == 0o755
    assert rig.made(Create(shared, b"locked", 0o2644), BOB).mode & 0o7777 == 0o2644


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_mknod_makes_special_files_for_everyone(rig: Rig, kind: int) -> None:
    home = rig.mkdir(b"home")
    inode = rig.made(Mknod(home, b"n", kind | 0o644, rdev=7), ANN)
    assert inode.mode == kind | 0o644
    assert inode.rdev == 0


def test_mknod_makes_devices_for_root_only(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    assert rig.made(Mknod(home, b"n", stat.S_IFBLK | 0o600, rdev=0x801)).rdev == 0x801
    rig.refuses(E.EPERM, Mknod(home, b"m", stat.S_IFCHR | 0o600, rdev=1), ANN)
    rig.refuses(E.EPERM, Mknod(home, b"m", stat.S_IFDIR | 0o600))
    rig.refuses(E.EINVAL, Mknod(home, b"m", stat.S_IFLNK | 0o600))
    rig.refuses(E.EINVAL, Mknod(home, b"m", stat.S_IFCHR | 0o600, rdev=-1))


def test_symlink_keeps_any_target(rig: Rig) -> None:
    inode = rig.made(Symlink(TOP, b"l", b"../\xff"))
    assert inode.mode == stat.S_IFLNK | 0o777
    assert (inode.size, inode.target) == (4, b"../\xff")
    rig.refuses(E.ENOENT, Symlink(TOP, b"m", b""))
    rig.refuses(E.ENAMETOOLONG, Symlink(TOP, b"m", b"x" * 4096))
    rig.refuses(E.EINVAL, Symlink(TOP, b"m", b"a\0b"))
    assert rig.made(Symlink(TOP, b"m", b"x" * 4095)).size == 4095


# ------------------------------------------------------------------ refusals of all of them


def makers(parent: int, name: bytes) -> list[AnyOp]:
    return [
        Create(parent, name, 0o644),
        Mkdir(parent, name, 0o755),
        Mknod(parent, name, stat.S_IFIFO | 0o644),
        Symlink(parent, name, b"t"),
        Put(parent, name, 0o644, 0, replace=False),
    ]


def movers(parent: int, name: bytes, victim: int) -> list[AnyOp]:
    """Operations on an entry that is there (and `Link`, which needs one free)."""
    return [
        Unlink(parent, name),
        Rmdir(parent, name),
        Rename(parent, name, TOP, b"elsewhere"),
        Rename(TOP, b"elsewhere", parent, name),
        Link(victim, parent, name),
    ]


@pytest.mark.parametrize("position", range(5))
def test_bad_names_and_parents_are_refused(rig: Rig, position: int) -> None:
    victim = rig.create(b"elsewhere")

    def refuses(number: int, parent: int, name: bytes) -> None:
        rig.refuses(number, makers(parent, name)[position])
        rig.refuses(number, movers(parent, name, victim)[position])

    refuses(E.ENOENT, 999, b"n")
    refuses(E.ENOTDIR, victim, b"n")
    refuses(E.ENAMETOOLONG, TOP, LONG)
    refuses(E.ENOENT, TOP, b"")
    refuses(E.EINVAL, TOP, b"a/b")
    refuses(E.EINVAL, TOP, b"a\0b")
    refuses(E.EINVAL, -1, b"n")


def test_the_longest_name_is_allowed(rig: Rig) -> None:
    for number, op in enumerate(makers(TOP, b"n" * 255)):
        parent = rig.mkdir(b"%d" % number)
        rig.made(
            type(op)(**{**{f: getattr(op, f) for f in op.__struct_fields__}, "parent": parent})
        )
    rig.check()


@pytest.mark.parametrize("position", range(5))
def test_making_what_is_there_is_refused_before_permission_is_looked_at(
    rig: Rig, position: int
) -> None:
    home = rig.mkdir(b"home", 0o755)
    rig.create(b"there", parent=home)
    rig.refuses(E.EEXIST, makers(home, b"there")[position], ANN)
    rig.refuses(E.EACCES, makers(home, b"new")[position], ANN)


@pytest.mark.parametrize("position", range(5))
def test_a_directory_that_cannot_be_searched_shows_nothing(rig: Rig, position: int) -> None:
    home = rig.mkdir(b"home", 0o666)
    there = rig.create(b"there", parent=home)
    rig.refuses(E.EACCES, makers(home, b"there")[position], ANN)
    rig.refuses(E.EACCES, movers(home, b"there", there)[position], ANN)


@pytest.mark.parametrize(
    ("op", "number"),
    [
        (Create(TOP, b".", 0o644), E.EEXIST),
        (Create(TOP, b"..", 0o644, exclusive=False), E.EISDIR),
        (Mkdir(TOP, b".", 0o755), E.EEXIST),
        (Mknod(TOP, b"..", stat.S_IFIFO), E.EEXIST),
        (Symlink(TOP, b".", b"t"), E.EEXIST),
        (Link(2, TOP, b".."), E.EEXIST),
        (Unlink(TOP, b"."), E.EISDIR),
        (Unlink(TOP, b".."), E.EISDIR),
        (Rmdir(TOP, b"."), E.EINVAL),
        (Rmdir(TOP, b".."), E.ENOTEMPTY),
        (Rename(TOP, b".", TOP, b"x"), E.EBUSY),
        (Rename(TOP, b"f", TOP, b".."), E.EBUSY),
        (Rename(TOP, b"f", TOP, b"..", RenameFlag.NOREPLACE), E.EEXIST),
        (Put(TOP, b".", 0o644, 0), E.EISDIR),
    ],
)
def test_dot_and_dotdot_are_refused(rig: Rig, op: AnyOp, number: int) -> None:
    assert rig.create(b"f") == 2
    rig.refuses(number, op)


def test_directories_have_a_greatest_number_of_subdirectories(rig: Rig) -> None:
    full = rig.mkdir(b"full")
    other = rig.mkdir(b"other")
    rig.mkdir(b"d", parent=other)
    set_nlink(rig, full, LINK_MAX)
    rig.refuses(E.EMLINK, Mkdir(full, b"d", 0o755))
    rig.refuses(E.EMLINK, Rename(other, b"d", full, b"d"))
    rig.made(Create(full, b"f", 0o644))


# ------------------------------------------------------------------ link


def test_link_adds_a_name(rig: Rig) -> None:
    ino = rig.create(b"f")
    inode = rig.made(Link(ino, TOP, b"g"))
    assert (inode.ino, inode.nlink, inode.ctime_ns) == (ino, 2, rig.now)
    assert rig.names() == [b"f", b"g"]
    rig.check()


def test_link_refusals(rig: Rig) -> None:
    ino, home = rig.create(b"f"), rig.mkdir(b"home", 0o755)
    rig.refuses(E.EEXIST, Link(ino, TOP, b"f"))
    rig.refuses(E.EPERM, Link(home, TOP, b"x"))
    rig.refuses(E.ENOENT, Link(99, TOP, b"x"))
    rig.refuses(E.EACCES, Link(ino, home, b"x"), ANN)
    rig.refuses(E.EISDIR, Link(ino, TOP, b"home", replace=True))
    set_nlink(rig, ino, LINK_MAX)
    rig.refuses(E.EMLINK, Link(ino, TOP, b"x"))


def test_link_with_replace_takes_the_place_of_a_file(rig: Rig) -> None:
    one, two = rig.create(b"one"), rig.create(b"two")
    assert rig.made(Link(one, TOP, b"two", replace=True)).nlink == 2
    assert not rig.exists(two)
    assert rig.resolve(b"/two").ino == one
    assert rig.made(Link(one, TOP, b"two", replace=True)).nlink == 2, "the same again"
    rig.check()


def test_an_unlinked_file_is_never_named_again(rig: Rig) -> None:
    ino = rig.create(b"f")
    rig.made(Open(ino))
    rig.do(Unlink(TOP, b"f"))
    rig.refuses(E.ENOENT, Link(ino, TOP, b"g"))


# ------------------------------------------------------------------ unnamed files


def test_an_unnamed_file_gets_its_name_from_the_session_that_made_it(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    inode = rig.made(Unnamed(home, 0o640), ANN)
    assert (inode.nlink, inode.uid) == (0, 1000)
    rig.check()
    rig.refuses(E.ENOENT, Link(inode.ino, home, b"f"), ANN, rig.open_session())
    assert rig.made(Link(inode.ino, home, b"f"), ANN).nlink == 1
    rig.do(Release(inode.ino))
    assert rig.names(home) == [b"f"]
    rig.check()


def test_an_unnamed_file_goes_with_its_release_or_its_session(rig: Rig) -> None:
    one, two = rig.made(Unnamed(TOP, 0o600)).ino, rig.made(Unnamed(TOP, 0o600)).ino
    assert rig.do(Release(one)) is None
    assert not rig.exists(one)
    rig.close_session()
    assert not rig.exists(two)
    rig.check()


def test_an_unnamed_file_needs_the_rights_of_a_create(rig: Rig) -> None:
    rig.refuses(E.EACCES, Unnamed(TOP, 0o600), ANN)
    rig.refuses(E.ENOTDIR, Unnamed(rig.create(b"f"), 0o600))


# ------------------------------------------------------------------ unlink and rmdir


def test_unlink_takes_one_name_of_several(rig: Rig) -> None:
    ino = rig.create(b"f")
    rig.made(Link(ino, TOP, b"g"))
    inode = rig.made(Unlink(TOP, b"f"))
    assert (inode.nlink, inode.ctime_ns) == (1, rig.now)
    assert rig.do(Unlink(TOP, b"g")) is None
    assert not rig.exists(ino)
    parent = rig.inode(TOP)
    assert (parent.size, parent.mtime_ns) == (0, rig.now)
    rig.check()


def test_an_open_file_lives_until_its_last_session_releases_it(rig: Rig) -> None:
    ino = rig.create(b"f")
    other = rig.open_session()
    rig.made(Open(ino))
    rig.made(Open(ino), session=other)
    assert rig.made(Unlink(TOP, b"f")).nlink == 0
    assert rig.do(Release(ino)) is not None
    assert rig.inode(ino).nlink == 0
    rig.check()
    rig.close_session(other)
    assert not rig.exists(ino)
    rig.check()


def test_unlink_and_rmdir_refusals(rig: Rig) -> None:
    home = rig.mkdir(b"home", 0o755)
    rig.create(b"f", parent=home)
    rig.mkdir(b"d", parent=home)
    rig.refuses(E.ENOENT, Unlink(home, b"x"))
    rig.refuses(E.ENOENT, Rmdir(home, b"x"), ANN)
    rig.refuses(E.EISDIR, Unlink(home, b"d"))
    rig.refuses(E.ENOTDIR, Rmdir(home, b"f"))
    rig.refuses(E.ENOTEMPTY, Rmdir(TOP, b"home"))
    rig.refuses(E.EACCES, Unlink(home, b"f"), ANN)
    rig.refuses(E.EACCES, Unlink(home, b"d"), ANN)
    rig.do(Rmdir(home, b"d"))
    rig.check()


def test_a_removed_directory_that_is_open_is_dead(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    rig.made(Open(ino))
    assert rig.made(Rmdir(TOP, b"d")).nlink == 0
    for op in makers(ino, b"n"):
        rig.refuses(E.ENOENT, op)
    rig.refuses(E.ENOENT, Unnamed(ino, 0o600))
    rig.create(b"f")
    rig.refuses(E.ENOENT, Rename(TOP, b"f", ino, b"n"))
    rig.refuses(E.ENOENT, Unlink(ino, b"n"))
    assert rig.names(ino) == []
    rig.check()
    assert rig.do(Release(ino)) is None
    rig.check()


def sticky(rig: Rig) -> int:
    """/tmp with a file and an empty directory of Ann's."""
    tmp = rig.mkdir(b"tmp")
    rig.made(SetAttr(tmp, mode=0o1777))
    rig.create(b"f", 0o666, ANN, tmp)
    rig.mkdir(b"d", 0o777, ANN, tmp)
    return tmp


def test_in_a_sticky_directory_only_owners_remove(rig: Rig) -> None:
    tmp = sticky(rig)
    rig.create(b"mine", cred=BOB, parent=tmp)
    rig.refuses(E.EPERM, Unlink(tmp, b"f"), BOB)
    rig.refuses(E.EPERM, Rmdir(tmp, b"d"), BOB)
    rig.refuses(E.EPERM, Rename(tmp, b"f", tmp, b"g"), BOB)
    rig.refuses(E.EPERM, Rename(tmp, b"mine", tmp, b"f"), BOB)
    rig.refuses(E.EPERM, Rename(tmp, b"mine", tmp, b"f", RenameFlag.EXCHANGE), BOB)
    rig.refuses(E.EPERM, Link(rig.resolve(b"/tmp/mine").ino, tmp, b"f", replace=True), BOB)
    rig.refuses(E.EPERM, Put(tmp, b"f", 0o644, 0), BOB)
    rig.do(Unlink(tmp, b"f"), ANN)
    rig.do(Rmdir(tmp, b"d"), ROOT)
    rig.check()


def test_the_owner_of_a_sticky_directory_removes_all(rig: Rig) -> None:
    tmp = sticky(rig)
    rig.made(SetAttr(tmp, uid=BOB.uid))
    rig.do(Unlink(tmp, b"f"), BOB)
    rig.check()


# ------------------------------------------------------------------ put


def test_put_makes_a_whole_file_at_once(rig: Rig) -> None:
    home, chunk = rig.mkdir(b"home"), rig.chunk()
    inode = rig.made(Put(home, b"f", 0o640, 7, (extent(chunk, 0, 5, 0),), mtime_ns=-5), ANN)
    assert (inode.mode, inode.size, inode.allocated) == (stat.S_IFREG | 0o640, 7, 5)
    assert (inode.mtime_ns, inode.ctime_ns, inode.uid) == (-5, rig.now, 1000)
    assert rig.extents(inode.ino) == [(0, 5, chunk, 0)]
    assert rig.live(chunk) == 5
    rig.check()


def extent(chunk: int, file_offset: int, length: int, chunk_offset: int) -> Extent:
    return Extent(file_offset, length, chunk, chunk_offset)


def test_put_replaces_a_file_by_a_new_inode(rig: Rig) -> None:
    chunk, old = rig.chunk(), rig.create(b"f")
    rig.commit(old, (0, 9, chunk, 0))
    new = rig.made(Put(TOP, b"f", 0o644, 3, (extent(chunk, 0, 3, 9),))).ino
    assert new != old
    assert not rig.exists(old)
    assert rig.live(chunk) == 3
    assert rig.inode(TOP).size == 1
    rig.refuses(E.EEXIST, Put(TOP, b"f", 0o644, 0, replace=False))
    rig.check()


def test_put_keeps_a_sealed_chunk_whose_last_live_bytes_it_replaces(rig: Rig) -> None:
    chunk, old = rig.chunk(), rig.create(b"f")
    rig.commit(old, (0, 5, chunk, 0))
    rig.seal(chunk, 10)
    rig.made(Put(TOP, b"f", 0o644, 5, (extent(chunk, 0, 5, 5),)))
    assert rig.live(chunk) == 5
    rig.check()


def test_put_refusals(rig: Rig) -> None:
    home, chunk = rig.mkdir(b"home"), rig.chunk()
    rig.mkdir(b"d", parent=home)
    rig.refuses(E.EISDIR, Put(home, b"d", 0o644, 0))
    rig.refuses(E.EACCES, Put(TOP, b"f", 0o644, 0), ANN)
    rig.refuses(E.EPERM, Put(home, b"f", 0o644, 0, uid=0), ANN)
    rig.refuses(E.EPERM, Put(home, b"f", 0o644, 0, gid=2000), ANN)
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 0, uid=-1))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 0, gid=(1 << 32) - 1))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, -1))
    rig.refuses(E.EFBIG, Put(home, b"f", 0o644, (1 << 62) + 1))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 0, mtime_ns=1 << 63))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 0, policy=99))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 4, (extent(chunk, 0, 5, 0),)))
    overlapping = (extent(chunk, 0, 5, 0), extent(chunk, 4, 5, 5))
    rig.refuses(E.EINVAL, Put(home, b"f", 0o644, 9, overlapping))
    rig.refuses(E.ESTALE, Put(home, b"f", 0o644, 5, (extent(99, 0, 5, 0),)))
    rig.check()


def test_put_gives_owners_as_chown_would(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    rig.made(SetAttr(home, mode=0o2777, gid=77))
    assert rig.made(Put(home, b"a", 0o2755, 0, uid=1000, gid=TEAM), ANN).mode & 0o7777 == 0o2755
    inode = rig.made(Put(home, b"b", 0o6755, 0, gid=77), ANN)
    assert (inode.gid, inode.mode & 0o7777) == (77, 0o4755)
    inode = rig.made(Put(home, b"c", 0o644, 0, uid=5, gid=6))
    assert (inode.uid, inode.gid) == (5, 6)


# ------------------------------------------------------------------ rename


def test_rename_moves_a_file(rig: Rig) -> None:
    one, two = rig.mkdir(b"one"), rig.mkdir(b"two")
    ino = rig.create(b"f", parent=one)
    inode = rig.made(Rename(one, b"f", two, b"g"))
    assert (inode.ino, inode.ctime_ns, inode.parent) == (ino, rig.now, 0)
    assert (rig.names(one), rig.names(two)) == ([], [b"g"])
    for parent in (rig.inode(one), rig.inode(two)):
        assert parent.mtime_ns == parent.ctime_ns == rig.now
    rig.check()


def test_rename_moves_a_directory_with_its_dotdot(rig: Rig) -> None:
    one, two = rig.mkdir(b"one"), rig.mkdir(b"two")
    ino = rig.mkdir(b"d", parent=one)
    assert rig.made(Rename(one, b"d", two, b"e")).parent == two
    assert (rig.inode(one).nlink, rig.inode(two).nlink) == (2, 3)
    assert rig.resolve(b"/two/e/..").ino == two
    assert rig.made(Rename(two, b"e", two, b"d")).ino == ino
    rig.check()


def test_rename_replaces_what_may_be_replaced(rig: Rig) -> None:
    one, two = rig.create(b"one"), rig.create(b"two")
    rig.made(Rename(TOP, b"one", TOP, b"two"))
    assert not rig.exists(two)
    three, four = rig.mkdir(b"three"), rig.mkdir(b"four")
    rig.made(Rename(TOP, b"three", TOP, b"four"))
    assert not rig.exists(four)
    assert rig.inode(TOP).nlink == 3
    assert [rig.resolve(b"/two").ino, rig.resolve(b"/four").ino] == [one, three]
    rig.check()


def test_rename_refusals(rig: Rig) -> None:
    home = rig.mkdir(b"home", 0o755)
    rig.create(b"f", parent=home)
    sub = rig.mkdir(b"d", parent=home)
    rig.create(b"x", parent=sub)
    rig.mkdir(b"e", parent=home)
    rig.refuses(E.ENOENT, Rename(home, b"no", home, b"f"))
    rig.refuses(E.ENOTDIR, Rename(home, b"d", home, b"f"))
    rig.refuses(E.EISDIR, Rename(home, b"f", home, b"d"))
    rig.refuses(E.ENOTEMPTY, Rename(home, b"e", home, b"d"))
    rig.refuses(E.EEXIST, Rename(home, b"f", home, b"d", RenameFlag.NOREPLACE))
    rig.refuses(E.ENOENT, Rename(home, b"f", home, b"no", RenameFlag.EXCHANGE))
    rig.refuses(E.EINVAL, Rename(home, b"f", home, b"g", 3))
    rig.refuses(E.EINVAL, Rename(home, b"f", home, b"g", 4))
    rig.refuses(E.EACCES, Rename(home, b"f", home, b"g"), ANN)
    rig.made(Rename(home, b"f", home, b"g", RenameFlag.NOREPLACE))
    rig.check()


def test_rename_refuses_cycles(rig: Rig) -> None:
    a = rig.mkdir(b"a")
    b = rig.mkdir(b"b", parent=a)
    c = rig.mkdir(b"c", parent=b)
    rig.create(b"f", parent=c)
    rig.refuses(E.EINVAL, Rename(TOP, b"a", a, b"x"))
    rig.refuses(E.EINVAL, Rename(TOP, b"a", c, b"x"))
    rig.refuses(E.EINVAL, Rename(TOP, b"a", b, b"c", RenameFlag.EXCHANGE))
    rig.refuses(E.ENOTEMPTY, Rename(b, b"c", TOP, b"a"))
    rig.refuses(E.ENOTEMPTY, Rename(c, b"f", TOP, b"a"))
    rig.refuses(E.EINVAL, Rename(b, b"c", TOP, b"a", RenameFlag.EXCHANGE))
    rig.made(Rename(b, b"c", TOP, b"c"))
    rig.made(Rename(TOP, b"a", c, b"a"))
    assert rig.resolve(b"/c/a/b").ino == b
    rig.check()


def test_rename_between_names_of_one_file_does_nothing(rig: Rig) -> None:
    ino = rig.create(b"f")
    rig.made(Link(ino, TOP, b"g"))
    before = rig.rows()
    assert rig.made(Rename(TOP, b"f", TOP, b"g")).ino == ino
    rig.made(Rename(TOP, b"f", TOP, b"f"))
    rig.made(Rename(TOP, b"f", TOP, b"g", RenameFlag.EXCHANGE))
    assert {k: v for k, v in rig.rows().items() if k[:1] != b"r"} == {
        k: v for k, v in before.items() if k[:1] != b"r"
    }
    assert rig.names() == [b"f", b"g"]


def test_exchange_swaps_anything(rig: Rig) -> None:
    one, two = rig.mkdir(b"one"), rig.mkdir(b"two")
    file, sub = rig.create(b"f", parent=one), rig.mkdir(b"d", parent=two)
    rig.create(b"x", parent=sub)
    assert rig.made(Rename(one, b"f", two, b"d", RenameFlag.EXCHANGE)).ino == file
    assert rig.resolve(b"/one/f/x").nlink == 1
    assert rig.inode(sub).parent == one
    assert (rig.inode(one).nlink, rig.inode(two).nlink) == (3, 2)
    assert rig.inode(sub).ctime_ns == rig.inode(file).ctime_ns == rig.now
    rig.check()


def test_moving_a_directory_elsewhere_takes_the_right_to_write_in_it(rig: Rig) -> None:
    one, two = rig.mkdir(b"one"), rig.mkdir(b"two")
    rig.mkdir(b"d", 0o755, parent=one)
    rig.mkdir(b"e", 0o755, ANN, two)
    rig.refuses(E.EACCES, Rename(one, b"d", two, b"d"), ANN)
    rig.refuses(E.EACCES, Rename(two, b"e", one, b"d", RenameFlag.EXCHANGE), ANN)
    rig.made(Rename(one, b"d", one, b"x"), ANN)
    rig.made(Rename(two, b"e", one, b"e"), ANN)
    rig.check()


def test_renaming_over_an_open_file_keeps_it_for_who_has_it(rig: Rig) -> None:
    rig.create(b"new")
    old = rig.create(b"old")
    rig.made(Open(old))
    rig.made(Rename(TOP, b"new", TOP, b"old"))
    assert rig.inode(old).nlink == 0
    rig.check()
    rig.do(Release(old))
    assert not rig.exists(old)
    rig.check()


def test_an_error_says_which_name(rig: Rig) -> None:
    (result,) = rig.apply(Unlink(TOP, b"caf\xc3\xa9\n"))
    assert result.error is not None
    assert result.error.message == r"caf\xe9\n: No such file or directory"


def test_nobody_but_root_passes_as_root(rig: Rig) -> None:
    rig.refuses(E.EACCES, Create(TOP, b"f", 0o644), Cred(1, 0, (0,)))
