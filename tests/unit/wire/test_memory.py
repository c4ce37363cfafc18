"""The memory network behaves as sockets do, and fails on demand, the same way for the same seed."""

from random import Random

import pytest
import trio
import trio.testing

from dfs.core.errors import UnavailableError
from dfs.wire.memory import PIPE_BYTES, MemoryNetwork, MemoryTransport, memory_pair


async def receive_all(transport: MemoryTransport) -> bytes:
    received = b""
    buffer = memoryview(bytearray(65536))
    while count := await transport.receive_into(buffer):
        received += buffer[:count]
    return received


async def joined(
    network: MemoryNetwork, one: str = "a", other: str = "b"
) -> tuple[MemoryTransport, MemoryTransport]:
    listener = network.listen(f"{other}:1")
    near = await network.connect(f"{other}:1", one)
    far = await listener.accept_transport()
    network.unlisten(listener)
    return near, far


async def test_a_pair_carries_bytes_both_ways_until_it_is_closed():
    one, other = memory_pair()
    await one.send([b"hello ", bytearray(b"wor"), memoryview(b"ld")])
    await other.send([b"back"])
    await one.aclose()
    assert await receive_all(other) == b"hello world"
    with pytest.raises(UnavailableError, match="closed"):
        await one.receive_into(memoryview(bytearray(1)))
    with pytest.raises(UnavailableError, match="Broken pipe"):
        await other.send([b"x"])
    await one.aclose()


async def test_a_sender_waits_for_its_receiver():
    one, other = memory_pair()
    data = bytes(range(256)) * (PIPE_BYTES // 64)
    sent = False

    async def send() -> None:
        nonlocal sent
        await one.send([data])
        sent = True
        await one.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent
        assert one.try_send([b"x"]) == 0
        assert await receive_all(other) == data


async def test_bytes_arrive_after_the_latency_and_in_order(
    autojump_clock: trio.testing.MockClock,
):
    network = MemoryNetwork(Random(1))
    near, far = await joined(network)
    network.set_latency(0.1, 0.9, between=("b", "a"))
    for number in range(100):
        await near.send([bytes([number])])
    begin = trio.current_time()
    await near.aclose()
    assert await receive_all(far) == bytes(range(100))
    assert 0.1 <= trio.current_time() - begin <= 0.9


async def test_a_partition_holds_bytes_back_until_it_heals(
    autojump_clock: trio.testing.MockClock,
):
    network = MemoryNetwork(Random(1))
    near, far = await joined(network)
    _, other_far = await joined(network, "c", "d")
    for cut in (lambda: network.partition("b", "a"), lambda: network.hang("b")):
        cut()
        await near.send([b"x"])
        buffer = memoryview(bytearray(10))
        with trio.move_on_after(50) as scope:
            await far.receive_into(buffer)
        assert scope.cancelled_caught
        network.heal("b")
        assert await far.receive_into(buffer) == 1
    network.partition("a", "b")
    network.heal("a", "c")
    await near.send([b"x"])
    with trio.move_on_after(50) as scope:
        await far.receive_into(buffer)
    assert scope.cancelled_caught
    network.heal("a", "b")
    assert await far.receive_into(buffer) == 1
    assert other_far.peer.startswith("c:")


async def test_connecting_over_a_cut_waits_and_to_nobody_is_refused(
    autojump_clock: trio.testing.MockClock,
):
    network = MemoryNetwork(Random(1))
    listener = network.listen("b:1")
    with pytest.raises(UnavailableError, match="another program has the port"):
        network.listen("b:1")
    network.hang("b")
    with trio.move_on_after(5) as scope:
        await network.connect("b:1", "a")
    assert scope.cancelled_caught
    network.heal()
    await network.connect("b:1", "a")
    await listener.aclose()
    with pytest.raises(UnavailableError, match="refused"):
        await network.connect("b:1", "a")
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept_transport()


async def test_dropping_breaks_both_ends_of_the_connections_named():
    network = MemoryNetwork(Random(1))
    ab, ba = await joined(network, "a", "b")
    cb, _ = await joined(network, "c", "b")
    assert network.drop("a", "b") == 1
    for end in (ab, ba):
        with pytest.raises(UnavailableError, match="reset"):
            await end.receive_into(memoryview(bytearray(1)))
    await cb.send([b"x"])
    assert network.drop_one()
    with pytest.raises(UnavailableError, match="reset"):
        await cb.send([b"x"])
    assert not network.drop_one()


async def test_a_crash_takes_listeners_connections_and_those_not_yet_accepted():
    network = MemoryNetwork(Random(1))
    near, _ = await joined(network)
    listener = network.listen("b:2")
    waiting = await network.connect("b:2", "a")
    network.crash("b")
    for end in (near, waiting):
        with pytest.raises(UnavailableError, match="reset"):
            await end.receive_into(memoryview(bytearray(1)))
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept_transport()
    with pytest.raises(UnavailableError, match="refused"):
        await network.connect("b:2", "a")


async def test_the_same_seed_gives_the_same_run(autojump_clock: trio.testing.MockClock):
    async def run(seed: int) -> list[float]:
        network = MemoryNetwork(Random(seed))
        network.set_latency(0.001, 1.0)
        near, far = await joined(network)
        begin = trio.current_time()
        arrivals = []
        for _ in range(20):
            await near.send([b"x"])
            await far.receive_into(memoryview(bytearray(1)))
            arrivals.append(round(trio.current_time() - begin, 6))
        return arrivals

    assert await run(7) == await run(7) != await run(8)
