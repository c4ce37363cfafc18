"""Small files read one after the other: few questions, and never bytes of before."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import dfs_fuse.vfs
from dfs.client import Client
from dfs.core.ids import ROOT_INODE
from dfs.wire.messages import (
    Apply,
    GetExtents,
    Lookup,
    Message,
    Open,
    OpenNamed,
    ReadDir,
    Release,
)
from dfs_fuse.vfs import Vfs
from tests.unit.client.test_open_files import intercept
from tests.unit.fuse.test_vfs import ROOT, content, mounted

COUNT = 30


def names() -> list[bytes]:
    """In no order in which a listing has them."""
    return [b"f%02d" % number for number in reversed(range(COUNT))]


async def written(other: Client) -> None:
    for name in names():
        await other.write_file(b"/" + name, b"old " + name)


def watch(vfs: Vfs, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What the mount asks of the master from now on."""
    asked: list[Message] = []

    async def note(request: Message, send: Any) -> Any:
        asked.append(request)
        return await send()

    intercept(vfs.client, monkeypatch, note)
    return asked


async def test_a_file_that_is_looked_up_and_read_is_two_questions(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        asked = watch(vfs, monkeypatch)
        for name in names():
            inode = await vfs.lookup(ROOT_INODE, name, ROOT)
            assert await content(vfs, inode.ino) == b"old " + name
        await trio.sleep(1)
        extents = [each for each in asked if isinstance(each, GetExtents)]
        assert len(extents) <= 2  # until it is seen that what is looked up is read
        looked = [each for each in asked if isinstance(each, Lookup)]
        assert [each.with_extents for each in looked[3:]] == [True] * (COUNT - 3)
        applied = [op for each in asked if isinstance(each, Apply) for op in each.ops]
        assert sum(isinstance(op, Open) for op in applied) == COUNT
        assert sum(isinstance(op, Release) for op in applied) == COUNT


async def test_an_open_and_the_check_of_its_name_are_one_question(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No name was found so lately that an open need not ask for it.
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        inodes = [await vfs.lookup(ROOT_INODE, name, ROOT) for name in names()]
        asked = watch(vfs, monkeypatch)
        for inode, name in zip(inodes, names(), strict=True):
            assert await content(vfs, inode.ino) == b"old " + name
        assert not any(isinstance(each, Lookup) for each in asked)
        opened = [op for each in asked if isinstance(each, Apply) for op in each.ops]
        assert [op.name for op in opened if isinstance(op, OpenNamed)] == names()
        assert not any(isinstance(op, Open) for op in opened)


async def test_what_others_wrote_between_look_up_and_open_is_read(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        for name in names():
            inode = await vfs.lookup(ROOT_INODE, name, ROOT)
            await other.write_file(b"/" + name, b"newer " + name)
            assert await content(vfs, inode.ino) == b"newer " + name


async def test_what_was_heard_long_ago_is_asked_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        asked = watch(vfs, monkeypatch)
        inodes = [await vfs.lookup(ROOT_INODE, name, ROOT) for name in names()[:10]]
        for _ in range(2):
            for inode in inodes[:3]:
                await content(vfs, inode.ino)
        late = await vfs.lookup(ROOT_INODE, names()[-1], ROOT)
        assert any(isinstance(each, Lookup) and each.with_extents for each in asked)
        await trio.sleep(10)
        del asked[:]
        assert await content(vfs, late.ino) == b"old " + names()[-1]
        assert any(isinstance(each, GetExtents) for each in asked)


async def test_who_only_looks_is_told_no_extents(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        asked = watch(vfs, monkeypatch)
        for name in sorted(names()):
            await vfs.lookup(ROOT_INODE, name, ROOT)
        assert any(isinstance(each, ReadDir) for each in asked)
        assert not any(isinstance(each, Lookup | ReadDir) and each.with_extents for each in asked)


async def test_files_read_in_the_order_of_a_listing_have_their_extents_from_its_pages(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        asked = watch(vfs, monkeypatch)
        for name in sorted(names()):
            inode = await vfs.lookup(ROOT_INODE, name, ROOT)
            assert await content(vfs, inode.ino) == b"old " + name
        assert sum(isinstance(each, GetExtents) for each in asked) <= 2
        assert any(isinstance(each, ReadDir) and each.with_extents for each in asked)


async def test_files_closed_within_a_moment_are_given_back_in_one_request(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await written(other)
        inodes = [await vfs.lookup(ROOT_INODE, name, ROOT) for name in names()]
        handles = [await vfs.open(inode.ino, 0, ROOT) for inode in inodes]
        asked = watch(vfs, monkeypatch)
        for handle in handles:
            await vfs.release(handle)
        again = await vfs.open(inodes[0].ino, 0, ROOT)
        await trio.sleep(1)
        releases = [
            each
            for each in asked
            if isinstance(each, Apply) and any(isinstance(op, Release) for op in each.ops)
        ]
        assert [len(each.ops) for each in releases] == [COUNT - 1]
        assert vfs.client.files.get(inodes[0].ino) is again.file
        assert vfs.client.files.get(inodes[1].ino) is None
        # What is open here is kept, also when its name goes.
        await other.unlink(b"/" + names()[0])
        await trio.sleep(30)
        vfs.client.cache.clear()
        assert bytes(await vfs.read(again, 0, 100)) == b"old " + names()[0]
        await vfs.release(again)
