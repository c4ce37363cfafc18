"""Upload, download and removal of trees, against a plain directory as the oracle."""

import errno
import os
import socket
import stat
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfs.client import Cred, Progress
from dfs.client.small_upload import SMALL_BYTES
from dfs.core.errors import DfsError, FileSystemError
from dfs.wire.messages import Message
from tests.unit.client.rig import chunks_of, directory, running


def make_tree(root: Path) -> None:
    """A little of everything."""
    rng = Random(1)
    root.mkdir()
    for name in ("a", "b/c/d", "empty dir", "many", "\udcff raw name", "x" * 200):
        (root / name).mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    for number in range(120):
        (root / "many" / f"file {number}").write_bytes(rng.randbytes(rng.randrange(9000)))
    (root / "b/c/text").write_text("all work and no play\n" * 20_000)
    (root / "b/c/d/big").write_bytes(rng.randbytes(SMALL_BYTES + 300_001))
    (root / "middle").write_bytes(rng.randbytes(300_000))
    (root / "a" / ("y" * 255)).write_bytes(b"a long name")
    (root / "\udcff raw name" / "\udcfe").write_bytes(b"not utf-8")
    (root / "link").symlink_to("b/c/text")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "a/folder link").symlink_to("../b")
    os.link(root / "middle", root / "b/other name of middle")
    with open(root / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(20 << 20)
        file.write(b"end")
        file.truncate(30 << 20)
    (root / "secret").write_bytes(b"secret")
    (root / "secret").chmod(0o600)
    (root / "program").write_bytes(b"#!/bin/sh\n")
    (root / "program").chmod(0o4755)
    (root / "a").chmod(0o555)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        when = 1_500_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(when, when), follow_symlinks=False)


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that a transfer keeps."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")]):
        name = str(path.relative_to(root))
        status = path.lstat()
        content: object = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        first = names.setdefault(status.st_ino, name)
        found[name] = (status.st_mode, status.st_mtime_ns, content, first)
    return found


@pytest.mark.parametrize("redundancy", ["rep:3", "ec:4+2"])
async def test_a_tree_comes_back_as_it_was(
    tmp_path: Path, autojump_clock: MockClock, redundancy: str
) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    async with running(tmp_path / "world", servers=6) as (world, client):
        await directory(client, "/d", redundancy, level=3)
        seen: list[tuple[int, int]] = []

        def note(progress: Progress) -> None:
            seen.append((progress.bytes_done, progress.files_done))

        up = await client.upload([tree], "/d", recursive=True, progress=note)
        assert up.ok, up.failures
        assert not up.warnings
        again = await client.upload([tree], "/d", recursive=True)
        assert again.ok, again.failures
        client.cache.clear()
        progress = Progress()

        def remember(now: Progress) -> None:
            nonlocal progress
            progress = now

        down = await client.download(
            ["/d/tree"], tmp_path / "back", recursive=True, progress=remember
        )
        assert down.ok, down.failures
        assert picture(tmp_path / "back") == picture(tree)
        assert (down.files, down.directories, down.symlinks) == (
            up.files,
            up.directories,
            up.symlinks,
        )
        assert seen == sorted(seen)
        assert progress.bytes_done == progress.bytes_total == down.bytes
        assert progress.files_done == progress.files_total
        holes = (await client.stat("/d/tree/sparse")).allocated
        assert holes < 1 << 20
        assert (tmp_path / "back/sparse").stat().st_blocks * 512 < 2 << 20
        gone = await client.rmtree("/d/tree")
        assert gone.ok
        assert (gone.files, gone.directories, gone.symlinks) == (
            up.files,
            up.directories,
            up.symlinks,
        )
        assert not await client.exists("/d/tree")
    world.check_metadata()


async def test_small_files_share_blocks_and_requests(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(300):
        (many / str(number)).write_bytes(b"%04d" % number * 25)
    async with running(tmp_path / "world") as (_, client):
        frames: list[str] = []
        call_once = client.meta.link.call_once

        async def counted(request: Message, *args: Any, **more: Any) -> Any:
            frames.append(type(request).__name__)
            return await call_once(request, *args, **more)

        client.meta.link.call_once = counted  # type: ignore[method-assign]
        assert (await client.upload([many], "/", recursive=True)).ok
        assert frames.count("Apply") < 8
        chunks = {
            c for name in ("0", "150", "299") for c in await chunks_of(client, f"/many/{name}")
        }
        assert len(chunks) == 1
        (chunk,) = (await client.meta.locate(list(chunks))).chunks
        assert chunk.live == 300 * 100


async def test_arguments_are_read_as_cp_reads_them(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "dir/file").write_bytes(b"in dir")
    (tmp_path / "dir/link").symlink_to("file")
    async with running(tmp_path / "world") as (_, client):
        # upload
        assert (await client.upload([one], "/new")).ok
        assert await client.read_file("/new") == b"1"
        assert (await client.upload([two], "/new")).ok
        assert await client.read_file("/new") == b"2"
        await client.mkdir("/into")
        assert (await client.upload([one, two], "/into")).ok
        assert await client.read_file("/into/two") == b"2"
        for target in ("/new", "/nowhere", "/nowhere/x"):
            with pytest.raises(FileSystemError):
                await client.upload([one, two], target)
        with pytest.raises(FileSystemError) as no_parent:
            await client.upload([one], "/nowhere/x")
        assert no_parent.value.errno == errno.ENOENT
        refused = await client.upload([tmp_path / "dir", one], "/into")
        assert "is a directory" in str(refused.failures[0])
        assert await client.read_file("/into/one") == b"1"
        assert (await client.upload([tmp_path / "dir"], "/copy", recursive=True)).ok
        assert await client.read_file("/copy/file") == b"in dir"
        assert (await client.upload([tmp_path / "dir"], "/copy", recursive=True)).ok
        assert await client.read_file("/copy/dir/file") == b"in dir"
        assert (await client.upload([f"{tmp_path}/dir/."], "/into", recursive=True)).ok
        assert await client.read_file("/into/file") == b"in dir"
        assert (await client.upload([tmp_path / "dir/link"], "/followed")).ok
        assert (await client.stat("/followed", follow=False)).is_file
        assert await client.readlink("/copy/link") == b"file"
        # download
        back = tmp_path / "back"
        assert (await client.download(["/new"], back)).ok
        assert back.read_bytes() == b"2"
        assert (await client.download(["/into/one"], back)).ok
        assert back.read_bytes() == b"1"
        folder = tmp_path / "folder"
        folder.mkdir()
        assert (await client.download(["/into/one", "/into/two"], folder)).ok
        assert (folder / "two").read_bytes() == b"2"
        with pytest.raises(NotADirectoryError):
            await client.download(["/into/one", "/into/two"], back)
        refused = await client.download(["/copy", "/into/one"], folder)
        assert "is a directory" in str(refused.failures[0])
        assert (await client.download(["/copy"], tmp_path / "copied", recursive=True)).ok
        assert (tmp_path / "copied/dir/file").read_bytes() == b"in dir"
        assert os.readlink(tmp_path / "copied/link") == "file"
        assert (await client.download(["/copy"], folder, recursive=True)).ok
        assert (folder / "copy/file").read_bytes() == b"in dir"
        missing = await client.download(["/nothing", "/into/one"], folder)
        assert [str(failure) for failure in missing.failures] == [
            "/nothing: No such file or directory"
        ]
        assert missing.files == 1


async def test_what_cannot_be_uploaded_is_one_line_and_the_rest_goes_on(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "good").write_bytes(b"good")
    (tree / "vanishes").write_bytes(b"here")
    (tree / "grows").write_bytes(b"small")
    (tree / "grows big").write_bytes(bytes(SMALL_BYTES + 5))
    (tree / "in the way").mkdir()
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tree)
        listener.bind("socket")
    from dfs.client import local_files

    look = local_files.look

    def then_change(path: bytes, name: bytes, *, follow: bool) -> local_files.LocalEntry:
        entry = look(path, name, follow=follow)
        if name == b"vanishes":
            os.unlink(path)
        elif name in (b"grows", b"grows big"):
            with open(path, "ab") as file:
                file.write(b" and more")
        return entry

    monkeypatch.setattr(local_files, "look", then_change)
    async with running(tmp_path / "world") as (_, client):
        await client.mkdir("/tree")
        await client.write_file("/tree/in the way", b"a file")
        summary = await client.upload([tree], "/", recursive=True)
        reasons = {failure.path.rpartition("/")[2]: failure.reason for failure in summary.failures}
        assert reasons == {
            "vanishes": "No such file or directory",
            "grows": "it changed while it was read",
            "grows big": "it changed while it was read",
            "in the way": "a file of that name is in the way",
        }
        assert sorted(warning.rpartition("/")[2] for warning in summary.warnings) == [
            "fifo: left out: a FIFO",
            "socket: left out: a socket",
        ]
        assert await client.read_file("/tree/good") == b"good"
        assert not await client.exists("/tree/grows big")
        assert (await client.meta.status()).problems == ()


@pytest.mark.allow_logs("")
async def test_what_cannot_be_downloaded_is_one_line_and_the_rest_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(3)
    async with running(tmp_path / "world", servers=3) as (world, client):
        await directory(client, "/d", "rep:1")
        await directory(client, "/d/safe", "rep:2")
        async with world.client("writer") as writer:
            await writer.write_file("/d/small", rng.randbytes(1000))
            await writer.write_file("/d/big", rng.randbytes(SMALL_BYTES * 2))
            await writer.write_file("/d/safe/small", b"safe")
            await writer.write_file("/d/taken", b"")
        for server in world.servers:
            for path in (world.root / server).rglob("*"):
                if path.is_file() and path.stat().st_size > SMALL_BYTES:
                    raw = bytearray(path.read_bytes())
                    for position in range(300, len(raw), 900):
                        raw[position] ^= 1
                    path.write_bytes(raw)
        back = tmp_path / "back"
        (back / "taken").mkdir(parents=True)
        summary = await client.download(["/d/."], back, recursive=True)
        failed = {failure.path: failure.reason for failure in summary.failures}
        assert set(failed) == {"/d/small", "/d/big", str(back / "taken")}
        assert "needs a good copy" in failed["/d/big"]
        assert (back / "safe/small").read_bytes() == b"safe"
        # Nothing half done is left behind.
        assert sorted(path.name for path in back.rglob("*")) == ["safe", "small", "taken"]


async def test_a_download_may_go_to_a_pipe_in_order(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    import threading

    data = Random(4).randbytes(5_000_000)
    async with running(tmp_path / "world") as (_, client):
        async with await client.open("/a", "w") as file:
            await file.write(data)
            await file.pwrite(b"after a hole", 8_000_000)
            await file.truncate(9_000_000)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
        reader.start()
        assert (await client.download(["/a"], pipe)).ok
        reader.join(10)
        expected = data + bytes(8_000_000 - len(data)) + b"after a hole"
        assert got == [expected + bytes(9_000_000 - len(expected))]
        assert (await client.download(["/a"], "/dev/null")).ok


async def test_a_stream_is_seen_when_it_is_complete(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    parts = [b"one", b"two" * 100_000, b"three"]
    async with running(tmp_path / "world") as (_, client):
        await client.write_file("/there", b"old")

        async def read() -> bytes:
            assert await client.read_file("/there") == b"old"
            assert not await client.exists("/new")
            return next(source, b"")

        for target in ("/there", "/new"):
            source = iter(parts)
            if target == "/new":
                await client.write_file("/there", b"old")
            summary = await client.upload_stream(read, target, policy="scratch")
            assert summary.bytes == sum(map(len, parts))
            assert await client.read_file(target) == b"".join(parts)
        with pytest.raises(FileSystemError) as folder:
            await client.upload_stream(read, "/")
        assert folder.value.errno in (errno.EISDIR, errno.EBUSY)
        with pytest.raises(DfsError, match="no policy 'nosuch'") as unknown:
            await client.upload_stream(read, "/x", policy="nosuch")
        assert "scratch" in unknown.value.hint


async def test_a_policy_given_to_upload_holds_for_all_of_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/small").write_bytes(b"small")
    (tree / "big").write_bytes(bytes(SMALL_BYTES + 1))
    async with running(tmp_path / "world", servers=6) as (_, client):
        assert (await client.upload([tree], "/", recursive=True, policy="ec")).ok
        ec = next(p.policy for p in await client.meta.policies() if p.name == "ec")
        for name in ("", "/sub", "/sub/small", "/big"):
            assert (await client.stat(f"/tree{name}")).policy == ec
        for name in ("/sub/small", "/big"):
            chunks = await chunks_of(client, f"/tree{name}")
            layout = await client.meta.locate(chunks)
            assert {(chunk.k, chunk.m) for chunk in layout.chunks} == {(4, 2)}


async def test_copies_share_their_bytes(tmp_path: Path, autojump_clock: MockClock) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    async with running(tmp_path / "world") as (_, client):
        await client.upload([tree], "/tree", recursive=True)
        before = (await client.meta.statfs()).chunks
        summary = await client.copy("/tree", "/copy", recursive=True)
        assert summary.ok
        assert (await client.meta.statfs()).chunks == before
        await client.write_file("/copy/middle", b"changed")
        assert await client.read_file("/tree/middle") == (tree / "middle").read_bytes()
        assert (await client.download(["/copy/b"], tmp_path / "b", recursive=True)).ok
        assert (tmp_path / "b/c/text").read_bytes() == (tree / "b/c/text").read_bytes()
        with pytest.raises(FileSystemError):
            await client.copy("/tree", "/other")


async def test_removing_needs_a_directory(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(tmp_path / "world") as (_, client):
        await client.write_file("/file", b"")
        for path, number in (("/file", errno.ENOTDIR), ("/none", errno.ENOENT), ("/", errno.EBUSY)):
            with pytest.raises(FileSystemError) as refused:
                await client.rmtree(path)
            assert refused.value.errno == number
            assert str(refused.value).startswith(f"{path}: ")


async def test_a_cancelled_transfer_leaves_nothing_half_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = Random(5).randbytes(40 * SMALL_BYTES)
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(data)
    async with running(tmp_path / "world", servers=3) as (world, client):
        world.network.set_latency(0.05)
        with trio.move_on_after(1) as scope:
            await client.upload([local], "/file")
        assert scope.cancelled_caught
        assert not await client.exists("/file")
        assert (await client.upload([local], "/file")).ok
        back.mkdir()
        with trio.move_on_after(1) as scope:
            await client.download(["/file"], back)
        assert scope.cancelled_caught
        assert list(back.iterdir()) == []
        assert (await client.download(["/file"], back)).ok
        assert (back / "file").read_bytes() == data


async def test_a_tree_with_something_that_stays_is_emptied_around_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (_, client):
        for name in ("a/b/c", "a/empty", "a/d/e"):
            await client.mkdir(f"/tree/{name}", parents=True)
        for number in range(10):
            await client.write_file(f"/tree/a/b/c/{number}", b"")
            await client.write_file(f"/tree/a/d/{number}", b"")
        readdir = client.meta.readdir
        (kept,) = [e.inode.ino async for e in client.scandir("/tree/a/b") if e.name == b"c"]

        async def refuse(ino: int, **more: Any) -> Any:
            if ino == kept:
                raise FileSystemError("may not be read", errno=errno.EACCES)
            return await readdir(ino, **more)

        client.meta.readdir = refuse  # type: ignore[method-assign]
        summary = await client.rmtree("/tree")
        client.meta.readdir = readdir  # type: ignore[method-assign]
        assert [str(failure) for failure in summary.failures] == ["/tree/a/b/c: may not be read"]
        left = [path async for path, _ in client.walk("/tree")]
        assert left == [b"/tree", b"/tree/a", b"/tree/a/b", b"/tree/a/b/c"]
        assert (await client.rmtree("/tree")).ok


async def test_of_two_sources_with_one_name_the_second_is_left_out(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    for folder in ("x", "y", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both").mkdir()
        (tmp_path / folder / "both" / folder).write_bytes(b"")
    (tmp_path / "x" / "name").write_bytes(b"first")
    (tmp_path / "y" / "name").write_bytes(b"second")
    async with running(tmp_path / "cluster") as (_, client):
        await client.mkdir("/d")
        files = [tmp_path / "x" / "name", tmp_path / "y" / "name"]
        summary = await client.upload(files, "/d")
        assert [failure.path for failure in summary.failures] == [str(files[1])]
        assert await client.read_file("/d/name") == b"first"
        # Directories are merged, as cp does.
        folders = [tmp_path / "x" / "both", tmp_path / "y" / "both"]
        assert (await client.upload(folders, "/d", recursive=True)).ok
        assert [entry.name async for entry in client.scandir("/d/both")] == [b"x", b"y"]
        await client.mkdir("/e")
        await client.write_file("/e/name", b"third")
        summary = await client.download(["/d/name", "/e/name"], tmp_path / "out")
        assert [failure.path for failure in summary.failures] == ["/e/name"]
        assert (tmp_path / "out" / "name").read_bytes() == b"first"


async def test_a_directory_whose_mode_cannot_be_set_is_a_failure(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"x")
    async with running(tmp_path / "cluster") as (_, client):
        await client.mkdir("/d")
        await client.chmod("/d", 0o777)
        client.meta.cred = Cred(1000, 1000, ())
        summary = await client.upload([tmp_path / "d"], "/", recursive=True)
        assert await client.read_file("/d/file") == b"x"
        (failure,) = summary.failures
        assert failure.path == str(tmp_path / "d")
        assert "not permitted" in failure.reason


async def test_a_stream_cannot_become_a_directory(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def read() -> bytes:
        return b""

    async with running(tmp_path) as (_, client):
        with pytest.raises(FileSystemError) as refused:
            await client.upload_stream(read, "/new/")
        assert refused.value.errno == errno.EISDIR
        assert not await client.exists("/new")
