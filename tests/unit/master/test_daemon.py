"""The master as a process of its own: start, stop, SIGKILL, and what is there afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio

from dfs.core.errors import ConfigError, DfsError, UnavailableError, from_wire
from dfs.master import invariants
from dfs.master.daemon import MasterConfig, run_master
from dfs.master.store import RocksStore
from dfs.wire import messages as m
from dfs.wire.hello import Hello
from dfs.wire.pool import Pool

REPOSITORY: Final = Path(__file__).parents[3]
ROOT_CRED: Final = m.Cred(0, 0)
PROGRAM: Final = """
import logging, sys, trio
from pathlib import Path
from dfs.master.daemon import MasterConfig, run_master

async def main():
    async with trio.open_nursery() as nursery:
        config = MasterConfig(data=Path(sys.argv[1]), listen=sys.argv[2])
        print(await nursery.start(run_master, config), flush=True)

logging.basicConfig(level=logging.INFO)
trio.run(main)
"""


@contextmanager
def master(
    data: Path, listen: str = "127.0.0.1:0"
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A master process that serves; its address. Killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data), listen],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def client() -> Pool:
    return Pool(hello=Hello("client"))


async def test_a_master_serves_stops_on_sigterm_and_starts_again(tmp_path: Path) -> None:
    with master(tmp_path) as (process, address):
        async with client() as pool:
            opened = await pool.call(
                address, m.OpenSession("test", 5), m.SessionOpened, timeout_s=5
            )
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log
        assert log.rstrip().endswith("stopped")
    with master(tmp_path, address) as (_, again):
        assert again == address
        async with client() as pool:
            known = await pool.call(address, m.OpenSession("test", 5), m.SessionOpened, timeout_s=5)
            assert known == opened


async def test_a_directory_serves_one_master_at_a_time(tmp_path: Path) -> None:
    with master(tmp_path) as (_, address):
        with pytest.raises(ConfigError, match="in use by another process"):
            await run_master(MasterConfig(data=tmp_path, listen="127.0.0.1:0"))
        with pytest.raises(DfsError, match="listen"):
            await run_master(MasterConfig(data=tmp_path / "other", listen=address))


class Writer:
    """Tasks that make files as fast as they can, and remember what the master answered."""

    def __init__(self, pool: Pool, address: str, session: int, directory: int) -> None:
        self.pool = pool
        self.address = address
        self.session = session
        self.directory = directory
        self.sequence = 0
        self.made: dict[bytes, int] = {}
        self.unanswered: list[m.Apply] = []

    async def run(self) -> None:
        """Until the master does not answer."""
        while True:
            self.sequence += 1
            name = b"f%d" % self.sequence
            op = m.Create(self.directory, name, 0o644)
            request = m.Apply(self.session, self.sequence, ROOT_CRED, (op,))
            try:
                reply = await self.pool.call(self.address, request, m.Applied, timeout_s=5)
            except UnavailableError:
                self.unanswered.append(request)
                return
            self.note(name, reply)

    def note(self, name: bytes, reply: m.Applied) -> None:
        (result,) = reply.results
        if result.error is not None:
            raise from_wire(result.error)
        assert result.inode is not None
        self.made[name] = result.inode.ino

    async def finish(self) -> None:
        """Repeat what was not answered, with the numbers it had."""
        for request in self.unanswered:
            (op,) = request.ops
            assert isinstance(op, m.Create)
            reply = await self.pool.call(
                self.address, request, m.Applied, timeout_s=20, patient=True
            )
            self.note(op.name, reply)
        self.unanswered = []


async def everything(pool: Pool, address: str, directory: int) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    after = b""
    while True:
        request = m.ReadDir(ROOT_CRED, directory, after, 1000)
        reply = await pool.call(address, request, m.DirReply, timeout_s=5)
        found.update((entry.name, entry.inode.ino) for entry in reply.entries)
        if not reply.more:
            return found
        after = reply.entries[-1].name


async def test_whatever_was_answered_survives_sigkill_and_nothing_happens_twice(
    tmp_path: Path,
) -> None:
    rounds, random = 3, Random(7)
    address = "127.0.0.1:0"
    writer: Writer | None = None
    async with client() as pool:
        for _ in range(rounds):
            with master(tmp_path, address) as (process, address):
                if writer is None:
                    opened = await pool.call(
                        address, m.OpenSession("test", 1), m.SessionOpened, timeout_s=5
                    )
                    writer = Writer(pool, address, opened.session, 1)
                await writer.finish()
                assert await everything(pool, address, 1) == writer.made
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(writer.run)
                    await trio.sleep(random.uniform(0.05, 0.4))
                    process.kill()
        assert writer is not None
        with master(tmp_path, address) as (process, address):
            await writer.finish()
            assert len(writer.made) > 100
            assert await everything(pool, address, 1) == writer.made
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    store = RocksStore(tmp_path / "metadata")
    assert invariants.check(store) == []
    store.close()


async def test_garbage_on_the_socket_does_not_stop_it(tmp_path: Path) -> None:
    with master(tmp_path) as (process, address):
        host, port = address.split(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b""):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(garbage)
            await stream.aclose()
        async with client() as pool:
            await pool.call(address, m.StatFs(), m.FsStats, timeout_s=5)
        assert process.poll() is None


async def test_a_restart_is_quick_with_many_files(tmp_path: Path) -> None:
    with master(tmp_path) as (process, address):
        async with client() as pool:
            opened = await pool.call(
                address, m.OpenSession("test", 1), m.SessionOpened, timeout_s=5
            )
            for batch in range(20):
                ops = tuple(m.Create(1, b"%d-%d" % (batch, n), 0o644) for n in range(500))
                request = m.Apply(opened.session, batch + 1, ROOT_CRED, ops)
                await pool.call(address, request, m.Applied, timeout_s=20)
        process.kill()
        process.wait(10)
    begun = time.monotonic()
    with master(tmp_path, address) as (_, again):
        assert again == address
        assert time.monotonic() - begun < 5
