"""Reads of chunks that change, go away, or answer in parts; and what is reported of them."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from dfs.chunkserver import fragment_file
from dfs.core.chunk import ChunkState, FragmentState, Layout
from dfs.wire.messages import JobState
from tests.simulation.world import World
from tests.unit.client.rig import chunks_of, fragment_files, running


async def written(world: World, path: str, data: bytes) -> None:
    """Store a file by another client, whose chunk is sealed then."""
    async with world.client("writer") as writer:
        await writer.write_file(path, data)


@pytest.mark.allow_logs("")
async def test_a_reader_sees_the_new_bytes_at_once_while_the_old_chunk_is_being_deleted(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        await written(world, "/a", b"1" * 5000)
        async with await client.open("/a") as file:
            assert await file.pread(10, 0) == b"1" * 10
            (old,) = await chunks_of(client, "/a")
            client.cache.clear()
            # A server that is away keeps the chunk's record: its fragment is to be deleted yet.
            await world.crash(next(host for host, name in world.fragments() if name.chunk == old))
            async with await other.open("/a", "r+") as rewriting:
                await rewriting.pwrite(b"2" * 5000, 0)
            await trio.sleep(20)
            (chunk,) = (await client.meta.locate([old])).chunks
            assert chunk.state == ChunkState.DOOMED
            began = trio.current_time()
            assert await file.pread(10, 0) == b"2" * 10
            assert trio.current_time() - began < 5


@pytest.mark.allow_logs("")
async def test_fragments_that_vanish_between_two_tries_are_no_loss_if_the_chunk_is_doomed_then(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        await written(world, "/a", b"1" * 5000)
        async with await client.open("/a") as file:
            assert await file.pread(10, 0) == b"1" * 10
            (old,) = await chunks_of(client, "/a")
            client.cache.clear()
            (before,) = (await client.meta.locate([old])).chunks
            for path in fragment_files(world, old).values():
                path.unlink()
            locate = client.meta.locate
            asked = 0

            async def overtaken(chunks: Any) -> Layout:
                """The first answer is of before the chunk was doomed."""
                nonlocal asked
                asked += 1
                layout = await locate(chunks)
                if asked > 1:
                    return layout
                async with await other.open("/a", "r+") as rewriting:
                    await rewriting.pwrite(b"2" * 5000, 0)
                bad = tuple(replace(f, state=FragmentState.LOST) for f in before.fragments)
                return Layout((replace(before, fragments=bad),), layout.disks)

            monkeypatch.setattr(client.meta, "locate", overtaken)
            assert await file.pread(10, 0) == b"2" * 10
            assert asked >= 2


@pytest.mark.allow_logs("")
async def test_a_chunk_that_was_copied_from_is_not_needed_where_its_fragments_are_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is kept for backups, and nobody repairs it; the file's bytes are elsewhere."""
    async with running(tmp_path, on_unavailable="error") as (world, client):
        async with world.client("writer") as writer:
            await writer.write_file("/a", b"1" * 5000)
            await writer.write_file("/b", Random(1).randbytes(50_000))
        await client.unlink("/b")
        async with await client.open("/a") as file:
            assert await file.pread(10, 0) == b"1" * 10
            (old,) = await chunks_of(client, "/a")
            client.cache.clear()
            held_by = {host for host, name in world.fragments() if name.chunk == old}
            job = (await client.admin.start("compact", threshold=0.5)).job
            with trio.fail_after(60):
                while (await client.admin.job(job)).state is JobState.RUNNING:
                    await trio.sleep(0.1)
            (chunk,) = (await client.meta.locate([old])).chunks
            assert chunk.state is ChunkState.RETIRED
            for path in fragment_files(world, old).values():
                path.unlink()
            for host in held_by:
                await world.crash(host)
                await world.start_host(host)
            assert await file.pread(10, 0) == b"1" * 10


async def test_an_answer_that_the_server_cut_is_continued_and_nothing_is_reported(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Random(3).randbytes(20 * 65536 + 5)
    async with running(tmp_path) as (world, client):
        await written(world, "/a", data)
        monkeypatch.setattr(fragment_file, "REPLY_MAX_BYTES", 300_000)
        reported: list[tuple[Any, ...]] = []
        monkeypatch.setattr(client.reports, "add", lambda *report: reported.append(report))
        client.cache.clear()
        assert await client.read_file("/a") == data
        assert reported == []


async def test_many_reports_reach_the_master_in_requests_that_it_takes(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (_, client):
        sent: list[int] = []
        report = client.meta.report_fragments

        async def counted(reports: Any) -> None:
            await report(reports)
            sent.append(len(reports))

        monkeypatch.setattr(client.meta, "report_fragments", counted)
        for chunk in range(1, 3001):
            client.reports.add(chunk, 1, "missing")
        await trio.sleep(5)
        assert sum(sent) == 3000


@pytest.mark.allow_logs("")
async def test_servers_waited_for_in_vain_are_not_waited_for_once_for_each_chunk(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, servers=1, on_unavailable="wait:60s") as (world, client):
        for number in range(20):
            async with world.client(f"writer {number}") as writer:
                await writer.write_file(f"/{number}", b"x" * 5000)
        await world.crash("cs1")
        began = trio.current_time()
        for number in range(20):
            with pytest.raises(OSError, match="needs a good copy"):
                await client.read_file(f"/{number}")
        assert 60 <= trio.current_time() - began < 90
        await world.start_host("cs1")
        await trio.sleep(5)
        assert await client.read_file("/3") == b"x" * 5000
        # Later it is waited for as ever.
        await world.crash("cs1")
        client.cache.clear()
        await trio.sleep(60)
        began = trio.current_time()
        with pytest.raises(OSError, match="needs a good copy"):
            await client.read_file("/3")
        assert trio.current_time() - began >= 60
