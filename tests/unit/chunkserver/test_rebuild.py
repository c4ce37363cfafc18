"""Rebuilding fragments over real sockets: from whom, what is refused, what a crash leaves."""

import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio

from dfs.chunkserver.arrival import Arrival
from dfs.chunkserver.fragment_file import Batch, FragmentFile
from dfs.core.buffers import Buffer
from dfs.core.errors import (
    DiskError,
    FragmentError,
    NoSpaceError,
    ProtocolError,
    UnavailableError,
)
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    DeleteFragments,
    Empty,
    FragmentSource,
    ReadRecords,
    RebuildFragment,
    RebuiltFragment,
    RecordsReply,
)
from tests.damage import flip_bits
from tests.unit.chunkserver.grid import Node, grid
from tests.unit.chunkserver.sample import CODED, WHOLE, batch, encode, header
from tests.unit.chunkserver.test_daemon import ROOT, SERVER, Master, client, until
from tests.unit.chunkserver.test_disk import files, opened, store

LENGTHS = [20_000, 3, 70_000, 50_000, 1, 40_000, 30_000, 999]
TOTAL = sum(LENGTHS)
BOTH = pytest.mark.parametrize("redundancy", [WHOLE, CODED], ids=str)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranges a fragment, as chunks of 64 MiB have."""
    monkeypatch.setattr("dfs.chunkserver.rebuild.RANGE_BYTES", 60_000)
    monkeypatch.setattr("dfs.chunkserver.rebuild.READ_MAX_BYTES", 60_000)


# ------------------------------------------------------------------ what comes out


async def test_a_lost_copy_is_made_again_byte_by_byte(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        whole = await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        used = servers.nodes[2].disk.room.used_bytes
        reply = await servers.rebuild(2, WHOLE, TOTAL)
        node = servers.nodes[2]
        assert node.file.read_bytes() == whole[2]
        assert reply.stored == len(whole[2]) == node.disk.room.used_bytes - used
        assert reply.bad == ()
        assert len(whole[0]) - 200 < reply.read < len(whole[0])  # all but header and footer
        assert servers.nodes[1].reads == []  # the nearest one is enough
        assert all(each.background for each in servers.nodes[0].reads)
        assert node.incoming == []


@pytest.mark.parametrize("redundancy", ["ec:2+1", "ec:4+2", "ec:3+3"])
async def test_every_fragment_is_made_again_from_any_k_others(
    tmp_path: Path, redundancy: str
) -> None:
    coded = Redundancy.parse(redundancy)
    async with grid(tmp_path, coded.width) as servers:
        whole = await servers.store(LENGTHS, coded)
        for index in range(coded.width):
            others = [each for each in range(coded.width) if each != index]
            for sources in itertools.combinations(others, coded.k):
                await servers.lose(index)
                await servers.rebuild(index, coded, TOTAL, sources=sources)
                assert servers.nodes[index].file.read_bytes() == whole[index]


async def test_a_coded_fragment_that_is_somewhere_is_copied_and_not_computed(
    tmp_path: Path,
) -> None:
    async with grid(tmp_path, 7) as servers:
        whole = await servers.store(LENGTHS, CODED)
        reply = await servers.rebuild(2, CODED, TOTAL, on=6, sources=range(6))
        assert servers.nodes[6].file.read_bytes() == whole[2]
        assert reply.read < len(whole[2])
        assert [bool(node.reads) for node in servers.nodes] == [False, False, True] + [False] * 4


async def test_it_ends_with_the_block_that_holds_the_last_byte(tmp_path: Path) -> None:
    """A chunk is sealed at its last committed byte, and some disks have more of it."""
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE, seal=False)
        await servers.rebuild(2, WHOLE, 20_004, sources=[0, 1])
        held = await servers.nodes[2].disk.held([7])
        assert [(each.length, each.sealed) for each in held] == [(90_003, True)]


@BOTH
async def test_many_tiny_blocks_come_over_in_parts(
    tmp_path: Path, redundancy: Redundancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.fragment_file.REPLY_MAX_BYTES", 2000)
    async with grid(tmp_path, redundancy.width) as servers:
        whole = await servers.store([10] * 300, redundancy)
        await servers.lose(1)
        await servers.rebuild(1, redundancy, 3000)
        assert servers.nodes[1].file.read_bytes() == whole[1]


# ------------------------------------------------------------------ bad sources


@BOTH
async def test_a_corrupt_source_is_read_around_and_named(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    rng = Random(3)
    async with grid(tmp_path, redundancy.width) as servers:
        whole = await servers.store(LENGTHS, redundancy)
        flip_bits(servers.nodes[1].file, rng, 1, start=200)
        await servers.lose(0)
        reply = await servers.rebuild(0, redundancy, TOTAL)
        assert servers.nodes[0].file.read_bytes() == whole[0]
        assert reply.bad == ((2, "corrupt"),)


@pytest.mark.parametrize("what", ["header", "payload"])
@BOTH
async def test_it_is_whole_again_though_every_source_is_damaged_somewhere(
    tmp_path: Path, redundancy: Redundancy, what: str
) -> None:
    """Each block has enough good records, in no two blocks on the same disks."""
    async with grid(tmp_path, redundancy.width) as servers:
        whole = await servers.store(LENGTHS, redundancy)
        sources = range(1, redundancy.width)
        spare = len(sources) - redundancy.k
        for number in range(len(LENGTHS)):
            for each in range(spare):
                index = 1 + (number + each) % len(sources)
                await damage_block(servers.nodes[index], number, what)
        await servers.lose(0)
        reply = await servers.rebuild(0, redundancy, TOTAL)
        assert servers.nodes[0].file.read_bytes() == whole[0]
        assert {reason for _, reason in reply.bad} == {"corrupt"}


async def damage_block(node: Node, number: int, what: str) -> None:
    fragment = await node.disk.fragment(7)
    start = fragment.file.index.start_of(number)
    fragment.unpin()
    with node.file.open("r+b") as file:
        file.seek(start + (10 if what == "header" else 48))
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 64]))


@pytest.mark.allow_logs("is short: its file has", "its records were read instead")
@BOTH
async def test_sources_that_are_away_missing_and_short_are_read_around(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    wide = Redundancy(redundancy.k, 4)
    async with grid(tmp_path, wide.width) as servers:
        whole = await servers.store(LENGTHS, wide)
        servers.nodes[0].stop()
        await servers.lose(1)
        await servers.nodes[2].disk.delete([7])
        of = header(7, 2, wide)
        await servers.nodes[2].disk.append(of, batch(encode(LENGTHS[:3], of=of)))
        await servers.lose(3)
        reply = await servers.rebuild(3, wide, TOTAL)
        assert servers.nodes[3].file.read_bytes() == whole[3]
        assert reply.bad == ((1, "unreachable"), (2, "missing"), (3, "short"))


@BOTH
async def test_a_source_that_dies_in_the_middle_is_replaced_by_another(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    async with grid(tmp_path, redundancy.width) as servers:
        whole = await servers.store(LENGTHS, redundancy)
        await servers.lose(0)
        first = servers.nodes[1]

        def die(_: ReadRecords) -> None:
            if len(first.reads) == 2:
                first.stop()

        first.before_read = die
        reply = await servers.rebuild(0, redundancy, TOTAL)
        assert len(first.reads) == 2
        assert servers.nodes[0].file.read_bytes() == whole[0]
        assert reply.bad == ((2, "unreachable"),)


async def test_a_source_that_hangs_is_joined_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.sources.HEDGE_AFTER_S", 0.05)
    async with grid(tmp_path, 3) as servers:
        whole = await servers.store(LENGTHS, WHOLE)
        await servers.lose(0)
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")  # accepts, says nothing
        deaf = f"127.0.0.1:{listener[0].socket.getsockname()[1]}"
        node = servers.nodes[0]
        request = RebuildFragment(
            1, 7, 0, 1, 2, TOTAL, (FragmentSource(1, 99, deaf), servers.nodes[2].source(2))
        )
        await servers.pool.call(node.address, request, RebuiltFragment, timeout_s=5)
        assert node.file.read_bytes() == whole[0]
        await listener[0].aclose()


@BOTH
async def test_too_few_good_sources_are_refused_and_nothing_changes(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    async with grid(tmp_path, redundancy.width) as servers:
        await servers.store(LENGTHS, redundancy)
        for node in servers.nodes[1:]:
            if node.number > redundancy.k:
                await damage_block(node, 5, "payload")
        damaged = servers.nodes[0]
        await damage_block(damaged, 0, "payload")
        before = damaged.file.read_bytes()
        used = damaged.disk.room.used_bytes
        with pytest.raises(
            FragmentError,
            match=rf"disk {redundancy.width} at .*: corrupt: block 5 does not match",
        ):
            await servers.rebuild(0, redundancy, TOTAL)
        assert damaged.file.read_bytes() == before
        assert damaged.disk.room.used_bytes == used
        assert damaged.incoming == []


async def test_pieces_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Each passes its checksums, and what they give is not what the writer wrote."""
    async with grid(tmp_path, 6) as servers:
        await servers.store([1000], CODED)
        await servers.lose(0)
        for node in servers.nodes[1:3]:
            forge(node, node.number - 1)
        with pytest.raises(FragmentError, match="damaged before it was stored"):
            await servers.rebuild(0, CODED, 1000, sources=[1, 2, 3, 4])
        assert files(servers.nodes[0].path) == []


def forge(node: Node, index: int) -> None:
    """Another payload, with checksums that fit it."""
    from dfs.core import block  # private parts, for this alone

    data = bytearray(node.file.read_bytes())
    old = block.parse_header(data, chunk=7, content_index=index, position=64)
    start = 64 + block.HEADER_BYTES
    data[start : start + old.payload_length] = bytes(old.payload_length)
    stamp = block.checksum(bytes(old.payload_length))
    fields = data[64:88] + old.raw_xxh3.to_bytes(8, "little") + stamp.to_bytes(8, "little")
    data[64:start] = fields + block.checksum(bytes(fields), 7 << 5 | index).to_bytes(8, "little")
    node.file.write_bytes(data)


# ------------------------------------------------------------------ what was there before


@BOTH
async def test_a_disk_mends_its_own_fragment_with_the_help_of_itself(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    async with grid(tmp_path, redundancy.width) as servers:
        whole = await servers.store(LENGTHS, redundancy)
        used = servers.nodes[1].disk.room.used_bytes
        await damage_block(servers.nodes[1], 2, "payload")
        reply = await servers.rebuild(1, redundancy, TOTAL, sources=range(redundancy.width))
        assert reply.bad == (() if redundancy.k == 1 else ((2, "corrupt"),))
        assert servers.nodes[1].file.read_bytes() == whole[1]
        assert servers.nodes[1].disk.room.used_bytes == used
        assert reply.read > 0


@pytest.mark.parametrize("held", ["other", "open", "short"])
async def test_what_the_disk_held_of_the_chunk_is_replaced(tmp_path: Path, held: str) -> None:
    async with grid(tmp_path, 7) as servers:
        whole = await servers.store(LENGTHS, CODED)
        node = servers.nodes[6]
        of = header(7, 5 if held == "other" else 2, CODED)
        await store(node.disk, LENGTHS if held == "other" else LENGTHS[:2], of, seal=held != "open")
        await servers.rebuild(2, CODED, TOTAL, on=6, sources=range(6))
        assert node.file.read_bytes() == whole[2]
        assert node.disk.room.used_bytes == len(whole[2])
        assert [(each.index, each.length) for each in await node.disk.held([7])] == [(2, TOTAL)]


async def test_another_fragment_of_the_chunk_is_kept_where_the_metadata_may_be_older(
    tmp_path: Path,
) -> None:
    async with grid(tmp_path, 7) as servers:
        whole = await servers.store(LENGTHS, CODED)
        node = servers.nodes[6]
        await store(node.disk, LENGTHS, header(7, 5, CODED), seal=True)
        before = node.file.read_bytes()
        with pytest.raises(FragmentError, match="holds fragment 5 of chunk 7"):
            await servers.rebuild(2, CODED, TOTAL, on=6, sources=range(6), keep=True)
        assert node.file.read_bytes() == before
        # Its own it mends.
        flip_bits(servers.nodes[2].file, Random(1), start=1000)
        await servers.rebuild(2, CODED, TOTAL, keep=True)
        assert servers.nodes[2].file.read_bytes() == whole[2]


async def test_a_whole_fragment_is_left_as_it_is(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        before = servers.nodes[2].file.stat()
        reply = await servers.rebuild(2, WHOLE, TOTAL)
        after = servers.nodes[2].file.stat()
        assert (reply.stored, reply.read) == (before.st_size, 0)
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_the_same_request_many_times_at_once_makes_one_fragment(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        whole = await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        replies: list[RebuiltFragment] = []

        async def one() -> None:
            replies.append(await servers.rebuild(2, WHOLE, TOTAL))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert sorted(bool(reply.read) for reply in replies) == [False] * 4 + [True]
        assert servers.nodes[2].file.read_bytes() == whole[2]


async def test_readers_notice_nothing_while_their_fragment_is_replaced(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        node = servers.nodes[2]
        first = bytes(await read_records(node, 20_000))
        scope = trio.CancelScope()
        rounds = 0

        async def keep_reading() -> None:
            nonlocal rounds
            with scope:
                while True:
                    assert await read_records(node, 20_000) == first
                    rounds += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_reading)
            for _ in range(10):
                await damage_block(node, 6, "payload")
                assert (await servers.rebuild(2, WHOLE, TOTAL)).read
            scope.cancel()
        assert rounds > 10


async def read_records(node: Node, length: int) -> memoryview:
    async with client(node.address) as peer:
        request = ReadRecords(node.number, 7, 0, length)
        _, payload = await peer.call_raw(request, RecordsReply, timeout_s=5)
        return payload


# ------------------------------------------------------------------ what ends it early


async def test_a_deletion_that_comes_meanwhile_wins(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        node = servers.nodes[2]
        delete = DeleteFragments(node.number, (7,))
        servers.nodes[0].before_read = lambda _: node.disk.arrivals.abandon(7)
        with pytest.raises(FragmentError, match="chunk 7 was deleted meanwhile"):
            await servers.rebuild(2, WHOLE, TOTAL)
        await servers.pool.call(node.address, delete, Empty, timeout_s=5)
        assert files(node.path) == node.incoming == []


async def test_a_caller_that_gives_up_leaves_nothing(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        node = servers.nodes[2]
        used = node.disk.room.used_bytes
        scope = trio.CancelScope()

        def give_up(_: ReadRecords) -> None:
            if len(servers.nodes[0].reads) == 3:
                assert node.incoming
                scope.cancel()

        servers.nodes[0].before_read = give_up
        with scope:
            await servers.rebuild(2, WHOLE, TOTAL)
        assert scope.cancelled_caught
        await until(lambda: not node.incoming)
        assert (files(node.path), node.disk.room.used_bytes) == ([], used)
        servers.nodes[0].before_read = bool
        await servers.rebuild(2, WHOLE, TOTAL)


async def test_a_full_disk_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with grid(tmp_path, 3, capacity=50_000) as servers:
        await servers.nodes[2].disk.append(header(8), batch(encode([1000], of=header(8))))
        for node in servers.nodes[:2]:
            await store(node.disk, LENGTHS, seal=True)
        node = servers.nodes[2]
        used = node.disk.room.used_bytes
        with pytest.raises(NoSpaceError, match="its capacity is set to 50000 bytes"):
            await servers.rebuild(2, WHOLE, TOTAL, sources=[0, 1])
        assert node.incoming == []
        assert node.disk.room.used_bytes == used
        assert len(files(node.path)) == 1


@pytest.mark.allow_logs("has failed: Input/output error")
async def test_a_disk_that_fails_meanwhile_is_told_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        node = servers.nodes[2]
        written = 0
        pwritev = os.pwritev

        def fail(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            nonlocal written
            written += 1
            if written == 2:
                raise OSError(errno.EIO, "Input/output error")
            return pwritev(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", fail)
        with pytest.raises(DiskError, match="Input/output error"):
            await servers.rebuild(2, WHOLE, TOTAL)
        assert node.disk.report().failed
        assert files(node.path) == []


async def test_one_range_is_read_ahead_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        await servers.lose(2)
        written = trio.Event()
        append = Arrival.append

        async def slow(arrival: Arrival, batch: Batch) -> None:
            await written.wait()
            await append(arrival, batch)

        monkeypatch.setattr(Arrival, "append", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.rebuild, 2, WHOLE, TOTAL)
            await until(lambda: len(servers.nodes[0].reads) == 2)
            await trio.sleep(0.1)
            assert len(servers.nodes[0].reads) == 2
            written.set()
        assert len(servers.nodes[0].reads) == 3


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with grid(tmp_path, 1) as servers:
        node = servers.nodes[0]
        source = (node.source(0),)
        for request, message in [
            (RebuildFragment(1, 7, 3, 1, 2, 10, source), "no fragment 3 of 1\\+2"),
            (RebuildFragment(1, 0, 0, 1, 2, 10, source), "of chunk 0"),
            (RebuildFragment(1, 7, 0, 1, 2, 0, source), "no sealed chunk has 0 bytes"),
            (RebuildFragment(1, 7, 0, 1, 2, 1 << 40, source), "no sealed chunk has"),
            (RebuildFragment(1, 7, 0, 1, 2, 10, source * 65), "65 sources; 64 are allowed"),
            (RebuildFragment(1, 7, 0, 1, 2, 10, (node.source(9),)), "no fragment 9 of 1\\+2"),
        ]:
            with pytest.raises(ProtocolError, match=message):
                await servers.pool.call(node.address, request, RebuiltFragment, timeout_s=5)
        with pytest.raises(FragmentError, match="none was given"):
            await servers.rebuild(0, WHOLE, 10, sources=[])


# ------------------------------------------------------------------ crashes


async def make_incoming(path: Path, *, seal: bool) -> Path:
    """What a crash in the middle of a rebuild leaves behind."""
    async with opened(path) as disk:
        of = header(7, 2, CODED)
        await store(disk, [100], header(7, 5, CODED), seal=True)
        await store(disk, [100], header(8), seal=True)
    file = FragmentFile(str(path / "incoming"), of)
    file.append([batch(encode(LENGTHS, of=of))], lambda _: None)
    if seal:
        file.seal(TOTAL, lambda _: None)
    file.close()
    return Path(file.path)


async def test_after_a_crash_an_unfinished_fragment_is_gone(tmp_path: Path) -> None:
    left = await make_incoming(tmp_path, seal=False)
    async with opened(tmp_path) as disk:
        assert not left.exists()
        assert [held.index for held in await disk.held([7, 8])] == [5, 0]
        assert disk.room.used_bytes == sum(file.stat().st_size for file in files(tmp_path))


async def test_after_a_crash_a_finished_fragment_takes_its_place(tmp_path: Path) -> None:
    left = await make_incoming(tmp_path, seal=True)
    data = left.read_bytes()
    async with opened(tmp_path) as disk:
        assert not left.exists()
        assert [held.index for held in await disk.held([7, 8])] == [2, 0]
        assert data in [file.read_bytes() for file in files(tmp_path)]
        assert disk.room.used_bytes == sum(file.stat().st_size for file in files(tmp_path))


async def test_a_disk_of_an_older_release_gets_its_place_for_new_fragments(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [100], seal=True)
    (tmp_path / "incoming").rmdir()
    async with opened(tmp_path) as disk:
        assert len(disk.catalog) == 1
        assert (tmp_path / "incoming").is_dir()


async def test_a_target_that_is_killed_in_the_middle_starts_clean(tmp_path: Path) -> None:
    async with Master().serving() as master, grid(tmp_path / "sources", 2) as servers:
        for node in servers.nodes:
            await store(node.disk, LENGTHS, seal=True)
        whole = servers.nodes[0].file.read_bytes()
        root = tmp_path / "target"
        child, address = await start(master, root)
        reached = trio.Event()

        def note(_: ReadRecords) -> None:
            if len(servers.nodes[0].reads) == 3:
                os.kill(child.pid, signal.SIGKILL)
                reached.set()

        servers.nodes[0].before_read = note
        request = RebuildFragment(
            11, 7, 1, 1, 2, TOTAL, tuple(node.source(node.number - 1) for node in servers.nodes)
        )
        async with client(address) as peer:
            with pytest.raises(UnavailableError):
                await peer.call(request, RebuiltFragment, timeout_s=10)
        assert reached.is_set()
        await trio.to_thread.run_sync(child.communicate)
        (left,) = (root / "incoming").iterdir()
        assert left.suffix == ".open"
        assert 0 < left.stat().st_size < len(whole)
        assert files(root) == []
        child, address = await start(master, root)
        assert not left.exists()
        async with client(address) as peer:
            await peer.call(request, RebuiltFragment, timeout_s=10)
        (file,) = files(root)
        assert len(file.read_bytes()) == len(whole)
        child.terminate()
        await trio.to_thread.run_sync(child.communicate)
        assert child.returncode == 0


async def start(master: Master, disk: Path) -> tuple["subprocess.Popen[str]", str]:
    """A chunk server in a process of its own, that reads little at a time; its address."""
    small = "from dfs.chunkserver import rebuild\nrebuild.RANGE_BYTES = 60_000\n"
    argv = [sys.executable, "-c", small + SERVER, master.address, str(disk)]
    child = await trio.to_thread.run_sync(
        lambda: subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    )
    assert child.stdout is not None
    return child, (await trio.to_thread.run_sync(child.stdout.readline)).strip()
