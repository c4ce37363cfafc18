"""One disk: who may use it, what it holds, how it fails, and its fragments under concurrency."""

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from outcome import Outcome, capture

from dfs.chunkserver import fragment as fragments
from dfs.chunkserver import identity as identities
from dfs.chunkserver.disk import Cache, Disk
from dfs.chunkserver.fragment_file import FragmentFile, Reached
from dfs.chunkserver.fragment_format import FragmentHeader
from dfs.chunkserver.identity import Identity, load, save
from dfs.chunkserver.room import Reserve, Room
from dfs.chunkserver.threads import DiskThreads, DiskWorkers
from dfs.chunkserver.watch import watch
from dfs.core.errors import (
    BusyError,
    ConfigError,
    CorruptError,
    DiskError,
    FragmentError,
    NoSpaceError,
)
from dfs.wire.messages import FragmentStatus, HeldFragment
from tests.unit.chunkserver.sample import CLUSTER, CODED, batch, encode, header

T = TypeVar("T")

NO_RESERVE = Reserve(0.0, 0, 0)
FRESH = Identity(
    disk="0d15c000-0000-4000-8000-000000000001", server="5e44e400-0000-4000-8000-000000000001"
)


@asynccontextmanager
async def opened(
    path: Path,
    *,
    workers: DiskWorkers | None = None,
    capacity: int | None = None,
    reserve: Reserve = NO_RESERVE,
    cache: Cache | None = None,
    number: int = 3,
) -> AsyncIterator[Disk]:
    disk = await Disk.open(
        str(path),
        fresh=FRESH,
        workers=workers or DiskThreads(),
        room=Room(str(path), capacity_bytes=capacity, reserve=reserve),
        cache=cache,
    )
    try:
        await disk.join(
            cluster=str(CLUSTER), disk_number=number, server=FRESH.server, server_number=2
        )
        yield disk
    finally:
        disk.close()


class Inline:
    """Runs blocking calls where they are called: for tests on a clock of their own."""

    free = True

    async def run(self, function: Callable[..., T], *args: object) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    async def run_abandonable(self, function: Callable[..., T], *args: object) -> T:
        return await self.run(function, *args)

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        wake(capture(function, *args))


class CountingThreads(DiskThreads):
    """Threads that remember what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def run(self, function: Callable[..., T], *args: object) -> T:
        self.calls.append(function.__name__)
        return await super().run(function, *args)

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        self.calls.append(function.__name__)
        super().start(wake, function, *args)


async def store(
    disk: Disk, lengths: list[int], of: FragmentHeader | None = None, *, seal: bool = False
) -> FragmentHeader:
    of = of or header()
    await disk.append(of, batch(encode(lengths, of=of)))
    if seal:
        await disk.seal(of.chunk, sum(lengths))
    return of


async def status(disk: Disk, chunk: int) -> FragmentStatus:
    fragment = await disk.fragment(chunk)
    try:
        return fragment.file.status()
    finally:
        fragment.unpin()


def files(path: Path) -> list[Path]:
    return sorted(each for each in (path / "fragments").rglob("*") if each.is_file())


# ------------------------------------------------------------------ identity and lock


async def test_a_fresh_directory_becomes_a_disk_and_keeps_its_identity(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "disk") as disk:
        assert disk.identity.disk == FRESH.disk
    other = Identity(disk="0d15c000-0000-4000-8000-00000000000f", server=FRESH.server)
    again = await Disk.open(
        str(tmp_path / "deep" / "disk"),
        fresh=other,
        workers=DiskThreads(),
        room=Room(str(tmp_path), capacity_bytes=None, reserve=NO_RESERVE),
    )
    assert again.identity.disk == FRESH.disk
    assert (again.identity.cluster, again.number) == (str(CLUSTER), 3)
    again.close()


def test_the_identity_file_has_the_bytes_of_the_format_page(tmp_path: Path) -> None:
    identity = Identity(
        disk=FRESH.disk, server=FRESH.server, cluster=str(CLUSTER), disk_number=3, server_number=2
    )
    (tmp_path / "fragments").mkdir()
    save(tmp_path, identity)
    golden = (
        "{\n"
        '  "format": 1,\n'
        '  "disk": "0d15c000-0000-4000-8000-000000000001",\n'
        '  "server": "5e44e400-0000-4000-8000-000000000001",\n'
        '  "cluster": "11111111-2222-4333-8444-555555555555",\n'
        '  "disk_number": 3,\n'
        '  "server_number": 2\n'
        "}\n"
    )
    assert (tmp_path / "disk.json").read_text() == golden
    assert load(tmp_path) == identity
    assert sorted(os.listdir(tmp_path)) == ["disk.json", "fragments"]


async def test_two_processes_cannot_use_one_disk(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(ConfigError, match=rf"in use by another process \(pid {os.getpid()}\)"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        pass


async def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is no dfs disk: .* holds 'thesis.txt'"):
        async with opened(tmp_path):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "x"


async def test_fragments_without_an_identity_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
    for spoil in (lambda: os.truncate(tmp_path / "disk.json", 0), (tmp_path / "disk.json").unlink):
        spoil()
        with pytest.raises(ConfigError, match=r"holds fragments but no disk\.json"):
            async with opened(tmp_path):
                pass


async def test_a_first_start_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "disk.json").touch()
    (tmp_path / "disk.json.new").touch()
    (tmp_path / "fragments" / "00").mkdir(parents=True)
    async with opened(tmp_path) as disk:
        await store(disk, [10])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "disk": "x", "server": "y"}', "damaged"),
        (
            '{"format": 2, "disk": "0d15c000-0000-4000-8000-000000000001", '
            '"server": "0d15c000-0000-4000-8000-000000000001"}',
            "has format 2; this program knows 1",
        ),
    ],
)
async def test_an_identity_that_cannot_be_understood_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "disk.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        async with opened(tmp_path):
            pass


async def test_a_disk_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        with pytest.raises(ConfigError, match=f"belongs to cluster {CLUSTER}, not to other"):
            await disk.join(cluster="other", disk_number=1, server=FRESH.server, server_number=1)


async def test_a_directory_that_does_not_work_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="does not work: Not a directory"):
        async with opened(tmp_path / "file" / "disk"):
            pass


# ------------------------------------------------------------------ appending


async def test_concurrent_appends_in_any_order_are_stored_in_order(tmp_path: Path) -> None:
    lengths = [1000 + number for number in range(40)]
    records = encode(lengths)
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        async with trio.open_nursery() as nursery:
            for number in reversed(range(40)):
                nursery.start_soon(disk.append, header(), batch([records[number]], number))
        assert (await status(disk, 7)).next_block == 40
        assert threads.calls.count("append") < 20  # many in one go


async def test_an_append_is_answered_when_the_one_before_it_took_it_along(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    records = encode([10, 20, 30])
    async with opened(tmp_path, workers=Inline()) as disk:
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in (2, 1):
                nursery.start_soon(disk.append, header(), batch([records[number]], number))
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(disk.append, header(), batch([records[0]], 0))
        assert trio.current_time() == begun


async def begin(
    disk: Disk, lengths: list[int], first: int, *, sync: bool = False, place: tuple[int, ...] = ()
) -> Reached | None:
    """What became of an append of the last blocks of `lengths`, from `first` on; None: not begun.

    Raises what it was refused with.
    """
    told: list[Outcome[Reached]] = []
    event = trio.Event()

    def wake(outcome: Outcome[Reached]) -> None:
        told.append(outcome)
        event.set()

    index, k, m = place or (0, 1, 2)
    records = batch(encode(lengths)[first:], first)
    if not disk.begin_append(7, (index, k, m), records, wake, sync=sync):
        return None
    with trio.fail_after(10):
        await event.wait()
    return told[0].unwrap()


async def test_an_append_that_waits_for_nobody_needs_no_task(tmp_path: Path) -> None:
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        assert await begin(disk, [10], 0) is None, "the fragment is not in use"
        await store(disk, [10])
        fragment = await disk.fragment(7)
        assert await begin(disk, [10, 20], 1) == Reached(2, 30)
        await disk.sync({7: 30})
        assert threads.calls.count("sync") == 1
        assert await begin(disk, [10, 20, 30], 2, sync=True) == Reached(3, 60)
        await disk.sync({7: 60})
        assert threads.calls.count("sync") == 1, "it has been synced along with the append"
        # A repeat is compared, and is the same.
        assert await begin(disk, [10, 20, 30], 1) == Reached(3, 60)
        assert await begin(disk, [10, 20, 30, 40, 50], 4) is None, "one belongs before it"
        assert await begin(disk, [10, 20, 30, 40], 3, place=(1, 1, 2)) is None
        assert await begin(disk, [10, 20, 30, 40], 3, place=(0, 1, 1)) is None
        async with fragment.order:
            assert await begin(disk, [10, 20, 30, 40], 3) is None, "somebody changes the file"
        with pytest.raises(FragmentError, match="stored already, with other bytes"):
            await begin(disk, [10, 20, 29], 1)
        assert disk.report().used == files(tmp_path)[0].stat().st_size
        fragment.unpin()
        assert fragment.pins == 0


@pytest.mark.allow_logs("is short: its file has 5 bytes|has failed: Input/output error")
async def test_an_append_without_a_task_meets_the_same_troubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
        os.truncate(files(tmp_path)[0], 5)
        with pytest.raises(FragmentError, match="is short"):
            await begin(disk, [10, 20], 1)
        assert await begin(disk, [10, 20], 1) is None, "the file is looked at again"
    for path in files(tmp_path):
        path.unlink()
    async with opened(tmp_path, capacity=1000) as disk:
        await store(disk, [10])
        with pytest.raises(NoSpaceError, match="its capacity is set to 1000 bytes"):
            await begin(disk, [10, 2000], 1)
        monkeypatch.setattr(os, "fdatasync", fail_to_sync)
        with pytest.raises(DiskError, match="Input/output error"):
            await begin(disk, [10, 20], 1, sync=True)
        assert disk.report().failed
        with pytest.raises(DiskError, match="has failed"):
            await begin(disk, [10, 20, 30], 2)


@pytest.mark.allow_logs("Input/output error")
async def test_a_closer_look_that_fails_as_well_leaves_the_append_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(file: FragmentFile, end: int) -> None:
        raise OSError(errno.EIO, "the file system was shut down")

    async with opened(tmp_path) as disk:
        await store(disk, [10])
        fragment = await disk.fragment(7)
        await disk.seal(7, 10)
        monkeypatch.setattr(FragmentFile, "check_present", look)
        with pytest.raises(FragmentError, match="sealed"):
            await begin(disk, [10, 20], 1)
        assert fragment.pins == 1, "ours"
        fragment.unpin()


def fail_to_sync(fd: int) -> None:
    raise OSError(errno.EIO, "no such sector")


async def test_an_append_whose_predecessor_never_comes_is_refused_in_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    records = encode([10, 20, 30])
    async with opened(tmp_path, workers=Inline()) as disk:
        await disk.append(header(), batch(records[:1]))
        begun = trio.current_time()
        with pytest.raises(FragmentError, match="block 2 was sent, the next is 1"):
            await disk.append(header(), batch(records[2:], 2))
        assert trio.current_time() - begun == pytest.approx(fragments.GAP_WAIT_S)
        await disk.append(header(), batch(records[1:], 1))


async def test_an_append_to_nothing_leaves_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, workers=Inline()) as disk:
        with pytest.raises(FragmentError, match="block 1 was sent, the next is 0"):
            await disk.append(header(), batch(encode([10, 20])[1:], 1))
        with pytest.raises(FragmentError, match="holds no fragment of chunk 7: it is missing"):
            await disk.fragment(7)
        assert disk.room.used_bytes == 0
        assert len(disk.catalog) == 0


async def test_one_bad_append_does_not_harm_the_others(tmp_path: Path) -> None:
    records = encode([10, 20, 30])
    broken = records[1][:-1] + bytes([records[1][-1] ^ 1])
    async with opened(tmp_path) as disk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.append, header(), batch(records[:1]))
            with pytest.raises(CorruptError):
                await disk.append(header(), batch([broken], 1))
        await disk.append(header(), batch(records[1:], 1))
        assert (await status(disk, 7)).next_block == 3


async def test_cancelled_appends_do_not_hold_up_the_others(tmp_path: Path) -> None:
    records = encode([10] * 30)
    async with opened(tmp_path, workers=DiskThreads(1)) as disk:

        async def append(number: int, cancel_after: int | None) -> None:
            with trio.CancelScope() as scope:
                if cancel_after is not None:
                    nursery.start_soon(cancel, scope, cancel_after)
                await disk.append(header(), batch([records[number]], number))

        async def cancel(scope: trio.CancelScope, after: int) -> None:
            for _ in range(after):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        for _ in range(2):  # what was cancelled is sent again
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(append, number, number % 5 if number % 3 == 0 else None)
                    nursery.start_soon(append, number, None)
        assert (await status(disk, 7)).next_block == 30


async def test_a_fragment_of_another_index_or_redundancy_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
        for of in (header(index=1), header(index=1, redundancy=CODED)):
            with pytest.raises(FragmentError, match=r"holds fragment 0 of 1\+2 of chunk 7, not"):
                await disk.append(of, batch(encode([10], of=of)))


# ------------------------------------------------------------------ syncing and sealing


async def test_a_sync_is_shared_by_all_who_wait(tmp_path: Path) -> None:
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        await store(disk, [10])
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(disk.sync, dict.fromkeys([7], 0))
        assert threads.calls.count("sync") == 1
        await disk.sync(dict.fromkeys([7], 0))
        assert threads.calls.count("sync") == 1
        await disk.append(header(), batch(encode([10, 10])[1:], 1))
        await disk.sync(dict.fromkeys([7, 7], 0))
        assert threads.calls.count("sync") == 2


async def test_an_append_that_is_to_be_durable_takes_one_turn_of_a_thread(tmp_path: Path) -> None:
    records = encode([10, 20, 30])
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        await disk.append(header(), batch(records[:1]))
        threads.calls.clear()
        await disk.append(header(), batch(records[1:2], 1), sync=True)
        await disk.sync(dict.fromkeys([7], 0))
        assert threads.calls == ["append"]
        # What comes after it is not durable by that.
        await disk.append(header(), batch(records[2:3], 2))
        await disk.sync(dict.fromkeys([7], 0))
        assert threads.calls == ["append", "append", "sync"]


@pytest.mark.allow_logs("has failed: Input/output error")
async def test_an_append_that_could_not_be_made_durable_fails_and_so_does_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [1000])
        monkeypatch.setattr(os, "fdatasync", fail_to_sync)
        with pytest.raises(DiskError, match="Input/output error"):
            await disk.append(header(), batch(encode([1000, 10])[1:], 1), sync=True)
        assert disk.report().failed


async def test_what_was_there_before_a_restart_is_synced_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
        await store(disk, [10], header(8), seal=True)
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        await disk.sync(dict.fromkeys([7, 8], 0))
        assert threads.calls.count("sync") == 1


async def test_syncing_what_is_not_there_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
        with pytest.raises(FragmentError, match=r"no fragment of chunk (9|10)"):
            await disk.sync(dict.fromkeys([7, 9, 10], 0))


async def test_sealing_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [1000, 2000, 3000])
        assert (await disk.seal(7, 3000)).sealed
        assert (await disk.seal(7, 3000)).length == 3000
    async with opened(tmp_path) as disk:
        assert await disk.held([7]) == [HeldFragment(7, 0, 3000, True)]
        assert (await status(disk, 7)).next_block == 2


# ------------------------------------------------------------------ start, cache, room


@pytest.mark.allow_logs("1 files do not belong under .*strange")
async def test_a_start_opens_no_file_and_knows_them_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        for chunk in range(1, 30):
            await store(disk, [100, 50], header(chunk), seal=chunk % 3 > 0)
        used = disk.room.used_bytes
    (tmp_path / "fragments" / "00" / "strange").touch()
    async with opened(tmp_path, workers=(threads := CountingThreads())) as disk:
        assert disk.catalog.chunks() == list(range(1, 30))
        assert disk.room.used_bytes == used == sum(file.stat().st_size for file in files(tmp_path))
        assert "open" not in threads.calls
        expected = [HeldFragment(chunk, 0, 150, chunk % 3 > 0) for chunk in range(1, 30)]
        assert await disk.held(range(1, 31)) == expected
        assert threads.calls.count("open") == 9


async def test_few_files_are_kept_open(tmp_path: Path) -> None:
    def open_files() -> int:
        links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        paths = [os.readlink(link) for link in links if os.path.lexists(link)]
        return sum(path.startswith(str(tmp_path / "fragments")) for path in paths)

    async with opened(tmp_path, cache=Cache(fragments=8)) as disk:
        for chunk in range(1, 60):
            await store(disk, [100], header(chunk), seal=chunk % 2 > 0)
            assert open_files() <= 9
        pinned = await disk.fragment(2)
        for chunk in range(1, 60):
            assert (await status(disk, chunk)).length == 100
            await disk.append(header(chunk), batch(encode([100], of=header(chunk))))
        assert pinned.file.exists
        pinned.unpin()
    assert open_files() == 0


async def test_indexes_are_bounded_too(tmp_path: Path) -> None:
    async with opened(tmp_path, cache=Cache(index_bytes=800)) as disk:
        for chunk in range(1, 20):
            await store(disk, [10] * 50, header(chunk), seal=True)
        assert sum(disk.peek(chunk) is not None for chunk in range(1, 20)) <= 3


async def test_capacity_is_kept_to_and_deleting_gives_it_back(tmp_path: Path) -> None:
    async with opened(tmp_path, capacity=100_000) as disk:
        changes = []
        disk.health.changed = lambda: changes.append(1)
        await store(disk, [60_000])
        await store(disk, [60_000], header(8))
        with pytest.raises(NoSpaceError, match=r"is full: .* its capacity is set to 100000 bytes"):
            await store(disk, [90_000], header(9))
        assert changes
        assert disk.report().used + disk.report().free == 100_000
        assert disk.report().fragments == 2
        await disk.seal(8, 60_000)
        await disk.delete([7, 8, 9, 10])
        assert disk.report().used == 0
        assert files(tmp_path) == []
        await store(disk, [90_000], header(9))


async def test_upkeep_goes_on_where_clients_find_the_disk_full(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    margin = free // 2
    for capacity, reserve, rule in [
        (100_000, NO_RESERVE, "its capacity is set to 100000 bytes"),
        (None, Reserve(0.0, free - margin // 2, free - margin // 2), "a reserve of"),
    ]:
        room = Room(str(tmp_path), capacity_bytes=capacity, reserve=reserve)
        room.claim(80_000)
        with pytest.raises(NoSpaceError, match=rule):
            room.claim(30_000 if capacity else margin)
        room.claim_upkeep(30_000 if capacity else margin)
        assert room.free_bytes == 0
        with pytest.raises(NoSpaceError, match=rule):
            room.claim_upkeep(30_000 if capacity else free)
        room.claim_upkeep(-30_000 if capacity else -margin)
        assert room.used_bytes == 80_000


async def test_the_reserve_is_kept_free(tmp_path: Path) -> None:
    async with opened(tmp_path, reserve=Reserve(0.0, 1 << 60, 1 << 60)) as disk:
        with pytest.raises(NoSpaceError, match=f"a reserve of {1 << 60} bytes is kept"):
            await store(disk, [10])
        assert disk.report().free == 0


# ------------------------------------------------------------------ deleting


async def test_deleting_while_it_is_read_is_safe(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [1000], seal=True)
        fragment = await disk.fragment(7)
        start, size, _ = fragment.file.locate(0, 1000)
        await disk.delete([7])
        assert files(tmp_path) == []
        assert len(os.pread(fragment.file.fd, size, start)) == size
        fragment.unpin()
        assert not fragment.file.exists
        with pytest.raises(FragmentError, match="missing"):
            await disk.fragment(7)


async def test_deleting_what_was_never_opened(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        for chunk in range(1, 10):
            await store(disk, [100], header(chunk))
    async with opened(tmp_path) as disk:
        files(tmp_path)[0].unlink()
        await disk.delete(range(1, 20))
        assert files(tmp_path) == []
        assert len(disk.catalog) == 0


async def test_an_append_that_waits_while_its_fragment_is_deleted_is_refused(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [10])
        fragment = await disk.fragment(7)
        async with trio.open_nursery() as nursery:
            async with fragment.order:

                async def append() -> None:
                    with pytest.raises(FragmentError, match="deleted meanwhile"):
                        await disk.append(header(), batch(encode([10, 10])[1:], 1))

                nursery.start_soon(disk.delete, [7])
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(append)
                await trio.testing.wait_all_tasks_blocked()
        fragment.unpin()
        await store(disk, [10])


# ------------------------------------------------------------------ changes behind our back


@pytest.mark.allow_logs("is missing: its file was deleted")
async def test_a_deleted_file_is_missing_from_then_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [100])
        files(tmp_path)[0].unlink()
        with pytest.raises(FragmentError, match="missing"):
            await disk.append(header(), batch(encode([100, 5])[1:], 1))
        with pytest.raises(FragmentError, match="missing"):
            await disk.fragment(7)
        assert await disk.held([7]) == []
        await store(disk, [100])
        assert (await status(disk, 7)).length == 100


@pytest.mark.allow_logs("is short: its file has")
async def test_a_truncated_open_fragment_says_where_it_goes_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    records = encode([100, 200, 300])
    async with opened(tmp_path, workers=Inline()) as disk:
        await disk.append(header(), batch(records[:2]))
        os.truncate(files(tmp_path)[0], 300)
        with pytest.raises(FragmentError, match="short"):
            await disk.append(header(), batch(records[2:], 2))
        with pytest.raises(FragmentError, match="the next is 1"):
            await disk.append(header(), batch(records[2:], 2))
        await disk.append(header(), batch(records[1:], 1))
        assert (await status(disk, 7)).length == 600


@pytest.mark.allow_logs("is unreadable: .*; it is replaced", "is unreadable")
async def test_a_writer_that_starts_anew_replaces_an_unreadable_fragment(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [100, 100])
    with files(tmp_path)[0].open("r+b") as file:
        file.write(bytes(64))
    async with opened(tmp_path) as disk:
        assert await disk.held([7]) == []
        with pytest.raises(FragmentError, match="unreadable"):
            await disk.fragment(7)
        with pytest.raises(FragmentError, match="unreadable"):
            await disk.append(header(), batch(encode([100, 100])[1:], 1))
        await store(disk, [100])
        assert await disk.held([7]) == [HeldFragment(7, 0, 100, False)]


# ------------------------------------------------------------------ disks that fail


def break_reads(file: FragmentFile) -> None:
    """From now on reading and writing this file fails with EIO: nothing is mapped there."""
    broken = os.open("/proc/self/mem", os.O_RDWR)
    os.dup2(broken, file.fd)
    os.close(broken)


@pytest.mark.allow_logs("a read failed: Input/output error", "has failed: Input/output error")
async def test_a_disk_fails_at_the_third_read_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [1000])
        await store(disk, [1000], header(8))
        fragment = await disk.fragment(7)
        break_reads(fragment.file)
        for number in range(1, 4):
            with pytest.raises(DiskError, match="Input/output error"):
                await disk.health.run_read(os.pread, fragment.file.fd, 10, 100)
            assert disk.report().failed == (number == 3)
        assert disk.report().free == 0
        with pytest.raises(DiskError, match=r"has failed: Input/output error \(3 reads failed\)"):
            await disk.append(header(8), batch(encode([10], of=header(8))))
        with pytest.raises(DiskError, match="has failed"):
            await disk.delete([8])
        healthy = await disk.fragment(8)  # perhaps the last copy
        assert healthy.file.locate(0, 1000)[2] == 1
        healthy.unpin()
        fragment.unpin()


@pytest.mark.allow_logs("a read failed: Input/output error")
async def test_a_bad_sector_now_and_then_is_no_failure(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with opened(tmp_path, workers=Inline()) as disk:
        for _ in range(6):
            with pytest.raises(DiskError):
                await disk.health.run_read(fail)
            await trio.sleep(1801)
        assert not disk.report().failed


async def test_a_deletion_that_is_cut_off_forgets_no_fragment(tmp_path: Path) -> None:
    """Else "what is not here counts as deleted" would leave its file behind."""
    async with opened(tmp_path) as disk:
        await store(disk, [1000], header(8))
    async with opened(tmp_path) as disk:
        await store(disk, [1000])
        fragment = await disk.fragment(7)
        async with trio.open_nursery() as nursery, fragment.order:
            nursery.start_soon(disk.delete, [8, 7])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        fragment.unpin()
        assert {held.chunk for held in await disk.held([7, 8])} == {7, 8}
        await disk.delete([8, 7])
        assert files(tmp_path) == []


@pytest.mark.allow_logs("has failed: Invalid argument|has failed: Input/output error")
async def test_a_failed_sync_fails_the_disk_for_all_who_wait(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await store(disk, [1000])
        fragment = await disk.fragment(7)

        def fail() -> None:
            raise OSError(errno.EIO, "fsync failed")

        fragment.file.sync = fail  # type: ignore[method-assign]
        refused = []

        async def sync() -> None:
            try:
                await disk.sync(dict.fromkeys([7], 0))
            except DiskError as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(sync)
        assert len(refused) == 5
        assert disk.report().failed
        fragment.unpin()


async def test_a_shortage_of_the_machine_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    def short() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with opened(tmp_path) as disk:
        with pytest.raises(BusyError, match="Too many open files") as info:
            await disk.health.run(short)
        assert info.value.retry
        assert not disk.report().failed


@pytest.fixture
def small_mount(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    mount = tmp_path / "mount"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", mount], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_a_full_file_system_is_full_and_no_failure(small_mount: Path) -> None:
    async with opened(small_mount) as disk:
        await store(disk, [1 << 20] * 2)
        filler = small_mount / "fragments" / "filler"
        filler.write_bytes(bytes(5 << 19))
        with pytest.raises(NoSpaceError, match="is full"):
            await store(disk, [1 << 20] * 2, header(8))
        await disk.delete([7])
        await store(disk, [1 << 20] * 2, header(8))
        await disk.seal(8, 2 << 20)
        assert not disk.report().failed


@pytest.mark.allow_logs("has failed: Read-only file system")
async def test_a_disk_that_turns_read_only_fails_and_can_be_read(small_mount: Path) -> None:
    async with opened(small_mount) as disk:
        await store(disk, [1000], seal=True)
        await store(disk, [1000], header(8))
    async with opened(small_mount) as disk:
        subprocess.run(["mount", "-o", "remount,ro", small_mount], check=True)
        with pytest.raises(DiskError, match="Read-only file system"):
            await store(disk, [10], header(9))
        assert disk.report().failed
        assert "Read-only" in disk.report().error
        assert (await status(disk, 7)).length == 1000
        assert (await status(disk, 8)).length == 1000


async def test_a_fragment_sealed_but_for_its_name_is_read_from_a_read_only_disk(
    small_mount: Path,
) -> None:
    async with opened(small_mount) as disk:
        await store(disk, [1000, 2000], seal=True)
    (sealed,) = files(small_mount)
    sealed.rename(sealed.with_name("0000000000000007-00.open"))
    async with opened(small_mount) as disk:
        subprocess.run(["mount", "-o", "remount,ro", small_mount], check=True)
        assert (await status(disk, 7)).length == 3000
        assert await disk.held([7]) == [HeldFragment(7, 0, 3000, False)]
    subprocess.run(["mount", "-o", "remount,rw", small_mount], check=True)
    async with opened(small_mount) as disk:
        assert (await disk.seal(7, 3000)).sealed
    assert files(small_mount) == [sealed]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
async def test_a_probe_without_room_or_descriptors_says_nothing_against_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def short(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    async with opened(tmp_path) as disk:
        monkeypatch.setattr(identities, "note_holder", short)
        with trio.move_on_after(0.1):
            await watch(disk)
        assert not disk.report().failed


@pytest.mark.allow_logs("has failed: Read-only file system")
async def test_an_idle_disk_that_turns_read_only_is_noticed(small_mount: Path) -> None:
    async with opened(small_mount) as disk:
        subprocess.run(["mount", "-o", "remount,ro", small_mount], check=True)
        await watch(disk)
        assert disk.report().failed


@pytest.mark.allow_logs("has failed: another disk is mounted there now")
async def test_another_disk_under_our_path_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        text = (tmp_path / "disk.json").read_text()
        (tmp_path / "disk.json").write_text(text.replace("0d15c000", "0d15c0ff"))
        await watch(disk)  # ends with the failure
        assert disk.report().failed


@pytest.mark.allow_logs("has failed: No such file or directory")
async def test_a_disk_that_vanishes_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        (tmp_path / "disk.json").unlink()
        await watch(disk)
        assert disk.report().failed


@pytest.mark.allow_logs("has failed: it has not answered for 30 s")
async def test_a_slow_disk_with_much_to_do_is_no_hung_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(Inline):
        busy = False
        turn = trio.Semaphore(1)

        async def run(self, function: Callable[..., T], *args: object) -> T:
            if not self.busy:
                return await super().run(function, *args)
            async with self.turn:
                await trio.sleep(5)
                return await super().run(function, *args)

    async with opened(tmp_path, workers=(slow := Slow())) as disk:
        slow.busy = True
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(disk.health.run_read, os.getpid)
            nursery.start_soon(watch, disk)
            await trio.sleep(100)
            assert not disk.report().failed
            await slow.turn.acquire()  # from now on it hangs
            with trio.move_on_after(100):
                while not disk.report().failed:
                    with trio.move_on_after(3):  # the callers' deadline
                        await disk.health.run_read(os.getpid)
            assert disk.report().failed
            slow.turn.release()
            nursery.cancel_scope.cancel()


@pytest.mark.allow_logs("has failed: it has not answered for 30 s")
async def test_a_disk_that_hangs_is_noticed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class Hanging(Inline):
        hang = False

        async def run(self, function: Callable[..., T], *args: object) -> T:
            if self.hang:
                await trio.sleep(100)
            return await super().run(function, *args)

    async with opened(tmp_path, workers=(threads := Hanging())) as disk:
        threads.hang = True
        with trio.move_on_after(31):
            await watch(disk)
        assert disk.report().failed
