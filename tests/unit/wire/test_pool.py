"""The pool opens on demand, shares, re-opens after a failure, and leaves dead addresses alone."""

from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing

from dfs.core.errors import DeadlineError, ProtocolError, UnavailableError
from dfs.wire.handlers import Peer
from dfs.wire.hello import Hello
from dfs.wire.memory import MemoryNetwork
from dfs.wire.messages import Empty, GetInode, InodeReply, RenewSession, SyncBarrier
from dfs.wire.pool import Backoff, Pool
from dfs.wire.serve import serve
from dfs.wire.transport import Transport
from tests.unit.wire.rig import ADDRESS, Rig, get_inode, inode, served


class Dialer:
    """The rig's connector, counted."""

    def __init__(self, rig: Rig) -> None:
        self.dialled = 0
        self._connect = rig.network.connector("client")

    async def __call__(self, address: str) -> Transport:
        self.dialled += 1
        return await self._connect(address)


def pool_of(dialer: Dialer, *, width: int = 1, backoff: Backoff | None = None) -> Pool:
    return Pool(
        hello=Hello("client"), connector=dialer, random=Random(3), width=width, backoff=backoff
    )


async def test_calls_share_one_connection_opened_on_demand():
    async with served() as rig:
        dialer = Dialer(rig)
        async with pool_of(dialer) as pool:
            assert dialer.dialled == 0
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(
                        lambda number: pool.call(
                            ADDRESS, GetInode(number), InodeReply, timeout_s=1
                        ),
                        number,
                    )
            reply, payload = await pool.call_raw(ADDRESS, GetInode(9), InodeReply, timeout_s=1)
            assert (reply.inode, len(payload)) == (inode(9), 0)
            assert dialer.dialled == 1


async def test_a_wider_pool_takes_turns_among_its_connections():
    peers: set[str] = set()

    def handler(peer: Peer, request: RenewSession, payload: memoryview) -> Empty:
        peers.add(peer.address)
        return Empty()

    async with served({RenewSession: handler}) as rig:
        dialer = Dialer(rig)
        async with pool_of(dialer, width=3) as pool:
            for _ in range(20):
                await pool.call(ADDRESS, RenewSession(1), Empty, timeout_s=1)
        assert (dialer.dialled, len(peers)) == (3, 3)


async def test_a_wider_pool_uses_what_is_open_while_the_rest_cannot_be_opened():
    async with served() as rig:
        dialer = Dialer(rig)
        async with pool_of(dialer, width=2, backoff=Backoff(first_s=1000, most_s=1000)) as pool:
            for _ in range(2):
                await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=1)
            rig.network.unlisten(rig.network._listeners[ADDRESS])
            assert rig.network.drop_one()
            await trio.testing.wait_all_tasks_blocked()
            outcomes = []
            for _ in range(6):
                try:
                    await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=1)
                    outcomes.append("answered")
                except UnavailableError:
                    outcomes.append("refused")
            assert outcomes.count("refused") == 1
            assert dialer.dialled == 3


async def test_a_server_may_call_back_over_the_pool():
    async def handler(peer: Peer, request: RenewSession, payload: memoryview) -> Empty:
        assert peer.connection is not None
        await peer.connection.call(GetInode(3), InodeReply, timeout_s=1)
        return Empty()

    async with served({RenewSession: handler}) as rig:
        async with Pool(
            hello=Hello("client"), connector=Dialer(rig), handlers={GetInode: get_inode}
        ) as pool:
            assert await pool.call(ADDRESS, RenewSession(1), Empty, timeout_s=1) == Empty()


async def test_a_connection_that_broke_is_opened_again():
    async with served() as rig:
        dialer = Dialer(rig)
        async with pool_of(dialer) as pool:
            for round_ in range(1, 4):
                await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=1)
                assert dialer.dialled == round_
                assert rig.network.drop() == 1
                await trio.testing.wait_all_tasks_blocked()


async def test_a_server_that_restarts_is_found_again(autojump_clock: trio.testing.MockClock):
    async with served() as rig:
        async with pool_of(Dialer(rig)) as pool:
            await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=1)
            rig.server.cancel()
            await trio.sleep(0.1)
            with pytest.raises(UnavailableError, match="refused"):
                await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=1)
            await rig.start({GetInode: get_inode}, Hello("master"))
            await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=30, patient=True)


async def test_a_dead_address_is_left_alone_for_longer_and_longer(
    autojump_clock: trio.testing.MockClock,
):
    async with served() as rig:
        dialer = Dialer(rig)
        async with pool_of(dialer, backoff=Backoff(first_s=1, most_s=8)) as pool:
            tried_at: list[float] = []
            while trio.current_time() < 60:
                before = dialer.dialled
                with pytest.raises(UnavailableError, match="refused"):
                    await pool.call("nobody:1", GetInode(1), InodeReply, timeout_s=1)
                if dialer.dialled > before:
                    tried_at.append(trio.current_time())
                else:
                    assert pool.is_down("nobody:1")
                await trio.sleep(0.05)
            gaps = [later - earlier for earlier, later in pairwise(tried_at)]
            for number, gap in enumerate(gaps):
                whole = min(8, 2**number)
                assert whole / 2 <= gap <= whole + 0.1
            before = dialer.dialled
            pool.forgive("nobody:1")
            assert not pool.is_down("nobody:1")
            with pytest.raises(UnavailableError):
                await pool.call("nobody:1", GetInode(1), InodeReply, timeout_s=1)
            assert dialer.dialled == before + 1


async def test_a_patient_call_waits_for_the_server_but_no_longer_than_it_may(
    autojump_clock: trio.testing.MockClock,
):
    async with served() as rig:
        async with pool_of(Dialer(rig)) as pool:
            begin = trio.current_time()
            with pytest.raises(UnavailableError, match="refused"):
                await pool.call("later:1", GetInode(1), InodeReply, timeout_s=7, patient=True)
            assert trio.current_time() - begin == pytest.approx(7, abs=0.01)

            async def arrive() -> None:
                await trio.sleep(20)
                listener = rig.network.listen("later:1")
                await serve(listener, {GetInode: get_inode}, hello=Hello("master"))

            rig.nursery.start_soon(arrive)
            begin = trio.current_time()
            await pool.call("later:1", GetInode(1), InodeReply, timeout_s=60, patient=True)
            assert 20 <= trio.current_time() - begin <= 26


async def test_a_way_that_is_cut_takes_no_longer_than_the_timeout(
    autojump_clock: trio.testing.MockClock,
):
    async with served() as rig:
        async with pool_of(Dialer(rig), backoff=Backoff(first_s=10, most_s=10)) as pool:
            rig.network.partition("client", "server")
            begin = trio.current_time()
            with pytest.raises(DeadlineError, match="did not answer within 2 s"):
                await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=2)
            assert trio.current_time() - begin == pytest.approx(2, abs=0.01)
            await trio.sleep(4)
            begin = trio.current_time()
            with pytest.raises(DeadlineError):
                await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=2)
            assert trio.current_time() - begin < 0.01
            rig.network.heal()
            await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=30, patient=True)


async def test_the_callers_that_wait_for_one_attempt_all_hear_its_failure():
    async with served() as rig:
        dialer = Dialer(rig)
        errors: list[UnavailableError] = []
        async with pool_of(dialer) as pool:

            async def call() -> None:
                with pytest.raises(UnavailableError, match="refused") as caught:
                    await pool.call("nobody:1", GetInode(1), InodeReply, timeout_s=1)
                errors.append(caught.value)

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call)
        assert dialer.dialled == 1
        assert len({id(error) for error in errors}) == 10


async def test_a_request_that_was_sent_is_not_sent_again(autojump_clock: trio.testing.MockClock):
    begun = 0

    async def handler(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        nonlocal begun
        begun += 1
        await trio.sleep(100)
        return Empty()

    async with served({SyncBarrier: handler}) as rig:
        async with pool_of(Dialer(rig)) as pool:

            async def call() -> None:
                with pytest.raises(UnavailableError, match="reset"):
                    await pool.call(ADDRESS, SyncBarrier(), Empty, timeout_s=50, patient=True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.sleep(1)
                rig.network.drop()
        assert begun == 1


async def test_leaving_the_pool_ends_calls_and_attempts(autojump_clock: trio.testing.MockClock):
    async def handler(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        await trio.sleep(1000)
        return Empty()

    async with served({SyncBarrier: handler}) as rig:
        ended: list[str] = []
        async with trio.open_nursery() as nursery:
            pool = pool_of(Dialer(rig))

            async def call(address: str) -> None:
                with pytest.raises(UnavailableError):
                    await pool.call(address, SyncBarrier(), Empty, timeout_s=900)
                ended.append(address)

            async with pool:
                nursery.start_soon(call, ADDRESS)
                rig.network.partition("client", "cut")
                nursery.start_soon(call, "cut:1")
                await trio.sleep(1)
        assert sorted(ended) == ["cut:1", ADDRESS]
        assert trio.current_time() < 10
        with pytest.raises(UnavailableError, match="pool is closed"):
            await pool.call("new:1", SyncBarrier(), Empty, timeout_s=1)


async def test_a_stranger_stays_a_stranger_in_the_pool():
    network = MemoryNetwork(Random(1))
    listener = network.listen("web:80")

    async def web() -> None:
        transport = await listener.accept_transport()
        await transport.send([b"HTTP/1.1 400 Bad Request\r\n\r\n"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(web)
        async with Pool(hello=Hello("client"), connector=network.connector("client")) as pool:
            for _ in range(2):
                with pytest.raises(ProtocolError, match="web:80 does not speak dfs"):
                    await pool.call("web:80", GetInode(1), InodeReply, timeout_s=1)
