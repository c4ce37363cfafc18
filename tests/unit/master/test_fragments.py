"""What is missing and what is stale: random events, with every invariant checked after each."""

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfs.core.chunk import Chunk, ChunkState, Fragment, FragmentState
from dfs.core.inode import Extent
from dfs.master import commands, fragments, invariants, job_table, keyspace
from dfs.master.commands import FragmentMark
from dfs.master.jobs.repair import _Queue as Queue
from dfs.master.state import State
from dfs.wire.messages import Commit, JobState, Unlink
from tests.unit.master.rig import ROOT, Rig

DISKS = list(range(1, 7))
LENGTH = 4096


class Events(RuleBasedStateMachine):
    """One file a chunk; disks are numbers, nobody is behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.files: dict[int, bytes] = {}
        """Name of each chunk's file."""

    @invariant()
    def holds(self) -> None:
        assert invariants.check(self.rig.store) == []

    @invariant()
    def no_stale_row_where_a_fragment_counts(self) -> None:
        for disk in DISKS:
            for number, index in fragments.doomed_on(self.rig.store, disk, 0, 1000):
                chunk = keyspace.get_chunk(self.rig.store, number)
                if index is not None and chunk is not None:
                    assert chunk.on(disk) is None

    def chunk(self, pick: int) -> Chunk:
        record = keyspace.get_chunk(self.rig.store, sorted(self.files)[pick % len(self.files)])
        assert record is not None
        return record

    @rule(lost=st.sets(st.integers(0, 2), max_size=2), disks=st.permutations(DISKS))
    def write(self, lost: set[int], disks: list[int]) -> None:
        rig = self.rig
        name = b"f%d" % len(rig.rows())
        ino = rig.create(name)
        command = commands.AllocateChunks(
            rig.tick(),
            rig.session,
            rig.next_sequence(),
            1,
            (commands.Placement(1, 2, tuple(disks[:3])),),
        )
        (chunk,) = rig.state.apply(command)
        rig.do(Commit(ino, (Extent(0, LENGTH, chunk.chunk, 0),), LENGTH))
        rig.state.apply(
            commands.SealChunk(
                rig.tick(),
                rig.session,
                rig.next_sequence(),
                chunk.chunk,
                LENGTH,
                tuple(sorted(lost)),
            )
        )
        self.files[chunk.chunk] = name

    @precondition(lambda self: self.files)
    @rule(
        pick=st.integers(0, 99), disk=st.sampled_from(DISKS), state=st.sampled_from(FragmentState)
    )
    def mark(self, pick: int, disk: int, state: FragmentState) -> None:
        mark = FragmentMark(self.chunk(pick).chunk, disk, state)
        self.rig.state.apply(commands.MarkFragments(self.rig.tick(), (mark,)))

    @precondition(lambda self: self.files)
    @rule(
        pick=st.integers(0, 99),
        index=st.integers(-1, 3),
        disk=st.sampled_from(DISKS),
        reclaim=st.booleans(),
    )
    def place(self, pick: int, index: int, disk: int, reclaim: bool) -> None:
        before = self.chunk(pick)
        number = before.chunk
        stale = self.rig.store.get(keyspace.doomed_key(disk, number))
        placed = self.rig.state.apply(
            commands.PlaceFragment(self.rig.tick(), number, index, disk, reclaim)
        )
        after = keyspace.get_chunk(self.rig.store, number)
        assert after is not None
        if placed:
            assert after.on(disk) == Fragment(index, disk)
            assert stale is None or reclaim
            assert {f.index for f in after.good} == {f.index for f in before.good} | {index}
        else:
            assert after == before

    @precondition(lambda self: self.files)
    @rule(pick=st.integers(0, 99), index=st.integers(0, 2), disk=st.sampled_from(DISKS))
    def hold_too_much(self, pick: int, index: int, disk: int) -> None:
        held = ((self.chunk(pick).chunk, index), (10**9, 0))
        self.rig.state.apply(commands.MarkStale(self.rig.tick(), disk, held))

    @rule(disk=st.sampled_from(DISKS))
    def drop(self, disk: int) -> None:
        rows = [chunk for chunk, _ in fragments.doomed_on(self.rig.store, disk, 0, 1000)]
        others = fragments.on_disk(self.rig.store, disk, 0, 1000)
        self.rig.state.apply(commands.DropFragments(self.rig.tick(), disk, (*rows, *others, 10**9)))
        kept = fragments.on_disk(self.rig.store, disk, 0, 1000)
        assert set(others) - set(rows) <= set(kept), "what counts is never dropped"

    @precondition(lambda self: self.files)
    @rule(pick=st.integers(0, 99), disk=st.sampled_from(DISKS))
    def abandon(self, pick: int, disk: int) -> None:
        self.rig.state.apply(
            commands.AbandonFragments(self.rig.tick(), disk, (self.chunk(pick).chunk,))
        )

    @precondition(lambda self: self.files)
    @rule(pick=st.integers(0, 99))
    def remove(self, pick: int) -> None:
        number = self.chunk(pick).chunk
        self.rig.do(Unlink(1, self.files.pop(number)), ROOT)
        record = keyspace.get_chunk(self.rig.store, number)
        assert record is None or record.state is ChunkState.DOOMED


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_store_of_schema_version_1_is_brought_up_to_date() -> None:
    rig = Rig()
    machine = Events()
    machine.rig = rig
    machine.write({1}, DISKS)
    whole = rig.rows()
    for key in whole:
        if key[:1] in (keyspace.WANTING, keyspace.JOB):
            rig.store.write({key: None})
    counters = keyspace.get_counters(rig.store)
    rig.store.write(
        {
            keyspace.META_SCHEMA: keyspace.u64(1),
            keyspace.META_COUNTERS: keyspace.encode(
                msgspec.structs.replace(counters, wanting=0, stale=0)
            ),
        }
    )
    state = State(rig.store)
    state.apply(commands.StartMaster(rig.tick(), skip_ids=0))
    assert invariants.check(rig.store) == []
    assert [job.kind for job in job_table.all_jobs(rig.store)] == ["repair", "scrub", "compact"]
    assert len(fragments.wanting(rig.store, 0, 10)) == 1


def test_ended_jobs_make_room_for_new_ones() -> None:
    rig = Rig()
    first = rig.state.apply(commands.StartJob(rig.tick(), "drain", "disk 1"))
    same = rig.state.apply(commands.StartJob(rig.tick(), "drain", "disk 1"))
    assert same == first
    for number in range(job_table.KEPT + 10):
        job = rig.state.apply(commands.StartJob(rig.tick(), "scrub", f"{number}"))
        assert rig.state.apply(commands.SetJobState(rig.tick(), job.job, JobState.DONE, "done"))
    assert not rig.state.apply(commands.SetJobState(rig.tick(), job.job, JobState.RUNNING))
    jobs = job_table.all_jobs(rig.store)
    assert len(jobs) <= job_table.KEPT + 4
    assert first in jobs, "what runs stays listed"


def test_repair_takes_the_most_exposed_chunk_first_and_forgets_only_the_least() -> None:
    queue = Queue(100)
    random = Random(1)
    urgent = {}
    for chunk in range(1000):
        spare = random.choice((0, 1, 2, 2, 2, 2, 2, 2, 2, 2))
        queue.add(chunk, spare, chunk)
        if spare == 0:
            urgent[chunk] = spare
    assert queue.refused
    assert len(queue) <= 100
    order = []
    while (popped := queue.pop()) is not None:
        order.append(popped)
    assert set(order[:50]) <= set(urgent)
    queue.add(1, 2, 1)
    queue.add(2, 1, 2)
    assert not queue.add(1, 2, 1)
    queue.add(1, 0, 1)  # a second disk failed
    assert [queue.pop(), queue.pop(), queue.pop()] == [1, 2, None]
