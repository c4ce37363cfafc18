"""Between mounts: what an open file and the kernel's pages are known to be of; the last close."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import dfs_fuse.vfs
from dfs.client import Client
from dfs.core.ids import ROOT_INODE
from dfs_fuse.caller import Caller
from dfs_fuse.vfs import Vfs
from tests.unit.client.rig import running

pytestmark = pytest.mark.usefixtures("autojump_clock")

ROOT = Caller(0, 0)


@asynccontextmanager
async def mounted(root: Path, *, by_path: bool = False) -> AsyncIterator[tuple[Vfs, Client]]:
    """The file system, believing nothing, and another client."""
    async with running(root) as (world, client), world.client("elsewhere") as other:
        async with trio.open_nursery() as nursery:
            yield Vfs(client, nursery, root=ROOT_INODE, attr_cache_s=0, by_path=by_path), other
            nursery.cancel_scope.cancel()


async def test_an_open_file_is_as_long_as_a_lookup_has_said(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (vfs, other):
        await other.write_file("/log", b"one")
        inode = await vfs.lookup(ROOT_INODE, b"log", ROOT)
        handle = await vfs.open(inode.ino, os.O_RDONLY, ROOT)
        async with await other.open("/log", "a") as log:
            await log.write(b", two")
        assert (await vfs.lookup(ROOT_INODE, b"log", ROOT)).size == 8
        assert bytes(await vfs.read(handle, 0, 100)) == b"one, two"
        await vfs.release(handle)


@pytest.mark.parametrize("by_path", [False, True])
async def test_pages_of_a_file_with_several_names(
    tmp_path: Path, by_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libfuse 2 has a page cache for each name: a write by one leaves the other's old."""
    # Every open asks for the name, also for one that this mount has just taken away.
    monkeypatch.setattr(dfs_fuse.vfs, "_FRESH_S", 0.0)
    async with mounted(tmp_path, by_path=by_path) as (vfs, other):
        await other.write_file("/a", b"old")
        ino = (await vfs.lookup(ROOT_INODE, b"a", ROOT)).ino
        await vfs.release(await vfs.open(ino, os.O_RDONLY, ROOT))
        await vfs.link(ino, ROOT_INODE, b"b", ROOT)
        handle = await vfs.open(ino, os.O_WRONLY, ROOT)
        await vfs.write(handle, 0, b"new")
        await vfs.flush(handle)
        await vfs.release(handle)
        await vfs.unlink(ROOT_INODE, b"b", ROOT)
        handle = await vfs.open(ino, os.O_RDONLY, ROOT)
        assert handle.keep_cache is not by_path
        await vfs.release(handle)


async def test_a_release_is_not_given_up_when_the_mount_ends(tmp_path: Path) -> None:
    """Pages of a mapping are written after the last close, and nobody flushes them."""
    async with mounted(tmp_path) as (vfs, other):
        handle = await vfs.create(ROOT_INODE, b"file", 0o644, os.O_RDWR, ROOT)
        await vfs.write(handle, 0, b"mapped")
        with trio.CancelScope() as scope:
            scope.cancel()
            await vfs.release(handle)
        assert await other.read_file("/file") == b"mapped"
