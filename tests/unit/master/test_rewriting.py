"""What compaction reports, and what becomes of chunks that were copied from."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.core.chunk import ChunkState, FragmentState
from dfs.core.errors import FragmentError
from dfs.core.ids import ROOT_INODE, SCRATCH_POLICY, ChunkId
from dfs.master.commands import AllocateTarget, CompleteRestore, Placement, Repoint
from dfs.master.jobs import compact, convert, tree_walk
from dfs.master.jobs.compact import Compact, Sweep
from dfs.master.jobs.convert import Convert
from dfs.master.jobs.mover import Mover
from dfs.master.jobs.purge import PurgeFragments
from dfs.master.jobs.rewriter import Rewriter
from dfs.wire.messages import RebuildFragment, RewriteChunk, RewrittenChunk, SetPolicy
from tests.unit.master.bench import LENGTH, Bench, job

USED = LENGTH // 10


async def write(request: Any) -> RewrittenChunk | None:
    """As a chunk server does."""
    await trio.lowlevel.checkpoint()
    if not isinstance(request, RewriteChunk):
        return None
    length = sum(part.length for each in request.contents for part in each.parts)
    return RewrittenChunk(length, (), LENGTH, ())


def retire(bench: Bench, chunk: ChunkId) -> None:
    """All its bytes are elsewhere now, and it is kept for backups."""
    command = AllocateTarget(bench.rig.tick(), 1, Placement(1, 2, (1, 2, 5)))
    target = bench.journal.append(command).chunk
    parts = ((0, LENGTH),)
    bench.journal.append(Repoint(bench.rig.tick(), target, LENGTH, (), chunk, parts, 0))
    assert bench.chunk(chunk).state is ChunkState.RETIRED


# ------------------------------------------------------------------ what compaction reports


async def test_compaction_says_that_other_work_has_all_chunks_in_hand(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(6)
    bench.servers.script = write
    chunks = {bench.sealed(1, 2, 3, used=USED) for _ in range(2)}
    work = Compact(bench.context, Rewriter(bench.context, Mover(bench.context)))
    running = job("compact")
    first, second = chunks
    with bench.claims.chunk(first), bench.claims.chunk(second):
        assert "other work has them in hand" in await work.run(running)
    assert running.failures == 2


async def test_compaction_says_what_did_not_fit_into_an_order(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be more that lives than when the chunks were found; the next try takes the rest."""
    bench = Bench(6)
    bench.servers.script = write
    *chunks, last = (bench.sealed(1, 2, 3, used=USED) for _ in range(3))
    monkeypatch.setattr(compact, "PARTS_MAX", 2)
    rewriter = Rewriter(bench.context, Mover(bench.context))
    sweep = Sweep(bench.context, rewriter, job("compact"), 0.5)
    await sweep.run()
    assert sweep.failed == {last}
    assert [bench.chunk(chunk).live for chunk in (*chunks, last)] == [0, 0, USED]
    again = Sweep(bench.context, rewriter, job("compact"), 0.5)
    await again.run()
    assert not again.failed
    assert bench.chunk(last).live == 0


# ------------------------------------------------------------------ where a conversion is


async def test_the_place_of_a_conversion_is_before_what_is_being_gathered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a job that goes on from there leaves that out."""
    monkeypatch.setattr(convert, "PARTS_MAX", 1)
    monkeypatch.setattr(tree_walk, "SLICE", 1)
    bench = Bench(6)
    chunk = bench.sealed(1, 2, 3)
    for name in (b"x", b"y", *(b"z%02d" % number for number in range(100))):
        file = bench.rig.create(name)
        if len(name) == 1:
            bench.rig.commit(file, (0, 1, chunk, name[0]))
        bench.rig.do(SetPolicy(file, SCRATCH_POLICY))
    work = job("convert", ino=ROOT_INODE, policy=SCRATCH_POLICY)
    places = set()

    async def noted(request: Any) -> RewrittenChunk | None:
        places.add(work.place)
        return await write(request)

    bench.servers.script = noted
    mover = Mover(bench.context)
    await Convert(bench.context, Rewriter(bench.context, mover)).run(work)
    names = {place[0][1] for place in places if place}
    assert b"x" in names
    assert not any(name.startswith(b"z") for name in names)
    assert bench.chunk(chunk).live == LENGTH


# ------------------------------------------------------------------ copied from


async def test_a_stale_fragment_goes_although_its_retired_chunk_is_not_whole(
    autojump_clock: MockClock,
) -> None:
    """Nobody makes that whole again, and a drain waits for the deletion."""
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    retire(bench, chunk)
    bench.mark(chunk, 2, FragmentState.LOST)
    purge = PurgeFragments(bench.context)
    await bench.pass_time(10, 2, 3, 5)
    while await purge.run_once():
        pass
    assert not bench.servers.deleted, "nobody else has it"
    bench.beat(1)
    while await purge.run_once():
        pass
    assert bench.servers.deleted == {(3, chunk)}


async def test_what_was_made_for_a_chunk_that_was_retired_meanwhile_is_deleted(
    autojump_clock: MockClock,
) -> None:
    """It does not count, and no report brings it up."""
    bench = Bench(5)
    chunk, mended = bench.sealed(1, 2, 3), bench.sealed(1, 2, 3)

    async def meanwhile(request: object) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(request, RebuildFragment):
            retire(bench, request.chunk)

    bench.servers.script = meanwhile
    mover = Mover(bench.context)
    with pytest.raises(FragmentError):
        await mover.make(bench.chunk(chunk), 2, 4)
    assert bench.servers.deleted == {(4, chunk)}
    # What took the place of one that the chunk has there is as good as that was.
    bench.mark(mended, 3, FragmentState.LOST)
    with pytest.raises(FragmentError):
        await mover.make(bench.chunk(mended), 2, 3)
    assert bench.servers.deleted == {(4, chunk)}


async def test_a_restored_master_has_nothing_deleted_that_was_made_in_vain(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    bench.journal.append(CompleteRestore(bench.rig.tick(), 1, 0, 1, 0))

    async def meanwhile(request: object) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(request, RebuildFragment):
            retire(bench, request.chunk)

    bench.servers.script = meanwhile
    with pytest.raises(FragmentError):
        await Mover(bench.context).make(bench.chunk(chunk), 2, 4)
    assert not bench.servers.deleted
