"""The exchange of hellos that makes a transport a `Connection`, for both sides."""

import msgspec

from dfs.core.errors import (
    DfsError,
    ProtocolError,
    UnavailableError,
    WireError,
    from_wire,
)
from dfs.wire.framing import MALFORMED, Frame, FrameReader, Kind, pack
from dfs.wire.hello import (
    HELLO_BYTES_MAX,
    Hello,
    check_admission,
    decode_hello,
    encode_hello,
    negotiate,
)
from dfs.wire.limits import Limits
from dfs.wire.transport import Transport


async def greet(
    transport: Transport, address: str, hello: Hello, limits: Limits
) -> tuple[Hello, FrameReader]:
    """The side that dialled: say hello, and hear the other side's.

    Raises ProtocolError when something else answers or the versions don't meet, what the other
    side gives as its reason when it refuses, UnavailableError when it hangs up.
    """
    await transport.send([pack(Kind.HELLO, 0, 0, encode_hello(hello))])
    reader = _new_reader()
    try:
        frame = await _first_frame(transport, reader)
        if frame is None:
            raise UnavailableError(
                f"{address} hung up without a hello",
                hint="check that the address is that of a dfs server",
            )
        if frame.kind == Kind.ERROR:
            raise _refusal(frame)
        theirs = _hello_of(frame)
        negotiate(hello, theirs)
    except ProtocolError as error:
        if error.hint:
            raise
        raise ProtocolError(
            f"{address} does not speak dfs: {error.message}", hint="check the address"
        ) from error
    if hello.cluster and theirs.cluster and hello.cluster != theirs.cluster:
        raise ProtocolError(
            f"{address} belongs to cluster {theirs.cluster}, not to {hello.cluster}",
            hint="check the address",
        )
    _open_up(reader, limits)
    return theirs, reader


async def receive_greeting(
    transport: Transport, hello: Hello, limits: Limits
) -> tuple[Hello, FrameReader]:
    """The side that accepted: hear a hello, check it, say ours.

    Raises ProtocolError or UnavailableError when there is no hello; a hello that is refused gets
    the reason as an answer, and the same is raised here.
    """
    reader = _new_reader()
    frame = await _first_frame(transport, reader)
    if frame is None:
        raise UnavailableError(f"{transport.peer} hung up without a hello")
    try:
        theirs = _hello_of(frame)
        check_admission(hello, theirs)
    except DfsError as error:
        await refuse(transport, error)
        raise
    await transport.send([pack(Kind.HELLO, 0, 0, encode_hello(hello))])
    _open_up(reader, limits)
    return theirs, reader


async def refuse(transport: Transport, error: DfsError) -> None:
    """Tell the other side why there will be no connection."""
    await transport.send([pack(Kind.ERROR, 0, 0, msgspec.msgpack.encode(error.to_wire()))])


def _new_reader() -> FrameReader:
    return FrameReader(body_bytes_max=HELLO_BYTES_MAX, payload_bytes_max=0)


def _open_up(reader: FrameReader, limits: Limits) -> None:
    reader.body_bytes_max = limits.body_bytes
    reader.payload_bytes_max = limits.payload_bytes


async def _first_frame(transport: Transport, reader: FrameReader) -> Frame | None:
    while (frame := reader.next()) is None:
        count = await transport.receive_into(reader.space())
        if not count:
            return None
        reader.received(count)
    return frame


def _hello_of(frame: Frame) -> Hello:
    if frame.kind != Kind.HELLO:
        raise ProtocolError("its first frame is no hello")
    return decode_hello(frame.body)


def _refusal(frame: Frame) -> DfsError:
    try:
        return from_wire(msgspec.msgpack.decode(frame.body, type=WireError))
    except MALFORMED as error:
        return ProtocolError(f"its refusal is malformed: {error}")
