"""Chunks are counted by what is left of them, in slices."""

from random import Random

import trio

from dfs.core.chunk import ChunkState, FragmentState
from dfs.master import chunks, fragments
from dfs.master.commands import (
    AllocateChunks,
    FragmentMark,
    MarkFragments,
    Placement,
    SealChunk,
)
from dfs.master.health import SLICE_CHUNKS, Counts, Health
from dfs.master.keyspace import CHUNK, decode_chunk, scan_prefix
from dfs.master.store import MemoryStore
from dfs.master.transaction import Transaction


def sealed(txn: Transaction, k: int, m: int, *disks: int) -> int:
    command = AllocateChunks(0, 7, 1, 1, (Placement(k, m, disks),))
    chunk = chunks.allocate(txn, command)[0].chunk
    chunks.add_live(txn, chunk, 10, 10)
    chunks.seal(txn, SealChunk(0, 7, 1, chunk, 10))
    return chunk


async def test_chunks_are_counted_by_fragments_that_can_be_read() -> None:
    txn = Transaction(MemoryStore())
    sealed(txn, 1, 2, 1, 2, 3)
    sealed(txn, 1, 0, 1)
    sealed(txn, 1, 2, 1, 2, 9)
    sealed(txn, 1, 2, 1, 8, 9)
    sealed(txn, 4, 2, 1, 2, 3, 4, 8, 9)
    sealed(txn, 4, 2, 1, 2, 3, 7, 8, 9)
    sealed(txn, 1, 0, 9)
    degraded = sealed(txn, 1, 2, 1, 2, 3)
    mark = FragmentMark(degraded, 2, FragmentState.CORRUPT)
    fragments.mark(txn, MarkFragments(0, (mark,)))
    doomed = sealed(txn, 1, 2, 7, 8, 9)
    chunks.add_live(txn, doomed, -10)
    opened = chunks.allocate(txn, AllocateChunks(0, 7, 1, 1, (Placement(1, 2, (1, 2, 9)),)))
    chunks.add_live(txn, opened[0].chunk, 10, 10)
    chunks.allocate(txn, AllocateChunks(0, 7, 1, 1, (Placement(1, 2, (1, 2, 3)),)))
    health = Health(txn, lambda: [9, 8, 7])
    assert await health.count(trio.lowlevel.checkpoint)
    assert health.counts == Counts(healthy=3, degraded=3, at_risk=2, lost=2)


async def test_a_chunk_that_lacks_something_for_several_reasons_is_counted_once() -> None:
    """Each of all ways to be short, against a look at every chunk."""
    txn = Transaction(MemoryStore())
    random = Random(5)
    for _ in range(300):
        k, m = random.choice(((1, 0), (1, 2), (4, 2)))
        disks = random.sample(range(1, 13), random.randint(k, k + m))
        chunk = sealed(txn, k, m, *disks)
        for disk in random.sample(disks, random.choice((0, 0, 1, 2)) % len(disks)):
            state = random.choice((FragmentState.LOST, FragmentState.CORRUPT))
            fragments.mark(txn, MarkFragments(0, (FragmentMark(chunk, disk, state),)))
        if random.random() < 0.1:
            chunks.add_live(txn, chunk, -10)
    for away in ((), (3,), (12, 3, 7), tuple(range(1, 13))):
        expected = [0, 0, 0, 0]
        for _, value in scan_prefix(txn, CHUNK):
            chunk_ = decode_chunk(value)
            left = len([good for good in chunk_.good if good.disk not in away])
            if chunk_.state is not ChunkState.DOOMED:
                expected[(left < chunk_.width) + (left <= chunk_.k) + (left < chunk_.k)] += 1
                if left == chunk_.k == chunk_.width:
                    expected[1] -= 1
                    expected[0] += 1
        health = Health(txn, lambda away=away: away)  # type: ignore[misc]
        assert await health.count(trio.lowlevel.checkpoint)
        assert health.counts == Counts(*expected), away


async def test_a_count_that_has_to_look_at_too_much_gives_up() -> None:
    txn = Transaction(MemoryStore())
    for _ in range(SLICE_CHUNKS * 2):
        sealed(txn, 1, 1, 1, 2)
    health = Health(txn, lambda: ())
    assert await health.count(trio.lowlevel.checkpoint, most=0)
    before = health.counts
    assert before.healthy == SLICE_CHUNKS * 2
    health = Health(txn, lambda: (1,))
    assert not await health.count(trio.lowlevel.checkpoint, most=SLICE_CHUNKS)
    assert not health.is_prompt
    assert health.counts == Counts(healthy=SLICE_CHUNKS, at_risk=SLICE_CHUNKS)
    assert await health.count(trio.lowlevel.checkpoint)
    assert health.is_prompt


async def test_an_empty_open_chunk_is_not_lost() -> None:
    txn = Transaction(MemoryStore())
    chunks.allocate(txn, AllocateChunks(0, 7, 1, 1, (Placement(1, 0, (9,)),)))
    health = Health(txn, lambda: (9,))
    assert await health.count(trio.lowlevel.checkpoint)
    assert health.counts == Counts()


async def test_a_long_count_lets_others_in() -> None:
    txn = Transaction(MemoryStore())
    for _ in range(SLICE_CHUNKS * 2 + 5):
        sealed(txn, 1, 0, 1)
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1
        await trio.lowlevel.checkpoint()

    health = Health(txn, lambda: (1,))
    assert await health.count(pause)
    assert health.counts.lost == SLICE_CHUNKS * 2 + 5
    assert pauses == 3


async def test_a_long_count_tells_of_what_it_has_found_so_far() -> None:
    txn = Transaction(MemoryStore())
    for _ in range(SLICE_CHUNKS * 2):
        sealed(txn, 1, 1, 1, 2)
    seen: list[int] = []

    async def pause() -> None:
        seen.append(health.counts.at_risk)
        await trio.lowlevel.checkpoint()

    health = Health(txn, lambda: (1,))
    assert await health.count(pause)
    assert seen == [SLICE_CHUNKS, 2 * SLICE_CHUNKS]
    seen.clear()
    assert await health.count(pause)
    assert seen == [2 * SLICE_CHUNKS, 2 * SLICE_CHUNKS]
