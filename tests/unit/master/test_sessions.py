"""Sessions, and the rule that a request takes effect once."""

import errno
from typing import Any

import pytest

from dfs.core.errors import DfsError, SessionError
from dfs.core.ids import ROOT_INODE
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy
from dfs.master import commands, sessions
from dfs.master.keyspace import get_session
from dfs.wire.messages import (
    OPS_MAX,
    WINDOW,
    Access,
    Create,
    Cred,
    Mkdir,
    Open,
    OpenNamed,
    Release,
    Rename,
    SetAttr,
    Symlink,
    Unlink,
)
from tests.unit.master.rig import ANN, BOB, ROOT, Rig

E = errno
TOP = ROOT_INODE


@pytest.fixture
def rig() -> Rig:
    return Rig()


# ------------------------------------------------------------------ life


def test_the_same_nonce_of_the_same_client_is_the_same_session(rig: Rig) -> None:
    def opened(client: str, nonce: int) -> int:
        return rig.state.apply(commands.OpenSession(rig.tick(), client, nonce)).session

    one = opened("a", -5)
    assert opened("a", -5) == one
    assert len({one, opened("b", -5), opened("a", 6), rig.session}) == 4
    rig.check()
    rig.close_session(one)
    assert opened("a", -5) != one, "a closed session does not come back"
    rig.check()


def test_a_client_name_has_a_limit(rig: Rig) -> None:
    with pytest.raises(DfsError, match="longer than 255"):
        rig.state.apply(commands.OpenSession(rig.tick(), "é" * 128, 1))


def test_nothing_can_be_done_in_an_unknown_session(rig: Rig) -> None:
    chunk = rig.chunk()
    rig.close_session()
    before = rig.rows()
    policy = Policy(0, "p", Redundancy(1, 1), None)
    placement = (commands.Placement(1, 1, (1, 2)),)
    for session in (rig.session, 99, 0, -1):
        refused: list[commands.Command[Any]] = [
            commands.ApplyOps(1, session, 9, ROOT, (Create(TOP, b"f", 0o644),)),
            commands.AllocateChunks(1, session, 9, 1, placement),
            commands.SealChunk(1, session, 9, chunk, 5),
            commands.CreatePolicy(1, session, 9, policy),
        ]
        for command in refused:
            with pytest.raises(SessionError, match="unknown or has expired"):
                rig.state.apply(command)
    assert rig.rows() == before


def test_closing_releases_all_and_closing_again_is_no_error(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    orphan = rig.create(b"f", parent=home)
    rig.made(Open(orphan))
    rig.made(Open(home))
    rig.do(Unlink(home, b"f"))
    rig.chunk()
    rig.close_session()
    assert not rig.exists(orphan)
    assert get_session(rig.store, rig.session) is None
    for table in (b"o", b"O", b"r", b"z", b"u", b"N"):
        assert not list(rig.store.scan(table, table + b"\xff")), table
    rig.check()
    rig.close_session()
    rig.state.apply(commands.ExpireSession(rig.tick(), 99))
    rig.check()


def test_a_session_that_holds_much_is_closed_in_steps(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "RELEASE_INLINE_ROWS", 5)
    inos = [rig.create(b"%d" % number) for number in range(20)]
    for number, ino in enumerate(inos):
        rig.made(Open(ino))
        rig.do(Unlink(TOP, b"%d" % number))
    rig.close_session()
    assert sum(rig.exists(ino) for ino in inos) == 15
    rig.check()
    steps = rig.purge(7)
    assert steps > 2
    assert not any(rig.exists(ino) for ino in inos)
    for table in (b"o", b"O", b"r", b"z"):
        assert not list(rig.store.scan(table, table + b"\xff")), table
    rig.check()


def test_all_sessions_are_listed(rig: Rig) -> None:
    other = rig.open_session()
    assert [record.session for record in sessions.all_sessions(rig.store)] == [rig.session, other]


# ------------------------------------------------------------------ once


def test_a_repeated_request_gets_its_first_answer_and_no_effect(rig: Rig) -> None:
    command = commands.ApplyOps(5, rig.session, 7, ROOT, (Create(TOP, b"f", 0o644),))
    first = rig.state.apply(command)
    before = rig.rows()
    later = commands.ApplyOps(9, rig.session, 7, ROOT, (Mkdir(TOP, b"other", 0o755),))
    assert rig.state.apply(command) == rig.state.apply(later) == first
    assert rig.rows() == before


def test_every_session_command_is_remembered(rig: Rig) -> None:
    placement = (commands.Placement(1, 1, (1, 2)),)
    allocate = commands.AllocateChunks(5, rig.session, 1, 1, placement * 2)
    chunks = rig.state.apply(allocate)
    assert rig.state.apply(allocate) == chunks
    assert rig.state.counters.chunks == 2
    seal = commands.SealChunk(5, rig.session, 2, chunks[0].chunk, 0)
    assert rig.state.apply(seal) is rig.state.apply(seal) is None
    policy = commands.CreatePolicy(5, rig.session, 3, Policy(0, "p", Redundancy(1, 1), None))
    assert rig.state.apply(policy) == rig.state.apply(policy)
    rig.check()


def test_a_request_that_has_left_the_window_is_refused(rig: Rig) -> None:
    def send(sequence: int) -> None:
        op = Create(TOP, b"%d" % sequence, 0o644)
        rig.state.apply(commands.ApplyOps(5, rig.session, sequence, ROOT, (op,)))

    send(3)
    send(WINDOW + 1)
    send(2)
    send(WINDOW + 3)
    with pytest.raises(SessionError, match="too old"):
        send(3)
    assert len(list(rig.store.scan(b"r", b"s"))) == 3
    send(1 << 63)
    rig.check()


def test_requests_that_no_client_can_mean_are_refused(rig: Rig) -> None:
    op = Create(TOP, b"f", 0o644)
    with pytest.raises(SessionError, match="from 0 on"):
        rig.state.apply(commands.ApplyOps(5, rig.session, -1, ROOT, (op,)))
    for cred in (Cred(-1, 0), Cred(0, 1 << 32)):
        with pytest.raises(DfsError, match="Invalid argument"):
            rig.apply(op, cred=cred)
    assert rig.names() == []


def test_sessions_do_not_share_sequences(rig: Rig) -> None:
    other = rig.open_session()
    for session in (rig.session, other):
        op = Create(TOP, b"%d" % session, 0o644)
        rig.state.apply(commands.ApplyOps(5, session, 1, ROOT, (op,)))
    assert len(rig.names()) == 2


def test_a_command_that_raises_leaves_nothing_and_can_be_sent_again(rig: Rig) -> None:
    policy = Policy(0, "default", Redundancy(1, 1), None)
    before = rig.rows()
    for _ in range(2):
        with pytest.raises(DfsError, match="already"):
            rig.state.apply(commands.CreatePolicy(5, rig.session, 1, policy))
    assert rig.rows() == before


def test_operations_of_one_request_stand_or_fall_alone(rig: Rig) -> None:
    results = rig.apply(
        Mkdir(TOP, b"d", 0o755),
        Mkdir(TOP, b"d", 0o755),
        Create(2, b"f", 0o644, open=True),
        Create(-1, b"f", 0o644),
        Create(2, b"g", 0o644),
    )
    errors = [None if r.error is None else r.error.errno for r in results]
    assert errors == [None, E.EEXIST, None, E.EINVAL, None]
    assert rig.names(2) == [b"f", b"g"]
    rig.check()


def test_one_request_has_a_greatest_number_of_operations(rig: Rig) -> None:
    ops = (Release(5),) * (OPS_MAX + 1)
    with pytest.raises(DfsError, match="4097 operations"):
        rig.apply(*ops)
    assert len(rig.apply(*ops[1:])) == OPS_MAX


# ------------------------------------------------------------------ open


@pytest.mark.parametrize("cred", [ANN, BOB, ROOT])
@pytest.mark.parametrize("access", range(8))
@pytest.mark.parametrize("mode", [0o000, 0o640, 0o751, 0o067])
def test_open_checks_as_access_does(rig: Rig, mode: int, access: int, cred: object) -> None:
    ino = rig.create(b"f", mode)
    rig.made(SetAttr(ino, uid=ANN.uid, gid=ANN.gid))
    if cred is ROOT:
        allowed = not access & Access.EXECUTE or bool(mode & 0o111)
    else:
        bits = mode >> 6 if cred is ANN else mode
        allowed = bits & access == access
    op = Open(ino, access)
    if allowed:
        rig.made(op, ANN if cred is ANN else BOB if cred is BOB else ROOT)
    else:
        rig.refuses(E.EACCES, op, ANN if cred is ANN else BOB if cred is BOB else ROOT)


def test_open_refusals(rig: Rig) -> None:
    rig.refuses(E.ENOENT, Open(99))
    rig.refuses(E.EISDIR, Open(TOP, Access.READ | Access.WRITE))
    rig.refuses(E.ELOOP, Open(rig.made(Symlink(TOP, b"l", b"t")).ino))
    rig.refuses(E.EINVAL, Open(TOP, 8))
    rig.refuses(E.EINVAL, Open(TOP, -1))
    rig.made(Open(TOP), ANN)


def test_an_open_by_name_is_refused_where_the_name_means_another(rig: Rig) -> None:
    ino = rig.create(b"f")
    other = rig.create(b"g")
    assert rig.made(OpenNamed(ino, TOP, b"f")).ino == ino
    rig.refuses(E.EACCES, OpenNamed(ino, TOP, b"f", Access.EXECUTE))
    for parent, name in ((TOP, b"g"), (TOP, b"nothing"), (ino, b"f"), (99, b"f"), (TOP, b"")):
        rig.refuses(E.ESTALE, OpenNamed(ino, parent, name))
    rig.refuses(E.EINVAL, OpenNamed(ino, -1, b"f"))
    rig.do(Rename(TOP, b"g", TOP, b"f"))
    rig.refuses(E.ESTALE, OpenNamed(ino, TOP, b"f"))
    assert rig.made(OpenNamed(other, TOP, b"f")).ino == other
    # It is open since the first, so it is there for whoever has it from elsewhere.
    assert rig.made(Open(ino)).nlink == 0
    rig.check()


def test_opens_of_one_session_add_up(rig: Rig) -> None:
    ino = rig.create(b"f", 0o666)
    rig.made(Open(ino, Access.WRITE), ANN)
    rig.made(Open(ino, Access.READ), ANN)
    rig.made(SetAttr(ino, mode=0))
    rig.made(SetAttr(ino, size=1), ANN)
    rig.made(Release(ino))
    rig.refuses(E.EACCES, SetAttr(ino, size=2), ANN)
    rig.check()


def test_releasing_what_is_not_open_is_no_error(rig: Rig) -> None:
    ino = rig.create(b"f")
    assert rig.made(Release(ino)).ino == ino
    assert rig.do(Release(99)) is None


def test_the_group_counts_before_the_others(rig: Rig) -> None:
    """A member of the group gets the group's rights, also where others have more."""
    ino = rig.create(b"f", 0o606)
    rig.made(SetAttr(ino, gid=50))
    rig.refuses(E.EACCES, Open(ino), ANN)
    rig.made(Open(ino), BOB)
