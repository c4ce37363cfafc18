"""Transports without sockets, and a network of them that can be made to fail: for simulations.

`memory_pair` is two joined ends. A `MemoryNetwork` has hosts, listeners and links with latency,
and breaks them on demand; all its randomness comes from the `Random` it is given, all its
waiting is `trio.sleep`, so that a run under trio's MockClock is quick and repeatable.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

import trio

from dfs.core.buffers import Buffer
from dfs.core.errors import DiskError, UnavailableError
from dfs.wire.transport import Connector, file_too_short

PIPE_BYTES: Final = 1024 * 1024
"""What one direction holds before its sender has to wait, like a socket's buffer."""


def _always() -> bool:
    return True


def _at_once() -> float:
    return 0.0


class _Pipe:
    """One direction: bytes with the time at which they arrive."""

    def __init__(self, flows: Callable[[], bool], delay_s: Callable[[], float]) -> None:
        self.flows = flows
        """Whether bytes that are due arrive now, or are held back (a partition, a hung host)."""
        self.delay_s = delay_s
        self.held: deque[tuple[float, memoryview]] = deque()
        self.size = 0
        self.last_arrival = 0.0
        self.ended = False
        """The sender closed: after the held bytes comes the end."""
        self.broken = False
        self.changed = trio.lowlevel.ParkingLot()

    def put(self, buffers: Sequence[Buffer]) -> int:
        """Take what there is room for; how many bytes."""
        taken = 0
        for buffer in buffers:
            room = PIPE_BYTES - self.size
            if room <= 0:
                break
            part = bytes(memoryview(buffer)[:room])
            if part:
                # Bytes of a stream never overtake each other.
                arrival = max(self.last_arrival, trio.current_time() + self.delay_s())
                self.last_arrival = arrival
                self.held.append((arrival, memoryview(part)))
                self.size += len(part)
                taken += len(part)
        if taken:
            self.changed.unpark_all()
        return taken

    def take(self, buffer: memoryview) -> int:
        """Move bytes that have arrived into `buffer`; how many."""
        now = trio.current_time()
        filled = 0
        while self.held and filled < len(buffer) and self.held[0][0] <= now:
            arrival, data = self.held.popleft()
            part = data[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(data):
                self.held.appendleft((arrival, data[len(part) :]))
        if filled:
            self.size -= filled
            self.changed.unpark_all()
        return filled

    async def wait(self) -> None:
        """Until something may have changed."""
        if self.held and self.flows():
            delay_s = self.held[0][0] - trio.current_time()
            if delay_s > 0:
                with trio.move_on_after(delay_s):
                    await self.changed.park()
                return
        await self.changed.park()


class MemoryTransport:
    """One end of a pair. Behaves as a TCP connection does, as far as a `Transport` shows it."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer: str) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._peer = peer
        self._closed = False

    @property
    def peer(self) -> str:
        return self._peer

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        if self._outgoing.ended:
            raise UnavailableError(f"the connection to {self._peer} broke: Broken pipe")
        return self._outgoing.put(buffers)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                sent = self.try_send((rest,))
                rest = rest[sent:]
                if not sent:
                    await self._outgoing.changed.park()

    async def send_file(self, fd: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            try:
                data = os.pread(fd, min(end - offset, PIPE_BYTES), offset)
            except OSError as error:
                raise DiskError(f"cannot read a file: {error.strerror}") from error
            if not data:
                raise file_too_short(offset, end - offset)
            await self.send((data,))
            offset += len(data)

    async def receive_into(self, buffer: memoryview, *, fill: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while True:
            self._check()
            if pipe.flows():
                count = pipe.take(buffer)
                if count:
                    return count
                if pipe.ended and not pipe.held:
                    return 0
            await pipe.wait()

    def try_receive(self, buffer: memoryview) -> int:
        self._check()
        return self._incoming.take(buffer) if self._incoming.flows() else 0

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.ended = True
            # Like a socket closed with unread input: the other side's sends fail from now on.
            self._incoming.ended = True
            self._outgoing.changed.unpark_all()
            self._incoming.changed.unpark_all()
        await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def over(self) -> bool:
        """It is closed or broken."""
        return self._closed or self._incoming.broken

    def reset(self) -> None:
        """Break the connection for both ends, at once; what was on its way is lost."""
        for pipe in (self._incoming, self._outgoing):
            pipe.broken = True
            pipe.held.clear()
            pipe.size = 0
            pipe.changed.unpark_all()

    def wake(self) -> None:
        """Look again whether bytes flow."""
        self._incoming.changed.unpark_all()
        self._outgoing.changed.unpark_all()

    def _check(self) -> None:
        if self._closed:
            raise UnavailableError(f"the connection to {self._peer} was closed")
        if self._incoming.broken:
            raise UnavailableError(
                f"the connection to {self._peer} broke: Connection reset by peer"
            )


def memory_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of a connection without delay or faults."""
    one = _Pipe(_always, _at_once)
    other = _Pipe(_always, _at_once)
    return MemoryTransport(one, other, "memory:b"), MemoryTransport(other, one, "memory:a")


class MemoryListener:
    """Accepts what is connected to its address in a `MemoryNetwork`."""

    def __init__(self, network: "MemoryNetwork", address: str, backlog: int) -> None:
        self.address = address
        self._network = network
        self._send, self._receive = trio.open_memory_channel[MemoryTransport](backlog)

    async def accept_transport(self) -> MemoryTransport:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the listener was closed") from None

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        """Refuse from now on, and break what was connected and not yet accepted."""
        self._network.unlisten(self)
        self._send.close()
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._receive.receive_nowait().reset()

    def offer(self, transport: MemoryTransport) -> bool:
        try:
            self._send.send_nowait(transport)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


@dataclass(slots=True)
class _Link:
    """A connection that was made: who with whom, and both ends."""

    hosts: frozenset[str]
    ends: tuple[MemoryTransport, MemoryTransport]


class MemoryNetwork:
    """Hosts by name; `HOST:PORT` addresses as elsewhere. Faults by verb: see the methods."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._listeners: dict[str, MemoryListener] = {}
        self._links: list[_Link] = []
        self._parted: set[frozenset[str]] = set()
        self._hung: set[str] = set()
        self._latency_s: dict[frozenset[str], tuple[float, float]] = {}
        self._default_latency_s = (0.0, 0.0)
        self._changed = trio.lowlevel.ParkingLot()
        self._next_port = 40_000

    # ------------------------------------------------------------------ ordinary use

    def listen(self, address: str, *, backlog: int = 128) -> MemoryListener:
        """A listener on `HOST:PORT`."""
        if address in self._listeners:
            raise UnavailableError(f"cannot listen on {address}: another program has the port")
        listener = MemoryListener(self, address, backlog)
        self._listeners[address] = listener
        return listener

    def unlisten(self, listener: MemoryListener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def connector(self, from_host: str) -> Connector:
        """How programs on `from_host` connect: `Pool` and `connect` take it."""
        return partial(self.connect, from_host=from_host)

    async def connect(self, address: str, from_host: str) -> MemoryTransport:
        """A transport from `from_host` to whoever listens on `address`.

        Waits while the way is cut, like a SYN that is lost; refused where nobody listens.
        """
        to_host = address.rpartition(":")[0]
        delay_s = self._delay_s(from_host, to_host)
        await trio.sleep(delay_s)
        while not self._connected(from_host, to_host):
            await self._changed.park()
        listener = self._listeners.get(address)
        self._next_port += 1
        there, back = self._pipe(from_host, to_host), self._pipe(from_host, to_host)
        near = MemoryTransport(back, there, address)
        far = MemoryTransport(there, back, f"{from_host}:{self._next_port}")
        if listener is None or not listener.offer(far):
            raise UnavailableError(
                f"cannot connect to {address}: Connection refused",
                hint="check that the server runs there and that the address is right",
            )
        self._links = [link for link in self._links if not _is_over(link)]
        self._links.append(_Link(frozenset((from_host, to_host)), (near, far)))
        return near

    # ------------------------------------------------------------------ faults

    def set_latency(
        self, least_s: float, most_s: float | None = None, *, between: tuple[str, str] | None = None
    ) -> None:
        """One-way delay of each send, drawn evenly; of one pair of hosts, or of all others."""
        latency = (least_s, least_s if most_s is None else most_s)
        if between is None:
            self._default_latency_s = latency
        else:
            self._latency_s[frozenset(between)] = latency

    def partition(self, one: str, other: str) -> None:
        """Nothing gets through between two hosts, in either direction, until `heal`."""
        self._parted.add(frozenset((one, other)))

    def hang(self, host: str) -> None:
        """Nothing gets in or out of a host until `heal`: a SIGSTOP, a pulled cable."""
        self._hung.add(host)

    def heal(self, *hosts: str) -> None:
        """End partitions and hangs: all, those of one host, or those between two."""
        if not hosts:
            self._parted.clear()
            self._hung.clear()
        else:
            self._parted = {pair for pair in self._parted if not pair >= set(hosts)}
            if len(hosts) == 1:
                self._hung.discard(hosts[0])
        self._changed.unpark_all()
        for link in self._links:
            for end in link.ends:
                end.wake()

    def drop(self, *hosts: str) -> int:
        """Reset connections: all, those of one host, or those between two; how many."""
        links = [link for link in self._links if link.hosts >= set(hosts)]
        for link in links:
            link.ends[0].reset()
        self._links = [link for link in self._links if link not in links]
        return len(links)

    def crash(self, host: str) -> None:
        """The host's listeners and connections are gone; its programs are the caller's to stop."""
        for listener in list(self._listeners.values()):
            if listener.address.rpartition(":")[0] == host:
                listener.close()
        self.drop(host)

    def drop_one(self) -> bool:
        """Reset one connection drawn at random; whether there was one."""
        self._links = [link for link in self._links if not _is_over(link)]
        if not self._links:
            return False
        link = self._links.pop(self._random.randrange(len(self._links)))
        link.ends[0].reset()
        return True

    # ------------------------------------------------------------------ inside

    def _connected(self, one: str, other: str) -> bool:
        return (
            frozenset((one, other)) not in self._parted
            and one not in self._hung
            and other not in self._hung
        )

    def _delay_s(self, one: str, other: str) -> float:
        least_s, most_s = self._latency_s.get(frozenset((one, other)), self._default_latency_s)
        return least_s if least_s == most_s else self._random.uniform(least_s, most_s)

    def _pipe(self, one: str, other: str) -> _Pipe:
        return _Pipe(lambda: self._connected(one, other), lambda: self._delay_s(one, other))


def _is_over(link: _Link) -> bool:
    return any(end.over for end in link.ends)
