"""The state machine as a whole: format, determinism, atomic writes; and the journal over it."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
import trio.testing
from outcome import Outcome, Value, capture

from dfs.core.errors import ConfigError, NoSpaceError
from dfs.core.ids import ROOT_INODE
from dfs.master import commands, invariants, keyspace
from dfs.master.commands import AnyCommand
from dfs.master.journal import LocalJournal
from dfs.master.state import State
from dfs.master.store import MemoryStore, RocksStore
from dfs.wire.messages import Create, Rename, Unlink
from tests.unit.master.rig import ROOT, Rig

TOP = ROOT_INODE


def test_format_makes_a_root_and_happens_once() -> None:
    state = State(MemoryStore())
    assert not state.formatted
    assert state.cluster == ""
    state.apply(commands.Format(5, "some-uuid", 3, 4))
    assert state.formatted
    assert state.cluster == "some-uuid"
    root = keyspace.get_inode(state.store, ROOT_INODE)
    assert root is not None
    assert (root.mode, root.uid, root.gid, root.parent, root.nlink) == (0o40755, 3, 4, 1, 2)
    assert invariants.check(state.store) == []
    with pytest.raises(ConfigError, match="formatted already"):
        state.apply(commands.Format(5, "other"))


def test_a_starting_master_skips_ids_that_a_power_cut_may_have_forgotten() -> None:
    rig = Rig()
    ino, chunk = rig.create(b"a"), rig.chunk()
    rig.state.apply(commands.StartMaster(rig.tick(), 1000))
    assert rig.create(b"b") > ino + 1000
    assert rig.chunk() > chunk + 1000
    assert rig.open_session() > rig.session + 1000
    rig.check()


def test_the_same_commands_give_the_same_bytes_in_every_store(tmp_path: Path) -> None:
    log: list[AnyCommand] = [
        commands.Format(1, "u"),
        commands.OpenSession(2, "c", 7),
        commands.AllocateChunks(3, 1, 1, 1, (commands.Placement(1, 1, (1, 2)),)),
    ]
    random = Random(7)
    for number in range(300):
        name, other = b"%d" % random.randrange(30), b"%d" % random.randrange(30)
        op = random.choice(
            (Create(TOP, name, 0o644), Unlink(TOP, name), Rename(TOP, name, TOP, other))
        )
        log.append(commands.ApplyOps(number, 1, 2 + number, ROOT, (op,)))
    log.append(commands.ExpireSession(999, 1))
    rocks = RocksStore(tmp_path / "db")
    stores = (MemoryStore(), rocks)
    for store in stores:
        state = State(store)
        for command in log:
            copy = msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=AnyCommand)
            assert copy == command, "a command survives being logged"
            state.apply(copy)
    one, two = (dict(store.scan(b"\0", b"\xff")) for store in stores)
    assert one == two
    rocks.close()


class FullStore(MemoryStore):
    """Its disk is full from a certain write on."""

    full = False

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        if self.full:
            raise NoSpaceError("no space left")
        super().write(changes)


def test_a_command_that_cannot_be_written_has_no_effect() -> None:
    store = FullStore()
    rig = Rig(store)
    before = rig.rows()
    store.full = True
    with pytest.raises(NoSpaceError):
        rig.create(b"f")
    assert rig.rows() == before
    store.full = False
    rig.create(b"f")
    rig.check()


def test_a_retry_writes_nothing() -> None:
    store = FullStore()
    rig = Rig(store)
    command = commands.ApplyOps(5, rig.session, 1, ROOT, (Create(TOP, b"f", 0o644),))
    reply = rig.state.apply(command)
    store.full = True
    assert rig.state.apply(command) == reply


# ------------------------------------------------------------------ journal


class SlowWorkers:
    """Runs each call when the test lets it."""

    free = True

    def __init__(self) -> None:
        self.started = 0
        self.calls: deque[Callable[[], None]] = deque()

    def start(
        self,
        wake: Callable[[Outcome[object]], None],
        function: Callable[..., object],
        *args: object,
    ) -> None:
        self.started += 1
        self.calls.append(lambda: wake(capture(function, *args)))

    def finish_one(self) -> None:
        self.calls.popleft()()


class CountingStore(MemoryStore):
    syncs = 0
    broken = False

    def sync(self) -> None:
        if self.broken:
            raise NoSpaceError("the disk is full")
        self.syncs += 1


class Bench:
    def __init__(self) -> None:
        self.store = CountingStore()
        self.rig = Rig(self.store)
        self.workers = SlowWorkers()
        self.journal = LocalJournal(self.rig.state, self.workers)  # type: ignore[arg-type]
        self.names = 0

    def change(self) -> None:
        self.names += 1
        op = Create(TOP, b"%d" % self.names, 0o644)
        self.journal.append(commands.ApplyOps(5, self.rig.session, self.names, ROOT, (op,)))


async def test_append_returns_the_result() -> None:
    bench = Bench()
    record = bench.journal.append(commands.OpenSession(1, "c", 5))
    assert record.client == "c"


async def test_sync_without_changes_does_not_flush() -> None:
    bench = Bench()
    await bench.journal.sync()
    assert bench.workers.started == 0


async def test_all_who_wait_share_a_flush_that_began_after_they_asked() -> None:
    bench = Bench()
    done: list[str] = []

    async def sync(name: str) -> None:
        await bench.journal.sync()
        done.append(name)

    async with trio.open_nursery() as nursery:
        bench.change()
        nursery.start_soon(sync, "first")
        await trio.testing.wait_all_tasks_blocked()
        bench.change()
        for name in ("second", "third"):
            nursery.start_soon(sync, name)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.workers.started == 1
        bench.workers.finish_one()
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["first"], "the flush began before the second change"
        bench.workers.finish_one()
    assert sorted(done) == ["first", "second", "third"]
    assert bench.store.syncs == bench.workers.started == 2


async def test_who_waits_for_a_flush_may_be_cancelled_and_the_others_go_on() -> None:
    bench = Bench()
    bench.change()
    async with trio.open_nursery() as nursery:
        leader = trio.CancelScope()

        async def lead() -> None:
            with leader:
                await bench.journal.sync()

        nursery.start_soon(lead)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(bench.journal.sync)
        await trio.testing.wait_all_tasks_blocked()
        leader.cancel()
        await trio.testing.wait_all_tasks_blocked()
        bench.workers.finish_one()
    assert bench.store.syncs == bench.workers.started == 1


async def test_a_flush_is_told_of_without_a_task_that_waits() -> None:
    bench = Bench()
    told: list[object] = []
    bench.journal.when_synced(told.append)
    assert told == [Value(None)], "there was nothing to flush"
    bench.change()
    bench.journal.when_synced(told.append)
    bench.change()
    bench.journal.when_synced(told.append)
    assert len(told) == 1
    bench.workers.finish_one()
    assert len(told) == 2, "the second change came after the flush began"
    bench.workers.finish_one()
    assert told == [Value(None)] * 3


async def test_a_failed_flush_is_everyones_error_and_is_tried_again() -> None:
    bench = Bench()
    bench.change()
    bench.store.broken = True
    failed: list[str] = []

    async def sync() -> None:
        try:
            await bench.journal.sync()
        except NoSpaceError as error:
            failed.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync)
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked()
        bench.workers.finish_one()
    assert failed == ["the disk is full"] * 2
    bench.store.broken = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.journal.sync)
        await trio.testing.wait_all_tasks_blocked()
        bench.workers.finish_one()
    assert bench.store.syncs == 1
