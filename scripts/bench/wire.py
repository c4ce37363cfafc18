"""Speed of the wire alone: a client and a server process on loopback, no disk but a cached file.

    python scripts/bench/wire.py [--seconds 2] [--only NAME]

Prints one JSON document: calls or MB a second, and CPU microseconds a call on each side.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
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
    GetInode,
    InodeReply,
    ReadRecords,
    RecordsReply,
    StatFragment,
    FragmentStatus,
    SyncBarrier,
)
from dfs.wire.serve import serve
from dfs.wire.transport import listen_tcp, listening_address

MIB: Final = 1024 * 1024
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


CASES: Final[dict[str, tuple[Call, int, int]]] = {
    "inline_1": (_get_inode, 1, 0),
    "inline_8": (_get_inode, 8, 0),
    "inline_64": (_get_inode, 64, 0),
    "async_handler_64": (_stat_fragment, 64, 0),
    "read_1MiB_sendfile": (partial(_read, 1), 4, MIB),
    "read_1MiB_buffers": (partial(_read, 0), 4, MIB),
    "append_1MiB": (_append, 4, MIB),
}
"""Name -> what to call, tasks that call it all the time, payload bytes of one call."""


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
    address: str, pipe: ProcessPipe, only: str, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    async with trio.open_nursery() as nursery:
        connection = await connect(address, nursery=nursery, hello=Hello("client"), timeout_s=10)
        for name, (call, tasks, payload) in CASES.items():
            if not name.startswith(only):
                continue
            runs = [
                await _measure(connection, pipe, call, tasks, seconds / rounds)
                for _ in range(rounds)
            ]
            rate = max(run[0] for run in runs)
            figures[name] = {
                "per_second": round(rate),
                "median_per_second": round(statistics.median(run[0] for run in runs)),
                "client_cpu_us": round(min(run[1] for run in runs), 1),
                "server_cpu_us": round(min(run[2] for run in runs), 1),
            }
            if payload:
                figures[name]["MB_per_second"] = round(rate * payload / 1e6)
        await connection.aclose()
    return figures


def main() -> None:
    """Run the cases and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    parser.add_argument("--rounds", type=int, default=4, help="of each case; the best counts")
    parser.add_argument("--only", default="", help="cases whose name starts so")
    arguments = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_in_process, args=(there,), daemon=True)
    server.start()
    there.close()
    try:
        figures = trio.run(
            _bench, here.recv(), here, arguments.only, arguments.seconds, arguments.rounds
        )
    finally:
        server.kill()
        server.join()
    print(json.dumps({"cpus": os.cpu_count(), "wire": figures}, indent=2))


if __name__ == "__main__":
    main()
