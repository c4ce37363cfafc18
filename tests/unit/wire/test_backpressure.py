"""Bounds hold: a slow reader, a flood of requests, large payloads; and none of it deadlocks."""

import tracemalloc

import pytest
import trio
import trio.testing

from dfs.core.errors import DeadlineError, DfsError
from dfs.wire.framing import Kind, pack
from dfs.wire.handlers import Peer
from dfs.wire.handshake import greet
from dfs.wire.hello import Hello
from dfs.wire.limits import MIB, ByteBudget, Limits
from dfs.wire.memory import MemoryTransport, memory_pair
from dfs.wire.messages import (
    Append,
    Appended,
    Empty,
    GetInode,
    InodeReply,
    ReadRecords,
    RecordsReply,
    RenewSession,
    SyncBarrier,
)
from dfs.wire.outbox import Outbox
from tests.unit.wire.rig import ADDRESS, Rig, get_inode, served


async def raw_client(rig: Rig) -> MemoryTransport:
    """A transport that has said hello, for frames a well-behaved client would not send."""
    transport = await rig.network.connect(ADDRESS, "client")
    await greet(transport, ADDRESS, Hello("client"), Limits())
    return transport


async def test_a_client_that_never_reads_is_not_read_from_either(
    autojump_clock: trio.testing.MockClock,
):
    answered = 0

    def read(
        peer: Peer, request: ReadRecords, payload: memoryview
    ) -> tuple[RecordsReply, list[bytes]]:
        nonlocal answered
        answered += 1
        return RecordsReply(1), [bytes(MIB)]

    async with served({ReadRecords: read}, limits=Limits(queued_bytes=4 * MIB)) as rig:
        transport = await raw_client(rig)
        body = b"\x94\x01\x01\x00\x01"
        requests = b"".join(pack(Kind.REQUEST, 101, n, body, 1000) for n in range(1, 2000))
        tracemalloc.start()
        try:
            with trio.move_on_after(10):
                for _ in range(1000):
                    await transport.send([requests])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answered < 10
        assert peak < 20 * MIB
        other = await rig.connect()
        await other.call_raw(ReadRecords(1, 1, 0, 1), RecordsReply, timeout_s=1)


async def test_a_client_that_sends_pings_and_never_reads_costs_no_memory(
    autojump_clock: trio.testing.MockClock,
):
    async with served(limits=Limits(queued_bytes=MIB)) as rig:
        transport = await raw_client(rig)
        pings = pack(Kind.PING, 0, 0) * 20_000
        tracemalloc.start()
        try:
            with trio.move_on_after(10):
                for _ in range(20):
                    await transport.send([pings])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB
        other = await rig.connect()
        await other.call(GetInode(1), InodeReply, timeout_s=1)


async def test_who_waits_for_room_goes_on_when_all_is_sent_at_once(
    autojump_clock: trio.testing.MockClock,
):
    near, _ = memory_pair()
    outbox = Outbox(near, limit_bytes=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await trio.testing.wait_all_tasks_blocked()
        outbox.put(bytes(100))

        async def wait() -> None:
            with trio.fail_after(1):
                await outbox.wait_room()
            nursery.cancel_scope.cancel()

        async def flush() -> None:
            outbox.flush()

        nursery.start_soon(wait)
        nursery.start_soon(flush)


async def test_async_handlers_of_one_connection_are_bounded(
    autojump_clock: trio.testing.MockClock,
):
    running = most = 0

    async def work(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return Empty()

    async with served({SyncBarrier: work}, limits=Limits(requests=10)) as rig:
        connection = await rig.connect(limits=Limits(calls=100))
        async with trio.open_nursery() as nursery:
            for _ in range(55):
                nursery.start_soon(lambda: connection.call(SyncBarrier(), Empty, timeout_s=100))
        assert most == 10
        assert trio.current_time() == pytest.approx(6, abs=0.5)


async def test_calls_of_one_connection_are_bounded_and_wait_their_turn(
    autojump_clock: trio.testing.MockClock,
):
    async def work(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        await trio.sleep(1)
        return Empty()

    async with served({SyncBarrier: work}) as rig:
        connection = await rig.connect(limits=Limits(calls=10))
        most = 0
        ended: list[str] = []

        async def call(timeout_s: float) -> None:
            nonlocal most
            try:
                await connection.call(SyncBarrier(), Empty, timeout_s=timeout_s)
            except DeadlineError as error:
                ended.append(error.message)
            else:
                ended.append("done")
            most = max(most, connection.load)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(call, 100)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                nursery.start_soon(call, 0.5)
            with trio.move_on_after(0.1):
                await connection.call(SyncBarrier(), Empty, timeout_s=100)
        assert most <= 10
        late = f"SyncBarrier could not be sent to {ADDRESS} within 0.5 s"
        assert sorted(ended) == [late] * 5 + ["done"] * 30
        assert trio.current_time() == pytest.approx(3, abs=0.5)


async def test_payloads_held_by_a_server_are_bounded_over_all_connections(
    autojump_clock: trio.testing.MockClock,
):
    held = most = 0

    async def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        nonlocal held, most
        held += len(payload)
        most = max(most, held)
        await trio.sleep(1)
        held -= len(payload)
        return Appended(1, len(payload))

    async with served(
        {Append: append}, limits=Limits(held_bytes=4 * MIB, payload_bytes=MIB)
    ) as rig:
        connections = [await rig.connect() for _ in range(5)]

        async def call(number: int) -> None:
            reply = await connections[number % 5].call(
                Append(1, number, 0, 1, 0, 0, 1), Appended, payload=[bytes(MIB)], timeout_s=100
            )
            assert reply.length == MIB

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(call, number)
        assert most == 4 * MIB
        assert trio.current_time() == pytest.approx(5, abs=0.5)


async def test_callers_wait_while_much_is_queued(autojump_clock: trio.testing.MockClock):
    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        return Appended(1, len(payload))

    async with served({Append: append}) as rig:
        connection = await rig.connect(limits=Limits(queued_bytes=2 * MIB, dead_s=1000))
        rig.network.partition("client", "server")
        done = 0

        async def call() -> None:
            nonlocal done
            await connection.call(
                Append(1, 1, 0, 1, 0, 0, 1), Appended, payload=[bytes(MIB)], timeout_s=100
            )
            done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call)
            await trio.sleep(1)
            assert connection.load < 6
            rig.network.heal()
        assert done == 20


async def test_a_payload_that_stops_in_the_middle_gives_its_memory_back(
    autojump_clock: trio.testing.MockClock,
):
    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        return Appended(1, len(payload))

    limits = Limits(held_bytes=MIB, payload_bytes=MIB, stall_s=30)
    async with served({Append: append}, limits=limits) as rig:
        transport = await raw_client(rig)
        body = b"\x97\x01\x01\x00\x01\x00\x00\x01"
        await transport.send([pack(Kind.REQUEST, 100, 1, body, 1000, MIB), b"half"])
        connection = await rig.connect()
        reply = await connection.call(
            Append(1, 1, 0, 1, 0, 0, 1), Appended, payload=[bytes(MIB)], timeout_s=60
        )
        assert reply.length == MIB
        assert trio.current_time() == pytest.approx(30, abs=1)
        assert await transport.receive_into(memoryview(bytearray(1000))) == 0


async def test_a_payload_that_only_trickles_in_gives_its_memory_back(
    autojump_clock: trio.testing.MockClock,
):
    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        return Appended(1, len(payload))

    limits = Limits(held_bytes=MIB, payload_bytes=MIB, payload_s=30)
    async with served({Append: append}, limits=limits) as rig:
        transport = await raw_client(rig)
        body = b"\x97\x01\x01\x00\x01\x00\x00\x01"
        await transport.send([pack(Kind.REQUEST, 100, 1, body, 1000, MIB)])

        async def trickle() -> None:
            with pytest.raises(DfsError):
                while True:
                    await transport.send([bytes(1000)])
                    await trio.sleep(5)

        rig.nursery.start_soon(trickle)
        connection = await rig.connect()
        reply = await connection.call(
            Append(1, 1, 0, 1, 0, 0, 1), Appended, payload=[bytes(MIB)], timeout_s=60
        )
        assert reply.length == MIB
        assert trio.current_time() == pytest.approx(30, abs=1)


async def test_a_flood_of_requests_leaves_others_their_turn(autojump_clock: trio.testing.MockClock):
    async with served({GetInode: get_inode, RenewSession: lambda *_: Empty()}) as rig:
        flooder = await raw_client(rig)
        rig.nursery.start_soon(flood, flooder)
        connection = await rig.connect()
        for _ in range(10):
            await connection.call(GetInode(1), InodeReply, timeout_s=1)


async def flood(transport: MemoryTransport) -> None:
    requests = b"".join(pack(Kind.REQUEST, 22, n, b"\x91\x01", 1000) for n in range(1, 1000))
    sink = memoryview(bytearray(1 << 20))
    async with trio.open_nursery() as nursery:

        async def drain() -> None:
            while await transport.receive_into(sink):
                pass

        nursery.start_soon(drain)
        while True:
            await transport.send([requests])


async def test_a_budget_is_given_out_in_order_and_survives_cancellation(
    autojump_clock: trio.testing.MockClock,
):
    budget = ByteBudget(10)
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        await budget.acquire(count)
        order.append(name)

    async with trio.open_nursery() as nursery:
        await budget.acquire(8)
        nursery.start_soon(take, "large", 9)
        await trio.testing.wait_all_tasks_blocked()
        gives_up = trio.CancelScope()

        async def impatient() -> None:
            with gives_up:
                await budget.acquire(10)

        nursery.start_soon(impatient)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, "small", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        budget.release(8)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["large"]
        gives_up.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["large", "small"]
    budget.release(10)
    assert budget.used_bytes == 0
    with pytest.raises(ValueError):
        await budget.acquire(11)


async def test_a_call_given_up_after_it_was_sent_is_cancelled_and_counted_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cancelled = 0

    async def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1
        raise AssertionError

    async with served({Append: append}) as rig:
        connection = await rig.connect()
        for _ in range(50):
            with trio.move_on_after(1):
                await connection.call(
                    Append(1, 1, 0, 1, 0, 0, 1), Appended, payload=[bytes(60_000)], timeout_s=500
                )
        await trio.sleep(1)
        assert cancelled == 50


async def test_what_was_sent_at_once_cannot_be_taken_back() -> None:
    near, _ = memory_pair()
    outbox = Outbox(near, limit_bytes=1000)
    item = outbox.put_payload(b"frame", [bytes(20_000)])
    assert item is not None
    outbox.flush()
    assert not outbox.discard(item)
    assert not outbox.full
    outbox.put_payload(b"frame", [bytes(20_000)])
    assert outbox.full, "what was taken back must not count for less than nothing"
