"""Several tasks change one name of a delegated directory through the master at the same time."""

from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Client
from dfs.core.errors import FileSystemError
from dfs.core.ids import InodeId
from tests.unit.client.rig import hold, running


async def master_has(client: Client, ino: InodeId) -> dict[bytes, InodeId]:
    return {entry.name: entry.inode.ino for entry in (await client.meta.readdir(ino)).entries}


@pytest.mark.parametrize("apart_s", [0.0, 0.001])
async def test_what_is_believed_of_a_name_is_what_the_master_made_of_it(
    tmp_path: Path, autojump_clock: MockClock, apart_s: float
) -> None:
    async with running(tmp_path) as (world, own):
        meta, delegations = own.meta, own.meta.delegations
        delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)

        async def unlink() -> None:
            with suppress(FileSystemError):
                await meta.unlink(ino, b"lock")

        async def create() -> None:
            with suppress(FileSystemError):
                await meta.create(ino, b"lock", 0o644)

        for _ in range(20):
            await create()
            async with trio.open_nursery() as nursery:
                for change in (unlink, create, unlink, create):
                    nursery.start_soon(change)
                    await trio.sleep(apart_s)
            there = await master_has(own, ino)
            believed = delegations.child(ino, b"lock")
            assert believed in (None, there.get(b"lock", 0))
        world.check_metadata()


async def test_a_directory_is_kept_where_each_name_is_changed_by_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, own):
        meta, delegations = own.meta, own.meta.delegations
        delegations.start()
        ino = (await own.mkdir("/d")).ino
        await hold(own, ino)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(meta.mkdir, ino, b"%d" % number, 0o755)
        there = await master_has(own, ino)
        assert {name: delegations.child(ino, name) for name in there} == there
        assert delegations.directory(ino) == await meta.get_inode(ino)
        world.check_metadata()
