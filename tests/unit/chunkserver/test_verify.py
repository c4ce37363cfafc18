"""Verifying fragments: what is found, what it is called, and what is left in the page cache."""

import ctypes
import errno
import mmap
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from dfs.core.errors import DiskError, ProtocolError
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    FragmentVerdict,
    VerifyFragment,
)
from tests.damage import flip_bits
from tests.unit.chunkserver.grid import Grid, Node, grid
from tests.unit.chunkserver.sample import CODED, WHOLE, header
from tests.unit.chunkserver.test_disk import store

LENGTHS = [20_000, 3, 70_000, 50_000, 1, 40_000, 30_000, 999]
TOTAL = sum(LENGTHS)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.chunkserver.verify.STEP_BYTES", 40_000)


async def verify(
    servers: Grid, index: int = 0, length: int = TOTAL, rate: int = 0
) -> FragmentVerdict:
    node = servers.nodes[0]
    request = VerifyFragment(node.number, 7, index, length, rate)
    return await servers.pool.call(node.address, request, FragmentVerdict, timeout_s=10)


async def test_a_good_fragment_is_good_and_all_of_it_is_read(tmp_path: Path) -> None:
    async with grid(tmp_path, 6) as servers:
        whole = await servers.store(LENGTHS, CODED)
        verdict = await verify(servers)
        assert (verdict.reason, verdict.detail) == ("", "")
        assert verdict.read == len(whole[0]) - 64 - 40 - 8 * len(LENGTHS)


async def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """In the file's header, in records, in the index: wherever it is, while the file is in use
    and after it was opened anew."""
    rng = Random(11)
    async with grid(tmp_path, 1) as servers:
        (whole,) = await servers.store([2000, 10, 500], WHOLE)
        node = servers.nodes[0]
        file = node.file
        found = 0
        for position in [*range(64, len(whole), 7), len(whole) - 1]:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            verdict = await verify(servers, length=2510)
            assert verdict.reason == "corrupt", (position, verdict)
            assert verdict.detail
            found += 1
        assert found > 100
        file.write_bytes(whole)
        assert (await verify(servers, length=2510)).reason == ""


@pytest.mark.allow_logs("its records were read instead")
async def test_damage_that_is_found_when_the_file_is_opened_is_told(tmp_path: Path) -> None:
    for position, detail in [(3, "no fragment file"), (20, "header is damaged"), (-3, "index")]:
        async with grid(tmp_path, 1) as servers:
            (whole,) = await servers.store(LENGTHS, WHOLE)
            damaged = bytearray(whole)
            damaged[position] ^= 1
            servers.nodes[0].file.write_bytes(damaged)
        async with grid(tmp_path, 1) as servers:
            verdict = await verify(servers)
            assert verdict.reason == "corrupt"
            assert detail in verdict.detail
            await servers.lose(0)


@pytest.mark.allow_logs("is missing: its file was deleted", "is short: its file has", "were read")
@pytest.mark.parametrize("again", [False, True], ids=["in use", "opened anew"])
async def test_what_is_cut_deleted_or_replaced_is_named(tmp_path: Path, again: bool) -> None:
    async def cut(node: Node) -> None:
        os.truncate(node.file, 100_000)

    async def delete(node: Node) -> None:
        node.file.unlink()

    async def deleted(node: Node) -> None:
        await node.disk.delete([7])

    async def other(node: Node) -> None:
        await node.disk.delete([7])
        await store(node.disk, LENGTHS, header(7, 2), seal=True)

    async def shorter(node: Node) -> None:
        await node.disk.delete([7])
        await store(node.disk, LENGTHS[:3], header(7, 0), seal=True)

    cases: list[tuple[Callable[[Node], Awaitable[None]], str, str]] = [
        (cut, "short", "100000 bytes of|ends at 180004 of 211003"),
        (delete, "missing", "deleted|gone|holds no fragment"),
        (deleted, "missing", "holds no fragment"),
        (other, "missing", "holds fragment 2 of it instead"),
        (shorter, "short", "ends at 90003 of 211003"),
    ]
    for number, (act, reason, detail) in enumerate(cases):
        path = tmp_path / str(number)
        async with grid(path, 1) as servers:
            await servers.store(LENGTHS, WHOLE)
            assert (await verify(servers)).reason == ""
            await act(servers.nodes[0])
            if not again:
                check(await verify(servers), reason, detail)
        if again:
            async with grid(path, 1) as servers:
                check(await verify(servers), reason, detail)


def check(verdict: FragmentVerdict, reason: str, detail: str) -> None:
    assert verdict.reason == reason
    assert re.search(detail, verdict.detail), verdict.detail


async def test_a_record_in_the_place_of_another_is_corrupt(tmp_path: Path) -> None:
    """Every record is good and of this fragment, and the file is not what its index says."""
    async with grid(tmp_path, 1) as servers:
        (whole,) = await servers.store([1000, 1000], Redundancy(1, 0))
        one = (len(whole) - 64 - 56) // 2
        assert whole[64:68] == whole[64 + one : 68 + one]  # the second starts there
        second = whole[64 + one : 64 + 2 * one]
        servers.nodes[0].file.write_bytes(whole[:64] + second + second + whole[-56:])
        verdict = await verify(servers, length=2000)
        assert (verdict.reason, "not those of its index" in verdict.detail) == ("corrupt", True)


async def test_an_open_fragment_that_reaches_the_length_is_good(tmp_path: Path) -> None:
    async with grid(tmp_path, 1) as servers:
        await servers.store(LENGTHS, WHOLE, seal=False)
        assert (await verify(servers)).reason == ""
        assert (await verify(servers, length=TOTAL + 1)).reason == "short"


@pytest.mark.allow_logs("a read failed", "has failed")
async def test_a_bad_sector_is_corrupt_and_a_failed_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grid(tmp_path, 1) as servers:
        await servers.store(LENGTHS, WHOLE)
        assert (await verify(servers)).reason == ""
        pread = os.pread

        def bad(fd: int, size: int, offset: int) -> bytes:
            if offset <= 50_000 < offset + size:
                raise OSError(errno.EIO, "Input/output error")
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", bad)
        for _ in range(2):
            verdict = await verify(servers)
            assert verdict.reason == "corrupt"
            assert "cannot be read" in verdict.detail
        with pytest.raises(DiskError, match="has failed"):
            await verify(servers)
        assert servers.nodes[0].disk.report().failed


@pytest.mark.allow_logs("has failed: 50 of the last 60 fragments verified are corrupt")
async def test_a_disk_on_which_most_is_corrupt_has_failed(tmp_path: Path) -> None:
    async with grid(tmp_path, 1) as servers:
        node = servers.nodes[0]
        for chunk in range(1, 61):
            await servers.store([1000], WHOLE, chunk)
        for chunk in range(1, 61):
            if chunk > 10:
                flip_bits(node.file_of(chunk), Random(chunk), 1, start=64)
            assert not node.disk.report().failed
            for _ in range(2):  # one fragment counts once
                request = VerifyFragment(node.number, chunk, 0, 1000)
                reply = await servers.pool.call(node.address, request, FragmentVerdict, timeout_s=5)
                assert reply.reason == ("corrupt" if chunk > 10 else "")
        assert node.disk.report().failed
        assert "50 of the last 60 fragments" in node.disk.report().error


async def test_a_corrupt_fragment_is_rebuilt_in_place(tmp_path: Path) -> None:
    async with grid(tmp_path, 6) as servers:
        whole = await servers.store(LENGTHS, CODED)
        node = servers.nodes[0]
        data = bytearray(whole[0])
        data[5000] ^= 2
        node.file.write_bytes(data)
        assert (await verify(servers)).reason == "corrupt"
        await servers.rebuild(0, CODED, TOTAL)
        assert (await verify(servers)).reason == ""


async def test_the_rate_is_kept(tmp_path: Path) -> None:
    async with grid(tmp_path, 1) as servers:
        await servers.store(LENGTHS, WHOLE)
        begun = time.monotonic()
        verdict = await verify(servers, rate=500_000)
        assert time.monotonic() - begun >= verdict.read / 500_000


async def test_what_was_not_cached_before_is_not_cached_after(real_disk_path: Path) -> None:
    async with grid(real_disk_path, 1) as servers:
        await servers.store([100_000] * 40, WHOLE)
        node = servers.nodes[0]
        empty_page_cache(node.file)
        if resident(node.file):
            pytest.skip("this file system keeps its pages")
        hot = 30 * 4096
        with node.file.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.read(hot)
        verdict = await verify(servers, length=4_000_000)
        assert (verdict.reason, verdict.read > 2_000_000) == ("", True)
        # What clients had there stays; of the rest, what the kernel holds across two steps.
        assert hot // 4096 - 1 <= resident(node.file) < node.file.stat().st_size // 4096 // 2


async def test_a_rebuilt_fragment_is_not_left_in_the_page_cache(real_disk_path: Path) -> None:
    async with grid(real_disk_path, 2) as servers:
        await servers.store([100_000] * 40, Redundancy(1, 0))
        empty_page_cache(servers.nodes[0].file)
        if resident(servers.nodes[0].file):
            pytest.skip("this file system keeps its pages")
        await servers.rebuild(0, Redundancy(1, 0), 4_000_000, on=1, sources=[0])
        assert resident(servers.nodes[1].file) <= 4


def empty_page_cache(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def resident(file: Path) -> int:
    """Pages of a file in the page cache."""
    size = file.stat().st_size
    pages = (ctypes.c_ubyte * (-(-size // 4096)))()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
        start = (ctypes.c_char * size).from_buffer(mapped)
        result = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start
        assert result == 0
    return sum(page & 1 for page in pages)


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with grid(tmp_path, 1) as servers:
        for length in (0, -1, 1 << 40):
            with pytest.raises(ProtocolError, match="no sealed chunk has"):
                await verify(servers, length=length)
