"""What a chunk server holds in memory is bounded: behind a disk that hangs, and for who never
fetches his answers."""

import gc
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from dfs.chunkserver import service as services
from dfs.chunkserver.copies import MOST_BYTES
from dfs.chunkserver.threads import THREADS_PER_DISK, DiskThreads
from dfs.core.errors import DfsError
from dfs.wire.framing import Kind, pack
from dfs.wire.handshake import greet
from dfs.wire.hello import Hello
from dfs.wire.limits import MIB, Limits
from dfs.wire.messages import METHOD_OF, Append, Appended, ReadRecords, RecordsReply
from dfs.wire.transport import TcpTransport, connect_tcp
from tests.unit.chunkserver.sample import encode, header
from tests.unit.chunkserver.test_disk import opened
from tests.unit.chunkserver.test_service import listening

DISK, OTHER = 3, 4
BLOCK_BYTES = 128 * 1024


@asynccontextmanager
async def hung(threads: DiskThreads) -> AsyncIterator[None]:
    """A disk hangs: all its threads are in a call that does not come back."""
    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(THREADS_PER_DISK):
            nursery.start_soon(threads.run_abandonable, go_on.wait, 60)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield
        finally:
            go_on.set()


async def test_a_disk_that_hangs_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Clients give up what it was to store; so must their memory, which is bounded."""
    chunks = range(1, 41)
    threads = DiskThreads()
    async with (
        opened(tmp_path / "hangs", number=DISK, workers=threads) as bad,
        opened(tmp_path / "works", number=OTHER) as good,
        listening(bad, good) as (_, dial),
    ):
        peer, other = await dial(), await dial()

        async def append(chunk: int) -> None:
            records = encode(
                [BLOCK_BYTES] * 15, of=header(chunk), first_block=1, offset=1000, level=None
            )
            request = Append(DISK, chunk, 0, 1, 2, 1, 15)
            with pytest.raises(DfsError):
                await peer.call(request, Appended, payload=records, timeout_s=2)

        for chunk in chunks:
            first = encode([1000], of=header(chunk), level=None)
            await peer.call(
                Append(DISK, chunk, 0, 1, 2, 0, 1), Appended, payload=first, timeout_s=10
            )
        async with hung(threads):
            async with trio.open_nursery() as nursery:
                for chunk in chunks:
                    nursery.start_soon(append, chunk)
            records = encode([1000], of=header(99), level=None)
            await other.call(
                Append(OTHER, 99, 0, 1, 2, 0, 1), Appended, payload=records, timeout_s=5
            )


async def test_reads_that_were_given_up_while_the_disk_hangs_keep_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = DiskThreads()
    async with opened(tmp_path, workers=threads) as disk, listening(disk) as (_, dial):
        peer = await dial()
        records = encode([BLOCK_BYTES], level=None)
        await peer.call(Append(DISK, 7, 0, 1, 2, 0, 1), Appended, payload=records, timeout_s=10)
        monkeypatch.setattr(services, "read_cached", lambda *_: False)

        async def read() -> None:
            with pytest.raises(DfsError):
                await peer.call_raw(ReadRecords(DISK, 7, 0, 100_000), RecordsReply, timeout_s=0.5)

        async with hung(threads):
            tracemalloc.start()
            try:
                for _ in range(5):
                    async with trio.open_nursery() as nursery:
                        for _ in range(50):
                            nursery.start_soon(read)
                await trio.sleep(0.2)
                gc.collect()
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert kept < 16 * MIB


@pytest.mark.parametrize("cached", [True, False])
async def test_answers_that_nobody_fetches_take_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Whoever asks on many connections, and reads none of them."""
    if not cached:
        monkeypatch.setattr(services, "read_cached", lambda *_: False)
    ask = msgspec.msgpack.encode(ReadRecords(DISK, 7, 0, 100_000))
    number = METHOD_OF[ReadRecords].number
    async with opened(tmp_path) as disk, listening(disk) as (address, dial):
        peer = await dial()
        records = encode([BLOCK_BYTES] * 2, level=None)
        await peer.call(Append(DISK, 7, 0, 1, 2, 0, 2), Appended, payload=records, timeout_s=10)
        silent: list[TcpTransport] = []
        tracemalloc.start()
        try:
            for _ in range(10):
                transport = await connect_tcp(address)
                silent.append(transport)
                await greet(transport, address, Hello("client"), Limits())
                await transport.send(
                    [b"".join(pack(Kind.REQUEST, number, n, ask, 60_000) for n in range(1, 600))]
                )
            await trio.sleep(2)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < MOST_BYTES + 16 * MIB
        for transport in silent:
            await transport.aclose()
        _, payload = await peer.call_raw(
            ReadRecords(DISK, 7, 0, 100_000), RecordsReply, timeout_s=10
        )
        assert len(payload) > 100_000
