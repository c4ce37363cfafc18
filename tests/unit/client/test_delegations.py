"""Directories that a client has to itself: what it does there, and what others see of it.

`own` works alone in a directory until it is its own; `other` is a client elsewhere. The clock
jumps, so what waits for a moment has waited when somebody looks.
"""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.client.delegations import CHANGES_BEFORE
from dfs.core.errors import DfsError, FileSystemError, SessionError
from dfs.core.ids import InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import Apply, AwaitRecalls, CloseSession, Cred, Empty, Recalls, SetAttr
from tests.simulation.world import World
from tests.unit.client.rig import hold, running

ROOT = Cred(0, 0)
USER = Cred(1001, 1001)


@asynccontextmanager
async def held(root: Path) -> AsyncIterator[tuple[World, Client, Client, InodeId]]:
    """A cluster, two clients, and a directory `/d` that the first has to itself."""
    async with running(root) as (world, own), world.client("elsewhere") as other:
        own.meta.delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)
        yield world, own, other, ino


def make(client: Client, ino: InodeId, name: bytes, cred: Cred = ROOT, mode: int = 0o644) -> Inode:
    """A file made without asking anybody, and closed."""
    inode = client.meta.delegations.create(ino, name, mode, cred)
    assert inode is not None
    client.meta.delegations.release(inode.ino, cred)
    return inode


def unknown(_: InodeId) -> None:
    return None


async def names(client: Client, path: str = "/d") -> list[bytes]:
    inode = await client.stat(path)
    return [entry.name for entry in (await client.meta.readdir(inode.ino)).entries]


async def test_the_master_has_what_was_made_as_it_was_made(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, _, ino):
        made = make(own, ino, b"a")
        assert own.meta.delegations.child(ino, b"a") == made.ino
        assert own.meta.delegations.child(ino, b"b") == 0
        told = await own.meta.get_inode(made.ino)
        assert (told.ino, told.mode, told.ctime_ns) == (made.ino, made.mode, made.ctime_ns)
        mine = own.meta.delegations.directory(ino)
        assert mine == await own.meta.get_inode(ino)
        world.check_metadata()


async def test_whoever_looks_sees_what_was_done(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        make(own, ino, b"a")
        assert (await other.stat("/d/a")).is_file
        assert own.meta.delegations.directory(ino) is None, "it was recalled"
        assert own.meta.delegations.create(ino, b"b", 0o644, ROOT) is None
        await hold(own, ino)
        make(own, ino, b"b")
        assert await names(other) == [b"a", b"b"]
        await hold(own, ino)
        done = own.meta.delegations.rename(ino, b"a", b"c", ROOT, unknown)
        assert done is not None
        with pytest.raises(FileSystemError) as caught:
            await other.meta.lookup(ino, b"a")
        assert caught.value.errno == errno.ENOENT
        await hold(own, ino)
        assert own.meta.delegations.unlink(ino, b"c", ROOT, unknown) is not None
        with pytest.raises(FileSystemError):
            await other.meta.lookup(ino, b"c")
        world.check_metadata()


async def test_whoever_changes_it_waits_for_what_was_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        make(own, ino, b"a")
        with pytest.raises(FileSystemError) as caught:
            await other.meta.create(ino, b"a", 0o644)
        assert caught.value.errno == errno.EEXIST
        await hold(own, ino)
        make(own, ino, b"b")
        with pytest.raises(FileSystemError) as caught:
            await other.meta.rmdir(1, b"d")
        assert caught.value.errno == errno.ENOTEMPTY
        await hold(own, ino)
        await other.meta.set_attr(SetAttr(ino, mode=0o700))
        assert own.meta.delegations.directory(ino) is None
        await hold(own, ino)
        await other.meta.rename(1, b"d", 1, b"e")
        assert own.meta.delegations.directory(ino) is None
        world.check_metadata()


async def test_attributes_of_the_directory_are_read_without_a_recall(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (_, own, other, ino):
        make(own, ino, b"a")
        await other.stat("/d")
        await other.meta.readdir(1)
        assert own.meta.delegations.directory(ino) is not None


async def test_what_goes_to_the_master_comes_after_what_was_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        meta, delegations = own.meta, own.meta.delegations
        one = make(own, ino, b"one")
        made = await meta.mkdir(ino, b"sub", 0o755)
        await meta.rename(ino, b"one", made.ino, b"moved")
        await meta.hard_link(one.ino, ino, b"two")
        await meta.symlink(ino, b"link", b"two")
        async with await own.open("/d/two", "r+") as file:
            await file.write(b"bytes")
        await meta.unlink(ino, b"link")
        assert delegations.child(ino, b"two") == one.ino
        assert delegations.child(ino, b"sub") == made.ino
        assert [delegations.child(ino, name) for name in (b"one", b"link")] == [0, 0]
        assert delegations.directory(ino) == await meta.get_inode(ino)
        assert await other.read_file("/d/sub/moved") == b"bytes"
        world.check_metadata()


async def test_bytes_are_published_along_with_the_file(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        # With a chunk to append to, and connections, it takes no time.
        await own.write_file("/d/before", b"bytes")
        inode = own.meta.delegations.create(ino, b"a", 0o644, ROOT)
        assert inode is not None
        asked: list[list[str]] = []
        change = own.meta.session.change

        async def watched(make: Any, *args: Any, **settings: Any) -> Any:
            request = make(0, 0)
            if isinstance(request, Apply):
                asked.append([type(op).__name__ for op in request.ops])
            return await change(make, *args, **settings)

        monkeypatch.setattr(own.meta.session, "change", watched)
        file = own.files.adopt(inode, 6)
        await file.write(0, b"bytes")
        await file.flush()
        assert ["Create", "Commit"] in asked
        assert (await own.meta.get_inode(inode.ino)).size == 5
        assert await other.read_file("/d/a") == b"bytes"
        await own.files.close(file)
        world.check_metadata()


async def test_rights_are_those_the_master_would_give(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (_, own, other, ino):
        delegations = own.meta.delegations
        with pytest.raises(FileSystemError) as caught:
            delegations.create(ino, b"a", 0o644, USER)
        assert caught.value.errno == errno.EACCES
        await own.meta.set_attr(SetAttr(ino, mode=0o3777, gid=50))
        mine = make(own, ino, b"mine", USER, 0o2755)
        roots = make(own, ino, b"roots")
        # Not in the group that the directory hands on.
        assert (mine.gid, mine.mode & 0o7777) == (50, 0o755)
        with pytest.raises(FileSystemError) as caught:
            delegations.unlink(ino, b"roots", USER, {roots.ino: roots}.get)
        assert caught.value.errno == errno.EPERM
        assert delegations.unlink(ino, b"roots", USER, unknown) is None, "the master has to say"
        assert delegations.unlink(ino, b"mine", USER, {mine.ino: mine}.get) is not None
        assert await names(other) == [b"roots"]


async def test_what_is_odd_is_for_the_master(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with held(tmp_path) as (_, own, __, ino):
        delegations = own.meta.delegations
        for name in (b"", b".", b"..", b"a/b", b"a\0", b"x" * 256):
            assert delegations.create(ino, name, 0o644, ROOT) is None
            assert delegations.child(ino, name) is None
        await own.meta.mkdir(ino, b"sub", 0o755)
        assert delegations.create(ino, b"sub", 0o644, ROOT) is None
        assert delegations.unlink(ino, b"sub", ROOT, unknown) is None
        make(own, ino, b"a")
        assert delegations.rename(ino, b"a", b"sub", ROOT, unknown) is None
        assert delegations.rename(ino, b"a", b"a", ROOT, unknown) is None
        assert delegations.unlink(ino, b"no", ROOT, unknown) is None


async def test_the_death_of_the_master_loses_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        for number in range(5):
            make(own, ino, b"%d" % number)
        await world.crash("master")
        make(own, ino, b"5")
        await world.start_host("master")
        assert await names(other) == [b"%d" % number for number in range(6)]
        world.check_metadata()


async def test_a_power_cut_of_the_master_forgets_no_delegation(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        make(own, ino, b"a")
        await world.cut_power()
        assert await names(other) == [b"a"]
        assert own.meta.delegations.directory(ino) is None


@pytest.mark.allow_logs("has not given directory", "was answered and is lost")
async def test_who_is_cut_off_loses_the_directory_and_says_so(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        world.network.partition("desk", "master")
        lost = make(own, ino, b"a")
        with trio.fail_after(60):
            await other.meta.create(ino, b"a", 0o600)
        world.network.heal()
        with pytest.raises(SessionError, match="not delegated"):
            await own.meta.sync()
        await own.meta.sync()
        assert "create of 'a'" in caplog.text
        assert (await own.stat("/d/a")).mode & 0o777 == 0o600
        with pytest.raises(FileSystemError):
            await own.meta.get_inode(lost.ino)
        await hold(own, ino)
        make(own, ino, b"b")
        assert await names(other) == [b"a", b"b"]


@pytest.mark.allow_logs("was answered and is lost")
async def test_with_the_session_goes_what_was_not_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        await other.stat("/")
        lost = make(own, ino, b"a")
        await other.meta.link.call(CloseSession(own.meta.session.current_id), Empty)
        with pytest.raises(DfsError):
            await own.meta.sync()
        assert own.meta.delegations.child(ino, b"a") is None
        assert await names(own) == []
        with pytest.raises(FileSystemError):
            await own.meta.get_inode(lost.ino)
        await hold(own, ino)
        make(own, ino, b"b")
        await own.meta.sync()
        assert await names(other) == [b"b"]
        world.check_metadata()


async def test_numbers_reserved_for_a_session_go_with_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, own), world.client("elsewhere") as other:
        delegations = own.meta.delegations
        delegations.start()
        ino = (await own.mkdir("/d")).ino
        # Somebody looks, so numbers come and the directory does not.
        assert not await other.exists("/d/a")
        for _ in range(CHANGES_BEFORE):
            delegations.note_change(ino)
        await trio.sleep(0.3)
        assert delegations.directory(ino) is None
        await other.meta.link.call(CloseSession(own.meta.session.current_id), Empty)
        await own.mkdir("/e")
        await hold(own, ino)
        made = make(own, ino, b"a")
        await own.meta.sync()
        assert (await other.stat("/d/a")).ino == made.ino
        world.check_metadata()


async def test_two_names_of_a_file_renamed_to_each_other_are_both_left(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (world, own, other, ino):
        delegations = own.meta.delegations
        made = make(own, ino, b"a")
        await own.meta.hard_link(made.ino, ino, b"b")
        await own.meta.rename(ino, b"a", ino, b"b")
        assert delegations.create(ino, b"a", 0o644, ROOT) is None
        assert delegations.child(ino, b"a") in (None, made.ino)
        assert await names(other) == [b"a", b"b"]
        await hold(own, ino)
        assert delegations.child(ino, b"a") == delegations.child(ino, b"b") == made.ino
        world.check_metadata()


async def test_a_client_that_ends_tells_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (world, client):
        async with world.client("own") as own:
            own.meta.delegations.start()
            ino = (await own.mkdir("/d")).ino
            await hold(own, ino)
            for number in range(3):
                make(own, ino, b"%d" % number)
        assert await names(client) == [b"0", b"1", b"2"]
        world.check_metadata()


async def test_a_directory_is_recalled_that_was_given_back_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The client listens all the while."""
    async with held(tmp_path) as (_, own, other, ino):
        await other.stat("/d")
        for _turn in range(2):
            own.meta.delegations.give_back(ino)
            await own.meta.sync()
            await hold(own, ino)
        with trio.fail_after(1):
            assert await names(other) == []


async def test_a_directory_that_is_not_used_is_given_back(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held(tmp_path) as (_, own, __, ino):
        monkeypatch.setattr("dfs.client.delegations.IDLE_S", 0.0)
        with trio.fail_after(60):
            while own.meta.delegations.directory(ino) is not None:
                await trio.sleep(0.1)


async def test_a_directory_that_others_want_is_not_asked_for_again_and_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (_, own, other, ino):
        waited = []
        for _turn in range(4):
            await names(other)
            begun = trio.current_time()
            await hold(own, ino)
            waited.append(trio.current_time() - begun)
        assert waited[-1] > waited[0]


async def test_a_directory_is_not_delegated_while_others_look_into_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, own), world.client("elsewhere") as other:
        delegations = own.meta.delegations
        delegations.start()
        ino = (await own.mkdir("/d")).ino
        for turn in range(20):
            await own.meta.create(ino, b"%d" % turn, 0o644)
            assert b"%d" % turn in await names(other)
            for _ in range(4):
                delegations.note_change(ino)
            await trio.sleep(0.5)
            assert delegations.directory(ino) is None
        await hold(own, ino)


async def test_changes_on_their_way_are_in_what_is_known_of_a_new_directory(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The directory comes while other tasks change it through the master."""
    async with running(tmp_path) as (world, own), world.client("elsewhere") as other:
        meta, delegations = own.meta, own.meta.delegations
        world.network.set_latency(0.01)
        delegations.start()
        ino = (await own.mkdir("/d")).ino
        await trio.sleep(5)
        made: set[bytes] = set()

        async def change(who: int) -> None:
            for turn in range(12):
                name = b"%d-%d" % (who, turn)
                inode = delegations.create(ino, name, 0o644, ROOT)
                if inode is None:
                    await meta.create(ino, name, 0o644)
                    delegations.note_change(ino)
                else:
                    delegations.release(inode.ino, ROOT)
                made.add(name)
                if turn % 3 == 2:
                    if delegations.unlink(ino, name, ROOT, unknown) is None:
                        await meta.unlink(ino, name)
                    made.discard(name)
                await trio.sleep(0.01 * who)

        async with trio.open_nursery() as nursery:
            for who in range(8):
                nursery.start_soon(change, who)
        await hold(own, ino)
        assert {name for name in made if delegations.child(ino, name)} == made
        assert delegations.directory(ino) == await meta.get_inode(ino)
        assert set(await names(other)) == made
        world.check_metadata()


async def test_a_session_listens_for_its_own_recalls_only(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with held(tmp_path) as (_, own, other, ino):
        with pytest.raises(SessionError):
            await other.meta.link.call_once(AwaitRecalls(987654), Recalls)
        assert own.meta.delegations.directory(ino) is not None
