"""What is gathered of a file, from a cluster on a memory network."""

import errno
from pathlib import Path

import pytest
from trio.testing import MockClock

from dfs.client.diagnosis import Answer, Facts, Verdict, diagnose
from dfs.client.fact_finding import ASK_TIMEOUT_S, examine
from dfs.core.chunk import ChunkState
from tests.unit.client.rig import chunks_of, directory, fragment_files, running

DATA = b"some bytes that do not compress to nothing" * 20_000


def answers(facts: Facts) -> list[Answer]:
    return [each.answer for chunk in facts.chunks for each in chunk.fragments]


@pytest.mark.parametrize("redundancy", ["rep:3", "ec:2+2"])
async def test_a_whole_file_is_found_whole(
    tmp_path: Path, autojump_clock: MockClock, redundancy: str
) -> None:
    async with running(tmp_path) as (_, client):
        await directory(client, "/d", redundancy)
        await client.write_file("/d/a", DATA)
        for verify in (False, True):
            facts = await examine(client, b"/d/a", verify=verify)
            assert set(answers(facts)) == {Answer.HOLDS}
            assert diagnose(facts).verdict is Verdict.FINE
            assert not diagnose(facts).findings


async def test_flipped_bits_are_found_by_verifying_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.write_file("/a", DATA)
        (chunk,) = await chunks_of(client, "/a")
        victim = fragment_files(world, chunk)[1]
        with open(victim, "r+b") as file:
            file.seek(victim.stat().st_size // 2)
            file.write(b"\x55" * 40)
        assert diagnose(await examine(client, b"/a")).verdict is Verdict.FINE
        facts = await examine(client, b"/a", verify=True)
        found = diagnose(facts)
        assert found.verdict is Verdict.DEGRADED
        assert [each.kind for each in found.findings] == ["fragment-damaged"]
        assert found.findings[0].fragment == 1
        # Only the block that was hit, and what hid behind it.
        (damaged,) = [each.damaged for each in facts.chunks[0].fragments if each.damaged]
        assert 0 < sum(end - start for start, end in damaged) <= 2 * 128 * 1024


async def test_a_missing_and_a_cut_fragment_are_found_by_asking(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await client.write_file("/a", DATA)
        (chunk,) = await chunks_of(client, "/a")
        files = fragment_files(world, chunk)
        for name in world.servers:
            await world.crash(name)
        files[0].unlink()
        with open(files[1], "r+b") as file:
            file.truncate(files[1].stat().st_size // 2)
        for name in world.servers:
            await world.start_host(name)
        await world.settle(len(world.servers))
        for verify in (False, True):
            facts = await examine(client, b"/a", verify=verify)
            found = diagnose(facts)
            assert found.verdict is Verdict.AT_RISK
            assert facts.chunks[0].fragments[0].answer is Answer.LACKS


@pytest.mark.allow_logs("is suspect", "cannot report to the master")
async def test_a_server_that_hangs_is_waited_for_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        await directory(client, "/d", "rep:4")
        await client.write_file("/d/a", bytes(1000))
        for number in range(3):
            await client.write_file(f"/d/{number}", bytes(1000))
        world.network.hang(world.servers[0])
        begun = autojump_clock.current_time()
        facts = await examine(client, b"/d/a")
        assert autojump_clock.current_time() - begun < 3 * ASK_TIMEOUT_S
        assert answers(facts).count(Answer.SILENT) == 1
        (finding, *_) = diagnose(facts).findings
        assert finding.kind == "server-silent"


async def test_asking_for_a_chunk_leaves_none(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (_, client):
        await client.write_file("/a", DATA)
        before = [each.chunk for each in (await client.meta.chunks()).chunks]
        facts = await examine(client, b"/a")
        assert facts.writing is not None
        assert (facts.writing.got, facts.writing.wanted) == (3, 3)
        after = (await client.meta.chunks()).chunks
        assert all(each.chunk in before or each.state is ChunkState.DOOMED for each in after)


async def test_a_policy_too_wide_for_the_cluster_is_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, servers=3) as (_, client):
        await client.mkdir("/d")
        await client.set_policy("/d", "ec")
        await (await client.open("/d/a", "x")).close()
        facts = await examine(client, b"/d/a")
        assert facts.writing is not None
        assert "needs 6 servers" in facts.writing.refused


async def test_a_path_is_walked_to_where_it_fails(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        await client.mkdir("/d")
        await client.write_file("/d/file", b"x")
        await client.symlink("/nowhere", "/d/link")
        await client.symlink("/d/loop", "/d/loop")
        cases = [
            (b"/d/no/such/path", errno.ENOENT, b"/d/no", b"/d", None),
            (b"/d/file/x", errno.ENOTDIR, b"/d/file/x", b"/d/file", None),
            (b"/d/link/x", errno.ENOENT, b"/d/link", b"/d", b"/nowhere"),
            (b"/d/loop", errno.ELOOP, b"/d/loop", b"/d", b"/d/loop"),
            (b"/d/file/", errno.ENOTDIR, b"/d/file/", b"/d/file", None),
        ]
        for path, number, at, parent, target in cases:
            fault = (await examine(client, path)).fault
            assert fault is not None
            assert (fault.number, fault.at, fault.parent, fault.target) == (
                number,
                at,
                parent,
                target,
            )


async def test_a_file_that_is_open_stays_open(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"x")
            await file.flush()
            await examine(client, b"/a")
            await client.unlink("/a")
            await file.write(b"y")
            await file.fsync()
