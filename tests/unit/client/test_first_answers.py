"""The usual read is one question to one source; whatever is wrong with its answer, others help."""

import gc
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.chunkserver.service import ChunkService
from dfs.client import Client
from dfs.client.gathering import Attempt
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import CorruptError, DiskError, FragmentError
from dfs.wire.handlers import FilePayload, HeldPayload, Peer
from dfs.wire.messages import ReadRecords, RecordsReply
from dfs.wire.payloads import _FREE
from tests.simulation.world import World
from tests.unit.client.rig import chunks_of, directory, fragment_files, running

SIZE = 9 * BLOCK_BYTES + 321
Answer = tuple[RecordsReply, bytes]
Fault = Callable[[Answer], Answer | Awaitable[Answer]]


class Servers:
    """All servers of a world; the next read requests are answered as `faults` have it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Fault] = []
        self.asked = 0
        read = ChunkService.read

        def answer(
            service: ChunkService, peer: Peer, request: ReadRecords, payload: memoryview
        ) -> Any:
            self.asked += 1
            if not self.faults:
                return read(service, peer, request, payload)
            return self._answer(self.faults.pop(0), read(service, peer, request, payload))

        monkeypatch.setattr(ChunkService, "read", answer)

    async def _answer(self, fault: Fault, result: Any) -> Any:
        if isinstance(result, Awaitable):
            result = await result
        reply, payload = result
        if isinstance(payload, FilePayload):
            parts = [os.pread(payload.fd, size, start) for start, size in payload.ranges]
            assert payload.close is not None
            payload.close()
        else:
            assert isinstance(payload, HeldPayload)
            parts = [bytes(part) for part in payload.buffers]
            payload.close()
        answer = fault((reply, b"".join(parts)))
        if isinstance(answer, Awaitable):
            answer = await answer
        return answer[0], (answer[1],)


def fails(error: type[Exception], _: Answer) -> Answer:
    raise error("it is so for a test")


def short(answer: Answer) -> Answer:
    return RecordsReply(0), b""


def cut(answer: Answer) -> Answer:
    return answer[0], answer[1][:-1]


def flipped(answer: Answer) -> Answer:
    data = bytearray(answer[1])
    data[len(data) // 2] ^= 1
    return answer[0], bytes(data)


async def late(seconds: float, answer: Answer) -> Answer:
    await trio.sleep(seconds)
    return answer


def at_rest(client: Client) -> bool:
    """Nothing is counted as under way, and nobody waits."""
    places = client.fetcher._pool._places.values()
    connections = [lane.connection for place in places for lane in place.lanes]
    return (
        all(seen.in_flight_bytes == 0 for seen in client.resolver._seen.values())
        and all(each.load == 0 for each in connections if each is not None)
        and not client.fetcher._alarm._due
    )


async def stored(world: World, client: Client, data: bytes, redundancy: str) -> None:
    """`/d/a` is sealed, and the client knows where it is and has talked to all servers."""
    await directory(client, "/d", redundancy)
    async with world.client("writer") as writer:
        await writer.write_file("/d/a", data)
        await writer.write_file("/warm", b"w" * 100)
    for _ in range(4):
        assert await client.read_file("/d/a") == data
        client.cache.clear()
    for address in {disk.address for disk in client.resolver._disks.values()}:
        await client.fetcher._pool._open(address, 5, patient=False)


@pytest.mark.parametrize(("redundancy", "k"), [("rep:3", 1), ("ec:2+1", 2)])
async def test_a_read_that_goes_well_asks_k_sources_once_and_sets_nothing_else_up(
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    redundancy: str,
    k: int,
) -> None:
    data = Random(1).randbytes(SIZE)
    servers = Servers(monkeypatch)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, redundancy)

        async def never(*_: Any) -> None:
            raise AssertionError("a nursery was opened for a read that goes well")

        monkeypatch.setattr(Attempt, "run", never)
        async with await client.open("/d/a") as file:
            servers.asked = 0
            assert await file.pread(100, 5 * BLOCK_BYTES + 7) == data[5 * BLOCK_BYTES + 7 :][:100]
            assert servers.asked == k
        assert at_rest(client)


async def test_the_memory_of_an_answer_is_free_when_the_cache_forgets_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """At once, and not when the garbage of cycles is collected: the next answer goes there."""
    data = Random(7).randbytes(SIZE)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, "rep:3")
        async with await client.open("/d/a") as file:
            gc.collect()
            gc.disable()
            try:
                for number in range(3):
                    offset = (2 * number + 1) * BLOCK_BYTES + 5
                    assert await file.pread(100, offset) == data[offset : offset + 100]
                client.cache.clear()
                memory = client.fetcher._pool._side.memory
                held = [
                    kept[index]
                    for kept in memory._kept.values()
                    for index in range(len(kept))
                    if sys.getrefcount(kept[index]) > _FREE
                ]
                assert memory._kept
                assert not held
            finally:
                gc.enable()


@pytest.mark.allow_logs("")
@pytest.mark.parametrize("redundancy", ["rep:3", "ec:2+1"])
@pytest.mark.parametrize(
    ("fault", "reported", "most_s"),
    [
        (partial(fails, DiskError), "unreachable", 0.1),
        (partial(fails, FragmentError), "missing", 0.1),
        (partial(fails, CorruptError), "corrupt", 0.1),
        (short, "short", 0.1),
        (cut, "corrupt", 0.1),
        (flipped, "corrupt", 0.1),
        (partial(late, 3600.0), "", 1.0),
    ],
    ids=["disk", "missing", "corrupt", "short", "cut", "flipped", "late"],
)
async def test_an_answer_that_does_not_do_is_made_up_for_and_reported_once(
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    reported: str,
    most_s: float,
    redundancy: str,
) -> None:
    data = Random(2).randbytes(SIZE)
    servers = Servers(monkeypatch)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, redundancy)
        reports: list[str] = []
        monkeypatch.setattr(client.reports, "add", lambda *report: reports.append(report[2]))
        async with await client.open("/d/a") as file:
            servers.faults.append(fault)
            begun = trio.current_time()
            assert await file.pread(200_000, 300_000) == data[300_000:500_000]
            assert trio.current_time() - begun < most_s
        assert reports == ([reported] if reported else [])
        assert at_rest(client)


@pytest.mark.allow_logs("")
async def test_a_connection_that_breaks_under_a_question_costs_a_question_to_another(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Random(3).randbytes(SIZE)
    servers = Servers(monkeypatch)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, "rep:3")
        async with await client.open("/d/a") as file:

            async def broken(answer: Answer) -> Answer:
                world.network.drop("desk")
                return await late(60.0, answer)

            servers.faults.append(broken)
            begun = trio.current_time()
            assert await file.pread(100, 0) == data[:100]
            assert trio.current_time() - begun < 1
        assert at_rest(client)


async def test_an_answer_that_is_late_counts_when_it_comes_before_any_other(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Random(4).randbytes(SIZE)
    servers = Servers(monkeypatch)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, "rep:3")
        async with await client.open("/d/a") as file:
            servers.faults += [partial(late, 0.5), partial(late, 60.0), partial(late, 60.0)]
            servers.asked = 0
            begun = trio.current_time()
            assert await file.pread(100, 0) == data[:100]
            assert 0.5 <= trio.current_time() - begun < 0.6
            assert servers.asked > 1
        assert at_rest(client)


async def test_a_reader_that_is_cancelled_leaves_nothing_behind(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the answer is late, and while others have been asked as well."""
    data = Random(5).randbytes(SIZE)
    servers = Servers(monkeypatch)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, "rep:3")
        async with await client.open("/d/a") as file:
            for after_s in (0.001, 0.02, 0.5):
                servers.faults[:] = [partial(late, 60.0)] * 3
                with trio.move_on_after(after_s) as scope:
                    await file.pread(100, 400_000)
                assert scope.cancelled_caught
                assert at_rest(client)
                servers.faults.clear()
                assert await file.pread(100, 400_000) == data[400_000:400_100]
                client.cache.clear()
        assert at_rest(client)


@pytest.mark.allow_logs("")
async def test_a_source_that_has_lost_its_fragment_is_told_of_and_the_rest_of_an_answer_counts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One block of each copy is bad, each another: all are read from three halves."""
    data = Random(6).randbytes(3 * BLOCK_BYTES)
    async with running(tmp_path, servers=3) as (world, client):
        await stored(world, client, data, "rep:3")
        (chunk,) = await chunks_of(client, "/d/a")
        for index, path in fragment_files(world, chunk).items():
            raw = bytearray(path.read_bytes())
            raw[1000 + index * (BLOCK_BYTES + 48)] ^= 1
            path.write_bytes(raw)
        async with await client.open("/d/a") as file:
            assert await file.pread(len(data), 0) == data
        assert at_rest(client)
