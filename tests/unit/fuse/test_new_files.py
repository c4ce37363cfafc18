"""Small files made in a mount's own directory: closed at once, published together, never torn.

`vfs` is the mount, with `/d` to itself; `other` a client elsewhere. A moment passes only where
somebody waits, so what has not been asked for has not been told.
"""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from dfs.client import Client, new_files, write_behind
from dfs.client.chunk_writer import ChunkWriter
from dfs.client.new_file import NewFile
from dfs.client.write_behind import NEW_BYTES_MANY, NEW_FILE_BYTES
from dfs.core.errors import DfsError, FileSystemError, UnavailableError
from dfs.core.ids import ROOT_INODE, InodeId, PolicyId
from dfs.wire.messages import Apply, CloseSession, Commit, Empty, Message, SetAttr
from dfs_fuse.caller import Caller
from dfs_fuse.handles import FileHandle
from dfs_fuse.vfs import Vfs
from tests.simulation.world import World
from tests.unit.client.rig import hold, running
from tests.unit.client.test_fsync import counted
from tests.unit.client.test_safety import end_session, intercepted, is_commit

ROOT = Caller(0, 0)
USER = Caller(1001, 1001)
WRITE, BOTH = os.O_WRONLY, os.O_RDWR


@asynccontextmanager
async def own_directory(
    root: Path, *, on_unavailable: str = "wait:60s"
) -> AsyncIterator[tuple[World, Client, Vfs, Client, InodeId]]:
    async with (
        running(root, on_unavailable=on_unavailable) as (world, client),
        world.client("elsewhere") as other,
    ):
        client.meta.delegations.start()
        ino = (await client.mkdir("/d")).ino
        await client.meta.set_attr(SetAttr(ino, mode=0o777))
        await hold(client, ino)
        async with trio.open_nursery() as nursery:
            yield world, client, Vfs(client, nursery, root=ROOT_INODE), other, ino
            nursery.cancel_scope.cancel()


def opened(
    vfs: Vfs, parent: InodeId, name: bytes, caller: Caller = ROOT, *, mode: int = 0o644,
    flags: int = WRITE,
) -> FileHandle:  # fmt: skip
    handle = vfs.create_here(parent, name, mode, flags, caller)
    assert handle is not None
    return handle


def make(vfs: Vfs, parent: InodeId, name: bytes, data: bytes, caller: Caller = ROOT) -> InodeId:
    """A file written and closed, as the drivers do, without waiting for anybody."""
    handle = opened(vfs, parent, name, caller)
    assert vfs.write_here(handle, 0, data)
    assert vfs.flush_here(handle)
    assert vfs.release_here(handle)
    return handle.ino


@contextmanager
def operations(client: Client) -> Iterator[list[list[str]]]:
    """The operations of each request to the master, by name."""
    asked: list[list[str]] = []

    def note(request: Message) -> None:
        if isinstance(request, Apply):
            asked.append([type(op).__name__ for op in request.ops])

    with intercepted(client, before=note):
        yield asked


async def test_many_files_take_one_append_and_one_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        await client.write_file("/before", b"there is a chunk to append to")
        await trio.sleep(5.1)
        files = {f"{n}".encode(): os.urandom(100 + n) for n in range(50)}
        with counted(client) as asked, operations(client) as applied:
            for name, data in files.items():
                make(vfs, ino, name, data)
            assert not asked
            await client.meta.delegations.log.all_settled()
        assert asked["Append"] == 3
        assert applied == [["Create", "Commit"] * 50]
        for name, data in files.items():
            assert await other.read_file(b"/d/" + name) == data
        world.check_metadata()


async def test_whoever_opens_it_elsewhere_finds_what_was_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, other, ino):
        make(vfs, ino, b"a", b"bytes")
        assert await other.read_file("/d/a") == b"bytes"


async def test_this_mount_sees_the_bytes_and_attributes_at_once_and_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, other, ino):
        handle = opened(vfs, ino, b"a", flags=BOTH)
        assert vfs.write_here(handle, 0, b"0123456789")
        assert vfs.write_here(handle, 5, b"abcdefgh")
        before = vfs.cached(handle.ino)
        assert before is not None
        assert before.size == 13
        assert before == await vfs.getattr(handle.ino)
        assert await vfs.read(handle, 3, 4) == b"34ab"
        assert await vfs.read(handle, 10, 100) == b"fgh"
        assert await vfs.read(handle, 13, 100) == b""
        assert vfs.release_here(handle)
        again = await vfs.open(handle.ino, os.O_RDONLY, ROOT)
        assert await vfs.read(again, 0, 100) == b"01234abcdefgh"
        after = await vfs.getattr(handle.ino)
        assert (after.size, after.mtime_ns) == (before.size, before.mtime_ns)
        assert after == await other.stat("/d/a")
        await vfs.release(again)


async def test_two_writes_at_once_to_a_file_just_made_are_both_there(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = b"too far from the beginning for a new file"
    async with own_directory(tmp_path) as (_, client, vfs, other, ino):
        # From here on it takes a while until the file is told.
        client.meta.delegations.log.hurry()
        await trio.sleep(0.1)
        handle = opened(vfs, ino, b"a", flags=BOTH)
        of = client.writers.of
        asked, go_on = trio.Event(), trio.Event()

        async def slowly(policy: PolicyId) -> ChunkWriter:
            asked.set()
            await go_on.wait()
            return await of(policy)

        monkeypatch.setattr(client.writers, "of", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vfs.write, handle, NEW_FILE_BYTES, far)
            await asked.wait()
            assert vfs.write_here(handle, 0, b"begin")
            go_on.set()
        expected = b"begin".ljust(NEW_FILE_BYTES, b"\0") + far
        assert await vfs.read(handle, 0, len(expected)) == expected
        await vfs.flush(handle)
        await vfs.release(handle)
        assert await other.read_file("/d/a") == expected


async def test_a_name_is_never_told_before_its_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, client, vfs, other, ino):
        make(vfs, ino, b"kept", b"old")
        make(vfs, ino, b"new", b"new bytes")
        assert vfs.rename_here(ino, b"new", ino, b"kept", 0, ROOT)
        with operations(client) as applied:
            await vfs.fsyncdir(ino)
        assert applied == [["Create", "Commit", "Create", "Commit", "Rename"]]
        assert await other.read_file("/d/kept") == b"new bytes"


async def test_what_is_renamed_while_it_is_told_keeps_its_size(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, client, vfs, _, ino):
        made = make(vfs, ino, b"a", b"bytes")

        def rename(request: Message) -> None:
            if isinstance(request, Apply):
                vfs.rename_here(ino, b"a", ino, b"b", 0, ROOT)

        with intercepted(client, before=rename):
            await client.meta.delegations.log.all_settled()
        seen = vfs.cached(made)
        assert seen is not None
        assert seen.size == 5


async def test_a_file_that_is_written_to_again_has_all_of_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, other, ino):
        made = make(vfs, ino, b"a", b"0123456789")
        again = await vfs.open(made, WRITE, ROOT)
        assert not vfs.write_here(again, 0, b"abc"), "the master knows it"
        await vfs.write(again, 0, b"abc")
        await vfs.flush(again)
        await vfs.release(again)
        assert await other.read_file("/d/a") == b"abc3456789"


@pytest.mark.parametrize("size", [NEW_FILE_BYTES, NEW_FILE_BYTES + 1, 3 * NEW_FILE_BYTES + 5])
async def test_a_file_that_grows_large_goes_on_alone(
    tmp_path: Path, autojump_clock: MockClock, size: int
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, other, ino):
        handle = opened(vfs, ino, b"a")
        data = os.urandom(size)
        step = 50_000
        for at in range(0, size, step):
            part = data[at : at + step]
            if not vfs.write_here(handle, at, part):
                await vfs.write(handle, at, part)
        if not vfs.flush_here(handle):
            await vfs.flush(handle)
        await vfs.release(handle)
        assert await other.read_file("/d/a") == data


async def test_what_is_odd_is_written_the_ordinary_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, _, ino):
        hole = opened(vfs, ino, b"hole")
        assert not vfs.write_here(hole, 1, b"x")
        large = opened(vfs, ino, b"large")
        assert not vfs.write_here(large, 0, bytes(NEW_FILE_BYTES + 1))
        privileged = opened(vfs, ino, b"privileged", mode=0o4755)
        assert not vfs.write_here(privileged, 0, b"x")
        log = opened(vfs, ino, b"log", flags=WRITE | os.O_APPEND)
        assert vfs.write_here(log, 0, b"one")
        assert vfs.write_here(log, 0, b"two"), "at the end, wherever the kernel thinks that is"
        assert vfs.cached(log.ino).size == 6  # type: ignore[union-attr]
        assert not vfs.write_here(log, 4096 - 7, b"1234567"), "more of the same write may follow"
        for handle in (hole, large, privileged, log):
            await vfs.release(handle)


async def test_a_file_that_its_owner_may_not_write_to_has_its_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        handle = opened(vfs, ino, b"a", USER, mode=0o444)
        assert vfs.write_here(handle, 0, b"bytes")
        assert vfs.release_here(handle)
        assert await other.read_file("/d/a") == b"bytes"
        await trio.sleep(5)
        assert client.files.get(handle.ino) is None
        world.check_metadata()


async def test_nothing_is_left_open(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        made = make(vfs, ino, b"a", b"bytes")
        assert vfs.unlink_here(ino, b"a", ROOT)
        still_open = opened(vfs, ino, b"b")
        assert vfs.write_here(still_open, 0, b"bytes")
        await client.meta.delegations.log.all_settled()
        assert client.files.get(made) is None
        assert client.files.get(still_open.ino) is not None
        with pytest.raises(FileSystemError):
            await other.meta.get_inode(made)
        assert vfs.unlink_here(ino, b"b", ROOT)
        assert await vfs.read(still_open, 0, 10) == b"bytes"
        await vfs.release(still_open)
        await trio.sleep(5)
        assert client.files.get(still_open.ino) is None
        world.check_metadata()


async def test_fsync_of_a_later_open_has_the_bytes_on_disk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, client, vfs, _, ino):
        made = make(vfs, ino, b"a", b"bytes")
        again = await vfs.open(made, os.O_RDONLY, ROOT)
        with counted(client) as asked:
            await vfs.fsync(again)
            assert asked["SyncFragments"] == 3
            assert asked["SyncBarrier"] == 1
        with counted(client) as asked:
            await vfs.fsync(again)
        assert not asked["SyncFragments"]
        await vfs.release(again)


async def test_fsync_of_new_bytes_asks_no_more_than_it_has_to(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, client, vfs, other, ino):
        await client.write_file("/before", b"there is a chunk to append to")
        await trio.sleep(5.1)
        handle = opened(vfs, ino, b"a")
        assert vfs.write_here(handle, 0, b"bytes")
        with counted(client) as asked:
            await vfs.fsync(handle)
        assert asked == {"Append": 3, "Apply": 2}
        await vfs.release(handle)
        assert await other.read_file("/d/a") == b"bytes"


async def test_the_end_of_the_mount_has_all_of_it_on_disk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, client, vfs, other, ino):
        make(vfs, ino, b"a", b"bytes")
        with counted(client) as asked:
            await vfs.fsyncdir(ROOT_INODE)
        assert asked["SyncFragments"] == 3
        assert await other.read_file("/d/a") == b"bytes"


async def test_a_close_waits_where_much_is_not_published(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, other, ino):
        data = os.urandom(NEW_FILE_BYTES)
        for number in range(NEW_BYTES_MANY // NEW_FILE_BYTES - 1):
            make(vfs, ino, b"%d" % number, data)
        handle = opened(vfs, ino, b"last")
        assert vfs.write_here(handle, 0, data)
        assert not vfs.flush_here(handle)
        await vfs.flush(handle)
        assert vfs.flush_here(handle)
        await vfs.release(handle)
        assert await other.read_file("/d/last") == data


async def test_names_do_not_wait_long_for_servers_that_do_not_take_the_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        for server in world.servers:
            world.network.partition("desk", server)
        made = make(vfs, ino, b"a", b"bytes")
        with trio.fail_after(14):
            assert (await other.stat("/d/a")).size == 0
        assert (await vfs.getattr(made)).size == 5
        await hold(client, ino)
        late = opened(vfs, ino, b"b")
        assert not vfs.write_here(late, 0, b"more"), "a close would have to wait for it"
        world.network.heal()
        await vfs.write(late, 0, b"more")
        await vfs.flush(late)
        await vfs.release(late)
        with trio.fail_after(60):
            while await other.read_file("/d/a") != b"bytes":
                await trio.sleep(1)
        assert await other.read_file("/d/b") == b"more"
        await trio.sleep(5)
        assert client.files.get(made) is None
        assert client.files.get(late.ino) is None


async def test_many_batches_do_not_each_wait_for_servers_that_do_not_take_the_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Else the directory is taken away before all of them are told."""
    async with own_directory(tmp_path) as (world, _, vfs, other, ino):
        for server in world.servers:
            world.network.partition("desk", server)
        for number in range(8):
            # What different users do is not told together.
            make(vfs, ino, b"%d" % number, b"bytes", (ROOT, USER)[number % 2])
        with trio.fail_after(14):
            names = [entry.name async for entry in other.scandir("/d")]
        assert sorted(names) == [b"%d" % number for number in range(8)]
        world.network.heal()
        with trio.fail_after(60):
            while {await other.read_file(f"/d/{number}") for number in range(8)} != {b"bytes"}:
                await trio.sleep(1)


async def test_bytes_of_a_file_that_was_removed_again_are_no_loss(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, _, vfs, other, ino):
        for server in world.servers:
            world.network.partition("desk", server)
        make(vfs, ino, b"a", b"bytes")
        assert vfs.unlink_here(ino, b"a", ROOT)
        with trio.fail_after(14):
            assert [entry async for entry in other.scandir("/d")] == []
        world.network.heal()
        await trio.sleep(60)
        await vfs.fsyncdir(ROOT_INODE)


async def test_bytes_that_no_server_takes_follow_as_soon_as_one_does(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_files, "NOT_AGAIN_S", 0.0)
    async with own_directory(tmp_path, on_unavailable="wait:10s") as (world, client, vfs, other, i):
        for server in world.servers:
            world.network.partition("desk", server)
        made = make(vfs, i, b"a", b"bytes")
        await trio.sleep(300)
        with pytest.raises(DfsError):
            await vfs.fsyncdir(ROOT_INODE)
        await hold(client, i)
        assert not vfs.write_here(opened(vfs, i, b"b"), 0, b"bytes"), "there would be ever more"
        again = await vfs.open(made, BOTH, ROOT)
        assert await vfs.read(again, 0, 10) == b"bytes"
        with trio.fail_after(20), pytest.raises(DfsError):
            await vfs.fsync(again)
        world.network.heal()
        with trio.fail_after(60):
            while await other.read_file("/d/a") != b"bytes":
                await trio.sleep(1)
        await vfs.write(again, 5, b" and more")
        await vfs.fsync(again)
        await vfs.release(again)
        await vfs.fsyncdir(ROOT_INODE)
        assert await other.read_file("/d/a") == b"bytes and more"
        await hold(client, i)
        assert vfs.write_here(opened(vfs, i, b"c"), 0, b"bytes")
        await trio.sleep(5)
        assert client.files.get(made) is None
        world.check_metadata()


async def test_bytes_of_a_file_that_is_closed_while_they_follow_are_not_given_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path, on_unavailable="wait:10s") as (world, client, vfs, other, i):
        for server in world.servers:
            world.network.partition("desk", server)
        handle = opened(vfs, i, b"a", USER, mode=0o444)
        assert vfs.write_here(handle, 0, b"bytes")
        assert vfs.flush_here(handle), "the program was told that all is well"
        await client.meta.delegations.log.all_settled()
        assert not vfs.flush_here(handle)
        with suppress(DfsError):
            await vfs.release(handle)
        await trio.sleep(60)
        world.network.heal()
        with trio.fail_after(60):
            while await other.read_file("/d/a") != b"bytes":
                await trio.sleep(1)
        await trio.sleep(5)
        assert client.files.get(handle.ino) is None


@pytest.mark.allow_logs("5 bytes of inode .* are lost")
async def test_bytes_that_follow_do_not_take_the_place_of_what_others_wrote(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        for server in world.servers:
            world.network.partition("desk", server)
        made = make(vfs, ino, b"a", b"bytes")
        emptied = make(vfs, ino, b"b", b"bytes")
        await other.write_file("/d/a", b"theirs")
        await other.truncate("/d/b", 0)
        await other.meta.set_attr(SetAttr(made, mode=0o600))
        world.network.heal()
        await trio.sleep(60)
        assert await other.read_file("/d/a") == b"theirs"
        assert await other.read_file("/d/b") == b""
        for lost, seen in ((made, b"theirs"), (emptied, b"")):
            again = await vfs.open(lost, BOTH, ROOT)
            assert await vfs.read(again, 0, 10) == seen
            with pytest.raises(DfsError, match="others have written to it since"):
                await vfs.fsync(again)
            await vfs.fsync(again)
            await vfs.release(again)
        await trio.sleep(5)
        assert client.files.get(made) is None
        world.check_metadata()


async def test_what_others_do_to_a_file_but_to_its_bytes_does_not_keep_them_from_following(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, _, vfs, other, ino):
        for server in world.servers:
            world.network.partition("desk", server)
        made = make(vfs, ino, b"a", b"bytes")
        await other.stat("/d/a")
        await other.meta.set_attr(SetAttr(made, mode=0o400, uid=5, mtime_ns=7))
        await other.rename("/d/a", "/b")
        world.network.heal()
        await trio.sleep(60)
        assert await other.read_file("/b") == b"bytes"
        assert (await other.stat("/b")).mtime_ns == 7
        await vfs.fsyncdir(ROOT_INODE)


async def test_bytes_whose_publishing_was_not_answered_are_not_taken_for_those_of_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path, on_unavailable="wait:10s") as (world, client, vfs, other, i):
        for server in world.servers:
            world.network.partition("desk", server)
        make(vfs, i, b"a", b"bytes")
        await client.meta.delegations.log.all_settled()
        lost = 0

        async def lose(request: Message) -> None:
            nonlocal lost
            if is_commit(request):
                lost += 1
                raise UnavailableError("the reply was lost")

        with intercepted(client, after=lose):
            world.network.heal()
            await trio.sleep(60)
        assert lost
        await end_session(client)
        with trio.fail_after(60):
            await vfs.fsyncdir(ROOT_INODE)
        assert await other.read_file("/d/a") == b"bytes"
        await vfs.fsyncdir(ROOT_INODE)


@pytest.mark.allow_logs("5 bytes of inode .* are lost")
async def test_the_end_of_the_mount_says_what_did_not_follow(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, other):
        await other.mkdir("/d")
        ino = (await other.stat("/d")).ino
        with pytest.raises(DfsError):
            async with (
                world.client("mounted", on_unavailable="wait:10s") as client,
                trio.open_nursery() as nursery,
            ):
                client.meta.delegations.start()
                await hold(client, ino)
                vfs = Vfs(client, nursery, root=ROOT_INODE)
                for server in world.servers:
                    world.network.partition("mounted", server)
                for number in range(50):
                    make(vfs, ino, b"%d" % number, b"bytes")
                await trio.sleep(60)
                ended = trio.current_time()
        assert trio.current_time() - ended < 60, "they wait together"


@pytest.mark.allow_logs("was answered and is lost", "cannot be opened again")
async def test_with_the_session_goes_what_was_not_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):
        await other.stat("/")
        made = make(vfs, ino, b"a", b"bytes")
        handle = opened(vfs, ino, b"b")
        assert vfs.write_here(handle, 0, b"bytes")
        await other.meta.link.call(CloseSession(client.meta.session.current_id), Empty)
        with pytest.raises(DfsError):
            await client.meta.sync()
        assert client.files.get(made) is None
        with suppress(FileSystemError):
            # It may have been found already that it cannot be opened again.
            await vfs.release(handle)
        await hold(client, ino)
        make(vfs, ino, b"c", b"bytes")
        assert await other.read_file("/d/c") == b"bytes"
        world.check_metadata()


async def test_bytes_are_written_again_where_their_chunk_is_not_the_sessions_any_more(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with own_directory(tmp_path) as (world, client, vfs, other, ino):

        def elsewhere(new: NewFile) -> Commit:
            assert new.extent is not None
            return Commit(new.ino, (replace(new.extent, chunk=new.extent.chunk + 1),))

        made = make(vfs, ino, b"a", b"bytes")
        with monkeypatch.context() as patch, operations(client) as applied:
            patch.setattr(write_behind, "_commit", elsewhere)
            await client.meta.delegations.log.all_settled()
        # What writes the bytes again may have begun by opening the file.
        assert applied[:1] == [["Create", "Commit"]]
        with trio.fail_after(10):
            while (await other.stat("/d/a")).size == 0:
                await trio.sleep(0.1)
        assert await other.read_file("/d/a") == b"bytes"
        await trio.sleep(5)
        assert client.files.get(made) is None
        world.check_metadata()


async def test_opening_a_mode_that_forbids_it_is_still_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with own_directory(tmp_path) as (_, _, vfs, _, ino):
        made = make(vfs, ino, b"a", b"bytes")
        with pytest.raises(FileSystemError) as caught:
            await vfs.open(made, WRITE, USER)
        assert caught.value.errno == errno.EACCES
