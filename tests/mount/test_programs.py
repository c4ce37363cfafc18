"""Programs that people use, on a real mount: what they made there is right, by their own word.

Each runs on a mount of each driver, with copies on one and erasure coding on the other; with
`--long` both ways on both, and with DFS_LONG=1 on bigger trees. A program that is missing skips
its test, and fails it in CI.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import dfs.client
from tests import oracle
from tests.cluster import REPOSITORY, Cluster, environment
from tests.mount.conftest import mounts_of

POLICIES = {"rep2": "rep:2", "ec21": "ec:2+1"}
LONG = os.environ.get("DFS_LONG", "") not in ("", "0")
FILES = 3000 if LONG else 300
COMMITS_S = 3.0
ROUNDS = 10 if LONG else 2


@dataclass(frozen=True)
class Place:
    """A mounted directory, where the cluster has it, and a local directory beside it."""

    cluster: Cluster
    driver: str
    mounted: Path
    remote: str
    local: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("programs"), servers=4) as running:
        for name, redundancy in POLICIES.items():
            running.dfs("policy", "create", name, "--redundancy", redundancy)
        yield running


@pytest.fixture(
    scope="module",
    params=[
        ("fusepy", "rep2"),
        ("pyfuse3", "ec21"),
        pytest.param(("fusepy", "ec21"), marks=pytest.mark.long),
        pytest.param(("pyfuse3", "rep2"), marks=pytest.mark.long),
    ],
    ids="-".join,
)
def home(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, str]]:
    driver, policy = request.param
    with mounts_of(cluster, tmp_path_factory.mktemp("mounts"), driver) as mounts:
        directory = f"/{driver}-{policy}"
        cluster.dfs("mkdir", directory)
        cluster.dfs("policy", "set", directory, policy)
        mount = mounts.mount("--root", directory)
        yield driver, mount.point, directory
        mount.umount()


@pytest.fixture
def place(
    home: tuple[str, Path, str], cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> Place:
    """A new directory for each test."""
    driver, point, remote = home
    name = f"{request.function.__name__[:60]}-{len(list(point.iterdir()))}"
    (point / name).mkdir()
    return Place(cluster, driver, point / name, f"{remote}/{name}", tmp_path)


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"not installed: {', '.join(missing)}; scripts/setup dev does", pytrace=False)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(
    *argv: str | Path,
    cwd: Path | None = None,
    timeout_s: float = 90,
    env: Mapping[str, str] | None = None,
) -> str:
    """What a program printed. One that fails fails the test, with its words."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment(LC_ALL="C.UTF-8", **(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{argv}: status {done.returncode}\n{output[-4000:]}"
    return output


def xattrs(root: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for directory, _, files in os.walk(root):
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                found[os.path.relpath(path, root)] = {
                    key: os.getxattr(path, key) for key in os.listxattr(path)
                }
    return found


def tree_with_xattrs(root: Path) -> Path:
    oracle.make_tree(root, seed=3, files=FILES)
    for number, path in enumerate(sorted(root.rglob("*"))):
        if number % 10 == 0 and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not every local file system has them
                os.setxattr(path, "user.dfs.test", os.urandom(50))
    return root


# ------------------------------------------------------------------ git, tar, rsync, make


def test_git_clones_packs_and_finds_nothing_wrong(place: Place):
    need("git")
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git repository")
    clone = place.mounted / "clone"
    trusting = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "core.hooksPath",
        "GIT_CONFIG_VALUE_1": "/dev/null",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
    run("git", "clone", "--quiet", f"file://{REPOSITORY}", clone, env=trusting)
    assert run("git", "status", "--porcelain", cwd=clone, env=trusting) == ""
    run("git", "fsck", "--full", "--strict", cwd=clone, env=trusting)
    (clone / "new file").write_text("of the test\n")
    run("git", "add", "new file", cwd=clone, env=trusting)
    run("git", "commit", "--quiet", "--message", "a commit", cwd=clone, env=trusting)
    run("git", "gc", "--quiet", "--aggressive", "--prune=now", cwd=clone, env=trusting)
    run("git", "fsck", "--full", "--strict", cwd=clone, env=trusting)
    assert run("git", "status", "--porcelain", cwd=clone, env=trusting) == ""
    assert "a commit" in run("git", "log", "-1", cwd=clone, env=trusting)


def test_tar_takes_a_tree_in_and_out_with_its_extended_attributes(place: Place):
    need("tar")
    source = tree_with_xattrs(place.local / "source")
    archive, again = place.mounted / "tree.tar", place.mounted / "again.tar"
    options = ("--xattrs", "--xattrs-include=*", "--format=posix")
    run("tar", *options, "-cf", archive, "-C", source, ".")
    there, back = place.mounted / "tree", place.local / "back"
    for directory in (there, back):
        directory.mkdir()
    run("tar", *options, "-xpf", archive, "-C", there)
    oracle.assert_same(source, there)
    assert xattrs(there) == xattrs(source)
    run("tar", *options, "-cf", again, "-C", there, ".")
    run("tar", *options, "-xpf", again, "-C", back)
    oracle.assert_same(source, back)
    assert xattrs(back) == xattrs(source)


def test_rsync_finds_no_difference_there_and_back(place: Place):
    need("rsync")
    source = tree_with_xattrs(place.local / "source")
    with open(source / "sparse", "wb") as file:
        for number in range(4):
            file.seek(number * 5_000_001)
            file.write(b"data" * 2000)
        file.truncate(30_000_000)
    there, back = place.mounted / "tree", place.local / "back"
    copy = ("rsync", "-aHAXS")
    compare = (*copy, "--checksum", "--dry-run", "--itemize-changes", "--delete")
    run(*copy, f"{source}/", f"{there}/")
    assert run(*compare, f"{source}/", f"{there}/") == ""
    run(*copy, f"{there}/", f"{back}/")
    assert run(*compare, f"{source}/", f"{back}/") == ""
    oracle.assert_same(source, there)
    oracle.assert_same(source, back)
    assert xattrs(there) == xattrs(back) == xattrs(source)
    assert (there / "sparse").stat().st_blocks * 512 < 1 << 20


def test_make_builds_in_parallel_and_then_has_nothing_to_do(place: Place):
    need("make", "gcc")
    parts = [f"part{number}" for number in range(24)]
    for part in parts:
        (place.mounted / f"{part}.c").write_text(
            f'#include "all.h"\nint {part}(int x) {{ return x + STEP; }}\n'
        )
    declared = "".join(f"int {part}(int);\n" for part in parts)
    (place.mounted / "all.h").write_text(f"#define STEP 1\n{declared}")
    calls = " ".join(f"x = {part}(x);" for part in parts)
    (place.mounted / "main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\n'
        f'int main(void) {{ int x = 0; {calls} printf("%d", x); return 0; }}\n'
    )
    objects = " ".join(f"{name}.o" for name in (*parts, "main"))
    (place.mounted / "Makefile").write_text(
        f"program: {objects}\n\tgcc -o $@ $^\n"
        "%.o: %.c all.h stamp\n\tgcc -O1 -c -o $@ $<\n"
        "stamp: Makefile\n\ttouch $@\n"
    )
    run("make", "-j4", cwd=place.mounted)
    assert run(place.mounted / "program") == str(len(parts))
    assert "up to date" in run("make", cwd=place.mounted)
    run("touch", "part3.c", cwd=place.mounted)
    rebuilt = run("make", "-j4", cwd=place.mounted)
    assert rebuilt.count("-c -o") == 1, rebuilt
    assert run(place.mounted / "program") == str(len(parts))


# ------------------------------------------------------------------ databases

_WRITER = """
import sqlite3, sys
path, mode, number = sys.argv[1:]
base = sqlite3.connect(path, timeout=60, isolation_level=None)
base.execute(f"PRAGMA journal_mode={mode}")
base.execute("PRAGMA synchronous=NORMAL")
print("ready", flush=True)
for count in range(1_000_000):
    base.execute("BEGIN IMMEDIATE")
    base.execute("UPDATE total SET n = n + 1")
    base.execute("INSERT INTO log VALUES (?, ?, randomblob(300))", (number, count))
    base.execute("COMMIT")
    print(count, flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_keeps_what_writers_committed_that_are_killed(place: Place, mode: str):
    path = place.mounted / "base.db"
    with contextlib.closing(sqlite3.connect(path)) as base:
        assert base.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
        base.execute("CREATE TABLE total (n INTEGER)")
        base.execute("CREATE TABLE log (writer TEXT, count INTEGER, data BLOB)")
        base.execute("INSERT INTO total VALUES (0)")
        base.commit()
    rng = random.Random(mode)
    committed = {}
    for round_number in range(ROUNDS):
        names = [f"{round_number}-{writer}" for writer in range(3)]
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(path), mode, name],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for name in names
        ]
        time.sleep(COMMITS_S / 2)
        # One after the other, so that the next is at it while others recover.
        for writer in rng.sample(writers, len(writers)):
            time.sleep(rng.random() * COMMITS_S / 6)
            writer.send_signal(signal.SIGKILL)
            with contextlib.closing(sqlite3.connect(path, timeout=60)) as base:
                assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for name, writer in zip(names, writers, strict=True):
            output, errors = writer.communicate(timeout=30)
            assert not errors, errors.decode()
            committed[name] = output.count(b"\n") - 1
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as base:
            assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            total = base.execute("SELECT n FROM total").fetchone()[0]
            logged = dict(base.execute("SELECT writer, count(*) FROM log GROUP BY writer"))
        assert total == sum(logged.values())
        for name, count in committed.items():
            # One more may have been committed and not yet been told.
            assert count <= logged.get(name, 0) <= max(count, 0) + 1
    assert sum(committed.values()) > 0


# ------------------------------------------------------------------ small tools


def test_sparse_copies_find_du_and_df_agree_with_what_is_there(place: Place):
    source = place.local / "sparse"
    with open(source, "wb") as file:
        file.write(b"head" * 1000)
        file.seek(64 << 20)
        file.write(b"tail" * 1000)
    there, back = place.mounted / "sparse", place.local / "back"
    run("cp", "--sparse=always", "--preserve=all", source, there)
    assert there.stat().st_size == source.stat().st_size
    assert there.stat().st_blocks * 512 < 1 << 20
    run("cp", "--sparse=always", there, back)
    assert oracle.digest(back) == oracle.digest(source)
    assert int(run("du", "-sk", "--apparent-size", place.mounted).split()[0]) >= 64 << 10
    assert int(run("du", "-sk", place.mounted).split()[0]) < 1024

    for number in range(50):
        (place.mounted / f"d{number % 5}").mkdir(exist_ok=True)
        (place.mounted / f"d{number % 5}" / f"f{number}").write_bytes(bytes(number))
    found = run("find", place.mounted, "-type", "f", "-name", "f*", "-size", "-20c").split()
    assert len(found) == 20
    run("find", place.mounted, "-name", "f*", "-delete")
    assert run("find", place.mounted, "-name", "f*") == ""
    size, used, free = map(int, run("df", "-B1", "--output=size,used,avail", there).split()[-3:])
    assert 0 < free <= size
    assert 0 <= used <= size


def test_command_line_library_and_mount_show_each_other_the_same_tree(place: Place):
    source = oracle.make_tree(place.local / "source", seed=5, files=200)

    async def download() -> None:
        async with dfs.client.connect(place.cluster.master_address) as client:
            assert (await client.download([written], place.local / "library", recursive=True)).ok

    async def upload() -> None:
        async with dfs.client.connect(place.cluster.master_address) as client:
            assert (await client.upload([source], f"{place.remote}/library", recursive=True)).ok

    run("cp", "-a", source, place.mounted / "by mount")
    for name in ("command", "library"):
        (place.local / name).mkdir()
    written = f"{place.remote}/by mount"
    place.cluster.dfs("download", "-r", written, place.local / "command")
    trio.run(download)
    for name in ("command", "library"):
        oracle.assert_same(source, place.local / name / "by mount")

    for name in ("command", "library"):
        (place.mounted / name).mkdir()
    place.cluster.dfs("upload", "-r", source, f"{place.remote}/command")
    trio.run(upload)
    for name in ("command", "library"):
        oracle.assert_same(source, place.mounted / name / "source")


def test_touch_makes_a_file_no_older_than_one_made_just_before(place: Place):
    for number in range(20):
        made, stamp = place.mounted / f"made{number}", place.mounted / f"stamp{number}"
        made.write_bytes(b"")
        stamp.touch()
        os.utime(stamp)
        assert stamp.stat().st_mtime_ns >= made.stat().st_mtime_ns


def test_a_file_replaced_by_rename_is_there_at_every_open(place: Place):
    if place.driver == "fusepy":
        pytest.skip("libfuse 2 resolves the path of a file again at open: see docs/posix.md")
    target, ended = place.mounted / "published", threading.Event()
    target.write_bytes(b"0" * 4096)
    wrong: list[object] = []

    def read() -> None:
        while not ended.is_set():
            try:
                data = target.read_bytes()
                if len(data) != 4096 or len(set(data)) != 1:
                    wrong.append(data[:50])
            except OSError as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(60):
        new = place.mounted / f"new{number}"
        new.write_bytes(bytes([48 + number % 10]) * 4096)
        new.rename(target)
    ended.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_directory_that_was_removed_while_open_can_still_be_asked(place: Place):
    if place.driver == "fusepy":
        pytest.skip("libfuse 2 asks for directories by path: see docs/posix.md")
    for name in ("removed", "replaced", "other"):
        (place.mounted / name).mkdir()
    removed, replaced = (
        os.open(place.mounted / name, os.O_DIRECTORY) for name in ("removed", "replaced")
    )
    try:
        (place.mounted / "removed").rmdir()
        (place.mounted / "other").rename(place.mounted / "replaced")
        assert os.fstat(removed).st_nlink == 0
        assert os.fstat(replaced).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=removed)
    finally:
        os.close(removed)
        os.close(replaced)
