"""All disks as trees of failure domains, each with the free bytes below it. Pure.

One tree per spread in use: zone > rack > server > disk, as the policy asks. Updating a disk and
drawing one both cost O(log n). `placement` draws from them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from dfs.core.chunk import DiskState
from dfs.core.ids import DiskId, ServerId
from dfs.core.policy import Spread


class DiskView(msgspec.Struct, frozen=True):
    """A registered disk as placement sees it."""

    disk: DiskId
    server: ServerId
    host: str
    """Host part of the server's address."""
    address: str
    path: str
    rack: str
    zone: str
    state: DiskState
    """UP takes new data; UNSTEADY only where nothing else can."""
    capacity: int
    free: int
    """Bytes dfs may still write."""


class SumTree:
    """Weights of n slots with their sum, drawn from in proportion; set and find are O(log n)."""

    __slots__ = ("_size", "sums")

    def __init__(self, weights: Sequence[int]) -> None:
        size = 1
        while size < len(weights):
            size *= 2
        sums = [0] * (2 * size)
        sums[size : size + len(weights)] = weights
        for node in range(size - 1, 0, -1):
            sums[node] = sums[2 * node] + sums[2 * node + 1]
        self._size = size
        self.sums = sums
        """sums[1] is the total; read here by those for whom a call costs too much."""

    @property
    def total(self) -> int:
        return self.sums[1]

    def get(self, slot: int) -> int:
        return self.sums[self._size + slot]

    def set(self, slot: int, weight: int) -> int:
        """The weight that it replaces."""
        sums = self.sums
        node = self._size + slot
        old = sums[node]
        change = weight - old
        while node:
            sums[node] += change
            node >>= 1
        return old

    def find(self, point: int) -> int:
        """The slot that holds `point` of the line of all weights, 0 <= point < total."""
        sums, size = self.sums, self._size
        node = 1
        while node < size:
            node <<= 1
            left = sums[node]
            if point >= left:
                point -= left
                node += 1
        return node - size


class Domain:
    """A zone, rack, server or (without children) disk in one tree."""

    __slots__ = ("capacity", "children", "disk", "parent", "slot", "tree")

    def __init__(self, capacity: int, disk: DiskId = 0) -> None:
        self.capacity = capacity
        self.disk = disk
        self.children: list[Domain] = []
        self.parent: Domain | None = None
        self.slot = 0
        self.tree = SumTree(())

    def adopt(self, children: list["Domain"], weights: Sequence[int]) -> None:
        self.children = children
        self.tree = SumTree(weights)
        self.capacity = max(1, sum(child.capacity for child in children))
        for slot, child in enumerate(children):
            child.parent, child.slot = self, slot


_LEVELS: Final[dict[Spread, tuple[Callable[[DiskView], object], ...]]] = {
    Spread.DISK: (lambda disk: disk.server,),
    Spread.SERVER: (lambda disk: disk.server,),
    Spread.RACK: (lambda disk: (disk.zone, disk.rack), lambda disk: disk.server),
    Spread.ZONE: (
        lambda disk: disk.zone,
        lambda disk: (disk.zone, disk.rack),
        lambda disk: disk.server,
    ),
}
"""Domains from the root down to the server, for each spread."""


class Hierarchy:
    """All disks as one tree of domains. Weights are the free bytes of disks that take data."""

    def __init__(self, views: Iterable[DiskView], spread: Spread) -> None:
        self.leaves: dict[DiskId, Domain] = {}
        self.root = self._build(list(views), _LEVELS[spread])

    def _build(
        self, views: list[DiskView], levels: tuple[Callable[[DiskView], object], ...]
    ) -> Domain:
        domain = Domain(0)
        if not levels:
            leaves = [Domain(max(1, view.capacity), view.disk) for view in views]
            self.leaves.update((leaf.disk, leaf) for leaf in leaves)
            domain.adopt(leaves, [weight_of(view) for view in views])
            return domain
        groups: dict[object, list[DiskView]] = {}
        for view in views:
            groups.setdefault(levels[0](view), []).append(view)
        children = [self._build(group, levels[1:]) for group in groups.values()]
        domain.adopt(children, [child.tree.total for child in children])
        return domain

    def set_weight(self, disk: DiskId, weight: int) -> None:
        domain = self.leaves[disk]
        while domain.parent is not None:
            domain.parent.tree.set(domain.slot, weight)
            domain = domain.parent
            weight = domain.tree.total


UNSTEADY_SHARE: Final = 4096
"""A disk that is not trusted yet weighs as much as one with so many times less room."""


def weight_of(view: DiskView) -> int:
    """Weight of a disk in random draws: its free bytes, or 0 where it takes no new data."""
    if view.state is DiskState.UP:
        return max(0, view.free)
    if view.state is DiskState.UNSTEADY and view.free > 0:
        return max(1, view.free // UNSTEADY_SHARE)
    return 0
