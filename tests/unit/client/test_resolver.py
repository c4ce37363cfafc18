"""Whom to ask first."""

from typing import cast

import pytest
import trio
from trio.testing import MockClock

from dfs.client.meta import Meta
from dfs.client.resolver import Place, Resolver
from dfs.core.chunk import (
    Chunk,
    ChunkState,
    DiskLocation,
    DiskState,
    Fragment,
    FragmentState,
    Layout,
)
from dfs.core.errors import UnavailableError


def chunk(number: int, k: int, m: int, *, bad: tuple[int, ...] = ()) -> Chunk:
    fragments = tuple(
        Fragment(i, i + 1, FragmentState.CORRUPT if i in bad else FragmentState.GOOD)
        for i in range(k + m)
    )
    return Chunk(number, ChunkState.SEALED, k, m, 1, 0, 100, 100, fragments)


def disk(number: int, **more: object) -> DiskLocation:
    fields = {"rack": "", "zone": "", "state": DiskState.UP, **more}
    host = fields.pop("host", f"host{number}")
    return DiskLocation(number, number, f"{host}:9421", **fields)  # type: ignore[arg-type]


class NoMaster:
    """Fails the test that needs the master."""

    async def locate(self, chunks: list[int]) -> Layout:
        raise AssertionError(chunks)


def resolver(place: Place | None = None) -> Resolver:
    return Resolver(cast(Meta, NoMaster()), place or Place(frozenset({"here"}), "r1", "z1"))


def order(known: Resolver, which: Chunk) -> list[int]:
    return [source.fragment.index for source in known.sources(which)]


async def test_near_disks_come_first() -> None:
    known = resolver()
    known.learn(
        Layout(
            (),
            (
                disk(1, zone="z2", rack="r1"),
                disk(2, zone="z1", rack="r2"),
                disk(3, zone="z1", rack="r1"),
                disk(4, host="here"),
            ),
        )
    )
    assert order(known, chunk(1, 1, 3)) == [3, 2, 1, 0]


async def test_health_comes_before_nearness() -> None:
    known = resolver()
    known.learn(
        Layout(
            (),
            (
                disk(1, host="here", state=DiskState.SUSPECT),
                disk(2, state=DiskState.DOWN),
                disk(3, state=DiskState.FULL),
                disk(4, host="here"),
            ),
        )
    )
    assert order(known, chunk(1, 1, 3)) == [3, 2, 0, 1]
    assert order(known, chunk(1, 1, 3, bad=(3,))) == [2, 0, 1, 3]


async def test_data_pieces_come_before_parity() -> None:
    known = resolver()
    known.learn(Layout((), tuple(disk(number) for number in range(1, 7))))
    assert order(known, chunk(9, 4, 2)) == [0, 1, 2, 3, 4, 5]


async def test_copies_take_turns_by_chunk_and_busy_servers_wait() -> None:
    known = resolver()
    known.learn(Layout((), (disk(1), disk(2), disk(3))))
    assert {order(known, chunk(number, 1, 2))[0] for number in range(3)} == {0, 1, 2}
    first = order(known, chunk(7, 1, 2))[0]
    known.began(f"host{first + 1}:9421", 64 << 20)
    assert order(known, chunk(7, 1, 2))[-1] == first
    known.ended(f"host{first + 1}:9421", 64 << 20)
    assert order(known, chunk(7, 1, 2))[0] == first


async def test_a_server_that_failed_is_asked_last_for_a_while(autojump_clock: MockClock) -> None:
    known = resolver()
    known.learn(Layout((), (disk(1), disk(2))))
    first = order(known, chunk(7, 1, 1))[0]
    address = f"host{first + 1}:9421"
    known.failed(address)
    assert order(known, chunk(7, 1, 1))[-1] == first
    await trio.sleep(1.1)
    assert order(known, chunk(7, 1, 1))[0] == first
    known.failed(address)
    known.failed(address)
    await trio.sleep(1.1)
    assert order(known, chunk(7, 1, 1))[-1] == first
    known.answered(address, 1000, 0.001)
    assert order(known, chunk(7, 1, 1))[0] == first


async def test_the_wait_for_a_second_request_follows_the_slowest_twentieth() -> None:
    known = resolver()
    assert known.hedge_after_s("a:1", 1000) == pytest.approx(0.25)
    for number in range(100):
        known.answered("a:1", 1000, 0.1 if number % 10 == 0 else 0.01)
        known.answered("a:1", 1 << 22, 0.2)
    assert known.hedge_after_s("a:1", 1000) == pytest.approx(0.15)
    assert known.hedge_after_s("a:1", 1 << 22) == pytest.approx(0.3)
    for _ in range(100):
        known.answered("a:1", 1000, 0.0001)
    assert known.hedge_after_s("a:1", 1000) == pytest.approx(0.03)


async def test_questions_at_the_same_time_share_a_request() -> None:
    asked: list[list[int]] = []

    class Master:
        async def locate(self, chunks: list[int]) -> Layout:
            asked.append(list(chunks))
            await trio.lowlevel.checkpoint()
            return Layout(tuple(chunk(number, 1, 0) for number in chunks if number != 5), ())

    known = Resolver(cast(Meta, Master()), Place())
    found: dict[int, bool] = {}

    async def ask(number: int) -> None:
        found[number] = await known.chunk(number) is not None

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, number)
    assert len(asked) == 1
    assert found == {number: number != 5 for number in range(10)}
    assert await known.chunk(3) is not None
    assert len(asked) == 1
    assert await known.chunk(3, refresh=True) is not None
    assert len(asked) == 2


async def test_who_joins_a_question_that_is_cancelled_asks_again() -> None:
    scopes: dict[trio.lowlevel.Task, trio.CancelScope] = {}
    askers: list[trio.lowlevel.Task] = []
    answers: list[Chunk | None] = []

    class Master:
        async def locate(self, chunks: list[int]) -> Layout:
            askers.append(trio.lowlevel.current_task())
            if len(askers) == 1:
                await trio.sleep_forever()
            return Layout(tuple(chunk(number, 1, 0) for number in chunks), ())

    known = Resolver(cast(Meta, Master()), Place())

    async def ask() -> None:
        with trio.CancelScope() as scope:
            scopes[trio.lowlevel.current_task()] = scope
            answers.append(await known.chunk(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert len(askers) == 1
        scopes[askers[0]].cancel()
    assert len(answers) == 1
    assert answers[0] is not None


async def test_a_master_that_fails_fails_all_who_asked() -> None:
    class Master:
        async def locate(self, chunks: list[int]) -> Layout:
            await trio.lowlevel.checkpoint()
            raise UnavailableError("gone")

    known = Resolver(cast(Meta, Master()), Place())
    failures = 0

    async def ask() -> None:
        nonlocal failures
        with pytest.raises(UnavailableError):
            await known.chunk(1)
        failures += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert failures == 3
