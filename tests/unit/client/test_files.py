import errno
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from dfs.client import Client, File
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import DfsError, FileSystemError
from tests.unit.client.rig import directory, running


async def test_what_is_written_is_read_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (_, client):
        for size in (0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 17):
            data = bytes(range(251)) * (size // 251 + 1)
            await client.write_file(f"/{size}", data[:size])
            assert await client.read_file(f"/{size}") == data[:size]
            assert (await client.stat(f"/{size}")).size == size


async def test_modes_of_open_do_as_the_builtin_open_does(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        with pytest.raises(FileSystemError) as missing:
            await client.open("/a", "r")
        assert missing.value.errno == errno.ENOENT
        assert str(missing.value).startswith("/a: ")
        async with await client.open("/a", "x") as file:
            await file.write(b"one")
            with pytest.raises(FileSystemError) as not_readable:
                await file.read()
            assert not_readable.value.errno == errno.EBADF
        with pytest.raises(FileSystemError) as there:
            await client.open("/a", "x")
        assert there.value.errno == errno.EEXIST
        async with await client.open("/a", "a+") as file:
            await file.write(b" two")
            await file.write(b" three")
            assert await file.pread(100, 0) == b"one two three"
        async with await client.open("/a", "r+") as file:
            await file.write(b"ONE")
            assert file.tell() == 3
            await file.seek(-5, 2)
            assert await file.read() == b"three"
        async with await client.open("/a", "w") as file:
            await file.write(b"new")
        assert await client.read_file("/a") == b"new"
        with pytest.raises(DfsError):
            await client.open("/a", "rw")
        with pytest.raises(FileSystemError) as folder:
            await client.open("/", "r")
        assert folder.value.errno == errno.EISDIR


async def test_a_symlink_is_followed_also_to_a_file_that_is_not_there_yet(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        await client.mkdir("/d")
        await client.symlink("d/new", "/link")
        await client.write_file("/link", b"through")
        assert await client.read_file("/d/new") == b"through"
        await client.symlink("loop", "/loop")
        with pytest.raises(FileSystemError) as loop:
            await client.write_file("/loop", b"")
        assert loop.value.errno == errno.ELOOP


async def test_handles_of_one_client_see_each_others_writes_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        async with await client.open("/a", "w+") as one, await client.open("/a", "r") as two:
            await one.write(b"x" * 10)
            assert await two.read() == b"x" * 10
            await one.pwrite(b"yy", 4)
            assert await two.pread(10, 0) == b"xxxxyyxxxx"
            async with world.client("other") as other:
                assert await other.read_file("/a") == b""
                await one.flush()
                assert await other.read_file("/a") == b"xxxxyyxxxx"


async def test_an_unlinked_open_file_can_be_used_until_it_is_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w+") as file:
            await file.write(b"some")
            await client.unlink("/a")
            await file.write(b" bytes")
            await file.flush()
            assert await file.pread(100, 0) == b"some bytes"
        assert not await client.exists("/a")


async def test_another_client_appends_in_between(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        async with await client.open("/log", "a") as mine, await other.open("/log", "a") as theirs:
            for number in range(5):
                await mine.write(b"m%d\n" % number)
                await mine.flush()
                await theirs.write(b"t%d\n" % number)
                await theirs.flush()
        assert (await client.read_file("/log")) == b"".join(
            b"m%d\nt%d\n" % (number, number) for number in range(5)
        )


async def test_bytes_that_nobody_flushes_are_published_in_a_while(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    import trio

    async with running(tmp_path) as (world, client), world.client("other") as other:
        async with await client.open("/a", "w") as file:
            await file.write(b"waiting")
            await trio.sleep(12)
            assert await other.read_file("/a") == b"waiting"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 600_000), st.integers(1, 300_000)),
        st.tuples(st.just("patch"), st.integers(0, 600_000), st.integers(1, 9_000)),
        st.tuples(st.just("read"), st.integers(0, 700_000), st.integers(0, 300_000)),
        st.tuples(st.just("truncate"), st.integers(0, 700_000), st.just(0)),
        st.tuples(st.just("append"), st.just(0), st.integers(1, 200_000)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("punch"), st.integers(0, 600_000), st.integers(1, 200_000)),
    ),
    max_size=25,
)


async def test_random_operations_agree_with_a_bytearray(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, servers=6) as (_, client):
        await directory(client, "/rep", "rep:2", level=3)
        await directory(client, "/ec", "ec:4+2")

        # Hypothesis cannot drive coroutines: it chooses here, the cluster stays up throughout.
        samples: list[list[tuple[str, int, int]]] = []

        @settings(
            max_examples=25,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(OPERATIONS)
        def collect(operations: list[tuple[str, int, int]]) -> None:
            samples.append(operations)

        collect()
        for number, operations in enumerate(samples):
            where = "/rep" if number % 2 else "/ec"
            await _run_operations(client, f"{where}/{number}", operations)


async def _run_operations(
    client: Client, path: str, operations: list[tuple[str, int, int]]
) -> None:
    model = bytearray()
    file = await client.open(path, "w+")
    for step, (operation, offset, length) in enumerate(operations):
        data = bytes([step + 1]) * length
        if operation in ("write", "patch"):
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + length] = data
            await file.pwrite(data, offset)
        elif operation == "read":
            assert await file.pread(length, offset) == model[offset : offset + length]
        elif operation == "truncate":
            del model[offset:]
            model.extend(bytes(offset - len(model)))
            await file.truncate(offset)
        elif operation == "append":
            await file.flush()
            model += data
            async with await client.open(path, "a") as end:
                await end.write(data)
        elif operation == "punch":
            await file.flush()
            end_of_hole = min(len(model), offset + length)
            if offset < end_of_hole:
                model[offset:end_of_hole] = bytes(end_of_hole - offset)
            await client.meta.punch_hole(file.inode.ino, offset, length)
            await file.close()
            file = await client.open(path, "r+")
        elif operation == "flush":
            await file.flush()
        else:
            await file.close()
            client.cache.clear()
            file = await client.open(path, "r+")
        assert file.size == len(model)
    assert await file.pread(len(model) + 1, 0) == model
    await file.close()
    assert await client.read_file(path) == model
    await client.unlink(path)


async def test_tasks_that_share_a_handle_take_turns_at_its_position(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    blocks = [bytes([number]) * 300_000 for number in range(8)]
    got: list[bytes] = []

    async def read_all(file: File) -> None:
        while part := await file.read(300_000):
            got.append(part)

    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file, trio.open_nursery() as nursery:
            for block in blocks:
                nursery.start_soon(file.write, block)
        client.cache.clear()
        async with await client.open("/a") as file, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_all, file)
    assert sorted(got) == blocks


async def test_opening_to_overwrite_discards_appends_that_are_not_published_yet(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client), await client.open("/a", "a") as log:
        await log.write(b"old")
        await client.write_file("/a", b"new")
        await log.flush()
        assert await client.read_file("/a") == b"new"


async def test_a_copy_has_what_was_written_and_open_handles_go_on_with_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client), world.client("other") as other:
        await client.write_file("/to", b"before")
        async with await client.open("/from", "w") as source, await client.open("/to") as target:
            assert await target.pread(10, 0) == b"before"
            await source.write(b"after!!")
            await client.copy("/from", "/to")
            assert await target.pread(10, 0) == b"after!!"
            # The copy was a handle too: what it closed is still open here.
            await other.unlink("/to")
            await trio.sleep(60)
            client.cache.clear()
            target._file.extents.forget()
            assert await target.pread(10, 0) == b"after!!"


async def test_what_no_file_can_hold_is_refused_at_once_and_spoils_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(b"good")
            with pytest.raises(FileSystemError) as large:
                await file.pwrite(b"x", 1 << 63)
            assert large.value.errno == errno.EFBIG
            with pytest.raises(FileSystemError) as whence:
                await file.seek(0, 3)
            assert whence.value.errno == errno.EINVAL
        assert await client.read_file("/a") == b"good"


async def test_a_file_that_is_copied_onto_itself_keeps_its_content(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        for path in ("/from", "/to"):
            await client.mkdir(path)
        await client.write_file("/from/a", b"kept")
        await client.link("/from/a", "/to/a")
        with pytest.raises(FileSystemError, match="same file"):
            await client.copy("/from/a", "/from/a")
        summary = await client.copy("/from", "/to", recursive=True)
        assert [str(failure) for failure in summary.failures] == [
            "/from/a: is the same file as its copy"
        ]
        assert await client.read_file("/to/a") == b"kept"
