"""Delegated directories in the master's state: whose they are, and what may be told late."""

import errno
import stat

import pytest

from dfs.core.errors import DfsError, SessionError
from dfs.core.ids import ROOT_INODE, InodeId, SessionId
from dfs.core.inode import Inode
from dfs.master import commands
from dfs.master.delegations import holder
from dfs.wire.messages import (
    DELEGATIONS_MAX,
    RESERVE_MAX,
    Create,
    Mkdir,
    Release,
    Rename,
    Rmdir,
    Undelegate,
    Unlink,
)
from tests.unit.master.rig import ANN, Rig

E = errno


@pytest.fixture
def rig() -> Rig:
    return Rig()


def delegate(rig: Rig, ino: InodeId, session: SessionId | None = None) -> Inode | None:
    session = session or rig.session
    return rig.state.apply(
        commands.DelegateDirectory(rig.tick(), session, rig.next_sequence(), ino)
    )


def reserve(rig: Rig, count: int = 10, session: SessionId | None = None) -> InodeId:
    session = session or rig.session
    return rig.state.apply(commands.ReserveInodes(rig.tick(), session, rig.next_sequence(), count))


def test_what_is_told_late_happened_when_it_was_done(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    assert delegate(rig, ino) == rig.inode(ino)
    first, then = reserve(rig), rig.tick()
    rig.tick()
    made = rig.made(Create(ino, b"a", 0o640, True, True, 6, first, then), ANN)
    assert (made.ino, made.ctime_ns, made.mtime_ns, made.uid) == (first, then, then, ANN.uid)
    assert stat.S_IMODE(made.mode) == 0o640
    assert rig.inode(ino).mtime_ns == then
    rig.do(Release(first))
    rig.do(Rename(ino, b"a", ino, b"b", 0, then + 1))
    assert rig.inode(first).ctime_ns == rig.inode(ino).ctime_ns == then + 1
    (result,) = rig.apply(Unlink(ino, b"b", then + 2))
    assert (result.error, result.inode, result.time_ns) == (None, None, then + 2)
    assert rig.inode(ino).ctime_ns == then + 2
    rig.check()


def test_a_client_whose_clock_is_ahead_changes_nothing_in_the_future(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    delegate(rig, ino)
    made = rig.made(Create(ino, b"a", 0o640, True, False, 6, reserve(rig), rig.now * 2))
    assert made.ctime_ns == rig.now
    rig.refuses(E.EINVAL, Unlink(ino, b"a", -1))


def test_nothing_late_is_taken_from_who_has_not_the_directory(rig: Rig) -> None:
    ino, other = rig.mkdir(b"d"), rig.mkdir(b"other")
    first = reserve(rig)
    late = Create(ino, b"a", 0o640, True, False, 6, first, rig.now)
    rig.create(b"there", parent=ino)
    rig.refuses(E.ESTALE, late)
    delegate(rig, ino)
    rig.refuses(E.ESTALE, late) if holder(rig.store, ino) != rig.session else rig.do(late)
    rig.refuses(E.ESTALE, Rename(ino, b"a", other, b"a", 0, rig.now))
    rig.do(Undelegate(ino))
    for op in (
        Create(ino, b"b", 0o640, True, False, 6, first + 1, rig.now),
        Unlink(ino, b"a", rig.now),
        Rename(ino, b"a", ino, b"b", 0, rig.now),
    ):
        rig.refuses(E.ESTALE, op)
    rig.check()


def test_a_directory_has_one_holder(rig: Rig) -> None:
    ino, other = rig.mkdir(b"d"), rig.open_session()
    assert delegate(rig, ino) is not None
    assert delegate(rig, ino) is not None, "again: it has it"
    assert delegate(rig, ino, other) is None
    rig.do(Undelegate(ino), session=other)
    assert holder(rig.store, ino) == rig.session
    rig.do(Undelegate(ino))
    assert delegate(rig, ino, other) is not None
    rig.check()


def test_what_is_no_directory_is_nobodys(rig: Rig) -> None:
    for ino in (ROOT_INODE, rig.create(b"file"), 12345):
        assert delegate(rig, ino) is None
    for number in range(DELEGATIONS_MAX):
        assert delegate(rig, rig.mkdir(b"%d" % number)) is not None
    assert delegate(rig, rig.mkdir(b"one more")) is None
    rig.check()


def test_a_session_that_ends_has_nothing(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    other = rig.open_session()
    first = reserve(rig, session=other)
    delegate(rig, ino, other)
    rig.check()
    rig.close_session(other)
    assert holder(rig.store, ino) is None
    with pytest.raises(SessionError):
        rig.do(Create(ino, b"a", 0o640, True, False, 6, first, rig.now), session=other)
    rig.check()


def test_a_directory_is_taken_from_its_holder(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    delegate(rig, ino)
    rig.state.apply(commands.RevokeDelegation(rig.tick(), ino, rig.session + 1))
    assert holder(rig.store, ino) == rig.session, "it is not the other's to lose"
    rig.state.apply(commands.RevokeDelegation(rig.tick(), ino, rig.session))
    assert holder(rig.store, ino) is None
    rig.check()


def test_a_directory_that_is_removed_is_nobodys(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    delegate(rig, ino)
    rig.do(Rmdir(ROOT_INODE, b"d"))
    assert holder(rig.store, ino) is None
    other = rig.made(Mkdir(ROOT_INODE, b"e", 0o755)).ino
    delegate(rig, other)
    rig.mkdir(b"f")
    rig.do(Rename(ROOT_INODE, b"f", ROOT_INODE, b"e"))
    assert holder(rig.store, other) is None
    rig.check()


def test_numbers_are_used_once_and_by_their_session_only(rig: Rig) -> None:
    ino = rig.mkdir(b"d")
    delegate(rig, ino)
    first, foreign = reserve(rig, 4), reserve(rig, 4, rig.open_session())
    assert rig.create(b"usual") == foreign + 4, "others get numbers past those"

    def late(name: bytes, number: InodeId) -> Create:
        return Create(ino, name, 0o640, True, False, 6, number, rig.now)

    assert rig.made(late(b"1", first + 1)).ino == first + 1
    rig.refuses(E.EINVAL, late(b"again", first + 1))
    rig.refuses(E.EINVAL, late(b"passed over", first))
    rig.refuses(E.EINVAL, late(b"of another", foreign))
    rig.refuses(E.EINVAL, late(b"of nobody", foreign + 1000))
    rig.refuses(E.EINVAL, Create(ino, b"chosen", 0o640, True, False, 6, first + 2, 0))
    more = reserve(rig, 4)
    assert rig.made(late(b"2", more)).ino == more
    assert rig.made(late(b"3", first + 3)).ino == first + 3
    rig.check()
    for count in (0, -1, RESERVE_MAX + 1):
        with pytest.raises(DfsError):
            reserve(rig, count)
