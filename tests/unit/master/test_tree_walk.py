"""A walk through a tree can go on from any place that was written down."""

from contextlib import aclosing

import pytest

from dfs.core.ids import ROOT_INODE
from dfs.master.jobs import tree_walk
from dfs.master.jobs.tree_walk import Place, TreeWalk
from dfs.wire.messages import Link, Symlink, Unlink
from tests.unit.master.rig import Rig


def tree() -> tuple[Rig, list[int]]:
    """A root with files in and beside directories, and what they are in order."""
    rig = Rig()
    order = []
    top = rig.mkdir(b"top")
    order.append(rig.create(b"a", parent=top))
    rig.made(Symlink(top, b"b", b"a"))
    empty = rig.mkdir(b"c-empty", parent=top)
    middle = rig.mkdir(b"d", parent=top)
    deep = rig.mkdir(b"deep", parent=middle)
    order += [rig.create(b"f%d" % number, parent=deep) for number in range(5)]
    order.append(rig.create(b"last", parent=middle))
    order.append(rig.create(b"z", parent=top))
    rig.create(b"beside")
    assert rig.inode(empty).size == 0
    return rig, order


async def walked(walk: TreeWalk, most: int = 1 << 30) -> list[int]:
    found: list[int] = []
    async with aclosing(walk.files()) as files:
        async for inode in files:
            found.append(inode.ino)
            if len(found) == most:
                break
    return found


async def test_all_files_below_are_met_in_order_and_nothing_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, order = tree()
    top = rig.resolve(b"/top").ino
    for size in (1, 2, 256):
        monkeypatch.setattr(tree_walk, "SLICE", size)
        assert await walked(TreeWalk(rig.store, top)) == order
    assert await walked(TreeWalk(rig.store, order[0])) == [order[0]]
    assert await walked(TreeWalk(rig.store, 999)) == []
    whole = await walked(TreeWalk(rig.store, ROOT_INODE))
    assert len(whole) == len(order) + 1


async def test_a_walk_goes_on_from_every_place() -> None:
    rig, order = tree()
    top = rig.resolve(b"/top").ino
    for done in range(1, len(order) + 1):
        walk = TreeWalk(rig.store, top)
        assert await walked(walk, done) == order[:done]
        place: Place = walk.place
        assert await walked(TreeWalk(rig.store, top, place)) == order[done:]


async def test_a_tree_may_change_meanwhile() -> None:
    rig, order = tree()
    top = rig.resolve(b"/top").ino
    walk = TreeWalk(rig.store, top)
    assert await walked(walk, 3) == order[:3]
    deep = rig.resolve(b"/top/d/deep").ino
    for number in range(5):
        rig.do(Unlink(deep, b"f%d" % number))
    rig.made(Link(order[0], deep, b"zz"))
    assert await walked(TreeWalk(rig.store, top, walk.place)) == [order[0], *order[6:]]
