"""What happens to fragments at the same time: no order of events costs one that is needed."""

import math
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dfs.core.chunk import DiskState, FragmentState
from dfs.core.errors import FileSystemError, FragmentError, NoSpaceError, UnavailableError
from dfs.master import job_table
from dfs.master.commands import CompleteRestore, ForgetDisks, MarkStale, StartJob
from dfs.master.jobs.board import SAVE_EVERY_S, JobBoard, RunningJob
from dfs.master.jobs.drain import Drain
from dfs.master.jobs.membership import DiskKeeper
from dfs.master.jobs.mover import NO_ROOM_S, Mover
from dfs.master.jobs.purge import PurgeFragments
from dfs.master.jobs.rebalance import Fills, _Move, _Pass
from dfs.master.jobs.repair import Repair
from dfs.master.jobs.rewriter import Portion, Rewriter
from dfs.master.keyspace import get_counters, get_policy
from dfs.master.server_service import REPORT_AFTER_S
from dfs.wire.messages import (
    DeleteFragments,
    DiskReport,
    Heartbeat,
    HeldFragment,
    JobState,
    PlanReply,
    RebuildFragment,
    RegisterServer,
    RewritePart,
    RewrittenChunk,
)
from dfs.wire.messages import StartJob as StartRequest
from tests.unit.master.bench import LENGTH, PEER, Bench, for_a_while, job, report, service

# ------------------------------------------------------------------ a fragment in another's place


async def test_no_fragment_is_made_where_another_one_counts_by_now(
    autojump_clock: MockClock,
) -> None:
    """Its server would put it in the place of that one."""
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    seen = bench.chunk(chunk)
    assert bench.place(chunk, 2, 4)
    with pytest.raises(FragmentError):
        await Mover(bench.context).make(seen, 1, 4)
    assert not bench.servers.rebuilds


async def test_no_fragment_is_made_where_a_stale_one_is_about_to_be_deleted(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    mover = Mover(bench.context)
    with pytest.raises(FragmentError):
        await mover.make(bench.chunk(chunk), 1, 3)
    assert not bench.servers.rebuilds
    assert mover.elsewhere(bench.chunk(chunk), (1, 4)) == 0


async def test_a_planned_move_is_given_up_where_its_target_has_got_another_fragment(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    running = job("rebalance")
    fills = Fills(bench.liveness.server_infos())
    work = _Pass(bench.context, Mover(bench.context), running, fills)
    move = _Move(chunk, 1, 2, 4, LENGTH)
    work._book(move, LENGTH)
    used = fills.by_disk[4].used
    assert bench.place(chunk, 2, 4)
    limit = trio.CapacityLimiter(1)
    await limit.acquire_on_behalf_of(move)
    await work._carry_out(move, limit, move)
    assert not bench.servers.rebuilds
    assert fills.by_disk[4].used == used - LENGTH


async def test_what_a_disk_holds_of_a_chunk_that_is_being_moved_is_adopted_later(
    autojump_clock: MockClock,
) -> None:
    """The disk may be getting another fragment, in the place of the one that it reports."""
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    bench.mark(chunk, 3, FragmentState.LOST)
    bench.reports.want((4,))
    assert bench.ask(4)
    with bench.claims.chunk(chunk):
        await report(bench, 4, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(4) is None
    assert not bench.ask(4)
    await trio.sleep(REPORT_AFTER_S)
    assert bench.ask(4)
    await report(bench, 4, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(4) is not None


# ------------------------------------------------------------------ deletion


async def test_a_stale_fragment_that_was_taken_back_meanwhile_is_not_deleted(
    autojump_clock: MockClock,
) -> None:
    """Its turn comes late, behind disks that hang."""
    bench = Bench(12)
    chunks = {disk: bench.sealed(10, 11, 12) for disk in range(1, 10)}
    for disk, chunk in chunks.items():
        bench.journal.append(MarkStale(bench.rig.tick(), disk, ((chunk, 0),)))
    go_on = trio.Event()

    async def hang(_: object) -> None:
        await go_on.wait()

    bench.servers.script = hang

    async def take_back() -> None:
        await trio.testing.wait_all_tasks_blocked()
        waiting = chunks.keys() - {disk for disk, _ in bench.servers.deleted}
        assert len(waiting) == 1
        (disk,) = waiting
        assert bench.place(chunks[disk], 0, disk, reclaim=True)
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (disk, chunks[disk]) not in bench.servers.deleted

    async with trio.open_nursery() as nursery:
        nursery.start_soon(PurgeFragments(bench.context).run_once)
        nursery.start_soon(take_back)


async def test_a_master_that_has_just_begun_deletes_nothing_that_may_be_needed(
    autojump_clock: MockClock,
) -> None:
    """It cannot know yet who of the others is alive."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    bench.restart()
    bench.beat(3)
    await PurgeFragments(bench.context).run_once()
    assert not bench.servers.deleted
    bench.beat(1, 2, 3, 4)
    await PurgeFragments(bench.context).run_once()
    assert bench.servers.deleted == {(3, chunk)}


async def test_no_stale_fragment_goes_where_a_disk_died_while_the_log_was_synced(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    synced = bench.journal.sync

    async def slowly() -> None:
        await synced()
        await bench.pass_time(10, 1, 2, 3)

    bench.journal.sync = slowly  # type: ignore[method-assign]
    await PurgeFragments(bench.context).run_once()
    assert not bench.servers.deleted


async def test_a_list_from_before_a_deletion_brings_nothing_back(autojump_clock: MockClock) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    bench.reports.want((3,))
    assert bench.ask(3)
    await PurgeFragments(bench.context).run_once()
    assert bench.servers.deleted == {(3, chunk)}
    await bench.pass_time(10, 1, 2, 3)
    await report(bench, 3, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(3) is None
    assert bench.chunk(chunk).on(4) is not None


async def test_a_list_from_before_the_end_of_a_deletion_brings_nothing_back(
    autojump_clock: MockClock,
) -> None:
    """The disk was asked while it was deleting; then the disk that has the successor dies."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    assert bench.place(chunk, 2, 4)
    go_on = trio.Event()

    async def hang(_: object) -> None:
        bench.reports.want((3,))
        assert bench.ask(3)
        await go_on.wait()

    bench.servers.script = hang
    async with trio.open_nursery() as nursery:
        nursery.start_soon(PurgeFragments(bench.context).run_once)
        await bench.pass_time(10, 1, 2, 3)
        go_on.set()
    assert bench.servers.deleted == {(3, chunk)}
    await report(bench, 3, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(3) is None


async def test_a_list_from_before_a_server_was_away_says_nothing(
    autojump_clock: MockClock,
) -> None:
    """It goes on with it when it is back; what was written meanwhile is not in it."""
    bench = Bench(4)
    bench.reports.want((1,))
    assert bench.ask(1)
    old = bench.reports.question(1)
    chunk = bench.sealed(1, 2, 3)
    bench.reports.note_changed(chunk)
    await bench.pass_time(70, 2, 3, 4)
    service(bench).note_down(1)
    bench.beat(1)
    bench.reports.want((1,))
    assert bench.ask(1)
    await report(bench, 1, question=old)
    assert len(bench.chunk(chunk).good) == 3
    await report(bench, 1, question=bench.reports.question(1))
    assert len(bench.chunk(chunk).good) == 2
    assert not bench.ask(1)


@pytest.mark.allow_logs("bad fragments")
async def test_a_list_from_before_a_fragment_was_found_lost_does_not_bring_it_back(
    autojump_clock: MockClock,
) -> None:
    """A scrub asks for the lists, and finds what its servers have not noticed yet."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    bench.reports.want((3,))
    assert bench.ask(3)
    Mover(bench.context).note_bad(chunk, [(3, 2, "missing")])
    await report(bench, 3, HeldFragment(chunk, 2, LENGTH, True))
    assert len(bench.chunk(chunk).good) == 2
    # It is there after all, as a newer list says.
    await trio.sleep(REPORT_AFTER_S)
    assert bench.ask(3)
    await report(bench, 3, HeldFragment(chunk, 2, LENGTH, True))
    assert len(bench.chunk(chunk).good) == 3


async def test_what_is_known_to_be_damaged_is_never_taken_back(autojump_clock: MockClock) -> None:
    """Its good successor would be deleted as soon as it is back."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    bench.mark(chunk, 3, FragmentState.CORRUPT)
    assert bench.place(chunk, 2, 4)
    await bench.pass_time(10, 1, 2, 3)
    await report(bench, 3, HeldFragment(chunk, 2, LENGTH, True))
    assert bench.chunk(chunk).on(4) is not None
    assert bench.chunk(chunk).on(3) is None
    bench.beat(1, 2, 3, 4)
    await PurgeFragments(bench.context).run_once()
    assert bench.servers.deleted == {(3, chunk)}
    assert get_counters(bench.rig.store).stale == 0
    bench.rig.check()


async def test_a_restored_master_has_no_fragment_put_in_the_place_of_another(
    autojump_clock: MockClock,
) -> None:
    """The backup says that the disk has index 2; since then it was given index 1."""
    bench = Bench(5)
    chunk = bench.sealed(1, 2, 3)
    bench.mark(chunk, 3, FragmentState.LOST)
    mover = Mover(bench.context)
    assert mover.target(bench.chunk(chunk), 2) == 3
    bench.journal.append(CompleteRestore(bench.rig.tick(), 1, 0, 1, 0))
    disk = mover.target(bench.chunk(chunk), 2)
    assert disk in (4, 5)
    await mover.make(bench.chunk(chunk), 2, disk)
    assert [request.keep for request in bench.servers.rebuilds] == [True]


# ------------------------------------------------------------------ written anew


@pytest.mark.allow_logs("bad fragments")
async def test_a_new_chunk_is_not_less_safe_than_the_safest_that_it_is_made_of(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(6)
    safe, weak = bench.sealed(1, 2, 3), bench.sealed(1, 2, 3)
    for disk in (2, 3):
        bench.mark(weak, disk, FragmentState.LOST)
    policy = get_policy(bench.rig.store, 1)
    assert policy is not None

    async def write_two_of_three(request: Any) -> RewrittenChunk:
        length = sum(part.length for source in request.contents for part in source.parts)
        return RewrittenChunk(length, (2,), LENGTH, ())

    bench.servers.script = write_two_of_three
    rewriter = Rewriter(bench.context, Mover(bench.context))
    whole = (RewritePart(0, LENGTH),)
    with pytest.raises(UnavailableError):
        await rewriter.rewrite(
            [Portion(bench.chunk(weak), whole), Portion(bench.chunk(safe), whole)], policy
        )
    assert bench.chunk(safe).live == bench.chunk(weak).live == LENGTH
    await rewriter.rewrite([Portion(bench.chunk(weak), whole)], policy)
    assert not bench.chunk(weak).live


# ------------------------------------------------------------------ jobs that wait


async def test_a_drain_that_waits_keeps_repair_from_nothing(autojump_clock: MockClock) -> None:
    bench = Bench(6)
    for _ in range(8):
        bench.sealed(1, 2, 3)
    drain = Drain(bench.context, Mover(bench.context))
    running = job("drain", disks=(1,), bandwidth=1)
    held: list[int] = []

    async def look() -> None:
        await trio.sleep(10)
        held.append(len(bench.claims.moving))

    await for_a_while(20, lambda: drain.run(running), look)
    assert held == [0]
    assert len(bench.servers.rebuilds) == 1


async def test_repair_that_waits_keeps_nobody_from_a_chunk(autojump_clock: MockClock) -> None:
    bench = Bench(6)
    for _ in range(8):
        bench.mark(bench.sealed(1, 2, 3), 3, FragmentState.LOST)
    held: list[int] = []

    async def look() -> None:
        await trio.sleep(10)
        held.append(len(bench.claims.moving))

    repair = Repair(bench.context, Mover(bench.context))
    await for_a_while(20, lambda: repair.run(job("repair", bandwidth=1)), look)
    assert held == [0]
    assert len(bench.servers.rebuilds) == 1


async def test_one_chunk_that_takes_long_keeps_no_other_from_repair(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(6)
    slow, quick = bench.sealed(1, 2, 3), bench.sealed(1, 2, 3)
    bench.mark(slow, 3, FragmentState.LOST)

    async def script(request: object) -> None:
        assert isinstance(request, RebuildFragment | DeleteFragments)
        if isinstance(request, RebuildFragment) and request.chunk == slow:
            await trio.sleep(math.inf)

    async def damage() -> None:
        await trio.sleep(20)
        bench.mark(quick, 2, FragmentState.CORRUPT)

    bench.servers.script = script
    repair = Repair(bench.context, Mover(bench.context))
    await for_a_while(40, lambda: repair.run(job("repair")), damage)
    assert [request.chunk for request in bench.servers.rebuilds] == [slow, quick]


async def test_a_chunk_that_can_lose_nothing_more_is_urgent(autojump_clock: MockClock) -> None:
    bench = Bench(6)
    hurt, exposed = bench.sealed(1, 2, 3), bench.sealed(1, 2, 3)
    bench.mark(hurt, 3, FragmentState.LOST)
    for disk in (2, 3):
        bench.mark(exposed, disk, FragmentState.LOST)
    repair = Repair(bench.context, Mover(bench.context))
    await for_a_while(20, lambda: repair.run(job("repair")))
    asked = [(request.chunk, request.urgent) for request in bench.servers.rebuilds]
    # With the first of its two made, the next loss takes nothing any more.
    assert sorted(asked) == [(hurt, False), (exposed, False), (exposed, True)]


@pytest.mark.parametrize("dead", [1, 3])
async def test_a_fragment_without_a_place_keeps_no_other_from_repair(
    autojump_clock: MockClock, dead: int
) -> None:
    """Whichever of the two comes first: as many servers as fragments, and one is dead for good."""
    bench = Bench(3)
    chunk = bench.sealed(1, 2, 3)
    hurt = 4 - dead
    alive = (2, hurt)
    await bench.pass_time(70, *alive)
    bench.mark(chunk, hurt, FragmentState.LOST)
    repair = Repair(bench.context, Mover(bench.context))
    await for_a_while(20, lambda: repair.run(job("repair")), lambda: bench.pass_time(20, *alive))
    assert [request.disk for request in bench.servers.rebuilds] == [hurt]
    assert {fragment.disk for fragment in bench.chunk(chunk).good} == {1, 2, 3}


@pytest.mark.parametrize("state", [FragmentState.LOST, FragmentState.CORRUPT])
async def test_repair_mends_a_fragment_where_it_is_although_all_disks_are_full(
    autojump_clock: MockClock, state: FragmentState
) -> None:
    """Chunk servers keep a reserve for that."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    bench.full = {1, 2, 3, 4}
    bench.beat(1, 2, 3, 4)
    bench.mark(chunk, 3, state)
    mover = Mover(bench.context)
    assert mover.target(bench.chunk(chunk), 2) == 3
    # A disk with room is better.
    bench.full = {1, 2, 3}
    bench.beat(4)
    assert mover.target(bench.chunk(chunk), 2) == 4
    # What is full takes nothing that need not be there.
    bench.full = {1, 2, 3, 4}
    bench.beat(4)
    assert mover.elsewhere(bench.chunk(chunk), (1, 2)) == 0


async def test_repair_uses_the_reserve_of_another_disk_until_that_is_used_up(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)
    bench.full = {1, 2, 3, 4}
    await bench.pass_time(70, 1, 2, 4)
    mover = Mover(bench.context)
    assert mover.target(bench.chunk(chunk), 2) == 4

    async def refuse(request: object) -> None:
        if isinstance(request, RebuildFragment):
            raise NoSpaceError("the disk is full")

    bench.servers.script = refuse
    with pytest.raises(NoSpaceError):
        await mover.make(bench.chunk(chunk), 2, 4)
    assert mover.target(bench.chunk(chunk), 2) == 0
    await bench.pass_time(NO_ROOM_S + 1, 1, 2, 4)
    assert mover.target(bench.chunk(chunk), 2) == 4


class Endless:
    """A kind of job that moves one thing and never ends."""

    name = "drain"

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        raise NotImplementedError

    async def run(self, job: RunningJob) -> str:
        job.moved(1, LENGTH)
        await trio.sleep_forever()
        return ""


@pytest.mark.allow_logs("not written down: no space left")
async def test_a_full_disk_of_the_master_ends_no_job(autojump_clock: MockClock) -> None:
    """Progress that cannot be written down is written down later."""
    bench = Bench(4)
    board = JobBoard(bench.context, {"drain": Endless()})
    command = StartJob(bench.rig.tick(), "drain", "disk 1", disks=(1,))
    number = bench.journal.append(command).job
    append = bench.journal.append

    def refuse(command: Any) -> Any:
        raise NoSpaceError("no space left")

    async def fill() -> None:
        bench.journal.append = refuse  # type: ignore[method-assign]
        await trio.sleep(2 * SAVE_EVERY_S)
        with pytest.raises(NoSpaceError):
            board.control(number, "cancel")
        assert board.info(number).state is JobState.RUNNING
        bench.journal.append = append  # type: ignore[method-assign]

    await for_a_while(4 * SAVE_EVERY_S, board.run, fill)
    saved = job_table.get_job(bench.rig.store, number)
    assert saved is not None
    assert saved.items_done == 1


# ------------------------------------------------------------------ removal


async def test_a_fragment_that_was_made_on_a_disk_removed_meanwhile_does_not_count(
    autojump_clock: MockClock,
) -> None:
    """Nobody would ever miss it: there is no such disk."""
    bench = Bench(4)
    chunk = bench.sealed(1, 2, 3)

    async def remove(_: object) -> None:
        bench.journal.append(ForgetDisks(bench.rig.tick(), (4,)))
        bench.liveness.forget((4,))

    bench.servers.script = remove
    with pytest.raises(FragmentError):
        await Mover(bench.context).make(bench.chunk(chunk), 2, 4)
    assert bench.chunk(chunk).on(3) is not None


async def test_a_dead_disk_is_not_removed_while_the_others_are_silent(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(4)
    bench.sealed(1, 2, 3)
    await bench.pass_time(70, 2, 3, 4)
    await bench.pass_time(5, 4)
    keeper = DiskKeeper(bench.context, JobBoard(bench.context, {}))
    with pytest.raises(FileSystemError, match="would lose files"):
        await keeper.remove(0, (1,))
    await bench.pass_time(5, 2, 3, 4)
    await keeper.remove(0, (1,))


async def test_a_server_goes_on_with_its_other_disks_when_one_is_removed(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(0)
    answers = service(bench)
    disks = tuple(DiskReport(f"d{n}", f"/d{n}", 9 << 30, 0, 9 << 30, 0, False, "") for n in (1, 2))
    request = RegisterServer("s1", "10.0.0.1:9421", "", "", "0.1", "", disks)
    first = await answers.register(PEER, request, memoryview(b""))
    bench.journal.append(ForgetDisks(bench.rig.tick(), (first.disks[1],)))
    bench.liveness.forget((first.disks[1],))
    beat = Heartbeat(first.server, disks)
    assert not answers.heartbeat(PEER, beat, memoryview(b"")).known
    again = await answers.register(PEER, request, memoryview(b""))
    assert again.disks == (first.disks[0], 0)
    assert answers.heartbeat(PEER, beat, memoryview(b"")).known
    assert bench.liveness.state(first.disks[0]) is DiskState.UP
