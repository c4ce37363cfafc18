"""Placement: distinct domains, even filling, free-space balance, and refusals that explain."""

import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.core.chunk import DiskState
from dfs.core.errors import NoSpaceError, RedundancyError, UnavailableError
from dfs.core.policy import Policy, Spread
from dfs.core.redundancy import Redundancy
from dfs.master.domains import DiskView, SumTree
from dfs.master.placement import Placement, PlacementMap

GIB = 1 << 30


def disk(
    number: int,
    server: int | None = None,
    *,
    free: int = 100 * GIB,
    capacity: int = 100 * GIB,
    rack: str = "",
    zone: str = "",
    state: DiskState = DiskState.UP,
    host: str | None = None,
) -> DiskView:
    server = number if server is None else server
    host = host or f"10.0.0.{server}"
    address = f"{host}:9421"
    return DiskView(number, server, host, address, f"/d{number}", rack, zone, state, capacity, free)


def policy(text: str, spread: Spread = Spread.SERVER, *, fit: bool = False) -> Policy:
    return Policy(16, "p", Redundancy.parse(text), 3, spread, fit)


def policies() -> st.SearchStrategy[Policy]:
    texts = st.sampled_from(["rep:1", "rep:2", "rep:3", "rep:5", "ec:2+1", "ec:4+2", "ec:6+3"])
    return st.builds(policy, texts, st.sampled_from(Spread))


@st.composite
def clusters(draw: st.DrawFn) -> list[DiskView]:
    views: list[DiskView] = []
    for server in range(1, draw(st.integers(1, 14)) + 1):
        zone = draw(st.sampled_from("xyz"))
        rack = draw(st.sampled_from("abc"))
        for _ in range(draw(st.integers(1, 3))):
            capacity = draw(st.integers(1, 1000)) * GIB
            views.append(
                disk(
                    len(views) + 1,
                    server,
                    rack=rack,
                    zone=zone,
                    capacity=capacity,
                    free=draw(st.sampled_from([0, 1, capacity // 2, capacity])),
                    state=draw(st.sampled_from([DiskState.UP] * 5 + list(DiskState))),
                )
            )
    return views


@given(st.lists(st.integers(0, 9), max_size=40), st.data())
def test_sum_tree_finds_the_slot_a_plain_walk_finds(
    weights: list[int], data: st.DataObject
) -> None:
    tree = SumTree(weights)
    for _ in range(5):
        assert tree.total == sum(weights)
        if weights:
            slot = data.draw(st.integers(0, len(weights) - 1))
            weights[slot] = data.draw(st.integers(0, 9))
            tree.set(slot, weights[slot])
        line = [slot for slot, weight in enumerate(weights) for _ in range(weight)]
        assert [tree.find(point) for point in range(len(line))] == line


@settings(max_examples=200)
@given(clusters(), policies(), st.integers(), st.data())
def test_every_placement_keeps_the_rules(
    views: list[DiskView], wanted: Policy, seed: int, data: st.DataObject
) -> None:
    by_id = {view.disk: view for view in views}
    avoid = data.draw(st.sets(st.sampled_from(sorted(by_id)), max_size=3))
    near = data.draw(st.sampled_from(["", *sorted({view.host for view in views})]))
    upkeep = data.draw(st.booleans())
    usable = [view for view in views if _takes(view, upkeep)]
    liked = [view for view in usable if view.disk not in avoid]

    def units(of: list[DiskView]) -> int:
        return len(of) if wanted.spread is Spread.DISK else len({view.server for view in of})

    placement_map = PlacementMap(views)
    random = Random(seed)

    def choose() -> Placement:
        return placement_map.choose(wanted, random=random, avoid=avoid, near=near, upkeep=upkeep)

    minimum, width = wanted.redundancy.write_minimum, wanted.redundancy.width
    for _ in range(3):
        if units(views) < width:
            with pytest.raises(RedundancyError):
                choose()
            continue
        if units(usable) < minimum:
            with pytest.raises((UnavailableError, NoSpaceError)):
                choose()
            continue
        chosen = choose().disks
        pool = liked if units(liked) >= minimum else usable
        assert len(chosen) == min(width, units(pool))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= {view.disk for view in pool}
        placed = [by_id[number] for number in chosen]
        per_server = Counter(view.server for view in placed)
        if wanted.spread is not Spread.DISK:
            assert max(per_server.values()) == 1
        _check_even(per_server, Counter(view.server for view in pool))
        servers = {view.server: view for view in pool}.values()
        if wanted.spread is Spread.RACK:
            racks = Counter((view.zone, view.rack) for view in placed)
            _check_even(racks, Counter((view.zone, view.rack) for view in servers))
        if wanted.spread is Spread.ZONE:
            zones = Counter(view.zone for view in placed)
            _check_even(zones, Counter(view.zone for view in servers))


@settings(max_examples=200)
@given(clusters(), st.sampled_from(Spread), st.integers(), st.data())
def test_one_more_fragment_goes_where_it_may(
    views: list[DiskView], spread: Spread, seed: int, data: st.DataObject
) -> None:
    """`extend` answers a disk that `allows` allows, with room, and on a server of its own."""
    by_id = {view.disk: view for view in views}
    present = data.draw(st.lists(st.sampled_from(sorted(by_id)), unique=True, max_size=4))
    placement_map = PlacementMap(views)
    upkeep = data.draw(st.booleans())

    def extend() -> int:
        return placement_map.extend(
            spread, present, random=Random(seed), avoid=present, upkeep=upkeep
        )

    found = extend()
    roomy = [v for v in views if _takes(v, upkeep) and v.disk not in present]
    servers = {by_id[number].server for number in present}
    free = [v for v in roomy if spread is Spread.DISK or v.server not in servers]
    allowed = {v.disk for v in views if placement_map.allows(spread, present, v.disk)}
    assert bool(found) == bool(free)
    assert not found or found in {v.disk for v in free}
    if not upkeep:
        assert not found or found in allowed
        assert allowed <= {v.disk for v in free}
    if spread is Spread.ZONE and found:
        zones = {by_id[number].zone for number in present}
        if any(v.zone not in zones for v in free):
            assert by_id[found].zone not in zones
    # All is as it was: the draws left nothing behind.
    assert extend() == found


def _takes(view: DiskView, upkeep: bool) -> bool:
    if view.state is DiskState.FULL:
        return upkeep
    return view.state in (DiskState.UP, DiskState.UNSTEADY) and view.free > 0


def test_full_disks_are_taken_for_upkeep_only_where_no_others_are_left() -> None:
    full = [disk(server, state=DiskState.FULL, free=0) for server in (1, 2, 3)]
    roomy = [disk(4), disk(5)]
    placement_map = PlacementMap(full + roomy)
    with pytest.raises(NoSpaceError):
        PlacementMap(full).choose(policy("rep:3"), random=Random(1))
    for seed in range(20):
        random = Random(seed)
        assert set(placement_map.choose(policy("rep:2"), random=random, upkeep=True).disks) == {
            4, 5,
        }  # fmt: skip
        chosen = placement_map.choose(policy("rep:3"), random=random, upkeep=True).disks
        assert len(chosen) == 3
        assert {4, 5} < set(chosen)
        assert placement_map.extend(Spread.SERVER, (4, 5), random=random) == 0
        assert placement_map.extend(Spread.SERVER, (4, 5), random=random, upkeep=True) in (1, 2, 3)
    assert len(placement_map.choose(policy("rep:3"), random=Random(1)).disks) == 2


def test_an_unsteady_disk_is_taken_only_where_nothing_else_can_be() -> None:
    steady = [disk(server) for server in (1, 2, 3)]
    shaky = [disk(4, state=DiskState.UNSTEADY)]
    placement_map = PlacementMap(steady + shaky)
    drawn = Counter(
        number
        for seed in range(200)
        for number in placement_map.choose(policy("rep:3"), random=Random(seed)).disks
    )
    assert drawn[4] <= 2
    few = PlacementMap(steady[:1] + shaky)
    assert set(few.choose(policy("rep:2"), random=Random(1)).disks) == {1, 4}


def _check_even(taken: Counter[Any], room: Counter[Any]) -> None:
    """No domain has two more than one that could still take another."""
    fewest = min((taken[key] for key in room if taken[key] < room[key]), default=None)
    if fewest is not None:
        assert max(taken.values()) <= fewest + 1


@given(clusters(), policies(), st.integers())
def test_the_same_seed_gives_the_same_disks(
    views: list[DiskView], wanted: Policy, seed: int
) -> None:
    def run() -> object:
        try:
            placement_map = PlacementMap(views)
            random = Random(seed)
            return [placement_map.choose(wanted, random=random).disks for _ in range(3)]
        except (RedundancyError, UnavailableError, NoSpaceError) as error:
            return str(error)

    assert run() == run()


def test_equal_disks_get_equal_shares() -> None:
    placement_map = PlacementMap([disk(n) for n in range(1, 13)])
    random = Random(1)
    counts: Counter[int] = Counter()
    for _ in range(4000):
        counts.update(placement_map.choose(policy("rep:3"), random=random).disks)
    assert set(counts) == set(range(1, 13))
    expected = 4000 * 3 / 12
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 35


def test_disks_of_any_size_fill_up_together() -> None:
    free = {n: (20 if n % 3 else 80) * GIB for n in range(1, 13)}
    capacity = dict(free)
    views = [disk(n, free=free[n], capacity=capacity[n]) for n in free]
    placement_map = PlacementMap(views)
    random = Random(2)
    for _ in range(int(sum(capacity.values()) * 0.6 / 3 / (64 << 20))):
        for number in placement_map.choose(policy("rep:3"), random=random).disks:
            free[number] -= 64 << 20
            placement_map.update(number, DiskState.UP, capacity[number], free[number])
    shares = [free[n] / capacity[n] for n in free]
    assert max(shares) - min(shares) < 0.1


def test_an_emptier_server_gets_most_of_the_new_data() -> None:
    views = [disk(n, free=10 * GIB) for n in range(1, 6)] + [disk(6)]
    placement_map = PlacementMap(views)
    random = Random(3)
    hits = sum(6 in placement_map.choose(policy("rep:2"), random=random).disks for _ in range(300))
    assert hits > 270


def test_racks_are_filled_evenly_however_unequal() -> None:
    views = [disk(n, rack="big", free=900 * GIB, capacity=900 * GIB) for n in range(1, 9)]
    views += [disk(n, rack="small", free=10 * GIB) for n in range(9, 12)]
    views += [disk(n, rack="tiny", free=10 * GIB) for n in range(12, 13)]
    by_id = {view.disk: view.rack for view in views}
    placement_map = PlacementMap(views)
    for seed in range(50):
        disks = placement_map.choose(policy("ec:4+2", Spread.RACK), random=Random(seed)).disks
        racks = Counter(by_id[number] for number in disks)
        assert sorted(racks.values()) == [1, 2, 3]
        assert racks["tiny"] == 1


def test_the_clients_host_gets_the_first_fragment_unless_it_is_far_fuller() -> None:
    views = [disk(n) for n in range(1, 9)]
    placement_map = PlacementMap(views)
    for seed in range(20):
        placed = placement_map.choose(policy("rep:3"), random=Random(seed), near="10.0.0.5")
        assert placed.disks[0] == 5
        assert len(set(placed.disks)) == 3
    placement_map.update(5, DiskState.UP, 100 * GIB, 20 * GIB)
    first = [
        placement_map.choose(policy("rep:3"), random=Random(seed), near="10.0.0.5").disks[0]
        for seed in range(20)
    ]
    assert first.count(5) < 10


def test_disks_down_give_a_degraded_chunk_down_to_the_write_minimum() -> None:
    views = [disk(n) for n in range(1, 7)]
    placement_map = PlacementMap(views)
    placement_map.update(1, DiskState.DOWN, 100 * GIB, 100 * GIB)
    placed = placement_map.choose(policy("ec:4+2"), random=Random(0))
    assert sorted(placed.disks) == [2, 3, 4, 5, 6]
    assert placed.redundancy == Redundancy(4, 2)
    placement_map.update(2, DiskState.SUSPECT, 100 * GIB, 100 * GIB)
    with pytest.raises(UnavailableError) as caught:
        placement_map.choose(policy("ec:4+2"), random=Random(0))
    assert str(caught.value) == (
        "policy 'p' (ec:4+2) needs at least 5 servers to write, 4 of 6 can take data now; "
        "disk 1 (/d1 on 10.0.0.1:9421) is down, disk 2 (/d2 on 10.0.0.2:9421) is suspect; "
        "start the servers that are down, or wait until they are back"
    )
    assert caught.value.retry


def test_too_few_servers_say_how_many_are_needed_and_present() -> None:
    placement_map = PlacementMap([disk(n) for n in range(1, 5)])
    with pytest.raises(RedundancyError) as caught:
        placement_map.choose(policy("ec:4+2"), random=Random(0))
    assert str(caught.value) == (
        "policy 'p' (ec:4+2) needs 6 servers, 4 are registered; "
        "add servers or choose another policy"
    )


def test_full_disks_are_named() -> None:
    views = [
        disk(n, free=0 if n < 3 else GIB, state=DiskState.FULL if n < 3 else DiskState.UP)
        for n in range(1, 4)
    ]
    placement_map = PlacementMap(views)
    assert placement_map.choose(policy("rep:1"), random=Random(0)).disks == (3,)
    with pytest.raises(NoSpaceError) as caught:
        placement_map.choose(policy("rep:3"), random=Random(0))
    assert str(caught.value) == (
        "no space: policy 'p' (rep:3) needs at least 2 servers with room, 1 of 3 have it; full: "
        "disk 1 (/d1 on 10.0.0.1:9421) (0 MiB free), disk 2 (/d2 on 10.0.0.2:9421) (0 MiB free); "
        "delete files, or add disks or servers"
    )


def test_a_fitting_policy_takes_what_servers_there_are() -> None:
    fits = policy("rep:3", fit=True)
    for servers, copies in ((1, 1), (2, 2), (3, 3), (9, 3)):
        placement_map = PlacementMap([disk(n) for n in range(1, servers + 1)])
        placed = placement_map.choose(fits, random=Random(0))
        assert placed.redundancy == Redundancy(1, copies - 1)
        assert len(placed.disks) == copies
    with pytest.raises(RedundancyError):
        PlacementMap([]).choose(fits, random=Random(0))


def test_avoided_disks_are_a_last_resort() -> None:
    placement_map = PlacementMap([disk(n) for n in range(1, 4)])
    assert placement_map.choose(policy("rep:1"), random=Random(0), avoid={1, 2}).disks == (3,)
    assert sorted(placement_map.choose(policy("rep:3"), random=Random(0), avoid={1, 2}).disks) == [
        1,
        2,
        3,
    ]


def test_charged_bytes_steer_the_next_choices_elsewhere() -> None:
    placement_map = PlacementMap([disk(1), disk(2)])
    placement_map.charge([1], 99 * GIB)
    chosen = Counter(
        placement_map.choose(policy("rep:1"), random=Random(seed)).disks[0] for seed in range(50)
    )
    assert chosen[2] > 45
    placement_map.charge([1], 99 * GIB)
    assert len(placement_map.choose(policy("rep:2"), random=Random(0)).disks) == 2


def test_a_thousand_servers_cost_little_more_than_six() -> None:
    def cost(servers: int) -> float:
        placement_map = PlacementMap([disk(n) for n in range(1, servers + 1)])
        random = Random(0)
        wanted = policy("ec:4+2")
        placement_map.choose(wanted, random=random)
        best = 1.0
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(100):
                placement_map.choose(wanted, random=random)
            best = min(best, (time.perf_counter() - started) / 100)
        return best

    assert cost(1000) < 6 * cost(6)
