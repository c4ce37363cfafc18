"""Servers fall silent, fill up, break and come back, by an injected clock."""

from random import Random

import pytest

from dfs.core.chunk import DiskState
from dfs.core.errors import UnavailableError
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy
from dfs.master.keyspace import DiskRecord, ServerRecord
from dfs.master.liveness import Liveness, Timing
from dfs.wire.messages import DiskReport

GIB = 1 << 30
TIMING = Timing(heartbeat_s=1.0, suspect_after_s=3.5, hint_after_s=1.5, down_after_s=60.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def server(number: int, address: str = "") -> ServerRecord:
    return ServerRecord(number, f"s{number}", address or f"10.0.0.{number}:9421", "", "", "0.1")


def disk(number: int, of: int) -> DiskRecord:
    return DiskRecord(number, f"d{number}", of, f"/d{number}")


def report(number: int, *, free: int = 50 * GIB, failed: bool = False) -> DiskReport:
    return DiskReport(f"d{number}", f"/d{number}", 100 * GIB, 50 * GIB, free, 7, failed, "")


def pass_time(liveness: Liveness, clock: Clock, seconds: float, *alive: int) -> None:
    """Time as the master sees it, in ticks; the servers `alive` send heartbeats all along."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, clock.now + 0.25)
        for number in alive:
            liveness.heartbeat(number, [report(number)])
        liveness.tick()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def liveness(clock: Clock) -> Liveness:
    """Two servers with a disk each, both just registered."""
    made = Liveness(TIMING, clock)
    for number in (1, 2):
        made.admit(server(number), [disk(number, number)], [report(number)])
    return made


def states(liveness: Liveness) -> list[DiskState]:
    return [liveness.state(number) for number in (1, 2)]


def test_a_silent_server_is_suspect_within_five_seconds_and_down_after_the_grace(
    liveness: Liveness, clock: Clock
) -> None:
    begun = clock.now
    seen: dict[DiskState, float] = {}
    while clock.now < begun + 70:
        clock.now += 0.25
        liveness.heartbeat(2, [report(2)])
        liveness.tick()
        seen.setdefault(liveness.state(1), clock.now - begun)
    assert seen[DiskState.SUSPECT] == 3.5
    assert seen[DiskState.DOWN] == 60.0
    assert liveness.state(2) is DiskState.UP
    assert liveness.heartbeat(1, [report(1)])
    assert liveness.state(1) is DiskState.UP


def test_a_broken_connection_is_only_a_hint(liveness: Liveness, clock: Clock) -> None:
    liveness.connection_broke(1)
    pass_time(liveness, clock, 1.0)
    assert liveness.state(1) is DiskState.UP
    assert not liveness.answers(1)
    liveness.heartbeat(1, [report(1)])
    pass_time(liveness, clock, 1.4)
    assert liveness.state(1) is DiskState.UP

    liveness.connection_broke(1)
    pass_time(liveness, clock, 1.5, 2)
    assert states(liveness) == [DiskState.SUSPECT, DiskState.UP]


def test_servers_of_the_store_are_suspect_until_heard(clock: Clock) -> None:
    liveness = Liveness(TIMING, clock)
    liveness.load([server(1), server(2)], [disk(1, 1), disk(2, 2)])
    assert states(liveness) == [DiskState.SUSPECT] * 2
    assert liveness.presumed_alive(1)
    with pytest.raises(UnavailableError):
        liveness.choose(Policy(1, "p", Redundancy(1, 0), 3), random=Random(0))
    assert liveness.heartbeat(1, [report(1)])
    pass_time(liveness, clock, 4, 1)
    assert states(liveness) == [DiskState.UP, DiskState.SUSPECT]
    assert not liveness.presumed_alive(2)
    pass_time(liveness, clock, 60, 1)
    assert states(liveness) == [DiskState.UP, DiskState.DOWN]
    assert [info.last_heartbeat_s for info in liveness.server_infos()] == [0.0, -1.0]


def test_unknown_servers_and_disks_have_to_register(liveness: Liveness) -> None:
    assert not liveness.heartbeat(3, [])
    assert not liveness.heartbeat(1, [report(1), report(9)])
    assert liveness.heartbeat(1, [report(1)])


def test_disks_fail_and_fill_up_alone(liveness: Liveness) -> None:
    liveness.admit(
        server(1), [disk(1, 1), disk(3, 1), disk(4, 1)], [report(1), report(3), report(4)]
    )
    liveness.heartbeat(1, [report(1, failed=True), report(3, free=10 << 20)])
    found = [liveness.state(number) for number in (1, 3, 4)]
    assert found == [DiskState.FAILED, DiskState.FULL, DiskState.FAILED]
    infos = liveness.server_infos()[0].disks
    assert [info.error for info in infos] == ["", "", "its server runs without it"]
    assert liveness.totals().free == 50 * GIB + (10 << 20)
    liveness.heartbeat(1, [report(1), report(3), report(4)])
    assert {liveness.state(number) for number in (1, 3, 4)} == {DiskState.UP}


def test_what_is_told_of_a_disk_is_how_it_is_now(liveness: Liveness) -> None:
    """Also where it was told before."""

    def told() -> tuple[int, int]:
        (info,) = liveness.server_infos()[0].disks
        return info.state, info.free

    assert told() == (DiskState.UP, 50 * GIB)
    liveness.heartbeat(1, [report(1)])
    assert told() == (DiskState.UP, 50 * GIB)
    liveness.heartbeat(1, [report(1, free=40 * GIB)])
    assert told() == (DiskState.UP, 40 * GIB)
    liveness.set_draining([1], True)
    assert told() == (DiskState.DRAINING, 40 * GIB)
    liveness.heartbeat(1, [report(1, failed=True)])
    assert told()[0] == DiskState.FAILED


def test_a_small_disk_is_full_only_when_little_of_it_is_free(clock: Clock) -> None:
    liveness = Liveness(TIMING, clock)
    small = DiskReport("d1", "/d1", 64 << 20, 0, 2 << 20, 0)
    liveness.admit(server(1), [disk(1, 1)], [small])
    assert liveness.state(1) is DiskState.UP


def test_a_server_that_moves_is_found_at_its_new_address(liveness: Liveness) -> None:
    version = liveness.version
    liveness.admit(server(1, "10.9.9.9:1"), [disk(1, 1)], [report(1)])
    assert liveness.location(1).address == "10.9.9.9:1"  # type: ignore[union-attr]
    assert liveness.version > version
    near = liveness.choose(Policy(1, "p", Redundancy(1, 1), 3), random=Random(0), near="10.9.9.9")
    assert near.disks == (1, 2)


def test_a_disk_that_moves_to_another_server_is_found_there(liveness: Liveness) -> None:
    liveness.admit(server(2), [disk(1, 2), disk(2, 2)], [report(1), report(2)])
    assert liveness.server_of(1) == 2
    assert liveness.disks_of(1) == ()
    assert [place.server for place in liveness.locations([1, 2, 1, 99])] == [2, 2]


def test_nothing_is_placed_on_a_suspect_server(liveness: Liveness, clock: Clock) -> None:
    policy = Policy(1, "p", Redundancy(1, 0), 3)
    chosen = {liveness.choose(policy, random=Random(seed)).disks[0] for seed in range(20)}
    assert chosen == {1, 2}
    pass_time(liveness, clock, 3.6, 2)
    chosen = {liveness.choose(policy, random=Random(seed)).disks[0] for seed in range(20)}
    assert chosen == {2}


def test_the_version_moves_only_when_something_changed(liveness: Liveness, clock: Clock) -> None:
    version = liveness.version
    for _ in range(5):
        clock.now += 1
        for number in (1, 2):
            liveness.heartbeat(number, [report(number)])
        assert liveness.tick() == []
    assert liveness.version == version


def test_a_master_that_was_held_up_blames_nobody(liveness: Liveness, clock: Clock) -> None:
    pass_time(liveness, clock, 2)
    clock.now += 100
    assert liveness.tick() == []
    assert states(liveness) == [DiskState.UP] * 2
    pass_time(liveness, clock, 1.4)
    assert states(liveness) == [DiskState.UP] * 2
    pass_time(liveness, clock, 0.25)
    assert states(liveness) == [DiskState.SUSPECT] * 2


def test_a_disk_that_its_server_runs_without_has_the_grace_of_a_silent_server(
    liveness: Liveness, clock: Clock
) -> None:
    liveness.admit(server(1), [disk(1, 1), disk(3, 1)], [report(1), report(3)])
    liveness.heartbeat(1, [report(1)])
    assert liveness.state(3) is DiskState.FAILED
    assert not liveness.given_up(3)
    for _ in range(61):
        clock.now += 1
        liveness.tick()
        liveness.heartbeat(1, [report(1)])
    assert liveness.given_up(3)
    liveness.heartbeat(1, [report(1), report(3)])
    assert not liveness.given_up(3)
    liveness.heartbeat(1, [report(1), report(3, failed=True)])
    assert liveness.given_up(3), "its server says that it has failed: no need to wait"


def test_a_server_that_keeps_falling_is_not_trusted_at_once(
    liveness: Liveness, clock: Clock
) -> None:
    for fall in range(1, 5):
        pass_time(liveness, clock, 5, 2)
        assert liveness.state(1) is DiskState.SUSPECT
        liveness.heartbeat(1, [report(1)])
        expected = DiskState.UP if fall <= 2 else DiskState.UNSTEADY
        assert liveness.state(1) is expected, fall
    pass_time(liveness, clock, 119, 1, 2)
    assert liveness.state(1) is DiskState.UNSTEADY
    assert liveness.presumed_alive(1)
    pass_time(liveness, clock, 3, 1, 2)
    assert liveness.state(1) is DiskState.UP


def test_a_draining_disk_serves_and_a_forgotten_one_is_unknown(liveness: Liveness) -> None:
    liveness.set_draining([1], True)
    assert liveness.state(1) is DiskState.DRAINING
    assert liveness.presumed_alive(1)
    liveness.set_draining([1], False)
    assert liveness.state(1) is DiskState.UP
    liveness.forget([1])
    assert liveness.location(1) is None
    assert liveness.server(1) is None
    assert not liveness.heartbeat(1, [report(1)])


def test_a_server_that_only_registers_again_changes_nothing(
    liveness: Liveness, clock: Clock
) -> None:
    """A thousand do at the same time, when the master has begun anew."""
    liveness.choose(Policy(1, "p", Redundancy(1, 1), 3), random=Random(1))
    before, placement = liveness.version, liveness._map
    liveness.admit(server(1), [disk(1, 1)], [report(1)])
    assert liveness.version == before
    assert liveness._map is placement
    liveness.admit(server(1, "10.0.0.9:9421"), [disk(1, 1)], [report(1)])
    assert liveness.version > before
    assert liveness._map is not placement
    place = liveness.location(1)
    assert place is not None
    assert place.address == "10.0.0.9:9421"
    liveness.admit(server(1, "10.0.0.9:9421"), [disk(1, 1), disk(3, 1)], [report(1), report(3)])
    assert liveness.state(3) is DiskState.UP


def test_disks_of_silent_servers_are_away_but_not_while_the_master_has_just_begun(
    liveness: Liveness, clock: Clock
) -> None:
    pass_time(liveness, clock, 10, 1)
    assert liveness.away() == [2]
    again = Liveness(TIMING, clock)
    again.load([server(1), server(2)], [disk(1, 1), disk(2, 2)])
    assert again.away() == []
    pass_time(again, clock, 10, 1)
    assert again.away() == [2]
