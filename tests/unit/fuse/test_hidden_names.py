"""Names that libfuse 2 gives to files which are unlinked while they are open."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.core.ids import ROOT_INODE
from dfs_fuse.bridge import Bridge
from dfs_fuse.fusepy_driver import _Operations
from dfs_fuse.hidden_names import HiddenNames
from dfs_fuse.kernel_beliefs import KernelBeliefs
from dfs_fuse.vfs import Vfs
from tests.unit.client.rig import running

NAME = b".fuse_hidden0000001200000003"


def test_a_hidden_name_is_found_until_it_is_removed() -> None:
    hidden = HiddenNames()
    hidden.put(NAME, 7)
    assert hidden.find(NAME) == 7
    assert hidden.remove(NAME) == 7
    assert hidden.find(NAME) is None
    assert hidden.remove(NAME) is None


def test_only_names_that_libfuse_makes_match() -> None:
    assert HiddenNames.matches(NAME)
    assert HiddenNames.matches(b".fuse_hiddenfedcba9876543210")


@pytest.mark.parametrize(
    "name",
    [
        b".fuse_hidden",
        NAME[:-1],
        NAME + b"0",
        NAME + b"\n",
        b"x" + NAME,
        NAME.upper(),
        b".fuse_hidden00000012-0000003",
        b"",
    ],
)
def test_other_names_are_those_of_programs(name: bytes) -> None:
    assert not HiddenNames.matches(name)


async def test_a_hidden_name_goes_also_when_its_directory_has_gone_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client), trio.open_nursery() as nursery:
        vfs = Vfs(client, nursery, root=ROOT_INODE)
        kernel = KernelBeliefs(
            "/", encoding="latin-1", forget=lambda _: False, caller=lambda: 0, enabled=False
        )
        operations = _Operations(Bridge(nursery), vfs, kernel, lambda: None, lambda: (0, 0, 0))

        async def ask(name: str, *args: Any) -> None:
            await trio.to_thread.run_sync(operations, name, *args)

        hidden = f"/d/{NAME.decode()}"
        await client.mkdir("/d")
        await client.write_file("/d/file", b"data")
        await ask("rename", "/d/file", hidden)
        assert operations._hidden.find(NAME)
        await ask("rmdir", "/d")
        await ask("unlink", hidden)
        assert operations._hidden.find(NAME) is None
        nursery.cancel_scope.cancel()
