"""A chunk server over real sockets: what clients store, read, sync, seal and delete."""

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest
import trio

from dfs.chunkserver.disk import Disk
from dfs.chunkserver.service import ChunkService
from dfs.core.block import BLOCK_BYTES, decode_block, encode_block, parse_records
from dfs.core.buffers import Buffer
from dfs.core.errors import (
    CorruptError,
    DiskError,
    FragmentError,
    NoSpaceError,
    ProtocolError,
)
from dfs.core.redundancy import Redundancy
from dfs.wire.connection import Connection
from dfs.wire.dial import connect
from dfs.wire.handlers import FilePayload, Peer
from dfs.wire.hello import Hello
from dfs.wire.messages import (
    READ_MAX_BYTES,
    Append,
    Appended,
    DeleteFragments,
    Empty,
    FragmentStatus,
    ReadRecords,
    RecordsReply,
    SealFragment,
    ServerStatus,
    ServerStatusReply,
    StatFragment,
    SyncFragments,
)
from dfs.wire.serve import serve
from tests.unit.chunkserver.sample import batch, encode, header, raw_block
from tests.unit.chunkserver.test_disk import files, opened

DISK = 3
READ_ALL = ReadRecords(DISK, 7, 0, READ_MAX_BYTES)


Dial: TypeAlias = Callable[[], Awaitable[Connection]]


@asynccontextmanager
async def listening(*disks: Disk) -> AsyncIterator[tuple[str, Dial]]:
    """The address of a chunk server with these disks, and what connects to it."""
    async with trio.open_nursery() as nursery:
        service = ChunkService(disks)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def run() -> None:
            await serve(listeners, service.handlers, hello=Hello("chunkserver"))

        async def dial() -> Connection:
            return await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=5)

        nursery.start_soon(run)
        yield address, dial
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(path: Path, *, capacity: int | None = None) -> AsyncIterator[Connection]:
    """A connection to a chunk server with one disk."""
    async with opened(path, capacity=capacity) as disk, listening(disk) as (_, dial):
        connection = await dial()
        yield connection
        await connection.aclose()


async def append(
    peer: Connection, records: Sequence[Buffer], *, chunk: int = 7, first: int = 0, disk: int = DISK
) -> Appended:
    request = Append(disk, chunk, 0, 1, 2, first, len(records))
    return await peer.call(request, Appended, payload=records, timeout_s=10)


async def read(
    peer: Connection, offset: int, length: int, *, chunk: int = 7
) -> tuple[int, list[bytes]]:
    """Raw offset of the first block, and the raw bytes of all that came back."""
    reply, payload = await peer.call_raw(
        ReadRecords(DISK, chunk, offset, length), RecordsReply, timeout_s=10
    )
    records = parse_records(payload, chunk=chunk, content_index=0)
    assert len(records) == reply.records
    raws = [
        bytes(decode_block(record.header, {0: record.payload}, Redundancy(1, 2)))
        for record in records
    ]
    return (records[0].header.raw_offset if records else -1), raws


async def stat(peer: Connection, chunk: int = 7) -> FragmentStatus:
    return await peer.call(StatFragment(DISK, chunk), FragmentStatus, timeout_s=5)


async def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as peer:
        assert await append(peer, encode([1000, 50_000, 3])) == Appended(3, 51_003)
        assert await read(peer, 999, 2) == (0, [raw_block(7, 0, 1000), raw_block(7, 1, 50_000)])
        assert await read(peer, 51_002, 100) == (51_000, [raw_block(7, 2, 3)])
        assert await read(peer, 51_003, 100) == (-1, [])
        assert (await stat(peer)).next_block == 3


async def test_who_asks_for_it_is_answered_when_what_he_appended_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        fdatasync(fd)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fdatasync", noted)
    async with serving(tmp_path) as peer:
        records = encode([1000, 3])
        assert await append(peer, records[:1]) == Appended(1, 1000, synced=False)
        assert synced == []
        request = Append(DISK, 7, 0, 1, 2, 1, 1, sync=True)
        appended = await peer.call(request, Appended, payload=records[1:], timeout_s=10)
        assert appended == Appended(2, 1003, synced=True)
        assert synced == ["0000000000000007-00.open"]


async def test_what_a_power_cut_took_is_not_on_the_disk_for_sure(tmp_path: Path) -> None:
    """A server that comes back does not know what it had acknowledged; its client does."""
    records = encode([1000, 3])
    async with serving(tmp_path) as peer:
        await append(peer, records)
        await peer.call(SyncFragments(DISK, (7,), (1003,)), Empty, timeout_s=10)
    (file,) = files(tmp_path)
    os.truncate(file, file.stat().st_size - 1)
    async with serving(tmp_path) as peer:
        await peer.call(SyncFragments(DISK, (7,), (1000,)), Empty, timeout_s=10)
        with pytest.raises(FragmentError, match="is short: it ends at 1000, and has to reach 1003"):
            await peer.call(SyncFragments(DISK, (7,), (1003,)), Empty, timeout_s=10)
        with pytest.raises(ProtocolError, match="2 lengths of 1 fragments"):
            await peer.call(SyncFragments(DISK, (7,), (1, 2)), Empty, timeout_s=10)


async def test_a_whole_chunk_is_written_in_parallel_and_read_in_big_pieces(
    real_disk_path: Path,
) -> None:
    raw = Random(1).randbytes(4 * BLOCK_BYTES)
    blocks = 64
    async with serving(real_disk_path) as peer:
        async with trio.open_nursery() as nursery:
            for first in range(0, blocks, 4):
                records = [
                    b"".join(
                        encode_block(
                            7, first + number, (first + number) * BLOCK_BYTES,
                            raw[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES],
                            redundancy=Redundancy(1, 2), level=3,
                        ).fragments[0]
                    )
                    for number in range(4)
                ]  # fmt: skip

                async def send(records: list[bytes] = records, first: int = first) -> None:
                    await append(peer, records, first=first)

                nursery.start_soon(send)
        assert (await stat(peer)).length == blocks * BLOCK_BYTES
        await peer.call(SyncFragments(DISK, (7,)), Empty, timeout_s=10)
        status = await peer.call(
            SealFragment(DISK, 7, blocks * BLOCK_BYTES), FragmentStatus, timeout_s=10
        )
        assert status.sealed
        assert status.stored == files(real_disk_path)[0].stat().st_size
        drop_from_page_cache(files(real_disk_path)[0])
        _, got = await read(peer, 0, READ_MAX_BYTES)
        assert b"".join(got) == raw * 16


def drop_from_page_cache(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


async def test_a_corrupt_append_is_refused_and_stores_nothing(tmp_path: Path) -> None:
    records = encode([1000])
    broken = records[0][:-1] + bytes([records[0][-1] ^ 1])
    async with serving(tmp_path) as peer:
        with pytest.raises(CorruptError, match="chunk 7: block 0 does not match its checksum"):
            await append(peer, [broken])
        assert files(tmp_path) == []
        await append(peer, records)


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    requests: list[tuple[object, type, str]] = [
        (Append(DISK, 7, 3, 1, 2, 0, 1), Appended, "no fragment 3 of 1\\+2"),
        (Append(DISK, 7, 0, 300, 2, 0, 1), Appended, "no fragment 0 of 300\\+2"),
        (Append(DISK, -7, 0, 1, 2, 0, 1), Appended, "of chunk -7"),
        (Append(DISK, 7, 0, 1, 2, -1, 1), Appended, "no block -1"),
        (Append(DISK, 7, 0, 1, 2, 0, 0), Appended, "announces 0 blocks"),
        (ReadRecords(DISK, 7, -1, 5), RecordsReply, "cannot read 5 bytes at -1"),
        (ReadRecords(DISK, 7, 0, READ_MAX_BYTES + 1), RecordsReply, "cannot read"),
        (ReadRecords(DISK, 99, 0, 5), RecordsReply, "no fragment of chunk 99: it is missing"),
        (SealFragment(DISK, 7, -1), FragmentStatus, "cannot be sealed at -1"),
        (SealFragment(DISK, 99, 1), FragmentStatus, "is missing"),
        (SyncFragments(DISK, (99,)), Empty, "is missing"),
        (SyncFragments(DISK, tuple(range(70_000))), Empty, "65536 are allowed"),
        (DeleteFragments(DISK, tuple(range(70_000))), Empty, "65536 are allowed"),
        (StatFragment(4, 7), FragmentStatus, "this chunk server has no disk 4"),
    ]
    async with serving(tmp_path) as peer:
        await append(peer, encode([10]))
        for request, reply, message in requests:
            with pytest.raises((ProtocolError, FragmentError, DiskError), match=message):
                await peer.call(request, reply, timeout_s=5)  # type: ignore[arg-type]
        assert (await stat(peer)).next_block == 1


async def test_deleted_fragments_are_gone_and_deleting_again_is_no_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([10]))
        await append(peer, encode([10], of=header(8)), chunk=8)
        for _ in range(2):
            await peer.call(DeleteFragments(DISK, (7, 8, 9)), Empty, timeout_s=5)
        assert files(tmp_path) == []
        with pytest.raises(FragmentError, match="missing"):
            await read(peer, 0, 10)


async def test_a_full_disk_says_so_and_still_reads_seals_and_deletes(tmp_path: Path) -> None:
    async with serving(tmp_path, capacity=50_000) as peer:
        await append(peer, encode([60_000]))
        with pytest.raises(NoSpaceError, match="its capacity is set to 50000 bytes"):
            await append(peer, encode([60_000], of=header(8)), chunk=8)
        assert await read(peer, 0, 1) == (0, [raw_block(7, 0, 60_000)])
        await peer.call(SealFragment(DISK, 7, 60_000), FragmentStatus, timeout_s=5)
        await peer.call(DeleteFragments(DISK, (7,)), Empty, timeout_s=5)
        await append(peer, encode([60_000], of=header(8)), chunk=8)


@pytest.mark.allow_logs(
    "is missing: its file was deleted", "is short: its file has", "its records were read instead"
)
@pytest.mark.parametrize("how", ["delete", "truncate", "empty"])
async def test_a_file_that_was_tampered_with_is_refused(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([1000, 2000]))
        await peer.call(SealFragment(DISK, 7, 3000), FragmentStatus, timeout_s=5)
        assert await read(peer, 0, 1) == (0, [raw_block(7, 0, 1000)])
        (file,) = files(tmp_path)
        if how == "delete":
            file.unlink()
        else:
            os.truncate(file, 0 if how == "empty" else 700)
        for _ in range(2):
            with pytest.raises(FragmentError, match="missing|short|unreadable"):
                await read(peer, 1500, 1)


async def test_a_flipped_bit_is_sent_and_refused_by_the_reader(tmp_path: Path) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([1000, 2000]))
        with files(tmp_path)[0].open("r+b") as file:
            file.seek(64 + 48 + 10)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))
        with pytest.raises(CorruptError, match="block 0 does not match its checksum"):
            await read(peer, 0, 1)
        assert await read(peer, 1000, 1) == (1000, [raw_block(7, 1, 2000)])


async def test_a_file_swapped_in_place_is_refused_by_the_reader(tmp_path: Path) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([1000], level=None))
        await append(peer, encode([1000], of=header(8), level=None), chunk=8)
        one, other = (file.read_bytes() for file in files(tmp_path))
        for file, data in zip(files(tmp_path), (other, one), strict=True):
            file.write_bytes(data)
        for chunk in (7, 8):
            with pytest.raises(CorruptError, match="of another chunk"):
                await read(peer, 0, 1, chunk=chunk)


class BadSector:
    """Stands in for os.sendfile: any run that holds this byte of a file ends there with EIO."""

    def __init__(self, at: int) -> None:
        self.at = at
        self._sendfile = os.sendfile

    def __call__(self, out: int, source: int, offset: int, count: int) -> int:
        if offset <= self.at < offset + count:
            if offset == self.at:
                raise OSError(errno.EIO, "Input/output error")
            count = self.at - offset
        return self._sendfile(out, source, offset, count)


@pytest.mark.allow_logs("a read failed: Input/output error")
async def test_a_bad_sector_costs_its_reader_an_error_and_nobody_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([200_000] * 4, level=None))
        monkeypatch.setattr("dfs.chunkserver.service.is_cached", lambda *_: False)
        monkeypatch.setattr(os, "sendfile", BadSector(250_000))
        with pytest.raises(DiskError, match="Input/output error"):
            await read(peer, 0, 800_000)
        assert (await read(peer, 400_000, 400_000))[0] == 400_000
        assert not peer.closed


class BadPage:
    """Stands in for os.preadv: any read of this byte of a file ends there with EIO."""

    def __init__(self, at: int) -> None:
        self.at = at
        self._preadv = os.preadv

    def __call__(self, fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError
        if offset <= self.at < offset + len(buffers[0]):
            if offset == self.at:
                raise OSError(errno.EIO, "Input/output error")
            buffers = [buffers[0][: self.at - offset]]
        return self._preadv(fd, buffers, offset, flags)


@pytest.mark.allow_logs("a read failed: Input/output error")
async def test_a_bad_sector_in_a_small_read_costs_its_reader_an_error_and_nobody_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([50_000] * 3, level=None))
        monkeypatch.setattr(os, "preadv", BadPage(70_000))
        with pytest.raises(DiskError, match="Input/output error"):
            await read(peer, 0, 150_000)
        assert await read(peer, 0, 1) == (0, [raw_block(7, 0, 50_000)])
        assert await read(peer, 100_000, 1) == (100_000, [raw_block(7, 2, 50_000)])
        assert not peer.closed


@pytest.mark.parametrize("background", [False, True])
async def test_small_reads_that_have_to_wait_for_the_disk_do_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """What is in the page cache is answered at once, what is not by a thread; both are right."""
    async with serving(tmp_path) as peer:
        await append(peer, encode([50_000] * 3, level=None))
        preadv = os.preadv
        waiting, go_on = threading.Event(), threading.Event()

        def disk_is_busy(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
            if offset < 50_000:
                if flags & os.RWF_NOWAIT:
                    raise BlockingIOError
                waiting.set()
                assert go_on.wait(10)
            return preadv(fd, buffers, offset, 0)

        monkeypatch.setattr(os, "preadv", disk_is_busy)
        slow: list[memoryview] = []

        async def read_slowly() -> None:
            request = ReadRecords(DISK, 7, 0, 1, background=background)
            slow.append((await peer.call_raw(request, RecordsReply, timeout_s=10))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            await trio.to_thread.run_sync(waiting.wait, 10)
            assert await read(peer, 100_000, 1) == (100_000, [raw_block(7, 2, 50_000)])
            assert not slow
            go_on.set()
        (record,) = parse_records(slow[0], chunk=7, content_index=0)
        assert record.payload == raw_block(7, 0, 50_000)


async def test_what_many_read_at_once_is_not_overwritten_before_it_is_sent(tmp_path: Path) -> None:
    """Answers share memory, one after the other: not before the one before has left."""
    async with serving(tmp_path) as peer:
        await append(peer, encode([120_000] * 30, level=None))

        async def look(block: int) -> None:
            start = block * 120_000
            assert await read(peer, start, 1) == (start, [raw_block(7, block, 120_000)])

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(look, number * 7 % 30)


@pytest.mark.allow_logs("a read failed: Input/output error", "has failed: Input/output error")
async def test_a_disk_whose_reads_fail_while_they_are_sent_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await disk.append(header(), batch(encode([200_000] * 2, level=None)))
        service = ChunkService([disk])
        for _ in range(3):
            assert not disk.report().failed
            answer = service.read(Peer("memory:a", Hello("client")), READ_ALL, memoryview(b""))
            if isinstance(answer, Awaitable):
                answer = await answer
            assert isinstance(answer, tuple)
            payload = answer[1]
            assert isinstance(payload, FilePayload)
            assert payload.on_error is not None
            assert payload.close is not None
            payload.on_error(DiskError("cannot read a file: Input/output error"))
            payload.close()
        assert disk.report().failed


async def test_many_readers_writers_and_deleters_at_once(tmp_path: Path) -> None:
    """What is read is right, or refused in words; nothing hangs; no file stays open."""
    random = Random(5)
    refusals: list[str] = []
    async with serving(tmp_path) as peer:

        async def write(chunk: int) -> None:
            await append(peer, encode([3000] * 5, of=header(chunk)), chunk=chunk)
            if random.random() < 0.5:
                await peer.call(SealFragment(DISK, chunk, 15_000), FragmentStatus, timeout_s=10)

        async def look(chunk: int) -> None:
            offset, raws = await read(peer, 3000, 6000, chunk=chunk)
            assert offset == 3000 or not raws
            assert raws == [raw_block(chunk, number, 3000) for number in (1, 2)][: len(raws)]

        async def delete(chunk: int) -> None:
            await peer.call(DeleteFragments(DISK, (chunk,)), Empty, timeout_s=10)

        async def act(action: Callable[[int], Awaitable[None]], chunk: int) -> None:
            try:
                await action(chunk)
            except FragmentError as error:
                refusals.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                action = random.choice([write, look, look, delete])
                nursery.start_soon(act, action, random.randrange(1, 20))
        await peer.call(DeleteFragments(DISK, tuple(range(1, 20))), Empty, timeout_s=10)
    assert files(tmp_path) == []
    assert all("missing" in text or "deleted" in text for text in refusals)


async def test_the_status_names_the_disks(tmp_path: Path) -> None:
    async with serving(tmp_path) as peer:
        await append(peer, encode([10]))
        status = await peer.call(ServerStatus(), ServerStatusReply, timeout_s=5)
        (report,) = status.disks
        assert (report.path, report.fragments, report.failed) == (str(tmp_path), 1, False)
        assert report.used == files(tmp_path)[0].stat().st_size
