"""The file system of a mount without FUSE, on a whole cluster in this process.

`seen` is the mount, `other` a client elsewhere. Moments are real in the caches and jump in the
cluster, so what is believed for a second is believed throughout a test unless `ttl_s` is 0.
"""

import errno
import os
import random
import stat
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import dfs_fuse.directories
import dfs_fuse.vfs
from dfs.client import Client
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ROOT_INODE
from dfs.core.inode import Inode
from dfs.wire.messages import Cred, GetInode, Message, SetAttr, XattrMode
from dfs_fuse.caller import Caller
from dfs_fuse.vfs import Vfs
from tests.unit.client.rig import hold, running
from tests.unit.client.test_safety import intercepted, is_commit

ROOT = Caller(0, 0)
USER = Caller(1001, 1001)
READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
REGULAR = stat.S_IFREG | 0o644


@asynccontextmanager
async def mounted(
    root: Path, *, ttl_s: float = 1000.0, read_only: bool = False
) -> AsyncIterator[tuple[Vfs, Client]]:
    """The file system, and another client."""
    async with running(root) as (world, client), world.client("elsewhere") as other:
        async with trio.open_nursery() as nursery:
            yield (
                Vfs(client, nursery, root=ROOT_INODE, attr_cache_s=ttl_s, read_only=read_only),
                other,
            )
            nursery.cancel_scope.cancel()


def refused(number: int) -> "pytest.RaisesExc[FileSystemError]":
    return pytest.raises(FileSystemError, check=lambda error: error.errno == number)


async def make(vfs: Vfs, name: bytes, data: bytes = b"") -> Inode:
    """A file in the root, closed."""
    handle = await vfs.create(ROOT_INODE, name, 0o644, WRITE, ROOT)
    if data:
        await vfs.write(handle, 0, data)
    await vfs.flush(handle)
    await vfs.release(handle)
    return await vfs.lookup(ROOT_INODE, name, ROOT)


async def content(vfs: Vfs, ino: int) -> bytes:
    handle = await vfs.open(ino, READ, ROOT)
    try:
        return bytes(await vfs.read(handle, 0, 1 << 20))
    finally:
        await vfs.release(handle)


# ------------------------------------------------------------------ what is believed


async def test_what_is_believed_is_what_the_master_says(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """After any of this mount's own changes, attributes need no question and are right."""
    rng = random.Random(7)
    async with mounted(tmp_path) as (vfs, other):
        directories = [ROOT_INODE]
        names: dict[tuple[int, bytes], Inode] = {}
        asked = 0
        for number in range(150):
            parent = rng.choice(directories)
            name = b"%d" % number
            what = rng.randrange(8)
            files = [key for key, inode in names.items() if not inode.is_dir]
            with suppress(FileSystemError):
                if what <= 1:
                    names[parent, name] = await vfs.mknod(parent, name, REGULAR, 0, ROOT)
                elif what == 2:
                    names[parent, name] = made = await vfs.mkdir(parent, name, 0o755, ROOT)
                    directories.append(made.ino)
                elif what == 3 and files:
                    names[parent, name] = await vfs.link(
                        names[rng.choice(files)].ino, parent, name, ROOT
                    )
                elif what == 4 and files:
                    gone = rng.choice(files)
                    await vfs.unlink(*gone, ROOT)
                    del names[gone]
                elif what == 5 and files:
                    moved = rng.choice(files)
                    await vfs.rename(*moved, parent, name, 0, ROOT)
                    names[parent, name] = names.pop(moved)
                elif what == 6 and files:
                    change = SetAttr(names[rng.choice(files)].ino, mode=rng.randrange(0o1000))
                    await vfs.setattr(change, ROOT)
                elif names:
                    gone = rng.choice(list(names))
                    await vfs.rmdir(*gone, ROOT)
                    directories.remove(names.pop(gone).ino)
            for ino in {*directories, *(inode.ino for inode in names.values())}:
                believed = vfs.cached(ino)
                asked += believed is None
                if believed is not None:
                    assert believed == await other.meta.get_inode(ino)
            for (directory, entry), inode in names.items():
                assert vfs.cached_child(directory, entry) in (None, inode.ino)
        assert asked < 2000


@pytest.mark.parametrize("exchange", [False, True])
async def test_a_name_that_was_only_ever_renamed_counts_among_the_links(
    tmp_path: Path, autojump_clock: MockClock, exchange: bool
) -> None:
    """The kernel knows what it has renamed, and never looks it up."""
    async with mounted(tmp_path) as (vfs, _):
        inode = await make(vfs, b"one")
        await make(vfs, b"third")
        await vfs.link(inode.ino, ROOT_INODE, b"other", ROOT)
        if exchange:
            await vfs.rename(ROOT_INODE, b"third", ROOT_INODE, b"one", 2, ROOT)
        else:
            await vfs.rename(ROOT_INODE, b"one", ROOT_INODE, b"third", 0, ROOT)
        assert (await vfs.getattr(inode.ino)).nlink == 2
        await vfs.unlink(ROOT_INODE, b"third", ROOT)
        assert (await vfs.getattr(inode.ino)).nlink == 1


async def test_nothing_is_believed_without_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with mounted(tmp_path, ttl_s=0) as (vfs, other):
        inode = await make(vfs, b"file", b"data")
        assert vfs.cached(inode.ino) is None
        await other.write_file("/file", b"longer than before")
        assert (await vfs.lookup(ROOT_INODE, b"file", ROOT)).size == 18
        await other.unlink("/file")
        with refused(errno.ENOENT):
            await vfs.lookup(ROOT_INODE, b"file", ROOT)


async def test_attributes_count_what_is_not_published_yet(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        inode = await make(vfs, b"file", b"0123456789")
        handle = await vfs.open(inode.ino, WRITE, ROOT)
        await vfs.write(handle, 95, b"12345")
        assert vfs.is_dirty(inode.ino)
        assert vfs.cached(inode.ino) is None
        seen = await vfs.getattr(inode.ino)
        assert seen.size == 100
        assert seen.mtime_ns > inode.mtime_ns
        assert (await vfs.lookup(ROOT_INODE, b"file", ROOT)).size == 100
        assert (await other.stat("/file")).size == 10
        await vfs.flush(handle)
        published = await vfs.getattr(inode.ino)
        assert (published.size, published.mtime_ns) == (100, seen.mtime_ns)
        assert published == await other.stat("/file")
        await vfs.release(handle)


async def test_attributes_count_appends(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with mounted(tmp_path) as (vfs, _):
        inode = await make(vfs, b"log", b"0123456789")
        handle = await vfs.open(inode.ino, WRITE | os.O_APPEND, ROOT)
        await vfs.write(handle, 0, b"more")
        await vfs.write(handle, 2, b"and more")
        assert (await vfs.getattr(inode.ino)).size == 22
        await vfs.write_in_place(handle, 0, b"X")
        await vfs.release(handle)
        assert await content(vfs, inode.ino) == b"X123456789moreand more"


@pytest.mark.parametrize("between", [False, True])
async def test_attributes_count_an_append_once_while_it_is_being_published(
    tmp_path: Path, autojump_clock: MockClock, between: bool
) -> None:
    async def slow(request: Message) -> None:
        if is_commit(request):
            await trio.sleep(3)

    async with mounted(tmp_path, ttl_s=0.0) as (vfs, other):
        inode = await make(vfs, b"log", b"0123456789")
        handle = await vfs.open(inode.ino, WRITE | os.O_APPEND, ROOT)
        await vfs.write(handle, 10, b"more")
        with intercepted(vfs.client, after=slow):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vfs.flush, handle)
                await trio.sleep(2)
                if between:
                    async with await other.open("/log", "a") as log:
                        await log.write(b"between")
                await vfs.write(handle, 14, b"and more")
                assert (await vfs.getattr(inode.ino)).size == 22 + 7 * between
        await vfs.release(handle)


async def test_attributes_that_a_commit_of_this_mount_overtook_are_not_believed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def slow(request: Message) -> None:
        if isinstance(request, GetInode):
            await trio.sleep(3)

    async with mounted(tmp_path, ttl_s=0.0) as (vfs, _):
        inode = await make(vfs, b"log", b"0123456789")
        handle = await vfs.open(inode.ino, WRITE | os.O_APPEND, ROOT)
        await trio.sleep(2)
        sizes = []

        async def ask() -> None:
            sizes.append((await vfs.getattr(inode.ino)).size)

        with intercepted(vfs.client, after=slow):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(1)
                await vfs.write(handle, 10, b"more")
                await vfs.flush(handle)
        assert sizes == [14]
        await vfs.release(handle)


@pytest.mark.parametrize(
    ("flags", "offset", "length", "cut"),
    [
        (0, 100, 3000, False),
        (0, 100, 3996, True),
        (0, 100, 3996 + 4096, True),
        (0, 100, 4000, False),
        (0, 0, 4096, False),
        (0, 8192, 128 * 1024, True),
        (0, 8192, 128 * 1024 + 1, False),
        (0, 8192, 1 << 20, True),
        (os.O_DIRECT, 100, 3996, False),
        (os.O_DIRECT, 100, 128 * 1024, True),
    ],
)
async def test_an_append_that_the_kernel_may_have_cut_waits_for_the_rest(
    tmp_path: Path, autojump_clock: MockClock, flags: int, offset: int, length: int, cut: bool
) -> None:
    async with mounted(tmp_path) as (vfs, _):
        inode = await make(vfs, b"log", bytes(offset))
        handle = await vfs.open(inode.ino, WRITE | os.O_APPEND | flags, ROOT)
        await vfs.write(handle, offset, bytes(length))
        assert handle.file.unfinished is cut
        # The kernel has no write of a file under way while it syncs it.
        began = trio.current_time()
        await vfs.fsync(handle)
        assert trio.current_time() - began < 0.01
        await vfs.release(handle)


# ------------------------------------------------------------------ close-to-open


async def test_an_open_finds_that_the_name_has_moved_on(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path) as (vfs, other):
        old = await make(vfs, b"file", b"old")
        # Open elsewhere, so that it lives on without a name.
        kept = await other.open("/file")
        await other.write_file("/new", b"new one")
        await other.rename("/new", "/file")
        assert vfs.cached_child(ROOT_INODE, b"file") == old.ino
        with refused(errno.ESTALE):
            await vfs.open(old.ino, READ, ROOT)
        new = await vfs.lookup(ROOT_INODE, b"file", ROOT)
        assert new.ino != old.ino
        assert await content(vfs, new.ino) == b"new one"
        with refused(errno.ESTALE):
            await vfs.open(old.ino, READ, ROOT)
        await kept.close()


async def test_an_open_after_a_close_finds_what_another_has_not_told_yet(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has the directory to itself; what was closed is not given back yet."""
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path) as (vfs, other):
        delegations = other.meta.delegations
        delegations.start()
        directory = await other.mkdir("/d")
        for name in ("current", "new"):
            await other.write_file(f"/d/{name}", name.encode())
        old = await vfs.lookup(directory.ino, b"current", ROOT)
        handle = await vfs.open(old.ino, READ, ROOT)
        await hold(other, directory.ino)
        done = delegations.rename(directory.ino, b"new", b"current", Cred(0, 0), lambda _: None)
        assert done is not None
        await vfs.release(handle)
        with refused(errno.ESTALE):
            await vfs.open(old.ino, READ, ROOT)
        new = await vfs.lookup(directory.ino, b"current", ROOT)
        assert await content(vfs, new.ino) == b"new"


async def test_a_reader_follows_a_name_that_is_replaced_again_and_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path) as (vfs, other):
        old = await make(vfs, b"file", b"old")
        for turn in range(3):
            await other.write_file("/new", b"turn %d" % turn)
            await other.rename("/new", "/file")
        handle = await vfs.open_following(old.ino, READ, ROOT)
        assert handle.ino != old.ino
        assert bytes(await vfs.read(handle, 0, 100)) == b"turn 2"
        await vfs.release(handle)
        with refused(errno.ESTALE):
            await vfs.open_following(old.ino, WRITE, ROOT)


async def test_a_descriptor_of_an_unlinked_file_can_be_opened_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by /proc/self/fd."""
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path) as (vfs, other):
        inode = await make(vfs, b"file", b"data")
        handle = await vfs.open(inode.ino, READ, ROOT)
        await vfs.unlink(ROOT_INODE, b"file", ROOT)
        assert await content(vfs, inode.ino) == b"data"
        await vfs.release(handle)
        await trio.sleep(5)
        with refused(errno.ESTALE):
            await vfs.open(inode.ino, READ, ROOT)
        with refused(errno.ENOENT):
            await other.meta.get_inode(inode.ino)


async def test_the_kernel_keeps_its_pages_while_only_this_mount_writes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        inode = await make(vfs, b"file", b"one")

        async def keeps(flags: int = READ, data: bytes = b"") -> bool:
            handle = await vfs.open(inode.ino, flags, ROOT)
            if data:
                await vfs.write(handle, 0, data)
            await vfs.flush(handle)
            await vfs.release(handle)
            return handle.keep_cache

        assert await keeps()
        assert await keeps(BOTH, b"two")
        assert await keeps()
        await other.write_file("/file", b"three")
        assert not await keeps()
        assert await keeps()
        await other.write_file("/file", b"four")
        await keeps(WRITE, b"five, upon four that was never read")
        assert await keeps()
        # Both write while it is open: whose bytes the pages have, nobody knows.
        handle = await vfs.open(inode.ino, BOTH, ROOT)
        await other.write_file("/file", b"six")
        await vfs.write(handle, 0, b"7")
        await vfs.flush(handle)
        await vfs.release(handle)
        assert not await keeps()
        assert await content(vfs, inode.ino) == b"7ix"


async def test_truncating_an_empty_file_at_open_changes_its_times(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As `: > stamp` does."""
    async with mounted(tmp_path) as (vfs, _):
        inode = await make(vfs, b"stamp")
        await vfs.setattr(SetAttr(inode.ino, mtime_ns=5), ROOT)
        handle = await vfs.open(inode.ino, WRITE | os.O_TRUNC, ROOT)
        assert (await vfs.getattr(inode.ino)).mtime_ns > 5
        await vfs.release(handle)


async def test_truncating_at_open_is_seen_by_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with mounted(tmp_path) as (vfs, other):
        inode = await make(vfs, b"file", b"something")
        handle = await vfs.open(inode.ino, WRITE | os.O_TRUNC, ROOT)
        assert (await vfs.getattr(inode.ino)).size == 0
        assert (await other.stat("/file")).size == 0
        await vfs.release(handle)
        again = await vfs.create(ROOT_INODE, b"file", 0o600, WRITE, ROOT)
        assert again.ino == inode.ino
        with refused(errno.EEXIST):
            await vfs.create(ROOT_INODE, b"file", 0o600, WRITE | os.O_EXCL, ROOT)
        await vfs.release(again)


# ------------------------------------------------------------------ writing


async def test_of_several_writes_those_taken_are_not_taken_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, _):
        inode = await make(vfs, b"file")
        handle = await vfs.open(inode.ino, BOTH, ROOT)
        write = handle.file.write
        failures = [None, None, DfsError("no disk takes it")]

        async def failing(offset: int, data: bytes | memoryview) -> None:
            failure = failures.pop(0) if failures else None
            if failure is not None:
                raise failure
            await write(offset, data)

        monkeypatch.setattr(handle.file, "write", failing)
        parts = deque([(0, b"aa"), (2, b"bb"), (4, b"cc"), (6, b"dd")])
        with pytest.raises(DfsError, match="no disk takes it"):
            await vfs.write_parts(handle, parts)
        assert list(parts) == [(4, b"cc"), (6, b"dd")]
        await vfs.write_parts(handle, parts)
        assert not parts
        assert bytes(await vfs.read(handle, 0, 100)) == b"aabbccdd"
        await vfs.release(handle)


async def test_what_was_open_is_written_although_the_right_is_gone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await vfs.setattr(SetAttr(ROOT_INODE, mode=0o777), ROOT)
        handle = await vfs.create(ROOT_INODE, b"file", 0o600, WRITE, USER)
        await vfs.setattr(SetAttr(handle.ino, mode=0o400), ROOT)
        await vfs.write(handle, 0, b"still")
        await vfs.fsync(handle)
        await vfs.release(handle)
        assert await other.read_file("/file") == b"still"
        assert (await other.stat("/file")).uid == USER.uid


async def test_a_mount_that_is_read_only_changes_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path, read_only=True) as (vfs, other):
        await other.write_file("/file", b"data")
        inode = await vfs.lookup(ROOT_INODE, b"file", ROOT)
        assert await content(vfs, inode.ino) == b"data"
        root, name = ROOT_INODE, b"new"
        for attempt in (
            lambda: vfs.mknod(root, name, REGULAR, 0, ROOT),
            lambda: vfs.mkdir(root, name, 0o755, ROOT),
            lambda: vfs.symlink(root, name, b"file", ROOT),
            lambda: vfs.link(inode.ino, root, name, ROOT),
            lambda: vfs.unlink(root, b"file", ROOT),
            lambda: vfs.rmdir(root, b"file", ROOT),
            lambda: vfs.rename(root, b"file", root, name, 0, ROOT),
            lambda: vfs.create(root, name, 0o644, WRITE, ROOT),
            lambda: vfs.open(inode.ino, WRITE, ROOT),
            lambda: vfs.open(inode.ino, READ | os.O_TRUNC, ROOT),
            lambda: vfs.setattr(SetAttr(inode.ino, mode=0o600), ROOT),
            lambda: vfs.setxattr(inode.ino, b"user.x", b"", XattrMode.ANY, ROOT),
            lambda: vfs.removexattr(inode.ino, b"user.x", ROOT),
        ):
            with refused(errno.EROFS):
                await attempt()
        assert [entry.name async for entry in other.scandir("/")] == [b"file"]


# ------------------------------------------------------------------ directories


async def walk(vfs: Vfs, ino: int = ROOT_INODE) -> list[bytes]:
    handle = await vfs.opendir(ino, ROOT)
    names: list[bytes] = []
    while entries := await vfs.readdir(handle, len(names)):
        names += [entry.name for entry in entries]
    await vfs.releasedir(handle)
    return names


async def test_a_walk_sees_each_entry_that_stays_once(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.directories, "_READDIR_PAGE", 3)
    async with mounted(tmp_path) as (vfs, other):
        for number in range(10):
            await make(vfs, b"stays-%d" % number)
            await make(vfs, b"leaves-%d" % number)
        handle = await vfs.opendir(ROOT_INODE, ROOT)
        seen: list[bytes] = []
        while entries := await vfs.readdir(handle, len(seen)):
            seen.append(entries[0].name)
            if len(seen) <= 10:
                await other.unlink(f"/leaves-{len(seen) - 1}")
                await make(vfs, b"comes-%d" % len(seen))
        assert len(seen) == len(set(seen))
        assert sorted(name for name in seen if name.startswith(b"stays")) == [
            b"stays-%d" % number for number in range(10)
        ]
        # From the start again, as rewinddir(3) does: as it is now.
        assert (await vfs.readdir(handle, 0))[0].name.startswith(b"comes")
        await vfs.releasedir(handle)
        with refused(errno.EBADF):
            vfs.directory(handle.number)


async def test_a_program_may_go_back_to_any_position(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.directories, "_READDIR_PAGE", 3)
    async with mounted(tmp_path) as (vfs, _):
        for number in range(8):
            await make(vfs, b"%d" % number)
        expected = [b"%d" % number for number in range(8)]
        assert await walk(vfs) == expected
        handle = await vfs.opendir(ROOT_INODE, ROOT)
        at = 0
        while entries := await vfs.readdir(handle, at):
            at += len(entries)
        for position in (5, 1, 7, 3, 8, 0, 2):
            entries = await vfs.readdir(handle, position)
            assert [each.name for each in entries] == expected[position : position + len(entries)]
            assert bool(entries) == (position < 8)
        with refused(errno.EINVAL):
            await vfs.readdir(handle, 100)
        await vfs.releasedir(handle)


# ------------------------------------------------------------------ the rest


async def test_a_handle_is_known_until_it_is_released(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, _):
        handle = await vfs.create(ROOT_INODE, b"file", 0o644, BOTH, ROOT)
        assert vfs.handle(handle.number) is handle
        await vfs.release(handle)
        with refused(errno.EBADF):
            vfs.handle(handle.number)


async def test_extended_attributes(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with mounted(tmp_path) as (vfs, other):
        vfs.about = b"about this mount"
        inode = await make(vfs, b"file")
        assert vfs.has_no_xattrs(inode.ino)
        with refused(errno.ENODATA):
            await vfs.getxattr(inode.ino, b"user.one")
        with refused(errno.EOPNOTSUPP):
            await vfs.getxattr(inode.ino, b"system.posix_acl_access")
        await vfs.setxattr(inode.ino, b"user.one", b"1", XattrMode.CREATE, ROOT)
        assert not vfs.has_no_xattrs(inode.ino)
        with refused(errno.EEXIST):
            await vfs.setxattr(inode.ino, b"user.one", b"2", XattrMode.CREATE, ROOT)
        with refused(errno.ENODATA):
            await vfs.setxattr(inode.ino, b"user.two", b"2", XattrMode.REPLACE, ROOT)
        assert await vfs.getxattr(inode.ino, b"user.one") == b"1"
        assert await vfs.listxattr(inode.ino) == (b"user.one",)
        assert await other.meta.get_xattr(inode.ino, b"user.one") == b"1"
        await vfs.removexattr(inode.ino, b"user.one", ROOT)
        assert await vfs.listxattr(inode.ino) == ()
        assert await vfs.getxattr(ROOT_INODE, b"user.dfs.mount") == b"about this mount"
        assert await vfs.listxattr(ROOT_INODE) == ()


async def test_only_symlinks_are_read_as_such(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with mounted(tmp_path) as (vfs, _):
        link = await vfs.symlink(ROOT_INODE, b"link", b"\xff/any where", ROOT)
        assert await vfs.readlink(link.ino) == b"\xff/any where"
        with refused(errno.EINVAL):
            await vfs.readlink(ROOT_INODE)


async def test_a_write_clears_set_id_bits_before_anybody_looks(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, _):
        await vfs.setattr(SetAttr(ROOT_INODE, mode=0o777), ROOT)
        handle = await vfs.create(ROOT_INODE, b"program", 0o4755, WRITE, USER)
        assert handle.file.inode.mode & stat.S_ISUID
        await vfs.write(handle, 0, b"#!/bin/true")
        assert not (await vfs.getattr(handle.ino)).mode & stat.S_ISUID
        await vfs.release(handle)
