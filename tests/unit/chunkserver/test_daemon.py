"""A whole chunk server against a stand-in for the master: joining, reporting, stopping."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.daemon import run_chunkserver
from dfs.chunkserver.room import Reserve
from dfs.core.errors import ConfigError, DfsError, DiskError, ProtocolError, UnavailableError
from dfs.wire.connection import Connection
from dfs.wire.dial import connect
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.messages import (
    Append,
    Appended,
    DiskReport,
    FragmentStatus,
    Heartbeat,
    HeartbeatReply,
    HeldFragment,
    Message,
    Registered,
    RegisterServer,
    ReportChunks,
    ReportChunksReply,
    SealFragment,
    ServerStatus,
    ServerStatusReply,
)
from dfs.wire.serve import serve
from tests.unit.chunkserver.sample import CLUSTER, encode, header
from tests.unit.chunkserver.test_disk import files

ROOT = Path(__file__).resolve().parents[3]
OTHER_CLUSTER = "99999999-2222-4333-8444-555555555555"


class Master:
    """Keeps what chunk servers say, and answers as it is told to."""

    def __init__(self, cluster: str = str(CLUSTER)) -> None:
        self.cluster = cluster
        self.address = ""
        self.registrations: list[RegisterServer] = []
        self.numbers: dict[str, int] = {}
        """Of disks, by UUID."""
        self.beats: list[Heartbeat] = []
        self.pages: list[ReportChunks] = []
        self.known = True
        self.ask: tuple[int, ...] = ()
        self.question = 0
        self.hold_back = trio.Event()
        """Pages are answered from then on."""
        self.hold_back.set()
        self.drop: tuple[int, ...] = ()
        self.refuse: DfsError | None = None

    def register(self, _: Peer, request: RegisterServer, payload: memoryview) -> Registered:
        if self.refuse is not None:
            raise self.refuse
        self.known = True
        self.registrations.append(request)
        numbers = tuple(
            self.numbers.setdefault(disk.uuid, 11 + len(self.numbers)) for disk in request.disks
        )
        return Registered(self.cluster, 5, numbers, 0.05)

    def beat(self, _: Peer, request: Heartbeat, payload: memoryview) -> HeartbeatReply:
        self.beats.append(request)
        asked, self.ask = self.ask, ()
        return HeartbeatReply(self.known, asked, (self.question,) * len(asked))

    async def report(
        self, _: Peer, request: ReportChunks, payload: memoryview
    ) -> ReportChunksReply:
        self.pages.append(request)
        await self.hold_back.wait()
        return ReportChunksReply(
            tuple(held.chunk for held in request.fragments if held.chunk in self.drop)
        )

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator["Master"]:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        handlers: dict[type[Message], Handler] = {
            RegisterServer: self.register, Heartbeat: self.beat, ReportChunks: self.report
        }  # fmt: skip
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[None]) -> None:
                hello = Hello("master", cluster=self.cluster)
                await serve(listeners, handlers, hello=hello, task_status=task_status)

            await nursery.start(run)
            yield self
            nursery.cancel_scope.cancel()


def config(
    master: Master | str | tuple[str, ...],
    *disks: Path,
    listen: str = "127.0.0.1:0",
    advertise: str = "",
) -> ChunkServerConfig:
    if isinstance(master, Master):
        master = master.address
    return ChunkServerConfig(
        master=(master,) if isinstance(master, str) else master,
        disks=tuple(map(str, disks)),
        listen=listen,
        advertise=advertise,
        rack="r1",
        zone="z1",
        reserve=Reserve(0.0, 0, 0),
    )


@asynccontextmanager
async def running(settings: ChunkServerConfig) -> AsyncIterator[str]:
    """The address of a chunk server that runs."""
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[str]) -> None:
            await run_chunkserver(settings, signals=False, task_status=task_status)

        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Connection]:
    async with trio.open_nursery() as nursery:
        connection = await connect(
            address, nursery=nursery, hello=Hello("client", cluster=str(CLUSTER)), timeout_s=5
        )
        yield connection
        await connection.aclose()
        nursery.cancel_scope.cancel()


async def put(address: str, chunks: range, *, disk: int = 11, seal: bool = True) -> None:
    """A fragment of 10 raw bytes for each chunk."""
    async with client(address) as peer:
        for chunk in chunks:
            await peer.call(
                Append(disk, chunk, 0, 1, 2, 0, 1),
                Appended,
                payload=encode([10], of=header(chunk)),
                timeout_s=5,
            )
            if seal:
                await peer.call(SealFragment(disk, chunk, 10), FragmentStatus, timeout_s=5)


# ------------------------------------------------------------------ joining


async def test_a_server_registers_and_sends_heartbeats(tmp_path: Path) -> None:
    async with (
        Master().serving() as master,
        running(config(master, tmp_path / "a", tmp_path / "b")) as address,
    ):
        await until(lambda: len(master.beats) >= 3)
        (said,) = master.registrations
        assert (said.address, said.rack, said.zone, said.cluster) == (address, "r1", "z1", "")
        assert [disk.path for disk in said.disks] == [str(tmp_path / "a"), str(tmp_path / "b")]
        assert all(disk.free > 0 and not disk.failed for disk in said.disks)
        assert master.beats[0].server == 5
        await put(address, range(1, 3), disk=12)
        await until(lambda: master.beats[-1].disks[1].fragments == 2)
        async with client(address) as peer:
            status = await peer.call(ServerStatus(), ServerStatusReply, timeout_s=5)
        assert (status.server, len(status.disks)) == (5, 2)


async def test_after_a_restart_it_is_the_same_server_with_the_same_disks(tmp_path: Path) -> None:
    async with Master().serving() as master:
        for _ in range(2):
            async with running(config(master, tmp_path)):
                await until(lambda: master.beats)
                master.beats.clear()
        first, second = master.registrations
        assert first.uuid == second.uuid
        assert first.disks[0].uuid == second.disks[0].uuid
        assert second.cluster == str(CLUSTER)


async def test_it_serves_without_a_master_once_it_has_joined(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path)) as address:
        await put(address, range(1, 2))
        port = int(master.address.rpartition(":")[2])
    async with running(config(f"127.0.0.1:{port}", tmp_path)) as address:
        await put(address, range(2, 3))


async def test_a_disk_that_moved_here_takes_this_servers_name(tmp_path: Path) -> None:
    async with Master().serving() as master:
        for disks in (["a", "b"], ["c"], ["c", "a", "b"]):
            async with running(config(master, *(tmp_path / name for name in disks))):
                await until(lambda: master.beats)
                master.beats.clear()
        two, one, three = master.registrations
        assert three.uuid == two.uuid != one.uuid


async def test_it_registers_again_when_the_master_has_forgotten_it(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path)):
        await until(lambda: master.beats)
        master.known = False
        await until(lambda: len(master.registrations) == 2)
        assert master.registrations[1].cluster == str(CLUSTER)


async def test_it_finds_a_restarted_master_and_the_second_of_two(tmp_path: Path) -> None:
    master = Master()
    async with master.serving():
        first = master.address
    settings = config(("127.0.0.1:1", first), tmp_path)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            async with running(settings):
                await until(lambda: len(master.beats) > 3)

        nursery.start_soon(run)
        await trio.sleep(0.2)
        async with master.serving(int(first.rpartition(":")[2])):
            await until(lambda: len(master.beats) > 3)
        beats = len(master.beats)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert beats <= len(master.beats)


# ------------------------------------------------------------------ reports


@pytest.mark.allow_logs(
    "the chunk report of disk 99 was given up: this chunk server has no disk 99"
)
async def test_a_disk_is_listed_in_order_and_in_pages_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.report.PAGE", 30)
    chunks = range(1, 51)
    async with Master().serving() as master, running(config(master, tmp_path)) as address:
        await put(address, chunks, seal=False)
        await put(address, range(5000, 5001), seal=True)
        assert master.pages == []
        master.ask = (11, 99)
        await until(lambda: master.pages and master.pages[-1].last)
    one, two = master.pages
    assert (one.server, one.disk, one.after, one.last) == (5, 11, 0, False)
    assert (two.after, two.last) == (30, True)
    held = [*one.fragments, *two.fragments]
    assert held[:-1] == [HeldFragment(chunk, 0, 10, False) for chunk in chunks]
    assert held[-1] == HeldFragment(5000, 0, 10, True)


async def test_a_disk_that_is_asked_anew_is_listed_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.report.PAGE", 30)
    async with Master().serving() as master, running(config(master, tmp_path)) as address:
        await put(address, range(1, 51), seal=False)
        master.hold_back = trio.Event()
        for question in (7, 7, 8):
            beats = len(master.beats)
            master.ask, master.question = (11,), question
            await until(lambda: len(master.beats) > beats + 2)  # noqa: B023
        await put(address, range(51, 61), seal=False)
        master.hold_back.set()
        await until(lambda: master.pages[-1].last)
        assert [(page.question, page.after) for page in master.pages] == [(7, 0), (8, 0), (8, 30)]
        assert len(master.pages[-1].fragments) == 30


async def test_an_empty_disk_is_listed_too(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path)):
        master.ask = (11,)
        await until(lambda: master.pages)
        assert (master.pages[0].fragments, master.pages[0].last) == ((), True)


async def test_what_the_master_drops_is_deleted(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path)) as address:
        await put(address, range(1, 10))
        master.drop = (2, 3, 5, 7)
        master.ask = (11,)
        await until(lambda: len(files(tmp_path)) == 5)
        await until(lambda: master.beats[-1].disks[0].fragments == 5)


@pytest.mark.allow_logs("has failed: another disk is mounted there now")
async def test_a_failed_disk_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.watch.PROBE_INTERVAL_S", 0.05)
    async with (
        Master().serving() as master,
        running(config(master, tmp_path / "a", tmp_path / "b")),
    ):
        await until(lambda: master.beats)
        identity = tmp_path / "a" / "disk.json"
        identity.write_text((tmp_path / "b" / "disk.json").read_text())

        def reports() -> tuple[DiskReport, ...]:
            return master.beats[-1].disks

        await until(lambda: reports()[0].failed)
        assert "another disk" in reports()[0].error
        assert not reports()[1].failed


# ------------------------------------------------------------------ refusals


async def refusal(settings: ChunkServerConfig) -> DfsError:
    """What `run_chunkserver` raises: one error, not a group."""
    with trio.fail_after(10):
        with pytest.raises(DfsError) as info:
            await run_chunkserver(settings, signals=False)
    return info.value


async def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    wrong = [
        (config((), tmp_path), "no master is given"),
        (config("m:1"), "no disk is given"),
        (config("nonsense", tmp_path), "'nonsense' is not an address"),
        (config("m:1", tmp_path, advertise="x"), "'x' is not an address"),
        (config("m:1", tmp_path, listen="x"), "'x' is not an address"),
        (config("m:1", tmp_path / "\udcff"), "is not UTF-8"),
    ]
    for settings, message in wrong:
        assert message in str(await refusal(settings))


async def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    async with Master().serving() as master:
        error = await refusal(config(master, tmp_path, listen=master.address))
        assert isinstance(error, UnavailableError)
        assert "another program has the port" in str(error)


@pytest.mark.allow_logs("this master belongs to cluster")
async def test_a_master_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path)):
        await until(lambda: master.beats)
    async with Master(OTHER_CLUSTER).serving() as other:
        error = await refusal(config(other, tmp_path))
        assert isinstance(error, ProtocolError)
        assert f"belongs to cluster {OTHER_CLUSTER}, not to {CLUSTER}" in str(error)


async def test_disks_of_two_clusters_are_refused(tmp_path: Path) -> None:
    for name, cluster in (("a", str(CLUSTER)), ("b", OTHER_CLUSTER)):
        async with (
            Master(cluster).serving() as master,
            running(config(master, tmp_path / name)),
        ):
            await until(partial(getattr, master, "beats"))
    error = await refusal(config("127.0.0.1:1", tmp_path / "a", tmp_path / "b"))
    assert isinstance(error, ConfigError)
    assert "one chunk server serves one cluster" in str(error)


async def test_a_copied_disk_is_refused(tmp_path: Path) -> None:
    async with Master().serving() as master, running(config(master, tmp_path / "a")):
        await until(lambda: master.beats)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    error = await refusal(config("127.0.0.1:1", tmp_path / "a", tmp_path / "b"))
    assert "have the same disk UUID" in str(error)


async def test_the_masters_refusal_is_passed_on(tmp_path: Path) -> None:
    async with Master().serving() as master:
        master.refuse = ConfigError("a server of this UUID runs already", hint="stop it")
        error = await refusal(config(master, tmp_path))
        assert str(error) == "a server of this UUID runs already; stop it"


@pytest.mark.allow_logs("does not work: Not a directory")
async def test_a_disk_that_does_not_work_is_left_out_and_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    broken = tmp_path / "file" / "disk"
    async with Master().serving() as master:
        async with running(config(master, broken, tmp_path / "good")):
            await until(lambda: master.beats)
            assert [disk.path for disk in master.beats[-1].disks] == [str(tmp_path / "good")]
        assert isinstance(await refusal(config(master, broken)), DiskError)


# ------------------------------------------------------------------ disks that hang


@pytest.mark.allow_logs(r"a has not answered for 0.2 s; it joins when it does")
async def test_a_disk_that_hangs_at_start_holds_up_nobody_and_joins_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.opening.HANGS_AFTER_S", 0.2)
    async with Master().serving() as master:
        async with running(config(master, tmp_path / "a", tmp_path / "b")):
            await until(lambda: master.beats)
        lock = hang(tmp_path / "a")
        async with running(config(master, tmp_path / "a", tmp_path / "b")) as address:
            await until(lambda: len(master.registrations) == 2)
            registered = master.registrations[-1]
            assert [disk.path for disk in registered.disks] == [str(tmp_path / "b")]
            await put(address, range(1, 2), disk=12)
            with lock.open("w"):  # now it answers
                await until(lambda: len(master.registrations[-1].disks) == 2)
            again = master.registrations[-1]
            assert [disk.path for disk in again.disks] == [str(tmp_path / "b"), str(tmp_path / "a")]
            assert again.uuid == registered.uuid == master.registrations[0].uuid
            await until(lambda: len(master.beats[-1].disks) == 2)
            await put(address, range(2, 3), disk=11)
    assert [len(files(tmp_path / name)) for name in "ab"] == [1, 1]


@pytest.mark.allow_logs("has not answered for 0.2 s")
async def test_a_server_stops_while_a_disk_still_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.chunkserver.opening.HANGS_AFTER_S", 0.2)
    async with Master().serving() as master:
        lock = hang(tmp_path / "a")
        with trio.fail_after(5):
            async with running(config(master, tmp_path / "a", tmp_path / "b")):
                await until(lambda: master.beats)
        with lock.open("w"):
            # The thread that was left behind gives the disk up when it wakes.
            await until(lambda: (tmp_path / "a" / "disk.json").exists() and not is_locked(lock))


@pytest.mark.allow_logs("has not answered for 0.2 s", "belongs to cluster")
async def test_a_late_disk_of_another_cluster_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dfs.chunkserver.opening.HANGS_AFTER_S", 0.2)
    async with Master(OTHER_CLUSTER).serving() as other, running(config(other, tmp_path / "a")):
        await until(lambda: other.beats)
    lock = hang(tmp_path / "a")
    async with (
        Master().serving() as master,
        running(config(master, tmp_path / "a", tmp_path / "b")),
    ):
        await until(lambda: master.beats)
        with lock.open("w"):
            await until(lambda: f"/a to cluster {OTHER_CLUSTER}" in caplog.text)
        assert not is_locked(lock)
        beats = len(master.beats)
        await until(lambda: len(master.beats) > beats + 1)
        assert len(master.beats[-1].disks) == 1
        assert len(master.registrations) == 1


def hang(disk: Path) -> Path:
    """Opening the disk waits from now on until somebody opens its lock file for writing."""
    disk.mkdir(exist_ok=True)
    lock = disk / "lock"
    lock.unlink(missing_ok=True)
    os.mkfifo(lock)
    return lock


def is_locked(lock: Path) -> bool:
    fd = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# ------------------------------------------------------------------ a process of its own

SERVER = """
import logging, sys, trio
from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.daemon import run_chunkserver

async def main():
    async with trio.open_nursery() as nursery:
        config = ChunkServerConfig(
            master=(sys.argv[1],), disks=(sys.argv[2],), listen="127.0.0.1:0"
        )
        print(await nursery.start(lambda *, task_status: run_chunkserver(
            config, task_status=task_status)), flush=True)

logging.basicConfig(level=logging.INFO)
trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    async with Master().serving() as master:
        argv = [sys.executable, "-c", SERVER, master.address, str(tmp_path)]
        child = await trio.to_thread.run_sync(
            lambda: subprocess.Popen(
                argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        assert child.stdout is not None
        address = (await trio.to_thread.run_sync(child.stdout.readline)).strip()
        await put(address, range(1, 3), seal=False)
        os.kill(child.pid, number)
        _, log = await trio.to_thread.run_sync(lambda: child.communicate(timeout=10))
        assert child.returncode == 0
        assert f"stopping: {number.name}" in log
        assert "stopped" in log
        assert "Traceback" not in log
        async with running(config(master, tmp_path)) as address:
            await put(address, range(1, 3))
