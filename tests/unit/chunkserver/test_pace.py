"""Background work behind clients: rates and turns on a clock that jumps, reads on real sockets."""

from pathlib import Path

import pytest
import trio
import trio.testing

from dfs.chunkserver.pace import (
    APART_S,
    AT_WORK_S,
    QUIET_S,
    URGENT_YIELD_S,
    YIELD_MOST_S,
    Rate,
    Traffic,
)
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    Append,
    Appended,
    Empty,
    ReadRecords,
    RecordsReply,
    SyncFragments,
)
from tests.unit.chunkserver.grid import grid
from tests.unit.chunkserver.sample import WHOLE, encode, header
from tests.unit.chunkserver.test_daemon import client

MB = 1_000_000


async def test_a_rate_is_kept_and_nothing_is_saved_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rate = Rate(10 * MB)
    begun = trio.current_time()
    for _ in range(20):
        await rate.spend(4 * MB)
    assert trio.current_time() - begun == pytest.approx(8.0)
    await trio.sleep(100)
    begun = trio.current_time()
    for _ in range(5):
        await rate.spend(4 * MB)
    assert trio.current_time() - begun == pytest.approx(2.0)


async def test_no_rate_means_no_wait(autojump_clock: trio.testing.MockClock) -> None:
    begun = trio.current_time()
    await Rate(0).spend(10**12)
    assert trio.current_time() == begun


async def test_on_an_idle_disk_a_turn_comes_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()
    begun = trio.current_time()
    for _ in range(100):
        await traffic.turn()
    assert trio.current_time() == begun


async def test_a_turn_waits_for_clients_and_a_moment_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()
    begun = trio.current_time()

    async def client(at: float, seconds: float) -> None:
        await trio.sleep(at)
        traffic.begin()
        await trio.sleep(seconds)
        traffic.end()

    async with trio.open_nursery() as nursery:
        # The second comes so soon after the first that the disk is not idle in between.
        nursery.start_soon(client, 0, 0.05)
        nursery.start_soon(client, 0.05 + QUIET_S / 2, 0.03)
        await trio.sleep(0.01)
        await traffic.turn()
        assert trio.current_time() - begun == pytest.approx(0.08 + QUIET_S * 1.5)


async def test_while_clients_are_at_work_steps_are_apart_also_in_their_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()

    async def ten_steps() -> float:
        begun = trio.current_time()
        for _ in range(10):
            await traffic.turn()
        return trio.current_time() - begun

    assert await ten_steps() == 0
    traffic.touch()
    assert await ten_steps() == pytest.approx(9 * APART_S + QUIET_S)
    begun = trio.current_time()
    traffic.touch()
    for _ in range(1000):
        await traffic.turn(4096)
    assert trio.current_time() - begun < 3 * APART_S
    await trio.sleep(AT_WORK_S)
    assert await ten_steps() == 0


async def test_all_background_work_together_gets_one_step_now_and_then_under_busy_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()
    traffic.begin()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(traffic.turn)
    assert trio.current_time() - begun == pytest.approx(10 * YIELD_MOST_S)


async def test_urgent_work_hardly_waits_for_clients_nor_for_other_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()
    traffic.begin()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(traffic.turn)
        for _ in range(5):
            await traffic.turn(urgent=True)
        assert trio.current_time() - begun == pytest.approx(5 * URGENT_YIELD_S)
        nursery.cancel_scope.cancel()


async def test_what_is_read_in_the_background_counts_with_what_it_takes_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a quarter of what is asked for, where it is one of four pieces."""
    coded = Redundancy(4, 2)
    async with grid(tmp_path, 6) as servers:
        await servers.store([100_000] * 4, coded)
        await servers.lose(0)
        node, turns = servers.nodes[1], []

        async def noted(size: int = 0, *, urgent: bool = False) -> None:
            turns.append((size, urgent))

        monkeypatch.setattr(node.disk.traffic, "turn", noted)
        await servers.rebuild(0, coded, 400_000, urgent=True)
        ((size, urgent),) = turns
        assert 0 < size < 100_000
        assert urgent


async def test_a_turn_that_is_given_up_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    traffic = Traffic()
    traffic.begin()
    with trio.move_on_after(YIELD_MOST_S / 2):
        await traffic.turn()
    traffic.end()
    await trio.sleep(QUIET_S)
    begun = trio.current_time()
    await traffic.turn()
    assert trio.current_time() == begun


async def test_background_reads_wait_while_clients_use_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.pace.YIELD_MOST_S", 30.0)
    async with grid(tmp_path, 1) as servers:
        await servers.store([1000], WHOLE)
        node = servers.nodes[0]
        answered: list[bool] = []

        async def read(background: bool) -> None:
            request = ReadRecords(1, 7, 0, 1000, background)
            await servers.pool.call_raw(node.address, request, RecordsReply, timeout_s=10)
            answered.append(background)

        node.disk.traffic.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, True)
            while not node.reads:
                await trio.sleep(0.001)
            for _ in range(3):
                await read(False)
            assert answered == [False] * 3
            node.disk.traffic.end()
        assert answered == [False] * 3 + [True]


async def test_every_request_of_a_client_that_uses_the_disk_counts_and_upkeep_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grid(tmp_path, 2) as servers:
        await servers.store([1000], Redundancy(1, 0))
        seen = {node.number: 0 for node in servers.nodes}
        for node in servers.nodes:
            monkeypatch.setattr(node.disk, "traffic", Counting(seen, node.number))
        records = encode([10], of=header(8))
        async with client(servers.nodes[0].address) as peer:
            request = Append(1, 8, 0, 1, 2, 0, 1)
            await peer.call(request, Appended, payload=records, timeout_s=5)
            await peer.call(SyncFragments(1, (8,)), Empty, timeout_s=5)
        assert seen == {1: 2, 2: 0}
        await servers.rebuild(0, Redundancy(1, 0), 1000, on=1, sources=[0])
        assert seen == {1: 2, 2: 0}


class Counting(Traffic):
    def __init__(self, seen: dict[int, int], number: int) -> None:
        super().__init__()
        self._seen = seen
        self._number = number

    def begin(self) -> None:
        super().begin()
        self._seen[self._number] += 1
