"""Trees of the cluster, walked for find, du, tree, ls -R and everything else with -R.

Depth first, in order of name. What comes next is read ahead, so that a walk costs the master's
time and not one round trip after the other. A directory that cannot be read is one failure, and
the walk goes on.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from dfs.cli.failures import Failures
from dfs.cli.names import join
from dfs.core.errors import DfsError
from dfs.core.inode import Inode
from dfs.wire.messages import READDIR_MAX, DirEntry

if TYPE_CHECKING:
    from dfs.client import Client

_AHEAD: Final = 32
"""Directories read ahead of the one in hand."""
_HELD_MAX: Final = 256
"""Directories read and not yet used, at most; a deep tree leaves some behind at each level."""


@dataclass(frozen=True, slots=True)
class Node:
    """One name in a tree."""

    path: bytes
    inode: Inode
    depth: int
    """0 for the root of the walk."""
    last: bool = True
    """No sibling follows."""


@dataclass(slots=True)
class _Read:
    """One directory being read, or read."""

    done: trio.Event = field(default_factory=trio.Event)
    entries: list[DirEntry] = field(default_factory=list)
    error: DfsError | None = None


class TreeWalk:
    """Walks trees; reads ahead in `nursery`, which the caller owns and cancels when done."""

    def __init__(self, client: "Client", nursery: trio.Nursery, failures: Failures) -> None:
        self._client = client
        self._nursery = nursery
        self._failures = failures
        self._reads: dict[int, _Read] = {}

    async def nodes(
        self,
        root: Node,
        *,
        max_depth: int | None = None,
        wanted: Callable[[Node], bool] | None = None,
    ) -> AsyncIterator[Node]:
        """`root` and all below it, each before what it contains.

        What is not `wanted` is left out, with all below it.
        """
        pending = [root]
        while pending:
            node = pending.pop()
            yield node
            if not node.inode.is_dir or node.depth == max_depth:
                continue
            children = await self.children(node)
            if wanted is not None:
                children = _without(children, wanted)
            pending += reversed(children)
            if node.depth + 1 != max_depth:
                upcoming = pending[: -_AHEAD - 1 : -1]
                self._read_ahead(each.inode.ino for each in upcoming if each.inode.is_dir)

    async def directories(self, root: Node) -> AsyncIterator[tuple[Node, list[Node]]]:
        """`root` and all directories below it, each with what it contains."""
        pending = [root]
        while pending:
            node = pending.pop()
            children = await self.children(node)
            pending += [each for each in reversed(children) if each.inode.is_dir]
            self._read_ahead(each.inode.ino for each in pending[: -_AHEAD - 1 : -1])
            yield node, children

    async def children(self, node: Node) -> list[Node]:
        """What a directory contains, in order of name. Unreadable: a failure, and empty."""
        read = self._reads.get(node.inode.ino)
        if read is not None:
            await read.done.wait()
            del self._reads[node.inode.ino]
        if read is None or read.error is not None:
            # Nothing was read ahead, or too early: its permissions may have changed since.
            read = _Read()
            await self._read(node.inode.ino, read)
        if read.error is not None:
            self._failures.add(f"{node.path.decode('utf-8', 'surrogateescape')}: {read.error}")
            return []
        final = len(read.entries) - 1
        return [
            Node(join(node.path, entry.name), entry.inode, node.depth + 1, place == final)
            for place, entry in enumerate(read.entries)
        ]

    def _read_ahead(self, inodes: Iterable[int]) -> None:
        for ino in inodes:
            if ino in self._reads:
                continue
            if len(self._reads) >= _HELD_MAX:
                return
            self._reads[ino] = read = _Read()
            self._nursery.start_soon(self._read, ino, read)

    async def _read(self, ino: int, read: _Read) -> None:
        after, more = b"", True
        try:
            while more:
                page = await self._client.meta.readdir(ino, after=after, limit=READDIR_MAX)
                read.entries += page.entries
                more = page.more
                after = page.entries[-1].name if page.entries else after
        except DfsError as error:
            read.error = error
        read.done.set()


def _without(children: list[Node], wanted: Callable[[Node], bool]) -> list[Node]:
    kept = [each for each in children if wanted(each)]
    if kept and not kept[-1].last:
        kept[-1] = replace(kept[-1], last=True)
    return kept
