"""Calls and answers over one connection: replies, errors, deadlines, cancellation, breaks."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import pytest
import trio
import trio.testing
from outcome import Error, Outcome, Value

from dfs.core.errors import (
    DeadlineError,
    DfsError,
    FileSystemError,
    ProtocolError,
    UnavailableError,
    refuse,
)
from dfs.wire.calls import Call
from dfs.wire.handlers import Later, Peer
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.messages import (
    Append,
    Appended,
    Cred,
    Empty,
    FsStats,
    GetInode,
    InodeReply,
    Lookup,
    LookupReply,
    OpenSession,
    ReadRecords,
    RecordsReply,
    RenewSession,
    SessionOpened,
    StatFs,
    SyncBarrier,
)
from tests.unit.wire.rig import ADDRESS, get_inode, inode, served


async def test_a_call_gets_the_reply_of_the_method_table():
    async with served() as rig:
        connection = await rig.connect()
        assert await connection.call(GetInode(7), InodeReply, timeout_s=1) == InodeReply(inode(7))
        assert connection.peer.role == "master"
        assert connection.load == 0


async def test_many_calls_in_flight_each_get_their_own_reply():
    async with served() as rig:
        connection = await rig.connect(limits=Limits(calls=50))
        replies: dict[int, int] = {}

        async def ask(number: int) -> None:
            reply = await connection.call(GetInode(number), InodeReply, timeout_s=1)
            replies[number] = reply.inode.ino

        async with trio.open_nursery() as nursery:
            for number in range(1, 1000):
                nursery.start_soon(ask, number)
        assert replies == {number: number for number in range(1, 1000)}


async def test_both_sides_may_call(autojump_clock: trio.testing.MockClock):
    async def call_back(peer: Peer, request: RenewSession, payload: memoryview) -> Empty:
        assert peer.connection is not None
        reply = await peer.connection.call(GetInode(5), InodeReply, timeout_s=1)
        assert reply.inode.ino == 5
        return Empty()

    def answer(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        assert peer.hello.role == "master"
        return InodeReply(inode(request.ino))

    async with served({RenewSession: call_back}) as rig:
        connection = await rig.connect(handlers={GetInode: answer})
        assert await connection.call(RenewSession(1), Empty, timeout_s=1) == Empty()


async def test_a_handler_may_answer_with_a_body_that_is_encoded_already():
    encoded = msgspec.msgpack.encode(InodeReply(inode(7)))

    def at_once(peer: Peer, request: GetInode, payload: memoryview) -> bytes:
        return encoded

    async def later(peer: Peer, request: Lookup, payload: memoryview) -> bytes:
        return encoded

    async with served({GetInode: at_once, Lookup: later}) as rig:
        connection = await rig.connect()
        expected = InodeReply(inode(7))
        assert await connection.call(GetInode(7), InodeReply, timeout_s=1) == expected
        lookup = Lookup(Cred(0, 0), 1, b"x")
        found = LookupReply(inode(7))  # what is not in the body has its default
        assert await connection.call(lookup, LookupReply, timeout_s=1) == found


async def test_a_handler_may_answer_later_without_a_task(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
):
    promised: dict[int, Later] = {}

    def handle(peer: Peer, request: GetInode, payload: memoryview) -> Later:
        later = promised[request.ino] = Later()
        if not request.ino:
            later.settle(Value(InodeReply(inode(0))))
        return later

    async with served({GetInode: handle}, limits=Limits(requests=4)) as rig:
        connection = await rig.connect()
        ended: dict[int, Outcome[tuple[InodeReply, memoryview]]] = {}
        calls = {}
        for number in range(6):
            wake = partial(ended.__setitem__, number)
            calls[number] = connection.post(GetInode(number), InodeReply, wake, timeout_s=90)
        await trio.sleep(1)
        assert ended[0].unwrap()[0].inode.ino == 0
        assert sorted(promised) == [0, 1, 2, 3, 4], "the next one waits for a slot"
        given_up = calls[1]
        assert given_up is not None
        given_up.give_up()
        await trio.sleep(1)
        promised[1].settle(Value(InodeReply(inode(1))))
        promised[2].settle(Error(refuse(2, "no such thing")))
        with caplog.at_level(logging.CRITICAL, logger="dfs.wire"):
            promised[3].settle(Error(RuntimeError("a bug")))
        await trio.sleep(1)
        promised[5].settle(Value(InodeReply(inode(5))))
        await trio.sleep(1)
        assert sorted(ended) == [0, 2, 3, 5]
        with pytest.raises(FileSystemError, match="no such thing"):
            ended[2].unwrap()
        with pytest.raises(DfsError, match="GetInode failed inside the"):
            ended[3].unwrap()
        assert ended[5].unwrap()[0].inode.ino == 5
        await connection.aclose()
        await trio.sleep(1)
        promised[4].settle(Value(InodeReply(inode(4))))
        with pytest.raises(UnavailableError):
            ended[4].unwrap()


async def test_an_answer_that_comes_later_can_be_awaited():
    later = Later()

    async def settle() -> None:
        later.settle(Value(InodeReply(inode(7))))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle)
        assert await later == InodeReply(inode(7))
    there = Later()
    there.settle(Error(refuse(2, "nothing")))
    with pytest.raises(FileSystemError, match="nothing"):
        await there


async def test_the_wrong_reply_type_is_a_programming_error():
    async with served() as rig:
        connection = await rig.connect()
        with pytest.raises(TypeError, match="GetInode is answered by InodeReply"):
            await connection.call(GetInode(7), Empty, timeout_s=1)


async def test_calls_may_be_posted_and_tell_how_they_ended(autojump_clock: trio.testing.MockClock):
    cancelled: list[int] = []

    async def slow(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        try:
            await trio.sleep(request.ino)
        except trio.Cancelled:
            cancelled.append(request.ino)
            raise
        return InodeReply(inode(request.ino))

    async with served({GetInode: slow}) as rig:
        connection = await rig.connect(limits=Limits(calls=3))
        ended: dict[int, Outcome[tuple[InodeReply, memoryview]]] = {}

        def post(number: int) -> Call | None:
            return connection.post(
                GetInode(number), InodeReply, partial(ended.__setitem__, number), timeout_s=5
            )

        given_up = post(2)
        assert given_up is not None
        assert post(1) is not None
        assert post(9) is not None
        assert post(3) is None  # there is no room for a fourth
        given_up.give_up()
        given_up.give_up()
        await trio.sleep(6)
        assert ended.keys() == {1, 9}
        assert ended[1].unwrap()[0].inode.ino == 1
        with pytest.raises(DeadlineError):
            ended[9].unwrap()
        assert sorted(cancelled) == [2, 9]
        given_up.give_up()
        assert post(4) is not None
        await connection.aclose()
        with pytest.raises(UnavailableError):
            ended[4].unwrap()
        assert post(5) is None


# ---------------------------------------------------------------------- errors


async def test_an_error_of_a_handler_arrives_with_all_it_says():
    def absent(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        raise refuse(2, "/a/b")

    async def down(peer: Peer, request: StatFs, payload: memoryview) -> InodeReply:
        raise UnavailableError("disk 3 is down", hint="wait for it")

    async with served({GetInode: absent, StatFs: down}) as rig:
        connection = await rig.connect()
        with pytest.raises(FileSystemError, match="/a/b: No such file or directory") as caught:
            await connection.call(GetInode(7), InodeReply, timeout_s=1)
        assert (caught.value.errno, caught.value.retry) == (2, False)
        with pytest.raises(UnavailableError, match="disk 3 is down; wait for it") as caught2:
            await connection.call(StatFs(), FsStats, timeout_s=1)
        assert caught2.value.retry


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.allow_logs("GetInode from .* failed")
async def test_a_surprise_in_a_handler_is_logged_there_and_shows_no_details_here(
    is_async: bool, caplog: pytest.LogCaptureFixture
):
    def fails(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        raise KeyError("secret")

    async def fails_later(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        await trio.lowlevel.checkpoint()
        raise KeyError("secret")

    async with served({GetInode: fails_later if is_async else fails}) as rig:
        connection = await rig.connect()
        with pytest.raises(DfsError, match="GetInode failed inside the master") as caught:
            await connection.call(GetInode(7), InodeReply, timeout_s=1)
        assert type(caught.value) is DfsError
        assert caught.value.errno == 5
        assert "secret" not in str(caught.value)
        assert "secret" in caplog.text


@pytest.mark.parametrize("children", [1, 3])
async def test_an_error_out_of_a_handlers_nursery_is_unwrapped(children: int):
    async def child() -> None:
        raise refuse(13, "x")

    async def fails(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        async with trio.open_nursery() as nursery:
            for _ in range(children):
                nursery.start_soon(child)
        raise AssertionError

    async with served({GetInode: fails}) as rig:
        connection = await rig.connect()
        with pytest.raises(FileSystemError, match="Permission denied"):
            await connection.call(GetInode(7), InodeReply, timeout_s=1)


@pytest.mark.allow_logs("GetInode from .* failed")
async def test_a_handler_that_answers_wrongly_is_a_surprise_too():
    def wrong(peer: Peer, request: GetInode, payload: memoryview) -> Empty:
        return Empty()

    async with served({GetInode: wrong}) as rig:
        connection = await rig.connect()
        with pytest.raises(DfsError, match="failed inside"):
            await connection.call(GetInode(7), InodeReply, timeout_s=1)


async def test_a_method_without_handler_says_whom_one_talks_to():
    async with served(hello=Hello("chunkserver")) as rig:
        connection = await rig.connect()
        with pytest.raises(ProtocolError, match="chunkserver, which does not answer RenewSession"):
            await connection.call(RenewSession(1), Empty, timeout_s=1)


async def test_a_request_of_wrong_types_is_refused_and_the_connection_lives():
    async with served() as rig:
        connection = await rig.connect()
        with pytest.raises(ProtocolError, match="malformed GetInode"):
            await connection.call(GetInode("seven"), InodeReply, timeout_s=1)  # type: ignore[arg-type]
        await connection.call(GetInode(7), InodeReply, timeout_s=1)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"\x93\x01\x01\xa1\xff", id="text that is no UTF-8"),
        pytest.param(b"\x94\x01\x01\xa0" + b"\x91" * 100_000 + b"\x90", id="a tower"),
    ],
)
async def test_a_malformed_answer_fails_its_call_and_no_other(body: bytes):
    async with served({OpenSession: lambda *_: body, GetInode: get_inode}) as rig:
        connection = await rig.connect()
        with pytest.raises(ProtocolError, match="gave a malformed answer to OpenSession"):
            await connection.call(OpenSession("test", 1), SessionOpened, timeout_s=1)
        await connection.call(GetInode(7), InodeReply, timeout_s=1)


# ---------------------------------------------------------------------- deadlines, cancellation


class Slow:
    """A handler that waits, and what became of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.begun_at = 0.0
        self.ended_at = 0.0

    async def __call__(self, peer: Peer, request: object, payload: memoryview) -> Empty:
        self.begun += 1
        self.begun_at = trio.current_time()
        try:
            await trio.sleep(1000)
        except trio.Cancelled:
            self.cancelled += 1
            self.ended_at = trio.current_time()
            raise
        return Empty()


async def test_a_call_ends_at_its_deadline_on_both_sides(autojump_clock: trio.testing.MockClock):
    slow = Slow()
    async with served({SyncBarrier: slow.__call__}) as rig:
        connection = await rig.connect()
        begin = trio.current_time()
        with pytest.raises(DeadlineError, match=f"{ADDRESS} did not answer SyncBarrier within 3 s"):
            await connection.call(SyncBarrier(), Empty, timeout_s=3)
        assert trio.current_time() - begin == pytest.approx(3, abs=0.01)
        await trio.sleep(0.1)
        assert (slow.begun, slow.cancelled) == (1, 1)
        assert slow.ended_at - slow.begun_at == pytest.approx(3, abs=0.01)


async def test_a_server_enforces_the_deadline_of_a_caller_that_is_cut_off(
    autojump_clock: trio.testing.MockClock,
):
    slow = Slow()
    async with served({SyncBarrier: slow.__call__}) as rig:
        connection = await rig.connect()
        rig.network.set_latency(0.1)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(DeadlineError):
                    await connection.call(SyncBarrier(), Empty, timeout_s=3)

            nursery.start_soon(call)
            await trio.sleep(0.5)
            assert slow.begun == 1
            rig.network.partition("client", "server")
        await trio.sleep(1)
        assert slow.cancelled == 1
        assert slow.ended_at - slow.begun_at == pytest.approx(3, abs=0.01)


async def test_deadlines_are_kept_in_any_order(autojump_clock: trio.testing.MockClock):
    async with served({SyncBarrier: Slow().__call__}) as rig:
        connection = await rig.connect()
        ended: list[tuple[float, float]] = []

        async def call(timeout_s: float) -> None:
            with pytest.raises(DeadlineError):
                await connection.call(SyncBarrier(), Empty, timeout_s=timeout_s)
            ended.append((timeout_s, trio.current_time() - begin))

        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            for timeout_s in (5.0, 1.0, 4.0, 0.5, 3.0, 2.0):
                nursery.start_soon(call, timeout_s)
        assert [timeout_s for timeout_s, _ in ended] == [0.5, 1.0, 2.0, 3.0, 4.0, 5.0]
        for timeout_s, took_s in ended:
            assert took_s == pytest.approx(timeout_s, abs=0.01)


async def test_cancelling_a_caller_cancels_its_handler(autojump_clock: trio.testing.MockClock):
    slow = Slow()
    async with served({SyncBarrier: slow.__call__}) as rig:
        connection = await rig.connect()
        with trio.move_on_after(1) as scope:
            await connection.call(SyncBarrier(), Empty, timeout_s=100)
        assert scope.cancelled_caught
        assert connection.load == 0
        await trio.sleep(0.1)
        assert slow.cancelled == 1
        assert slow.ended_at - slow.begun_at == pytest.approx(1, abs=0.01)
        assert not connection.closed


async def test_cancellation_reaches_a_client_that_the_server_called(
    autojump_clock: trio.testing.MockClock,
):
    slow = Slow()

    async def call_back(peer: Peer, request: RenewSession, payload: memoryview) -> Empty:
        assert peer.connection is not None
        with trio.move_on_after(1):
            await peer.connection.call(SyncBarrier(), Empty, timeout_s=100)
        return Empty()

    async with served({RenewSession: call_back}) as rig:
        connection = await rig.connect(handlers={SyncBarrier: slow.__call__})
        await connection.call(RenewSession(1), Empty, timeout_s=10)
        await trio.sleep(0.1)
        assert (slow.begun, slow.cancelled) == (1, 1)


async def test_a_call_by_a_cancelled_task_leaves_nothing_behind():
    async with served() as rig:
        connection = await rig.connect()
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.call(GetInode(1), InodeReply, timeout_s=1)
        assert scope.cancelled_caught
        assert connection.load == 0
        assert await connection.call(GetInode(2), InodeReply, timeout_s=1)


async def test_a_reply_and_a_cancellation_in_the_same_moment_do_no_harm(
    autojump_clock: trio.testing.MockClock,
):
    async def one_second(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        await trio.sleep(1)
        return Empty()

    async with served({SyncBarrier: one_second}) as rig:
        connection = await rig.connect()

        async def call(limit_s: float) -> None:
            with trio.move_on_after(limit_s):
                await connection.call(SyncBarrier(), Empty, timeout_s=100)

        async with trio.open_nursery() as nursery:
            for step in range(40):
                nursery.start_soon(call, 1 + (step - 20) * 1e-9)
        assert connection.load == 0
        await connection.call(SyncBarrier(), Empty, timeout_s=2)


# ---------------------------------------------------------------------- ends


async def expect_unavailable(call: Callable[[], Awaitable[object]], match: str) -> None:
    with pytest.raises(UnavailableError, match=match) as caught:
        await call()
    assert caught.value.retry
    assert not isinstance(caught.value, DeadlineError)


@pytest.mark.parametrize("how", ["reset", "server stops", "client closes"])
async def test_a_connection_that_ends_fails_all_calls_in_flight(
    how: str, autojump_clock: trio.testing.MockClock
):
    async with served({SyncBarrier: Slow().__call__}) as rig:
        connection = await rig.connect()
        match = {
            "reset": "reset by peer",
            "server stops": "shutting down",
            "client closes": "closed",
        }

        async def call() -> None:
            await expect_unavailable(
                lambda: connection.call(SyncBarrier(), Empty, timeout_s=100), match[how]
            )

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call)
            await trio.sleep(1)
            if how == "reset":
                assert rig.network.drop("client", "server") == 1
            elif how == "server stops":
                rig.server.cancel()
            else:
                await connection.aclose()
        assert connection.closed
        assert trio.current_time() < 2
        await expect_unavailable(
            lambda: connection.call(SyncBarrier(), Empty, timeout_s=1), match[how]
        )


@pytest.mark.parametrize("how", ["reset", "deadline"])
async def test_a_call_that_is_cancelled_or_given_up_because_another_failed_ends_once(
    how: str, autojump_clock: trio.testing.MockClock
):
    """Who learns that a call failed may cancel others that wait with it, at once."""
    async with served({SyncBarrier: Slow().__call__}) as rig:
        connection = await rig.connect()
        told: list[str] = []
        scope = trio.CancelScope()

        def failed(_: object) -> None:
            told.append("failed")
            scope.cancel()
            given_up.give_up()

        async def wait_for_it() -> None:
            with scope:
                await connection.call(SyncBarrier(), Empty, timeout_s=100)

        async with trio.open_nursery() as nursery:
            connection.post(SyncBarrier(), Empty, failed, timeout_s=100)
            nursery.start_soon(wait_for_it)
            await trio.testing.wait_all_tasks_blocked()
            post = partial(told.append, "given up, and told all the same")
            maybe = connection.post(SyncBarrier(), Empty, lambda _: post(), timeout_s=100)
            assert maybe is not None
            given_up = maybe
            if how == "reset":
                rig.network.drop("client", "server")
        assert scope.cancelled_caught
        assert told == ["failed"]


async def test_a_connection_that_ends_cancels_its_handlers(autojump_clock: trio.testing.MockClock):
    slow = Slow()
    async with served({SyncBarrier: slow.__call__}) as rig:
        connection = await rig.connect()
        rig.nursery.start_soon(
            lambda: expect_unavailable(
                lambda: connection.call(SyncBarrier(), Empty, timeout_s=100), "reset"
            )
        )
        await trio.sleep(1)
        rig.network.drop()
        await trio.sleep(0.1)
        assert slow.cancelled == 1


async def test_a_hung_server_is_noticed_without_waiting_for_the_deadline(
    autojump_clock: trio.testing.MockClock,
):
    limits = Limits(ping_s=5, dead_s=15)
    async with served({SyncBarrier: Slow().__call__}, limits=limits) as rig:
        connection = await rig.connect()
        rig.network.hang("server")
        begin = trio.current_time()
        await expect_unavailable(
            lambda: connection.call(SyncBarrier(), Empty, timeout_s=1000), "no sign of life"
        )
        assert trio.current_time() - begin == pytest.approx(15, abs=0.1)


async def test_a_server_that_works_long_but_lives_is_waited_for(
    autojump_clock: trio.testing.MockClock,
):
    async with served({SyncBarrier: Slow().__call__}) as rig:
        connection = await rig.connect()
        assert await connection.call(SyncBarrier(), Empty, timeout_s=2000) == Empty()
        assert trio.current_time() >= 1000


async def test_an_idle_connection_costs_no_timer(autojump_clock: trio.testing.MockClock):
    async with served() as rig:
        connection = await rig.connect()
        await connection.call(GetInode(1), InodeReply, timeout_s=1)
        await trio.sleep(80_000)
        assert not connection.closed
        await connection.call(GetInode(1), InodeReply, timeout_s=1)


# ---------------------------------------------------------------------- payloads, bounds


async def test_payloads_of_all_sizes_arrive_unchanged_both_ways():
    held: dict[int, bytes] = {}

    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        held[request.chunk] = bytes(payload)
        return Appended(1, len(payload))

    async def read(
        peer: Peer, request: ReadRecords, payload: memoryview
    ) -> tuple[RecordsReply, list[bytes]]:
        data = held[request.chunk]
        return RecordsReply(1), [data[:7], data[7:]]

    async with served({Append: append, ReadRecords: read}) as rig:
        connection = await rig.connect()
        sizes = [0, 1, 100, 16_300, 16_384, 65_536, 200_000, 3_000_001]

        async def round_trip(chunk: int, size: int) -> None:
            data = bytes(range(256)) * (size // 256 + 1)
            parts = [memoryview(data)[: size // 3], memoryview(data)[size // 3 : size]]
            reply = await connection.call(
                Append(1, chunk, 0, 1, 0, 0, 1), Appended, payload=parts, timeout_s=5
            )
            assert reply.length == size
            got, payload = await connection.call_raw(
                ReadRecords(1, chunk, 0, size), RecordsReply, timeout_s=5
            )
            assert got == RecordsReply(1)
            assert payload == data[:size]

        async with trio.open_nursery() as nursery:
            for chunk, size in enumerate(sizes * 3):
                nursery.start_soon(round_trip, chunk, size)


async def test_what_is_over_the_limit_is_refused_before_it_is_sent():
    async with served(limits=Limits(payload_bytes=1000, body_bytes=1000)) as rig:
        connection = await rig.connect()
        with pytest.raises(ValueError, match="over the limit"):
            await connection.call(
                Append(1, 1, 0, 1, 0, 0, 1), Appended, payload=[bytes(1001)], timeout_s=1
            )
        with pytest.raises(ValueError, match="over the limit"):
            await connection.call(Lookup(Cred(0, 0), 1, b"x" * 1001), LookupReply, timeout_s=1)
        await connection.call(GetInode(1), InodeReply, timeout_s=1)


@pytest.mark.allow_logs("over the limit")
async def test_an_answer_over_the_limit_is_an_error_and_the_connection_lives():
    def read(
        peer: Peer, request: ReadRecords, payload: memoryview
    ) -> tuple[RecordsReply, list[bytes]]:
        return RecordsReply(1), [bytes(request.length)]

    async with served({ReadRecords: read}, limits=Limits(payload_bytes=1000)) as rig:
        connection = await rig.connect()
        with pytest.raises(DfsError, match="failed inside"):
            await connection.call(ReadRecords(1, 1, 0, 1001), RecordsReply, timeout_s=1)
        await connection.call(ReadRecords(1, 1, 0, 1000), RecordsReply, timeout_s=1)


async def test_a_call_cancelled_before_its_payload_left_takes_it_back(
    autojump_clock: trio.testing.MockClock,
):
    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        received.append(request.chunk)
        return Appended(1, len(payload))

    received: list[int] = []
    async with served({Append: append}, limits=Limits(queued_bytes=1 << 30)) as rig:
        connection = await rig.connect()
        rig.network.partition("client", "server")

        async def send(chunk: int, limit_s: float) -> None:
            with trio.move_on_after(limit_s):
                await connection.call(
                    Append(1, chunk, 0, 1, 0, 0, 1),
                    Appended,
                    payload=[bytes(10_000_000)],
                    timeout_s=14,
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 1, 100)
            await trio.sleep(1)
            nursery.start_soon(send, 2, 1)
            await trio.sleep(2)
            rig.network.heal()
        assert received == [1]


async def test_a_log_stays_silent_in_normal_use(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        async with served() as rig:
            connection = await rig.connect()
            await connection.call(GetInode(7), InodeReply, timeout_s=1)
            await connection.aclose()
    assert not caplog.records
