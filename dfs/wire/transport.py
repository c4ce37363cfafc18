"""Byte streams under a connection: the interface, and TCP.

A `Transport` carries bytes both ways between exactly two ends. The connection that holds it
owns it and closes it. `dfs.wire.memory` has one without sockets, for simulations.
"""

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeAlias

import trio

from dfs.core.buffers import Buffer
from dfs.core.errors import CorruptError, DfsError, DiskError, UnavailableError

Connector: TypeAlias = Callable[[str], Awaitable["Transport"]]
"""Opens a transport to an address; raises DfsError."""

_IOV_MAX: Final = 512
_EAGER_MAX: Final = 32
"""Receives in a row that may go without letting other tasks run."""
_LOW_WATER_BYTES: Final = 256 * 1024
"""Of a payload that is awaited: how much has to be there before it is worth a turn."""
_FILE_STEP: Final = 1024 * 1024
"""Bytes of one sendfile call: what other tasks may have to wait for."""

_DISK_ERRORS: Final = {errno.EIO, errno.EBADF, errno.EINVAL, errno.EUCLEAN, errno.ESTALE}
"""What sendfile says when it is the file's fault, not the socket's."""

_KEEPALIVE_IDLE_S: Final = 30
_KEEPALIVE_INTERVAL_S: Final = 10
_KEEPALIVE_PROBES: Final = 3
_USER_TIMEOUT_MS: Final = 30_000


class Transport(Protocol):
    """A stream of bytes both ways. One task may send and one receive at a time.

    Every method raises UnavailableError when the stream is broken.
    """

    @property
    def peer(self) -> str:
        """Address of the other end, for people."""

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        """Send what goes without waiting; how many bytes that was (0: none)."""

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all bytes; cancelled in the middle, an unknown part of them is gone."""

    async def send_file(self, fd: int, offset: int, length: int) -> None:
        """Send bytes of a file.

        Raises CorruptError if it ends before, DiskError if it cannot be read; the stream is then
        of no more use.
        """

    async def receive_into(self, buffer: memoryview, *, fill: bool = False) -> int:
        """Receive at least one byte to the front of `buffer`; how many, 0 at the stream's end.

        `fill`: the caller needs all of `buffer` before it can go on, so that it is as well to
        wait for more at once.
        """

    def try_receive(self, buffer: memoryview) -> int:
        """Receive what is there to the front of `buffer`; 0: nothing yet, or the stream's end."""

    async def aclose(self) -> None:
        """Close at once, without waiting for anything to arrive. May be repeated."""


class TcpTransport:
    """A `Transport` over a connected TCP socket, which it owns."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._socket = sock
        self._peer = peer
        self._eager = 0
        self._low_water = 1
        sock.setblocking(False)
        _tune(sock)

    @classmethod
    def from_stream(cls, stream: trio.SocketStream) -> "TcpTransport":
        """Take the socket over from a trio stream, which is of no more use."""
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            peer = format_address(sock.getpeername())
        except OSError:
            peer = "a peer that is gone"
        return cls(sock, peer)

    @property
    def peer(self) -> str:
        return self._peer

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        try:
            if len(buffers) == 1:
                return self._socket.send(buffers[0])
            return self._socket.sendmsg(buffers[:_IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from error

    async def send(self, buffers: Sequence[Buffer]) -> None:
        rest = [memoryview(buffer) for buffer in buffers if len(buffer)]
        first = 0
        while first < len(rest):
            sent = self.try_send(rest[first : first + _IOV_MAX])
            if not sent:
                await self._writable()
                continue
            while sent and sent >= len(rest[first]):
                sent -= len(rest[first])
                first += 1
            if sent:
                rest[first] = rest[first][sent:]

    async def send_file(self, fd: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            step = min(_FILE_STEP, end - offset)
            try:
                if _is_cached(fd, offset, step):
                    sent = os.sendfile(self._socket.fileno(), fd, offset, step)
                else:
                    # The disk has to be waited for: not in the thread that serves everyone.
                    sent = await trio.to_thread.run_sync(
                        os.sendfile, self._socket.fileno(), fd, offset, step
                    )
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                if error.errno in _DISK_ERRORS:
                    raise DiskError(f"cannot read a file: {error.strerror}") from error
                raise self._broken(error) from error
            if not sent:
                raise file_too_short(offset, end - offset)
            offset += sent

    async def receive_into(self, buffer: memoryview, *, fill: bool = False) -> int:
        if fill or self._low_water > 1:
            self._set_low_water(min(len(buffer), _LOW_WATER_BYTES) if fill else 1)
        while True:
            waited = not self._eager
            if waited:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except (trio.ClosedResourceError, OSError, ValueError) as error:
                    raise self._broken(error) from error
            else:
                self._eager -= 1
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._eager = 0
                continue
            except OSError as error:
                raise self._broken(error) from error
            if count < len(buffer):
                self._eager = 0
            elif waited:
                # A full buffer: there is most likely more, no need to ask. For a while only, so
                # that other tasks get their turn.
                self._eager = _EAGER_MAX
            return count

    def try_receive(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from error

    def _set_low_water(self, count: int) -> None:
        """Let the kernel wake us only for so many bytes: a large payload costs a few turns."""
        if count != self._low_water:
            self._low_water = count
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UnavailableError:
        if self._socket.fileno() < 0:
            return UnavailableError(f"the connection to {self._peer} was closed")
        why = error.strerror if isinstance(error, OSError) else str(error)
        return UnavailableError(f"the connection to {self._peer} broke: {why}")


async def connect_tcp(address: str) -> TcpTransport:
    """Open a TCP connection to `HOST:PORT` (`[V6]:PORT`).

    Raises UnavailableError with advice when nobody can be reached there. Has no time limit.
    """
    host, port = parse_address(address)
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise _unreachable(address, host, error) from error
    return TcpTransport.from_stream(stream)


async def listen_tcp(address: str) -> list[trio.SocketListener]:
    """Listeners on `HOST:PORT`; port 0 takes a free one, an empty host means all interfaces.

    Raises UnavailableError when the port is taken, DfsError for an address of another machine.
    """
    host, port = parse_address(address, listening=True)
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"cannot listen on {address}: another program has the port",
                errno=errno.EADDRINUSE,
                hint="stop it, or choose another port with --listen",
                retry=False,
            ) from error
        raise DfsError(
            f"cannot listen on {address}: {error.strerror or error}",
            errno=error.errno if isinstance(error.errno, int) and error.errno > 0 else None,
            hint="give an address of this machine with --listen",
        ) from error


def listening_address(listener: trio.SocketListener) -> str:
    """`HOST:PORT` a listener really has: with the port that was free."""
    return format_address(listener.socket.getsockname())


def parse_address(address: str, *, listening: bool = False) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> (host, port).

    Raises DfsError (EINVAL) when it is neither; host "" and port 0 are for listening only.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    lowest = 0 if listening else 1
    try:
        host.encode("idna")
    except UnicodeError:  # nobody can be asked for such a name
        colon = ""
    if not colon or (not host and not listening) or not lowest <= number <= 65535:
        raise DfsError(
            f"{address!r} is not an address",
            errno=errno.EINVAL,
            hint="write HOST:PORT, for example 10.0.0.1:9420 or [::1]:9420",
        )
    return host, number


def format_address(name: object) -> str:
    """A socket's name, as `getsockname` gives it -> `HOST:PORT` or `[V6]:PORT`."""
    if isinstance(name, tuple) and len(name) >= 2:
        host, port = name[0], name[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(name) or "local"


def file_too_short(end: int, missing: int) -> CorruptError:
    """For a file that does not hold the bytes it is said to hold."""
    return CorruptError(f"a file ends at {end} where {missing} more bytes were expected")


def _tune(sock: socket.socket) -> None:
    """Small frames at once, a vanished machine noticed within a minute; buffers tune themselves."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    except OSError:
        # The peer may be gone already; the first send or receive will say so.
        return


def _is_cached(fd: int, offset: int, length: int) -> bool:
    """Whether the kernel has the first and last page in memory (a guess for those between)."""
    probe = bytearray(1)
    for position in (offset, offset + length - 1):
        try:
            os.preadv(fd, [probe], position, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # this file system cannot tell
    return True


def _unreachable(address: str, host: str, error: OSError) -> UnavailableError:
    if isinstance(error, socket.gaierror):
        return UnavailableError(
            f"cannot find the host {host!r}: {error.strerror}",
            hint="check the spelling of the address and the name service",
        )
    reasons = [error, *_leaves(error.__cause__)]
    number = next((each.errno for each in reversed(reasons) if each.errno), errno.EHOSTUNREACH)
    return UnavailableError(
        f"cannot connect to {address}: {os.strerror(number)}",
        errno=number,
        hint="check that the server runs there and that the address is right",
    )


def _leaves(error: BaseException | None) -> list[OSError]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error] if isinstance(error, OSError) else []
