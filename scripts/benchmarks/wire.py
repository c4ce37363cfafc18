"""Speed of the wire alone: a client and a server process on loopback, no disk but a cached file."""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as ProcessPipe
from typing import Final

import trio

from dfs.core.inode import Inode
from dfs.wire.connection import Connection
from dfs.wire.dial import connect
from dfs.wire.handlers import FilePayload, Peer
from dfs.wire.hello import Hello
from dfs.wire.messages import (
    Append,
    Appended,
    Empty,
    FragmentStatus,
    GetInode,
    InodeReply,
    ReadRecords,
    RecordsReply,
    StatFragment,
    SyncBarrier,
)
from dfs.wire.serve import serve
from dfs.wire.transport import listen_tcp, listening_address
from scripts.benchmarks.harness import MIB, Report, parser

PAYLOAD: Final = os.urandom(MIB)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve_in_process(pipe: ProcessPipe) -> None:
    """The server: tells its address, then its CPU time whenever it is asked for SyncBarrier."""
    trio.run(_serve, pipe)


async def _serve(pipe: ProcessPipe) -> None:
    inode = Inode(1, 0o100644, 1, 1000, 1000, 4096, 1, 1, 1, 1)

    def get_inode(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
        return InodeReply(inode)

    async def stat_fragment(
        peer: Peer, request: StatFragment, payload: memoryview
    ) -> FragmentStatus:
        return FragmentStatus(0, 1, 2, 3, False)

    def append(peer: Peer, request: Append, payload: memoryview) -> Appended:
        return Appended(1, len(payload))

    def cpu(peer: Peer, request: SyncBarrier, payload: memoryview) -> Empty:
        pipe.send(_cpu_s())
        return Empty()

    with tempfile.TemporaryFile() as file:
        file.write(PAYLOAD)
        file.flush()

        def read_records(
            peer: Peer, request: ReadRecords, payload: memoryview
        ) -> tuple[RecordsReply, FilePayload | list[bytes]]:
            if request.chunk:
                return RecordsReply(1), FilePayload(file.fileno(), [(0, request.length)])
            return RecordsReply(1), [PAYLOAD[: request.length]]

        listeners = await listen_tcp("127.0.0.1:0")
        pipe.send(listening_address(listeners[0]))
        await serve(
            listeners,
            {
                GetInode: get_inode,
                StatFragment: stat_fragment,
                Append: append,
                ReadRecords: read_records,
                SyncBarrier: cpu,
            },
            hello=Hello("master"),
        )


Call = Callable[[Connection], Awaitable[object]]


async def _get_inode(connection: Connection) -> None:
    await connection.call(GetInode(1), InodeReply, timeout_s=30)


async def _stat_fragment(connection: Connection) -> None:
    await connection.call(StatFragment(1, 1), FragmentStatus, timeout_s=30)


async def _read(chunk: int, connection: Connection) -> None:
    _, payload = await connection.call_raw(
        ReadRecords(1, chunk, 0, MIB), RecordsReply, timeout_s=30
    )
    assert len(payload) == MIB


async def _append(connection: Connection) -> None:
    await connection.call(Append(1, 1, 0, 1, 0, 0, 8), Appended, payload=(PAYLOAD,), timeout_s=30)


@dataclass(frozen=True)
class Case:
    """What to call, by how many tasks at once."""

    call: Call
    tasks: int
    target: float | None = None
    payload: int = 0
    """Bytes of one call; the figure is then MB/s."""


CASES: Final = {
    "small call, one caller": Case(_get_inode, 1, 5_000),
    "small call, 8 callers": Case(_get_inode, 8, 25_000),
    "small call, 64 callers": Case(_get_inode, 64, 60_000),
    "small call, 64 callers, async handler": Case(_stat_fragment, 64),
    "reply of 1 MiB by sendfile": Case(partial(_read, 1), 4, 1_200, MIB),
    "reply of 1 MiB from memory": Case(partial(_read, 0), 4, 1_200, MIB),
    "request of 1 MiB": Case(_append, 4, 1_200, MIB),
}

ROUNDS: Final = 10
"""Of each case; the best counts, as everything else only disturbs."""


async def _measure(
    connection: Connection, pipe: ProcessPipe, call: Call, tasks: int, seconds: float
) -> tuple[float, float, float]:
    """(calls a second, CPU us a call here, CPU us a call there)"""
    done = 0

    async def caller(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call(connection)
            done += 1

    await connection.call(SyncBarrier(), Empty, timeout_s=30)
    server_cpu = pipe.recv()
    cpu, begin = _cpu_s(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(caller, begin + seconds)
    took, cpu = time.perf_counter() - begin, _cpu_s() - cpu
    await connection.call(SyncBarrier(), Empty, timeout_s=30)
    server_cpu = pipe.recv() - server_cpu
    return done / took, cpu / done * 1e6, server_cpu / done * 1e6


async def _bench(
    address: str, pipe: ProcessPipe, report: Report, only: str, seconds: float
) -> None:
    async with trio.open_nursery() as nursery:
        connection = await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=10)
        for name, case in CASES.items():
            if only and only not in name:
                continue
            runs = [
                await _measure(connection, pipe, case.call, case.tasks, seconds / ROUNDS)
                for _ in range(ROUNDS)
            ]
            rate = max(run[0] for run in runs)
            if case.payload:
                rate *= case.payload / 1e6
            report.add(name, rate, "MB/s" if case.payload else "calls/s", at_least=case.target)
            report.add(f"{name}: CPU of the client", min(run[1] for run in runs), "us/call")
            report.add(f"{name}: CPU of the server", min(run[2] for run in runs), "us/call")
        await connection.aclose()


def main() -> int:
    """Run the cases and show the figures."""
    arguments_of = parser(__doc__ or "")
    arguments_of.add_argument("--seconds", type=float, default=3.0, help="for each case")
    arguments_of.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = arguments_of.parse_args()
    report = Report("wire")
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_in_process, args=(there,), daemon=True)
    server.start()
    there.close()
    try:
        seconds = arguments.seconds * arguments.scale
        trio.run(_bench, here.recv(), here, report, arguments.only, seconds)
    finally:
        server.kill()
        server.join()
    return report.finish(arguments.json)


if __name__ == "__main__":
    sys.exit(main())
