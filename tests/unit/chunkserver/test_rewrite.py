"""Rewriting chunks over real sockets: what the new chunk holds, and what may fail meanwhile."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dfs.chunkserver.rewrite import PACK_BYTES, Cutter
from dfs.core.block import BLOCK_BYTES, decode_block, parse_records
from dfs.core.errors import FragmentError, NoSpaceError, ProtocolError, UnavailableError
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    READ_MAX_BYTES,
    ReadRecords,
    RecordsReply,
    RewriteChunk,
    RewritePart,
    RewriteSource,
    RewrittenChunk,
)
from tests.damage import flip_bits
from tests.unit.chunkserver.grid import Grid, grid
from tests.unit.chunkserver.sample import CODED, WHOLE, raw_block
from tests.unit.chunkserver.test_disk import files

LENGTHS = [20_000, 3, 70_000, 131_072, 50_000, 1, 40_000, 30_000, 999, 300_000]
TOTAL = sum(LENGTHS)
NEW = 50


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.chunkserver.rewrite.RANGE_BYTES", 60_000)
    monkeypatch.setattr("dfs.chunkserver.rewrite.GAP_BYTES", 1000)


def raw_chunk(chunk: int = 7) -> bytes:
    return b"".join(raw_block(chunk, number, length) for number, length in enumerate(LENGTHS))


def live_bytes(parts: Sequence[RewritePart], chunk: int = 7) -> bytes:
    raw = raw_chunk(chunk)
    return b"".join(raw[part.offset : part.offset + part.length] for part in parts)


PARTS = (
    RewritePart(0, 5),
    RewritePart(19_000, 2000),
    RewritePart(25_000, 200_000),
    RewritePart(225_000, 1),
    RewritePart(TOTAL - 100, 100),
)


def source(
    servers: Grid, redundancy: Redundancy, parts: Sequence[RewritePart] = PARTS, chunk: int = 7
) -> RewriteSource:
    nodes = servers.nodes[: redundancy.width]
    return RewriteSource(
        chunk, redundancy.k, redundancy.m,
        tuple(node.source(index) for index, node in enumerate(nodes)), tuple(parts),
    )  # fmt: skip


async def rewrite(
    servers: Grid,
    contents: Sequence[RewriteSource],
    redundancy: Redundancy,
    *,
    compression: int | None = 3,
    on: int = 0,
) -> RewrittenChunk:
    """Fragment i of the new chunk goes to node i, by request to node `on`."""
    nodes = servers.nodes[: redundancy.width]
    request = RewriteChunk(
        NEW, redundancy.k, redundancy.m, compression,
        tuple(node.source(index) for index, node in enumerate(nodes)), tuple(contents),
    )  # fmt: skip
    return await servers.pool.call(servers.nodes[on].address, request, RewrittenChunk, timeout_s=20)


async def read_chunk(
    servers: Grid, redundancy: Redundancy, indexes: Sequence[int], chunk: int = NEW
) -> bytes:
    """The raw bytes, from these fragments."""
    headers = {}
    payloads: dict[int, dict[int, memoryview]] = {}
    for index in indexes:
        node = servers.nodes[index]
        content = index if redundancy.k > 1 else 0
        _, payload = await servers.pool.call_raw(
            node.address, ReadRecords(node.number, chunk, 0, READ_MAX_BYTES), RecordsReply,
            timeout_s=5,
        )  # fmt: skip
        for record in parse_records(payload, chunk=chunk, content_index=content):
            headers[record.header.block_index] = record.header
            payloads.setdefault(record.header.block_index, {})[content] = record.payload
    return b"".join(
        bytes(decode_block(headers[block], payloads[block], redundancy))
        for block in sorted(headers)
    )


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("to", ["rep:1", "rep:3", "ec:2+1", "ec:4+2"])
@pytest.mark.parametrize("redundancy", [WHOLE, CODED], ids=str)
async def test_live_bytes_come_over_in_order_into_any_redundancy(
    tmp_path: Path, redundancy: Redundancy, to: str
) -> None:
    target = Redundancy.parse(to)
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, redundancy)
        await servers.store(LENGTHS, redundancy, 8)
        other = [RewritePart(1, 10), RewritePart(11, TOTAL - 11)]
        contents = [source(servers, redundancy), source(servers, redundancy, other, 8)]
        reply = await rewrite(servers, contents, target)
        wanted = live_bytes(PARTS) + live_bytes(other, 8)
        assert (reply.length, reply.lost, reply.bad) == (len(wanted), (), ())
        new = [node.file_of(NEW) for node in servers.nodes[: target.width]]
        assert all(file.suffix == ".sealed" for file in new)
        assert reply.stored == sum(file.stat().st_size for file in new)
        for first in range(target.m + 1):
            indexes = range(first, first + target.k)
            assert await read_chunk(servers, target, indexes) == wanted


@pytest.mark.parametrize("redundancy", [WHOLE, CODED], ids=str)
async def test_what_waits_for_its_block_to_be_filled_holds_no_others_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redundancy: Redundancy
) -> None:
    """A few live bytes of each of many blocks: hundreds of megabytes, for one block."""
    waiting: list[int] = []
    cut = Cutter.cut

    def seen(self: Cutter, pieces: Sequence[memoryview]) -> list[list[memoryview]]:
        done = cut(self, pieces)
        waiting.append(sum(memoryview(piece.obj).nbytes for piece in self._packed))
        return done

    monkeypatch.setattr(Cutter, "cut", seen)
    async with grid(tmp_path, redundancy.width) as servers:
        await servers.store(LENGTHS, redundancy)
        starts = [sum(LENGTHS[:number]) for number in (0, 2, 3, 4, 6, 7, 9)]
        parts = [RewritePart(start + 100, 10) for start in starts]
        await rewrite(servers, [source(servers, redundancy, parts)], redundancy)
        copy = await read_chunk(servers, redundancy, range(redundancy.width))
        assert copy == live_bytes(parts)
    assert len(waiting) > 2
    assert max(waiting) == 10 * len(parts)


async def test_compression_is_that_of_the_request(tmp_path: Path) -> None:
    whole = (RewritePart(0, TOTAL),)
    sizes = []
    for number, compression in enumerate((None, 3)):
        async with grid(tmp_path / str(number), 3) as servers:
            await servers.store(LENGTHS, WHOLE)
            reply = await rewrite(
                servers, [source(servers, WHOLE, whole)], WHOLE, compression=compression
            )
            sizes.append(reply.stored)
    assert sizes[0] > TOTAL * 3 > sizes[1]


async def test_only_what_is_live_is_read(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store([1000] * 500, WHOLE)
        parts = (RewritePart(100_000, 10), RewritePart(100_500, 10), RewritePart(400_000, 10))
        await rewrite(servers, [source(servers, WHOLE, parts)], WHOLE)
        reads = [(each.offset, each.length) for each in servers.nodes[0].reads]
        assert reads == [(100_000, 510), (400_000, 10)]


@given(st.lists(st.integers(1, 300_000), max_size=30), st.integers(0, 2**32))
def test_pieces_are_cut_into_blocks_in_order(sizes: list[int], seed: int) -> None:
    rng = Random(seed)
    pieces = [memoryview(rng.randbytes(size)) for size in sizes]
    cutter = Cutter()
    blocks: list[list[memoryview]] = []
    for start in range(0, len(pieces), 7):  # wherever the ranges end, the blocks are the same
        blocks += cutter.cut(pieces[start : start + 7])
    blocks += cutter.rest()
    assert b"".join(b"".join(block) for block in blocks) == b"".join(pieces)
    assert all(0 < sum(map(len, block)) <= BLOCK_BYTES for block in blocks)
    assert all(len(block) == 1 or max(map(len, block)) < PACK_BYTES for block in blocks)
    again = Cutter()
    assert [list(map(len, block)) for block in again.cut(pieces) + again.rest()] == [
        list(map(len, block)) for block in blocks
    ]


async def test_the_same_request_again_changes_nothing(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        contents = [source(servers, WHOLE)]
        replies: list[RewrittenChunk] = [await rewrite(servers, contents, WHOLE)]

        async def again(on: int) -> None:
            replies.append(await rewrite(servers, contents, WHOLE, on=on))

        async with trio.open_nursery() as nursery:
            for on in range(3):
                nursery.start_soon(again, on)
        assert len({(each.length, each.lost, each.stored) for each in replies}) == 1
        assert await read_chunk(servers, WHOLE, [1]) == live_bytes(PARTS)


# ------------------------------------------------------------------ what may fail


async def test_readers_of_the_old_chunk_go_on(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        await servers.store(LENGTHS, WHOLE)
        raw = raw_chunk()
        rounds = 0
        over = False

        async def keep_reading(index: int) -> None:
            nonlocal rounds
            while not over:
                assert await read_chunk(servers, WHOLE, [index], 7) == raw
                rounds += 1

        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(keep_reading, index)
            reply = await rewrite(servers, [source(servers, WHOLE)], WHOLE)
            over = True
        assert rounds > 3
        assert reply.lost == ()
        assert await read_chunk(servers, WHOLE, [2]) == live_bytes(PARTS)


@pytest.mark.parametrize("redundancy", [WHOLE, CODED], ids=str)
async def test_corrupt_sources_are_read_around_and_named(
    tmp_path: Path, redundancy: Redundancy
) -> None:
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, redundancy)
        for node in servers.nodes[:2]:
            flip_bits(node.file, Random(node.number), 1, start=21_000 // redundancy.k)
        reply = await rewrite(
            servers, [source(servers, redundancy, [RewritePart(0, TOTAL)])], WHOLE
        )
        # With enough good pieces, nobody waits for what the last one has to say.
        assert reply.bad
        assert {*reply.bad} <= {(7, 1, "corrupt"), (7, 2, "corrupt")}
        assert await read_chunk(servers, WHOLE, [0]) == raw_chunk()


async def test_live_bytes_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, CODED)
        for index in (0, 1, 4):
            await servers.lose(index)
        with pytest.raises(FragmentError, match="fragment 1 on disk 2 at .*: missing"):
            await rewrite(servers, [source(servers, CODED)], WHOLE)


async def test_a_target_that_dies_in_the_middle_is_lost_and_the_others_have_everything(
    tmp_path: Path,
) -> None:
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, WHOLE)

        def die(_: ReadRecords) -> None:
            if len(servers.nodes[0].reads) == 4:
                servers.nodes[4].stop()

        servers.nodes[0].before_read = die
        reply = await rewrite(servers, [source(servers, WHOLE)], CODED)
        assert reply.lost == (4,)
        assert await read_chunk(servers, CODED, [0, 1, 3, 5]) == live_bytes(PARTS)


async def test_another_server_finishes_what_one_that_died_began(tmp_path: Path) -> None:
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, WHOLE)

        def die(_: ReadRecords) -> None:
            if NEW in servers.nodes[1].disk.catalog:
                servers.nodes[5].stop()

        servers.nodes[0].before_read = die
        with pytest.raises(UnavailableError):
            await rewrite(servers, [source(servers, WHOLE)], WHOLE, on=5)
        begun = servers.nodes[1].file_of(NEW).stat().st_size
        reply = await rewrite(servers, [source(servers, WHOLE)], WHOLE, on=4)
        assert reply.lost == ()
        assert begun < servers.nodes[1].file_of(NEW).stat().st_size
        assert await read_chunk(servers, WHOLE, [1]) == live_bytes(PARTS)


async def test_too_few_targets_are_an_error(tmp_path: Path) -> None:
    async with grid(tmp_path, 6) as servers:
        await servers.store(LENGTHS, WHOLE)
        servers.nodes[4].stop()
        servers.nodes[5].stop()
        with pytest.raises(UnavailableError, match="needs 5 fragments and has 4: fragment"):
            await rewrite(servers, [source(servers, WHOLE)], CODED)


async def test_it_works_on_full_disks(tmp_path: Path) -> None:
    """Otherwise a full cluster of mostly dead chunks could never be emptied."""
    async with grid(tmp_path, 1, capacity=400_000) as servers:
        await servers.store(LENGTHS, Redundancy(1, 0))
        room = servers.nodes[0].disk.room
        room.refresh()
        room.claim(room.free_bytes)
        with pytest.raises(NoSpaceError):
            await servers.store([1000], Redundancy(1, 0), 8)
        parts = (RewritePart(0, 100_000),)
        reply = await rewrite(servers, [source(servers, Redundancy(1, 0), parts)], Redundancy(1, 0))
        assert reply.lost == ()
        assert await read_chunk(servers, Redundancy(1, 0), [0]) == raw_chunk()[:100_000]


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with grid(tmp_path, 3) as servers:
        node = servers.nodes[0]
        place = tuple(each.source(index) for index, each in enumerate(servers.nodes))
        part = (RewritePart(0, 10),)
        content = (RewriteSource(7, 1, 2, place, part),)

        def old(*parts: tuple[int, int]) -> tuple[RewriteSource, ...]:
            made = tuple(RewritePart(*each) for each in parts)
            return (RewriteSource(7, 1, 2, place, made),)

        for request, message in [
            (RewriteChunk(NEW, 1, 99, 3, place, content), "no fragment 0 of 1\\+99"),
            (RewriteChunk(0, 1, 2, 3, place, content), "of chunk 0"),
            (RewriteChunk(NEW, 1, 2, 99, place, content), "no compression level 99"),
            (RewriteChunk(NEW, 1, 2, 3, place[:1] * 2, content), "two fragments in one place"),
            (RewriteChunk(NEW, 1, 2, 3, place[:1], content), "1 targets are too few for rep:3"),
            (RewriteChunk(NEW, 1, 2, 3, place, ()), "no sealed chunk has 0 bytes"),
            (RewriteChunk(7, 1, 2, 3, place, content), "into itself"),
            (RewriteChunk(NEW, 1, 2, 3, place, old((5, 5), (9, 5))), "5 bytes at 9 of chunk 7"),
            (RewriteChunk(NEW, 1, 2, 3, place, old((5, 0))), "0 bytes at 5"),
            (RewriteChunk(NEW, 1, 2, 3, place, old((1 << 26, 5))), "cannot have 67108869"),
            (RewriteChunk(NEW, 1, 2, 3, place, old((0, 1 << 26)) * 2), "no sealed chunk has"),
        ]:
            with pytest.raises(ProtocolError, match=message):
                await servers.pool.call(node.address, request, RewrittenChunk, timeout_s=5)
        assert all(files(each.path) == [] for each in servers.nodes)
