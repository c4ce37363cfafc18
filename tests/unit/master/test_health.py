"""Chunks are counted by what is left of them, in slices."""

import trio

from dfs.core.chunk import FragmentState
from dfs.master import chunks, fragments
from dfs.master.commands import (
    AllocateChunks,
    FragmentMark,
    MarkFragments,
    Placement,
    SealChunk,
)
from dfs.master.health import SLICE_CHUNKS, Counts, Health
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
    health = Health(txn, lambda disk: disk < 6)
    counts = await health.count(trio.lowlevel.checkpoint)
    assert counts == Counts(healthy=2, degraded=2, at_risk=2, lost=2)
    assert health.counts == counts


async def test_an_empty_open_chunk_is_not_lost() -> None:
    txn = Transaction(MemoryStore())
    chunks.allocate(txn, AllocateChunks(0, 7, 1, 1, (Placement(1, 0, (9,)),)))
    assert await Health(txn, lambda _: False).count(trio.lowlevel.checkpoint) == Counts()


async def test_a_long_count_lets_others_in() -> None:
    txn = Transaction(MemoryStore())
    for _ in range(SLICE_CHUNKS * 2 + 5):
        sealed(txn, 1, 0, 1)
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1
        await trio.lowlevel.checkpoint()

    counts = await Health(txn, lambda _: True).count(pause)
    assert counts.healthy == SLICE_CHUNKS * 2 + 5
    assert pauses == 3
