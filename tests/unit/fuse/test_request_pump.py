"""The pump under workers as pyfuse3 has them, on a real socket in place of the kernel's."""

import os
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from dfs_fuse.request_pump import RequestPump

Serve = Callable[[bytes], Awaitable[None]]


class Kernel:
    """Requests of one byte each, and the worker's loop of pyfuse3 around what serves them."""

    def __init__(self, pump: RequestPump, serve: Serve) -> None:
        self.asks, self.answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pump = pump
        self._serve = serve
        self._lock = pump.Lock()
        self.readers = 0
        self.workers = 0
        self._ended = False

    async def main(self) -> None:
        with self.asks, self.answers:
            async with self._pump.open_nursery() as nursery:
                self.workers = 1
                nursery.start_soon(self._loop, nursery, name="worker")

    async def _loop(self, nursery: object) -> None:
        while self.readers <= 2 and not self._ended:
            self.readers += 1
            try:
                async with self._lock:
                    if self._ended:
                        break
                    await self._pump.lowlevel.wait_readable(self.answers.fileno())
            finally:
                self.readers -= 1
            request = self.answers.recv(1)
            if not self.readers and self.workers < 5:
                self.workers += 1
                nursery.start_soon(self._loop, nursery)  # type: ignore[attr-defined]
            if not request:
                self._ended = True
                break
            await self._serve(request)
        self.workers -= 1

    def ask(self, request: bytes) -> None:
        os.write(self.asks.fileno(), request)

    def end(self) -> None:
        self.asks.shutdown(socket.SHUT_WR)


@pytest.fixture
def pump() -> RequestPump:
    return RequestPump()


async def test_requests_are_served_in_order_and_all_workers_end(pump: RequestPump) -> None:
    served: list[bytes] = []

    async def serve(request: bytes) -> None:
        served.append(request)

    kernel = Kernel(pump, serve)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.main)
            for letter in b"abcdef":
                kernel.ask(bytes([letter]))
            await trio.sleep(0.05)
            for letter in b"gh":
                kernel.ask(bytes([letter]))
                await trio.sleep(0.01)
            kernel.end()
    assert b"".join(served) == b"abcdefgh"
    assert kernel.workers == 0


async def test_others_are_served_while_some_wait(pump: RequestPump) -> None:
    served: list[bytes] = []
    go_on = trio.Event()

    async def serve(request: bytes) -> None:
        if request == b"w":
            await go_on.wait()
        served.append(request)

    kernel = Kernel(pump, serve)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.main)
            for letter in b"wawbwc":
                kernel.ask(bytes([letter]))
            while len(served) < 3:
                await trio.sleep(0.001)
            assert b"".join(served) == b"abc"
            go_on.set()
            while len(served) < 6:
                await trio.sleep(0.001)
            # Those that waited read again.
            for letter in b"defg":
                kernel.ask(bytes([letter]))
            kernel.end()
    assert b"".join(served) == b"abcwwwdefg"


async def test_as_many_as_there_may_be_wait_and_then_all_is_served(pump: RequestPump) -> None:
    served: list[bytes] = []
    go_on = trio.Event()

    async def serve(request: bytes) -> None:
        await go_on.wait()
        served.append(request)

    kernel = Kernel(pump, serve)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.main)
            for letter in b"abcdefghij":
                kernel.ask(bytes([letter]))
            await trio.sleep(0.05)
            go_on.set()
            while len(served) < 10:
                await trio.sleep(0.001)
            kernel.end()
    assert sorted(served) == sorted(bytes([letter]) for letter in b"abcdefghij")


async def test_all_else_goes_on_under_requests_that_need_no_waiting(pump: RequestPump) -> None:
    turns = 0

    async def serve(request: bytes) -> None:
        # The next is there before this one is done.
        if request != b"z":
            kernel.ask(b"z" if time.perf_counter() > end else b"a")

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    kernel = Kernel(pump, serve)
    end = time.perf_counter() + 0.2
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            kernel.ask(b"a")
            async with trio.open_nursery() as inner:
                inner.start_soon(kernel.main)
                while time.perf_counter() < end:
                    await trio.sleep(0.001)
                await trio.sleep(0.05)
                kernel.end()
            nursery.cancel_scope.cancel()
    assert turns > 20


async def test_an_error_and_a_cancellation_reach_the_request(pump: RequestPump) -> None:
    seen: list[str] = []

    async def serve(request: bytes) -> None:
        if request == b"t":
            with trio.move_on_after(0.01) as scope:
                await trio.sleep_forever()
            seen.append(f"timed out: {scope.cancelled_caught}")
            return
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    kernel = Kernel(pump, serve)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.main)
            kernel.ask(b"t")
            while not seen:
                await trio.sleep(0.001)
            kernel.ask(b"c")
            kernel.ask(b"c")
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert seen == ["timed out: True", "cancelled", "cancelled"]
