"""upload, download and cat: bytes, streams, failures, interruptions."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import oracle
from tests.e2e.cli.conftest import Dfs


@pytest.fixture(scope="module")
def local_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("transfer") / "tree"
    (tree / "sub" / "empty dir").mkdir(parents=True)
    rng = random.Random(1)
    for number in range(40):
        (tree / "sub" / f"f{number}").write_bytes(rng.randbytes(number * 300))
    (tree / "large").write_bytes(rng.randbytes(3_000_000))
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o750)
    (tree / "link").symlink_to("sub/f3")
    os.utime(tree / "large", ns=(1, 1_234_567_890_123_456_789))
    return tree


def test_a_tree_comes_back_identical(dfs: Dfs, local_tree: Path, tmp_path: Path) -> None:
    top = dfs.fresh()
    dfs("upload", "-r", local_tree, top)
    summary = dfs("upload", "-r", "--json", local_tree, f"{top}/renamed").json
    assert (summary["files"], summary["symlinks"], summary["failures"]) == (42, 1, [])
    assert summary["bytes"] == sum(
        path.stat().st_size
        for path in local_tree.rglob("*")
        if not path.is_symlink() and path.is_file()
    )
    summary = dfs("download", "-r", "--json", f"{top}/tree", tmp_path / "back").json
    assert summary["files"] == 42
    oracle.assert_same(local_tree, tmp_path / "back")
    (tmp_path / "into").mkdir()
    dfs("download", "-r", f"{top}/renamed", tmp_path / "into")
    oracle.assert_same(local_tree, tmp_path / "into" / "renamed")


def test_streams(dfs: Dfs, tmp_path: Path) -> None:
    top = dfs.fresh()
    data = random.Random(2).randbytes(2_500_000)
    dfs("upload", "-", f"{top}/stream", stdin=data)
    dfs("upload", "-", f"{top}/end", stdin=b"end")
    assert dfs("cat", f"{top}/stream", f"{top}/end").out == data + b"end"
    assert dfs("download", f"{top}/stream", "-").out == data
    done = dfs("cat", f"{top}/none", f"{top}/end", top, status=1)
    assert done.out == b"end"
    assert len(done.errors.splitlines()) == 2
    assert "alone" in dfs("upload", "-", "x", f"{top}/y", status=2).errors
    assert dfs("download", "-r", top, "-", status=2).errors


def test_a_policy_may_be_chosen(dfs: Dfs, local_tree: Path) -> None:
    top = dfs.fresh()
    dfs("upload", "--policy", "scratch", local_tree / "script", f"{top}/one")
    dfs("upload", local_tree / "large", f"{top}/two", "--policy", "scratch")
    for name in ("one", "two"):
        assert dfs("stat", "--json", f"{top}/{name}").json["entries"][0]["policy"] == "scratch"
    failed = dfs("upload", "--policy", "gold", local_tree / "script", f"{top}/x", status=1)
    assert "gold" in failed.errors


def test_failures_are_said_and_the_rest_is_stored(
    dfs: Dfs, local_tree: Path, tmp_path: Path
) -> None:
    top = dfs.fresh()
    done = dfs("upload", tmp_path / "gone", local_tree / "script", top, "--json", status=1)
    assert done.json["files"] == 1
    assert done.json["failures"][0]["path"] == str(tmp_path / "gone")
    assert "gone" in done.errors
    assert "-r" in dfs("upload", local_tree, top, status=1).errors
    assert "-r" in dfs("download", top, tmp_path, status=1).errors
    done = dfs("download", f"{top}/none", f"{top}/script", tmp_path, status=1)
    assert done.errors == f"dfs: {top}/none: No such file or directory\n"
    assert (tmp_path / "script").exists()


def test_nobody_reads_on(dfs: Dfs, local_tree: Path) -> None:
    top = dfs.fresh()
    dfs("upload", local_tree / "large", f"{top}/large")
    with dfs.running("cat", f"{top}/large", stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert len(os.read(process.stdout.fileno(), 10)) == 10
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stdout = None
    with (
        open("/dev/full", "wb") as full,
        dfs.running("cat", f"{top}/large", stdout=full, stderr=-1) as process,
    ):
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (
            1,
            b"dfs: standard output: No space left on device\n",
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_upload_cleanly(dfs: Dfs, number: signal.Signals) -> None:
    top = dfs.fresh()
    with dfs.running("upload", "-", f"{top}/never", stdin=-1, stderr=-1) as process:
        assert process.stdin is not None
        # More than the pipe holds: when it is written, the upload is under way.
        process.stdin.write(bytes(3_000_000))
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == b"dfs: stopped; it is safe to run the same command again\n"
    assert dfs("ls", top).out == b""
    assert dfs("admin", "sessions", "--json").json == {"sessions": []}


def test_progress_is_for_terminals(dfs: Dfs, local_tree: Path) -> None:
    top = dfs.fresh()
    leader, follower = os.openpty()
    try:
        with dfs.running(
            "upload", local_tree / "large", f"{top}/large", stdout=subprocess.PIPE, stderr=follower
        ) as process:
            assert process.communicate(timeout=30)[0] == b""
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "Uploading" in shown
    assert "2.9 MiB of 2.9 MiB" in shown
    assert "1/1 files" in shown


def test_waiting_for_a_master_ends_soon_and_says_where(dfs: Dfs) -> None:
    begun = time.monotonic()
    failed = dfs("ls", "/", "--master", "127.0.0.1:1", status=1)
    assert "127.0.0.1:1" in failed.errors
    assert len(failed.errors.splitlines()) == 1
    assert time.monotonic() - begun < 20
    failed = dfs("--on-unavailable", "error", "ls", "/", "--master", "127.0.0.1:1", status=1)
    assert "refused" in failed.errors.lower()
    assert dfs("ls", "/", "--on-unavailable", "maybe", status=2).errors


def test_json_is_one_document(dfs: Dfs) -> None:
    top = dfs.fresh()
    for command in (["ls"], ["stat"], ["find"], ["du"], ["tree"], ["policy", "get"]):
        assert isinstance(json.loads(dfs(*command, top, "--json").out), dict)
