"""A mount's own directories: what crosses a change there, or the moment when one is given back."""

import errno
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from dfs.client import Client
from dfs.core.errors import FileSystemError
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.core.inode import Inode
from dfs.wire.messages import Lookup, Message
from dfs_fuse.caller import Caller
from dfs_fuse.handles import FileHandle
from dfs_fuse.vfs import Vfs
from tests.unit.client.rig import hold, running
from tests.unit.client.test_safety import intercepted

pytestmark = pytest.mark.usefixtures("autojump_clock")

ROOT: Final = Caller(0, 0)
_OPEN: Final = 300
_MORE: Final = 2000


@asynccontextmanager
async def mounted(root: Path, *, ttl_s: float) -> AsyncIterator[tuple[Vfs, Client, InodeId]]:
    """The file system, another client, and a directory `/d` that may become the mount's own."""
    async with running(root) as (world, client), world.client("elsewhere") as other:
        async with trio.open_nursery() as nursery:
            vfs = Vfs(client, nursery, root=ROOT_INODE, attr_cache_s=ttl_s)
            client.meta.delegations.start()
            directory = (await client.mkdir("/d")).ino
            yield vfs, other, directory
            nursery.cancel_scope.cancel()


async def test_a_name_removed_here_does_not_come_back_with_an_older_answer(tmp_path: Path) -> None:
    removed = trio.Event()

    async def slow(request: Message) -> None:
        if isinstance(request, Lookup) and request.name == b"file":
            await removed.wait()

    async with mounted(tmp_path, ttl_s=1000) as (vfs, other, directory):
        await other.write_file("/d/file", b"data")
        async with trio.open_nursery() as nursery:
            with intercepted(vfs.client, after=slow):
                nursery.start_soon(vfs.lookup, directory, b"file", ROOT)
                await trio.sleep(0.1)
            await hold(vfs.client, directory)
            assert vfs.unlink_here(directory, b"file", ROOT)
            removed.set()
        assert vfs.cached_child(directory, b"file") is None
        vfs.client.meta.delegations.give_back(directory)
        assert vfs.cached_child(directory, b"file") is None


async def test_nor_does_one_of_a_directory_that_all_share(tmp_path: Path) -> None:
    removed = trio.Event()

    async def slow(request: Message) -> None:
        if isinstance(request, Lookup) and request.name == b"file":
            await removed.wait()

    async with mounted(tmp_path, ttl_s=1000) as (vfs, other, directory):
        await other.write_file("/d/file", b"data")
        async with trio.open_nursery() as nursery:
            with intercepted(vfs.client, after=slow):
                nursery.start_soon(vfs.lookup, directory, b"file", ROOT)
                await trio.sleep(0.1)
            await vfs.unlink(directory, b"file", ROOT)
            removed.set()
        assert not vfs.cached_child(directory, b"file")


async def test_a_name_that_is_too_long_is_not_just_absent(tmp_path: Path) -> None:
    async with mounted(tmp_path, ttl_s=1000) as (vfs, _, directory):
        await hold(vfs.client, directory)
        for length, number in ((255, errno.ENOENT), (256, errno.ENAMETOOLONG)):
            assert vfs.is_absent(directory, b"x" * length) == (length == 255)
            with pytest.raises(FileSystemError) as caught:
                await vfs.lookup(directory, b"x" * length, ROOT)
            assert caught.value.errno == number


async def test_a_file_whose_directory_is_given_back_as_it_is_made_is_not_believed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path, ttl_s=0) as (vfs, other, directory):
        await hold(vfs.client, directory)
        delegations = vfs.client.meta.delegations
        create = delegations.create

        def create_and_give_back(*args: Any) -> Inode | None:
            inode = create(*args)
            delegations.give_back(directory)
            return inode

        monkeypatch.setattr(delegations, "create", create_and_give_back)
        handle = vfs.create_here(directory, b"file", 0o644, os.O_WRONLY, ROOT)
        assert handle is not None
        await other.write_file("/d/file", b"data")
        assert (await vfs.getattr(handle.ino)).size == 4
        await vfs.release(handle)


async def test_files_that_other_threads_make_do_not_disturb_a_look_at_the_open_ones(
    tmp_path: Path,
) -> None:
    async with mounted(tmp_path, ttl_s=1000) as (vfs, _, directory):
        await hold(vfs.client, directory)

        def create(name: bytes) -> FileHandle:
            handle = vfs.create_here(directory, name, 0o644, os.O_RDWR, ROOT)
            assert handle is not None
            return handle

        def create_more() -> None:
            for number in range(_MORE):
                handles.append(create(b"late-%d" % number))

        handles = [create(b"open-%d" % number) for number in range(_OPEN)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        thread = threading.Thread(target=create_more)
        thread.start()
        try:
            while thread.is_alive():
                assert not vfs._is_open(directory)
        finally:
            thread.join()
            sys.setswitchinterval(interval)
        for handle in handles:
            await vfs.release(handle)
