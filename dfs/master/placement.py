"""Which disks a new chunk goes to: pure, seeded from outside, a few microseconds a fragment.

`PlacementMap` keeps the disks in one tree for each spread in use (`domains`). Choosing a fragment's
disk walks down from the root: at each level draw two domains at random, weighted by free
bytes, and take the emptier one. A domain that got a fragment sits out until all its siblings
with room have one too, so that domains are filled evenly; a server that got one sits out for
good, unless the policy spreads over disks only.

Owned by `liveness.Liveness`, which feeds it from heartbeats.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Final

import msgspec

from dfs.core.chunk import DiskState
from dfs.core.errors import DfsError, NoSpaceError, RedundancyError, UnavailableError
from dfs.core.ids import DiskId, ServerId
from dfs.core.policy import Policy, Spread
from dfs.core.redundancy import Redundancy
from dfs.master.domains import DiskView, Domain, Hierarchy, SumTree, weight_of

NAMED_MAX: Final = 6
"""Disks or servers that an error names at most; the rest are counted."""

CHARGED_SHARE: Final = 256
"""Bytes that are about to be written count once they are this part of a disk's free ones."""

LOCAL_FREE_RATIO: Final = 0.5
"""The client's host is preferred while its free share is this part of the cluster's, or more."""


class Placement(msgspec.Struct, frozen=True):
    """Disks for fragments 0, 1, ... of a new chunk; may be fewer than `redundancy.width`."""

    redundancy: Redundancy
    disks: tuple[DiskId, ...]


class _Draw:
    """Disks drawn for one chunk. Hides what may not be drawn again; `undo` shows it all again."""

    def __init__(self, hierarchy: Hierarchy, spread: Spread, random: Random) -> None:
        self._hierarchy = hierarchy
        self._share_servers = spread is Spread.DISK
        self._random = random
        self._hidden: list[tuple[SumTree, int, int]] = []
        self._waiting: dict[int, list[Domain]] = {}
        self.disks: list[DiskId] = []

    def undo(self) -> None:
        for tree, slot, weight in reversed(self._hidden):
            tree.set(slot, weight)

    def _set(self, domain: Domain, weight: int) -> None:
        parent = domain.parent
        assert parent is not None
        tree, slot = parent.tree, domain.slot
        self._hidden.append((tree, slot, tree.set(slot, weight)))

    def avoid(self, disks: Iterable[DiskId]) -> None:
        self._weigh(disks, 0)

    def admit(self, disks: Iterable[DiskId]) -> None:
        """These are drawn where no other can be."""
        self._weigh(disks, 1)

    def _weigh(self, disks: Iterable[DiskId], weight: int) -> None:
        for disk in disks:
            domain = self._hierarchy.leaves.get(disk)
            if domain is None:
                continue
            self._set(domain, weight)
            while domain.parent is not None and domain.parent.parent is not None:
                domain = domain.parent
                self._set(domain, domain.tree.total)

    def next(self) -> bool:
        """Draw one more disk. False when no domain has room for another fragment."""
        domain = self._hierarchy.root
        while domain.children:
            if not domain.tree.sums[1] and not self._next_round(domain):
                return False
            domain = self._emptier_of_two(domain)
        self.take(domain)
        return True

    def take(self, leaf: Domain) -> None:
        """Give the next fragment to this disk; its domains sit out the rest of their round."""
        if self._share_servers:
            self._set(leaf, 0)
        self.disks.append(leaf.disk)
        domain = leaf.parent
        while domain is not None and domain.parent is not None:
            self._set(domain, 0)
            self._waiting.setdefault(id(domain.parent), []).append(domain)
            domain = domain.parent

    def reaches(self, leaf: Domain) -> bool:
        """Whether the next fragment may go to this disk, by what has been drawn so far."""
        way = [leaf]
        while way[-1].parent is not None:
            way.append(way[-1].parent)
        for domain, child in pairwise(reversed(way)):
            if domain.tree.total == 0 and not self._next_round(domain):
                return False
            if domain.tree.get(child.slot) == 0:
                return False
        return True

    def _next_round(self, domain: Domain) -> bool:
        """All children with room have a fragment: let those in again that can take another."""
        for child in self._waiting.pop(id(domain), []):
            self._set(child, self._remaining(child))
        return domain.tree.total > 0

    def _remaining(self, domain: Domain) -> int:
        if not domain.children[0].children:
            return domain.tree.total if self._share_servers else 0
        waiting = self._waiting.get(id(domain), ())
        return domain.tree.total + sum(self._remaining(child) for child in waiting)

    def _emptier_of_two(self, domain: Domain) -> Domain:
        tree, children, random = domain.tree, domain.children, self._random.random
        total = tree.sums[1]
        first = tree.find(int(random() * total))
        second = tree.find(int(random() * total))
        if first == second:
            return children[first]
        one = tree.get(first) * children[second].capacity
        other = tree.get(second) * children[first].capacity
        return children[first] if one >= other else children[second]


class PlacementMap:
    """All registered disks, ready to be drawn from.

    Build it anew when a server or disk registers or moves; `update` it for the rest.
    """

    def __init__(self, views: Iterable[DiskView]) -> None:
        self._views = {view.disk: view for view in views}
        self._hierarchies: dict[Spread, Hierarchy] = {}
        servers: dict[ServerId, None] = {}
        self._by_host: dict[str, list[DiskId]] = {}
        self._capacity = 1
        self._weight = 0
        self._charged: dict[DiskId, int] = {}
        """Bytes counted against a disk that its weight does not show yet: too few to matter."""
        for view in self._views.values():
            servers[view.server] = None
            self._by_host.setdefault(view.host, []).append(view.disk)
            self._capacity += view.capacity
            self._weight += weight_of(view)
        self.servers = len(servers)
        """Servers registered, up or not."""

    def __repr__(self) -> str:
        return f"PlacementMap({len(self._views)} disks on {self.servers} servers)"

    def update(self, disk: DiskId, state: DiskState, capacity: int, free: int) -> None:
        """A disk filled up, emptied, or changed state. Small changes are let go (1 in 64)."""
        self._charged.pop(disk, None)
        old = self._views[disk]
        if (
            old.state is state
            and old.capacity == capacity
            and (abs(old.free - free) * 64 <= old.free)
        ):
            return
        new = msgspec.structs.replace(old, state=state, capacity=capacity, free=free)
        self._set_view(old, new)

    def charge(self, disks: Iterable[DiskId], length_bytes: int) -> None:
        """Count bytes that will be written soon, until the next heartbeat tells the truth."""
        for disk in disks:
            old = self._views[disk]
            charged = self._charged.get(disk, 0) + length_bytes
            if charged * CHARGED_SHARE <= old.free:
                self._charged[disk] = charged
                continue
            self._charged.pop(disk, None)
            # Never down to 0: whether a disk is full is for the disk to say.
            free = max(min(old.free, 1), old.free - charged)
            self._set_view(old, msgspec.structs.replace(old, free=free))

    def _set_view(self, old: DiskView, new: DiskView) -> None:
        self._views[new.disk] = new
        self._capacity += new.capacity - old.capacity
        self._weight += weight_of(new) - weight_of(old)
        for hierarchy in self._hierarchies.values():
            hierarchy.set_weight(new.disk, weight_of(new))

    def choose(
        self,
        policy: Policy,
        *,
        random: Random,
        avoid: Collection[DiskId] = (),
        near: str = "",
        upkeep: bool = False,
    ) -> Placement:
        """Disks for one new chunk under `policy`.

        Takes fewer than the policy's width where some are down or full, but never fewer than
        its write minimum. Disks in `avoid` are taken only where it cannot be met without
        them. `near` is the host that gets the first fragment if it has room. With `upkeep`,
        full disks are taken where no others are left: of their reserve.

        Raises:
            RedundancyError: the servers (or disks) registered can never satisfy the policy.
            UnavailableError: too few of them are up now.
            NoSpaceError: too few of those that are up have room.
        """
        redundancy = self._redundancy_for(policy)
        for avoided in (avoid, ()) if avoid else ((),):
            disks = self._draw(policy.spread, redundancy.width, random, avoided, near, upkeep)
            if len(disks) >= redundancy.write_minimum:
                return Placement(redundancy, tuple(disks))
        raise self._refusal(policy, redundancy)

    def extend(
        self,
        spread: Spread,
        present: Iterable[DiskId],
        *,
        random: Random,
        avoid: Collection[DiskId] = (),
        upkeep: bool = False,
    ) -> DiskId:
        """A disk for one more fragment of a chunk that has some on `present` already; 0: none.

        As far from those as `spread` asks, where the disks there are allow it. `upkeep`: see
        `choose`.
        """
        with self._begun(spread, present, random, avoid, upkeep=upkeep) as draw:
            return draw.disks[-1] if draw.next() else 0

    def allows(self, spread: Spread, present: Iterable[DiskId], disk: DiskId) -> bool:
        """Whether `extend` could answer `disk`."""
        with self._begun(spread, present, Random(0), ()) as draw:
            leaf = self._hierarchy(spread).leaves.get(disk)
            return leaf is not None and draw.reaches(leaf)

    @contextmanager
    def _begun(
        self,
        spread: Spread,
        present: Iterable[DiskId],
        random: Random,
        avoid: Collection[DiskId],
        *,
        upkeep: bool = False,
    ) -> Iterator[_Draw]:
        hierarchy = self._hierarchy(spread)
        draw = _Draw(hierarchy, spread, random)
        try:
            if upkeep:
                full = (v.disk for v in self._views.values() if v.state is DiskState.FULL)
                draw.admit(full)
            draw.avoid(avoid)
            for disk in present:
                if disk in hierarchy.leaves:
                    draw.take(hierarchy.leaves[disk])
            yield draw
        finally:
            draw.undo()

    def _hierarchy(self, spread: Spread) -> Hierarchy:
        hierarchy = self._hierarchies.get(spread)
        if hierarchy is None:
            hierarchy = self._hierarchies[spread] = Hierarchy(self._views.values(), spread)
        return hierarchy

    def _redundancy_for(self, policy: Policy) -> Redundancy:
        over_disks = policy.spread is Spread.DISK
        present = len(self._views) if over_disks else self.servers
        redundancy = policy.redundancy.fitted(present) if policy.fit else policy.redundancy
        if present < redundancy.width:
            what = "disk" if over_disks else "server"
            raise RedundancyError(
                f"policy {policy.name!r} ({policy.redundancy}) needs "
                f"{_count(redundancy.width, what)}, {_are(present)} registered",
                hint=f"add {what}s or choose another policy",
            )
        return redundancy

    def _draw(
        self,
        spread: Spread,
        width: int,
        random: Random,
        avoid: Collection[DiskId],
        near: str,
        upkeep: bool,
    ) -> list[DiskId]:
        with self._begun(spread, (), random, avoid, upkeep=upkeep) as draw:
            if near and (local := self._local(near, avoid, random)):
                draw.take(self._hierarchy(spread).leaves[local])
            while len(draw.disks) < width and draw.next():
                pass
        return draw.disks

    def _local(self, near: str, avoid: Collection[DiskId], random: Random) -> DiskId:
        """A disk on the client's host, unless the host is far fuller than the cluster; else 0."""
        disks = self._by_host.get(near, ())
        if len(disks) == len(self._views):
            return 0
        views = [self._views[disk] for disk in disks if disk not in avoid]
        free = sum(weight_of(view) for view in views)
        capacity = sum(view.capacity for view in views)
        if not free or free * self._capacity < LOCAL_FREE_RATIO * self._weight * capacity:
            return 0
        return random.choices(views, [weight_of(view) for view in views])[0].disk

    def _refusal(self, policy: Policy, redundancy: Redundancy) -> DfsError:
        over_disks = policy.spread is Spread.DISK
        what = "disk" if over_disks else "server"
        takes = (DiskState.UP, DiskState.UNSTEADY, DiskState.FULL)
        alive = [view for view in self._views.values() if view.state in takes]
        up = len(alive) if over_disks else len({view.server for view in alive})
        rule = f"policy {policy.name!r} ({policy.redundancy}) needs at least "
        rule += _count(redundancy.write_minimum, what)
        if up < redundancy.write_minimum:
            present = len(self._views) if over_disks else self.servers
            unusable = [v for v in self._views.values() if v not in alive]
            return UnavailableError(
                f"{rule} to write, {up} of {present} can take data now; "
                + _named([f"{_name(v)} is {v.state.name.lower()}" for v in unusable]),
                hint="start the servers that are down, or wait until they are back",
            )
        roomy = [view for view in alive if weight_of(view)]
        full = [view for view in alive if not weight_of(view)]
        room = len(roomy) if over_disks else len({view.server for view in roomy})
        return NoSpaceError(
            f"no space: {rule} with room, {room} of {up} have it; full: "
            + _named([f"{_name(view)} ({view.free >> 20} MiB free)" for view in full]),
            hint="delete files, or add disks or servers",
        )


def _name(view: DiskView) -> str:
    return f"disk {view.disk} ({view.path} on {view.address})"


def _named(names: list[str]) -> str:
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _are(number: int) -> str:
    return "1 is" if number == 1 else f"{number} are"
