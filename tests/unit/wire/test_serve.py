"""Listeners meet the world: garbage, strangers, other versions, half-open peers, crowds."""

import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from dfs.core.errors import (
    BusyError,
    CorruptError,
    DeadlineError,
    DfsError,
    DiskError,
    ProtocolError,
    UnavailableError,
    WireError,
    from_wire,
)
from dfs.wire import transport
from dfs.wire.connection import Connection
from dfs.wire.dial import connect
from dfs.wire.framing import HEADER_BYTES, FrameReader, Kind, pack
from dfs.wire.handlers import FilePayload, Handler, Peer
from dfs.wire.hello import Hello, encode_hello
from dfs.wire.limits import MIB, Limits
from dfs.wire.messages import GetInode, InodeReply, Message, ReadRecords, RecordsReply
from dfs.wire.serve import serve
from dfs.wire.transport import listen_tcp, listening_address
from tests.unit.wire.rig import ADDRESS, get_inode, served

HELLO = pack(Kind.HELLO, 0, 0, encode_hello(Hello("client")))


@asynccontextmanager
async def tcp_server(
    handlers: dict[type[Message], Handler] | None = None, limits: Limits | None = None
) -> AsyncIterator[str]:
    """The address of a server on a real socket."""
    async with trio.open_nursery() as nursery:
        listeners = await listen_tcp("127.0.0.1:0")
        address = listening_address(listeners[0])

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await serve(
                listeners,
                handlers or {GetInode: get_inode},
                hello=Hello("master"),
                limits=limits,
                task_status=task_status,
            )

        await nursery.start(run)
        yield address
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_client(address: str) -> AsyncIterator[Connection]:
    async with trio.open_nursery() as nursery:
        connection = await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)
        yield connection
        await connection.aclose()


async def answer_to(address: str, data: bytes, *, finish: bool = True) -> bytes:
    """All that a server sends to one who sends `data`, until it hangs up."""
    host, port = address.split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        answer = b""
        with trio.fail_after(10):
            try:
                await stream.send_all(data)
                if finish:
                    await stream.send_eof()
                async for part in stream:
                    answer += part
            except trio.BrokenResourceError:
                pass
        return answer


def frames_in(data: bytes) -> list[tuple[int, int, bytes]]:
    """(kind, request, body) of each frame."""
    reader = FrameReader(body_bytes_max=MIB, payload_bytes_max=0)
    reader.space()[: len(data)] = data
    reader.received(len(data))
    found = []
    while (frame := reader.next()) is not None:
        found.append((frame.kind, frame.request, bytes(frame.body)))
    return found


def error_in(body: bytes) -> DfsError:
    return from_wire(msgspec.msgpack.decode(body, type=WireError))


# ---------------------------------------------------------------------- bad input


@pytest.mark.allow_logs("dropped the connection from")
async def test_garbage_costs_its_connection_and_never_the_server():
    random = Random(5)
    async with tcp_server() as address, tcp_client(address) as good:
        requests = pack(Kind.REQUEST, 22, 1, b"\x91\x01", 1000)
        flipped = bytearray(HELLO + requests)
        flipped[len(HELLO) + 20] ^= 1
        for bad in (
            b"\x00",
            random.randbytes(10),
            random.randbytes(100_000),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
            HELLO[:20],
            HELLO + random.randbytes(1000),
            HELLO + requests[:30],
            HELLO + HELLO,
            HELLO + b"GET / HTTP/1.1\r\n\r\n",
            bytes(flipped),
            requests,
            pack(Kind.HELLO, 0, 0, b"\xc1"),
            pack(Kind.HELLO, 0, 0, b"\x92\xa1\xff\xa1v"),
            pack(Kind.HELLO, 0, 0, encode_hello(Hello("x"))[:-1] + b"\x91" * 3000 + b"\x90"),
            pack(Kind.HELLO, 0, 0, b"x" * 100_000),
            pack(Kind.HELLO, 0, 0, encode_hello(Hello("client")), 0, 1000),
            HELLO + pack(Kind.REPLY, 0, 99, b"\x90"),
            HELLO + pack(Kind.ERROR, 0, 99, b"\xc1"),
            HELLO + pack(Kind.REQUEST, 1, 1, b"\x92\xa1\xff\x01", 1000),
            HELLO + pack(Kind.CANCEL, 0, 12345),
            HELLO + pack(Kind.PING, 0, 0, b"", 0, 100),
        ):
            await answer_to(address, bad)
            await good.call(GetInode(1), InodeReply, timeout_s=5)


async def test_what_has_a_frame_but_no_sense_gets_a_typed_error():
    async with tcp_server() as address:
        answer = await answer_to(
            address,
            HELLO
            + pack(Kind.REQUEST, 9999, 1, b"\x90", 1000)
            + pack(Kind.REQUEST, 22, 2, b"\xc1", 1000)
            + pack(Kind.REQUEST, 22, 3, b"\x91\xa1x", 1000)
            + pack(Kind.REQUEST, 9999, 4, b"\x90", 1000, 5)
            + b"extra"
            + pack(Kind.REQUEST, 22, 5, b"\x91\xa1x", 1000, 100_000)
            + bytes(100_000)
            + pack(Kind.REQUEST, 22, 7, b"\x92\x07" + b"\x91" * 100_000 + b"\x90", 1000)
            + pack(Kind.PING, 0, 0)
            + pack(Kind.REQUEST, 22, 6, b"\x91\x07", 1000),
        )
    hello, *rest, pong, reply = frames_in(answer)
    assert hello[0] == Kind.HELLO
    assert pong[0] == Kind.PONG
    assert (reply[0], reply[1]) == (Kind.REPLY, 6)
    errors = {request: error_in(body) for kind, request, body in rest if kind == Kind.ERROR}
    assert sorted(errors) == [1, 2, 3, 4, 5, 7]
    assert all(isinstance(error, ProtocolError) for error in errors.values())
    assert "method 9999 is unknown to this master" in str(errors[1])
    assert "malformed GetInode" in str(errors[3])


@pytest.mark.allow_logs("dropped the connection from")
async def test_a_bad_peer_is_logged_once_an_interval(caplog: pytest.LogCaptureFixture):
    async with tcp_server() as address:
        for _ in range(20):
            await answer_to(address, b"GET / HTTP/1.1\r\n\r\n")
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "what came is HTTP" in lines[0].getMessage()


async def test_a_silent_peer_is_dropped_after_a_while(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    async with served() as rig:
        stream = await rig.network.connect(ADDRESS, "client")
        await stream.send([HELLO[:40]])
        assert await stream.receive_into(memoryview(bytearray(10))) == 0
        assert trio.current_time() == pytest.approx(5, abs=0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "no hello within 5 s from client:40001"
    ]


@pytest.mark.allow_logs("dropped the connection from")
async def test_connections_are_bounded_and_further_ones_are_told_so():
    async with served(limits=Limits(connections=2)) as rig:
        first, _second = await rig.connect(), await rig.connect()
        with pytest.raises(BusyError, match="this master has 2 connections, its most"):
            await rig.connect()
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await rig.connect()


@pytest.mark.allow_logs("dropped the connection from")
async def test_the_refusal_of_a_crowded_server_arrives_over_tcp_too():
    async with tcp_server(limits=Limits(connections=1)) as address, tcp_client(address):
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                with pytest.raises(BusyError, match="its most"):
                    await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)


# ---------------------------------------------------------------------- hellos


@pytest.mark.allow_logs("dropped the connection from")
@pytest.mark.parametrize(
    ("server", "client", "complaint"),
    [
        (
            Hello("master", "1.0", 1, 1),
            Hello("client", "3.0", 2, 3),
            r"dfs 1.0 \(master\) speaks protocol 1, dfs 3.0 \(client\) speaks 2 to 3; "
            "upgrade the master, which runs dfs 1.0",
        ),
        (
            Hello("master", "3.0", 2, 3),
            Hello("client", "1.0", 1, 1),
            "upgrade the client, which runs dfs 1.0",
        ),
        (Hello("master", token=b"x"), Hello("client"), "token is missing or wrong"),
        (Hello("master", token=b"x"), Hello("client", token=b"y"), "token is missing or wrong"),
        (
            Hello("master", cluster="aaa"),
            Hello("client", cluster="bbb"),
            "this master belongs to cluster aaa, not to bbb; check the address",
        ),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_with_the_reason(
    server: Hello, client: Hello, complaint: str
):
    async with served(hello=server) as rig:
        with pytest.raises(DfsError, match=complaint):
            await rig.connect(client)


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (Hello("master", "9", 1, 3), Hello("client", "1", 1, 1)),
        (Hello("master", "1", 1, 1), Hello("client", "9", 1, 3)),
        (Hello("master", token=b"x", cluster="aaa"), Hello("client", token=b"x")),
        (Hello("master"), Hello("a role of the future", cluster="bbb", token=b"x")),
    ],
)
async def test_a_hello_that_fits_is_answered(server: Hello, client: Hello):
    async with served(hello=server) as rig:
        connection = await rig.connect(client)
        assert connection.peer == server


async def test_fields_that_a_newer_hello_appends_are_ignored():
    async with served() as rig:
        stream = await rig.network.connect(ADDRESS, "client")
        fields = msgspec.msgpack.decode(encode_hello(Hello("client", "9.9")))
        await stream.send(
            [pack(Kind.HELLO, 0, 0, msgspec.msgpack.encode([*fields, {"future": True}]))]
        )
        buffer = bytearray(1000)
        count = await stream.receive_into(memoryview(buffer))
        assert frames_in(bytes(buffer[:count]))[0][0] == Kind.HELLO
        await stream.aclose()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak dfs: what came is HTTP; check the"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak dfs: what came is SSH; check the address"),
        (b"\r\n", "does not speak dfs: what came is no frame"),
        (pack(Kind.PING, 0, 0), "its first frame is no hello"),
        (pack(Kind.ERROR, 0, 0, b"\xc1"), "its refusal is malformed"),
        (pack(Kind.ERROR, 0, 0, b"\x93\x00\x05\xa1\xff"), "its refusal is malformed"),
        (pack(Kind.HELLO, 0, 0, b"\x91\xa1\xff"), "its hello is malformed"),
    ],
)
async def test_a_stranger_that_answers_is_named(answer: bytes, complaint: str):
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def stranger(stream: trio.SocketStream) -> None:
            await stream.send_all(answer)

        nursery.start_soon(trio.serve_listeners, stranger, listeners)
        address = listening_address(listeners[0])
        with pytest.raises(ProtocolError, match=complaint) as caught:
            await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)
        assert str(caught.value).startswith(address)
        assert "\n" not in str(caught.value)
        nursery.cancel_scope.cancel()


async def test_one_that_hangs_up_or_keeps_silent_is_unavailable(
    autojump_clock: trio.testing.MockClock,
):
    async with served() as rig:
        listener = rig.network.listen("mute:1")
        nursery = rig.nursery

        async def dial() -> Connection:
            return await connect(
                "mute:1",
                nursery=nursery,
                hello=Hello("client"),
                timeout_s=3,
                connector=rig.network.connector("client"),
            )

        with pytest.raises(DeadlineError, match="mute:1 did not answer within 3 s"):
            await dial()

        async def hang_up() -> None:
            for _ in range(2):
                await (await listener.accept_transport()).aclose()

        nursery.start_soon(hang_up)
        with pytest.raises(UnavailableError, match="hung up without a hello|broke"):
            await dial()


async def test_a_refused_connection_gives_advice():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            with pytest.raises(UnavailableError, match="Connection refused; check that") as caught:
                await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)
            assert caught.value.retry


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("localhost:9420", "localhost", 9420),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_an_address_is_read_and_shown_alike(address: str, host: str, port: int):
    assert transport.parse_address(address) == (host, port)
    assert transport.format_address((host, port)) == address


@pytest.mark.parametrize(
    "address",
    ["", "nohost", ":9420", "host:", "host:99999", "a:b:1", "h:-1", "x..y:1", "a" * 70 + ":1"],
)
async def test_what_is_no_address_is_said_so(address: str):
    async with trio.open_nursery() as nursery:
        with pytest.raises(DfsError, match="is not an address; write HOST:PORT"):
            await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)


async def test_a_port_in_use_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match="another program has the port; stop it, or"):
            await listen_tcp(f"127.0.0.1:{port}")
    with pytest.raises(DfsError, match="give an address of this machine"):
        await listen_tcp("192.0.2.1:9420")


# ---------------------------------------------------------------------- real sockets


async def test_a_stopped_server_says_goodbye_and_frees_its_port():
    async with trio.open_nursery() as nursery:
        listeners = await listen_tcp("127.0.0.1:0")
        address = listening_address(listeners[0])
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await serve(
                    listeners,
                    {GetInode: get_inode},
                    hello=Hello("master"),
                    task_status=task_status,
                )

        await nursery.start(run)
        connection = await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)
        await connection.call(GetInode(1), InodeReply, timeout_s=5)
        scope.cancel()
        with trio.fail_after(5):
            while not connection.closed:
                await trio.testing.wait_all_tasks_blocked(0.001)
        with pytest.raises(UnavailableError, match="is shutting down"):
            await connection.call(GetInode(1), InodeReply, timeout_s=5)
        for listener in await listen_tcp(address):
            await listener.aclose()


@pytest.mark.parametrize("is_cached", [True, False])
async def test_a_file_payload_arrives_in_the_order_of_its_ranges_and_is_closed(
    is_cached: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "_is_cached", lambda *_: is_cached)
    data = os.urandom(3 * MIB)
    closed: list[int] = []
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()

        def read(
            peer: Peer, request: ReadRecords, payload: memoryview
        ) -> tuple[RecordsReply, FilePayload]:
            ranges = [(2 * MIB, MIB), (5, 100), (0, 2 * MIB)]
            return RecordsReply(3), FilePayload(
                os.dup(file.fileno()), ranges, close=lambda: closed.append(request.chunk)
            )

        async with tcp_server({ReadRecords: read}) as address, tcp_client(address) as connection:
            for chunk in range(5):
                reply, payload = await connection.call_raw(
                    ReadRecords(1, chunk, 0, 1), RecordsReply, timeout_s=10
                )
                assert reply == RecordsReply(3)
                assert payload == data[2 * MIB :] + data[5:105] + data[: 2 * MIB]
    assert closed == [0, 1, 2, 3, 4]


@pytest.mark.allow_logs("dropped the connection from .*: a file ends at 1048576")
@pytest.mark.parametrize("over_tcp", [True, False])
async def test_a_file_shorter_than_said_breaks_the_connection_and_is_never_filled_up(
    over_tcp: bool,
):
    closed: list[bool] = []
    errors: list[DfsError] = []
    with tempfile.TemporaryFile() as file:
        file.write(bytes(MIB))
        file.flush()

        def read(
            peer: Peer, request: ReadRecords, payload: memoryview
        ) -> tuple[RecordsReply, FilePayload]:
            return RecordsReply(1), FilePayload(
                file.fileno(),
                [(0, 2 * MIB)],
                close=lambda: closed.append(True),
                on_error=errors.append,
            )

        async def check(connection: Connection) -> None:
            with pytest.raises(UnavailableError, match="closed the connection|shutting|broke"):
                await connection.call_raw(ReadRecords(1, 1, 0, 1), RecordsReply, timeout_s=10)
            assert connection.closed

        if over_tcp:
            async with tcp_server({ReadRecords: read}) as address:
                async with tcp_client(address) as connection:
                    await check(connection)
        else:
            async with served({ReadRecords: read}) as rig:
                await check(await rig.connect())
    assert closed == [True]
    assert isinstance(errors[0], CorruptError)


@pytest.mark.allow_logs("dropped the connection from .*: cannot read a file")
async def test_a_file_that_cannot_be_read_is_reported_as_the_disks_fault():
    errors: list[DfsError] = []
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:

        def read(
            peer: Peer, request: ReadRecords, payload: memoryview
        ) -> tuple[RecordsReply, FilePayload]:
            return RecordsReply(1), FilePayload(write_end, [(0, 10)], on_error=errors.append)

        async with tcp_server({ReadRecords: read}) as address:
            async with tcp_client(address) as connection:
                with pytest.raises(UnavailableError):
                    await connection.call_raw(ReadRecords(1, 1, 0, 1), RecordsReply, timeout_s=10)
    finally:
        os.close(write_end)
    assert isinstance(errors[0], DiskError)


async def test_large_payloads_and_small_calls_share_a_socket():
    data = os.urandom(2 * MIB)

    def read(
        peer: Peer, request: ReadRecords, payload: memoryview
    ) -> tuple[RecordsReply, list[memoryview]]:
        return RecordsReply(1), [memoryview(data)[request.offset :][: request.length]]

    handlers: dict[type[Message], Handler] = {ReadRecords: read, GetInode: get_inode}
    async with tcp_server(handlers) as address, tcp_client(address) as connection:

        async def large(number: int) -> None:
            for step in range(3):
                offset, length = number * 1000 + step, MIB + number
                _, payload = await connection.call_raw(
                    ReadRecords(1, 1, offset, length), RecordsReply, timeout_s=10
                )
                assert payload == data[offset : offset + length]

        async def small(number: int) -> None:
            for _ in range(50):
                reply = await connection.call(GetInode(number), InodeReply, timeout_s=10)
                assert reply.inode.ino == number

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(large, number)
                nursery.start_soon(small, number)


async def test_a_reader_that_vanishes_frees_what_was_queued_for_it():
    closed: list[bool] = []
    with tempfile.TemporaryFile() as file:
        file.truncate(8 * MIB)

        def read(
            peer: Peer, request: ReadRecords, payload: memoryview
        ) -> tuple[RecordsReply, FilePayload]:
            return RecordsReply(1), FilePayload(
                file.fileno(), [(0, 8 * MIB)], close=lambda: closed.append(True)
            )

        async with tcp_server({ReadRecords: read}) as address:
            host, port = address.split(":")
            stream = await trio.open_tcp_stream(host, int(port))
            requests = [
                pack(Kind.REQUEST, 101, n, b"\x94\x01\x01\x00\x01", 1000) for n in range(1, 11)
            ]
            await stream.send_all(HELLO + b"".join(requests))
            await stream.receive_some(HEADER_BYTES)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.aclose_forcefully(stream)
            with trio.fail_after(5):
                while len(closed) < 10:
                    await trio.testing.wait_all_tasks_blocked(0.001)
