"""Servers that are silent, have just died, or have no disk: what is decided meanwhile."""

import pytest
from trio.testing import MockClock

from dfs.core.chunk import DiskState, FragmentState
from dfs.core.errors import FileSystemError, FragmentError
from dfs.master.jobs.board import JobBoard
from dfs.master.jobs.drain import Drain
from dfs.master.jobs.membership import DiskKeeper
from dfs.master.jobs.mover import Mover
from dfs.master.jobs.purge import AGAIN_S, PurgeFragments
from dfs.master.jobs.repair import Repair
from dfs.master.jobs.scrub import Scrub
from dfs.master.keyspace import get_counters
from dfs.master.membership import all_servers
from dfs.wire.messages import (
    FragmentVerdict,
    HeldFragment,
    RegisterServer,
    StartJob,
    VerifyFragment,
)
from tests.unit.master.bench import LENGTH, PEER, Bench, for_a_while, job, report, service


async def test_what_a_silent_server_holds_is_not_replaced_by_what_another_brings_back(
    autojump_clock: MockClock,
) -> None:
    """It may only have paused for a moment."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    await bench.pass_time(10, 1, 2, 4)
    assert bench.liveness.state(3) is DiskState.SUSPECT
    bench.reports.want((4,))
    assert bench.ask(4)
    await report(bench, 4, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(3) is not None
    assert get_counters(bench.rig.store).stale == 1
    await bench.pass_time(70, 1, 2, 4)
    bench.reports.want((4,))
    assert bench.ask(4)
    await report(bench, 4, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(4) is not None
    bench.rig.check()


async def test_no_fragment_is_ordered_from_a_server_whose_connection_has_just_broken(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    bench.mark(chunk, 3, FragmentState.CORRUPT)
    bench.liveness.connection_broke(4)
    mover = Mover(bench.context)
    assert {mover.target(bench.chunk(chunk), 2) for _ in range(20)} == {5}
    bench.liveness.connection_broke(1)
    assert [source.disk for source in mover.sources(bench.chunk(chunk), 2)] == [2, 1, 3]
    with pytest.raises(FragmentError, match="cannot take a fragment"):
        await mover.make(bench.chunk(chunk), 2, 4)


async def test_copies_that_are_damaged_in_different_places_mend_each_other(
    autojump_clock: MockClock,
) -> None:
    """A server takes each block from whoever has it whole."""
    bench = Bench(3)
    chunk = bench.sealed(1, 2, 3)
    for disk in (1, 2, 3):
        bench.mark(chunk, disk, FragmentState.CORRUPT)
    mover = Mover(bench.context)
    repair = Repair(bench.context, mover)
    await for_a_while(20, lambda: repair.run(job("repair")))
    assert len(bench.chunk(chunk).good) == 3
    assert {source.disk for source in bench.servers.rebuilds[0].sources} == {1, 2, 3}


async def test_a_fragment_that_is_moved_away_while_it_is_verified_is_not_bad(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)

    async def verify(request: VerifyFragment) -> FragmentVerdict:
        if request.disk != 3:
            return FragmentVerdict("", "", LENGTH)
        assert bench.place(chunk, 2, 4)
        return FragmentVerdict("missing", "it is not there", 0)

    bench.servers.script = verify
    scrub = job("scrub")
    await Scrub(bench.context, Mover(bench.context))._verify(scrub, bench.chunk(chunk), [])
    assert scrub.failures == 0
    assert bench.chunk(chunk).on(4) is not None


async def test_a_server_without_disks_can_be_removed_once_it_is_stopped(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(3)
    answers = service(bench)
    request = RegisterServer("s9", "10.0.0.9:9421", "", "", "0.1", "", ())
    empty = await answers.register(PEER, request, memoryview(b""))
    keeper = DiskKeeper(bench.context, JobBoard(bench.context, {}))
    with pytest.raises(FileSystemError, match="has no disk, but runs"):
        await keeper.remove(empty.server, ())
    await bench.pass_time(70, 1, 2, 3)
    await keeper.remove(empty.server, ())
    assert bench.liveness.server(empty.server) is None
    assert all(record.server != empty.server for record in all_servers(bench.rig.store))


async def test_a_drain_that_only_lacks_servers_not_heard_yet_says_so(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    bench.sealed(1, 2, 3)
    bench.restart()
    bench.beat(1, 2, 3)
    reply, _ = await Drain(bench.context, Mover(bench.context)).plan(StartJob("drain", disks=(1,)))
    assert "wait for server 4 at 10.0.0.4:9421" in reply.refusal
    assert "add" not in reply.refusal


async def test_rows_of_disks_that_are_away_keep_no_others_from_being_deleted(
    autojump_clock: MockClock,
) -> None:
    """Nothing is looked through again at once, but for what is new or has its time."""
    bench = Bench(5)
    first, second = bench.sealed(1, 2, 3), bench.sealed(1, 2, 3)
    purge = PurgeFragments(bench.context)
    assert bench.place(first, 2, 4)
    await bench.pass_time(70, 1, 2, 4, 5)
    assert not await purge.run_once()
    assert not bench.servers.deleted
    assert bench.place(second, 0, 4)
    bench.beat(3)
    assert await purge.run_once()
    assert bench.servers.deleted == {(3, first), (1, second)}


async def test_a_stale_fragment_is_deleted_soon_after_its_chunk_is_whole(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    bench.mark(chunk, 1, FragmentState.LOST)
    purge = PurgeFragments(bench.context)
    while await purge.run_once():
        pass
    assert not bench.servers.deleted
    bench.mark(chunk, 1, FragmentState.GOOD)
    await bench.pass_time(AGAIN_S, 1, 2, 3, 4)
    assert await purge.run_once()
    assert bench.servers.deleted == {(3, chunk)}
