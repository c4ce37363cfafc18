"""Written bytes that wait to be published, when several tasks write and memory is short."""

from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfs.client import chunk_writers
from dfs.client.chunk_writer import RUN_BYTES
from dfs.client.write_context import IN_FLIGHT_BYTES
from dfs.client.writer import FileWriter
from dfs.core.block import BLOCK_BYTES
from tests.unit.client.rig import running

MIB = 1 << 20


async def test_a_flush_waits_for_bytes_that_another_task_is_submitting(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(1).randbytes(RUN_BYTES)
    flushed = False

    async with running(tmp_path) as (world, client), world.client("other") as other:
        file = await client.open("/a", "w")
        budget = client.writers.context.budget
        await budget.acquire(IN_FLIGHT_BYTES)
        await file.pwrite(data[:4096], 0)
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                nonlocal flushed
                await file.flush()
                flushed = True

            # Fills the blocks, and waits with all of them.
            nursery.start_soon(file.pwrite, data[4096:], 4096)
            await wait_all_tasks_blocked()
            nursery.start_soon(flush)
            await trio.sleep(1)
            assert not flushed
            budget.release(IN_FLIGHT_BYTES)
        assert await other.read_file("/a") == data
        await file.close()


async def test_bytes_of_a_write_that_is_cancelled_while_it_waits_are_flushed_by_another_task(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(2).randbytes(RUN_BYTES)
    async with running(tmp_path) as (_, client):
        file = await client.open("/a", "w")
        budget = client.writers.context.budget
        await budget.acquire(IN_FLIGHT_BYTES)
        await file.pwrite(data[:4096], 0)
        scope = trio.CancelScope()

        async def write() -> None:
            with scope:
                await file.pwrite(data[4096:], 4096)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            nursery.start_soon(file.flush)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            budget.release(IN_FLIGHT_BYTES)
        assert (await client.stat("/a")).size >= 4096
        assert (await client.read_file("/a"))[:4096] == data[:4096]
        await file.close()


async def test_a_write_that_waits_for_memory_waits_for_what_others_are_submitting(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_writers, "HELD_TOTAL_BYTES", MIB)
    publish = FileWriter._publish
    rounds = 0

    async def counted(writer: FileWriter, partial: bool, sync: bool) -> bool:
        nonlocal rounds
        rounds += 1
        assert rounds < 1000
        return await publish(writer, partial, sync)

    monkeypatch.setattr(FileWriter, "_publish", counted)
    async with running(tmp_path) as (_, client):
        files = [await client.open(f"/{number}", "w") for number in range(10)]
        budget = client.writers.context.budget
        # As while the chunk servers are away.
        await budget.acquire(IN_FLIGHT_BYTES)
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(file.pwrite, bytes(BLOCK_BYTES), 0)
            await trio.sleep(1)
            nursery.start_soon(files[0].pwrite, b"x", 0)
            await trio.sleep(30)
            budget.release(IN_FLIGHT_BYTES)
        for file in files:
            await file.close()
        assert (await client.stat("/9")).size == BLOCK_BYTES


async def test_a_write_that_brings_memory_to_its_limit_while_it_fills_a_block_is_taken(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Random(3).randbytes(2 * BLOCK_BYTES)
    async with running(tmp_path) as (_, client):
        one, other = await client.open("/one", "w"), await client.open("/other", "w")
        await one.write(data[:100])
        await other.write(bytes(120_000))
        monkeypatch.setattr(
            chunk_writers, "HELD_TOTAL_BYTES", client.writers.held_bytes + BLOCK_BYTES - 200
        )
        await one.write(data[100:])
        await one.close()
        await other.close()
        assert await client.read_file("/one") == data
