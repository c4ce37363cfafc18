"""Who goes through a directory name by name: attributes come by the page. What is no such walk."""

import errno
from pathlib import Path

import pytest
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.wire.messages import Put
from dfs_fuse.caller import Caller
from dfs_fuse.stat_ahead import PAGE_FIRST, PAGE_MAX, STREAK, Walk
from tests.unit.client.test_fsync import counted
from tests.unit.fuse.test_vfs import mounted

ROOT = Caller(0, 0)


def names(count: int) -> list[bytes]:
    return [b"%05d" % number for number in range(count)]


async def fill(client: Client, count: int) -> InodeId:
    ino = (await client.mkdir("/d")).ino
    await client.meta.apply(*(Put(ino, name, 0o644, 0) for name in names(count)))
    return ino


async def test_a_walk_asks_for_pages_and_sees_what_is_there(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        ino = await fill(other, 500)
        with counted(vfs.client) as asked:
            for name in names(500):
                inode = await vfs.lookup(ino, name, ROOT)
                assert inode == await other.meta.lookup(ino, name)
        assert asked["Lookup"] == STREAK
        assert asked["ReadDir"] == 4, "64, 128, 256, and the rest"


async def test_a_name_that_is_not_there_is_not_found_in_a_walk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        ino = await fill(other, 20)
        for name in names(20):
            await vfs.lookup(ino, name, ROOT)
        for number in range(20):
            with pytest.raises(FileSystemError) as caught:
                await vfs.lookup(ino, b"nothing-%d" % number, ROOT)
            assert caught.value.errno == errno.ENOENT
        with pytest.raises(FileSystemError) as caught:
            for name in names(10):
                await vfs.lookup(ROOT_INODE + 999_999, name, ROOT)
        assert caught.value.errno == errno.ENOENT


async def test_where_nothing_is_believed_each_name_is_asked_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path, ttl_s=0) as (vfs, other):
        ino = await fill(other, 20)
        with counted(vfs.client) as asked:
            for name in names(20):
                await vfs.lookup(ino, name, ROOT)
        assert asked == {"Lookup": 20}


def test_only_names_in_order_are_a_walk() -> None:
    walk = Walk()
    for name in (b"c", b"a", b"d", b"b", b"e", b"a", b"f"):
        assert walk.missed(name) is None
    for name in (b"g", b"h", b"i"):
        walk.missed(name)
    assert walk.missed(b"j") == b"i"


def test_pages_grow_up_to_a_bound_and_start_small_after_a_break() -> None:
    walk = Walk()
    sizes = []
    for _ in range(8):
        sizes.append(walk.begin())
        walk.end(b"x")
    assert sizes[:2] == [PAGE_FIRST, 2 * PAGE_FIRST]
    assert sizes[-1] == PAGE_MAX
    walk.end(None)
    assert walk.missed(b"y") is None
    assert walk.begin() == PAGE_FIRST
