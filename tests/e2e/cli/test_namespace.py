"""mkdir, rm, mv, cp, ln, chmod, chown, touch: as coreutils have them."""

import os
import time
from typing import Any

import pytest

from tests.e2e.cli.conftest import Dfs

pytestmark = pytest.mark.usefixtures("umask_022")


def stat(dfs: Dfs, path: str, *options: str) -> dict[str, Any]:
    (entry,) = dfs("stat", "--json", *options, path).json["entries"]
    assert isinstance(entry, dict)
    return entry


def names(dfs: Dfs, path: str) -> list[str]:
    return dfs("ls", "-a", path).lines


def test_mkdir(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", f"{top}/a", f"{top}/b")
    assert "File exists" in dfs("mkdir", f"{top}/a", status=1).errors
    assert "No such file" in dfs("mkdir", f"{top}/x/y", status=1).errors
    dfs("mkdir", "-p", f"{top}/x/y/z", f"{top}/a")
    dfs("mkdir", "-p", "-m", "700", f"{top}/p/q")
    assert stat(dfs, f"{top}/p/q")["mode"] == "0700"
    assert stat(dfs, f"{top}/p")["mode"] == "0755"
    assert names(dfs, top) == ["a", "b", "p", "x"]


def test_failures_are_lines_and_the_rest_is_done(dfs: Dfs) -> None:
    top = dfs.fresh()
    done = dfs("mkdir", f"{top}/no/1", f"{top}/yes", f"{top}/no/2", status=1)
    assert [line.split(": ")[1] for line in done.errors.splitlines()] == [
        f"{top}/no/1",
        f"{top}/no/2",
    ]
    assert names(dfs, top) == ["yes"]


def test_rm(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", "-p", f"{top}/full/deep", f"{top}/empty")
    dfs("touch", f"{top}/file", f"{top}/full/deep/file")
    assert "is a directory; -r" in dfs("rm", f"{top}/full", status=1).errors
    assert "not empty" in dfs("rm", "-d", f"{top}/full", status=1).errors
    assert "No such file" in dfs("rm", f"{top}/gone", status=1).errors
    dfs("rm", "-f", f"{top}/gone")
    dfs("rm", "-d", f"{top}/empty")
    dfs("rm", "-r", f"{top}/full", f"{top}/file")
    assert names(dfs, top) == []
    for path in ("/", f"{top}/.", f"{top}/.."):
        assert "refused" in dfs("rm", "-r", path, status=2).errors


def test_mv(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", f"{top}/dir", f"{top}/other")
    dfs("upload", "-", f"{top}/a", stdin=b"a")
    dfs("upload", "-", f"{top}/b", stdin=b"b")
    dfs("mv", f"{top}/a", f"{top}/c")
    dfs("mv", "-n", f"{top}/b", f"{top}/c")
    assert dfs("cat", f"{top}/c").out == b"a"
    dfs("mv", f"{top}/b", f"{top}/c")
    assert dfs("cat", f"{top}/c").out == b"b"
    dfs("mv", f"{top}/c", f"{top}/other", f"{top}/dir/")
    assert names(dfs, f"{top}/dir") == ["c", "other"]
    assert "not a directory" in dfs("mv", f"{top}/dir", f"{top}/x", f"{top}/y", status=1).errors
    assert "same file" in dfs("mv", f"{top}/dir/c", f"{top}/dir", status=1).errors
    assert "is not a directory" in dfs("mv", f"{top}/dir/c", f"{top}/new/", status=1).errors
    dfs("mv", f"{top}/dir", f"{top}/renamed/")
    assert dfs("mv", f"{top}/renamed", f"{top}/renamed/other", status=1).errors
    assert names(dfs, top) == ["renamed"]


def test_cp(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", "-p", f"{top}/tree/sub")
    dfs("upload", "-", f"{top}/tree/file", stdin=b"content")
    dfs("ln", "-s", "file", f"{top}/tree/link")
    assert "-r copies it" in dfs("cp", f"{top}/tree", f"{top}/copy", status=1).errors
    dfs("cp", "-r", f"{top}/tree", f"{top}/copy")
    dfs("cp", "-r", f"{top}/tree", f"{top}/copy")
    assert names(dfs, f"{top}/copy") == ["file", "link", "sub", "tree"]
    assert dfs("cat", f"{top}/copy/tree/file").out == b"content"
    assert stat(dfs, f"{top}/copy/link")["target"] == "file"
    dfs("cp", f"{top}/tree/link", f"{top}/plain")
    assert stat(dfs, f"{top}/plain")["type"] == "file"
    dfs("upload", "-", f"{top}/tree/file", stdin=b"changed")
    assert dfs("cat", f"{top}/plain").out == b"content"
    dfs("cp", "-n", f"{top}/tree/file", f"{top}/plain")
    assert dfs("cat", f"{top}/plain").out == b"content"
    dfs("cp", f"{top}/tree/file", f"{top}/plain")
    assert dfs("cat", f"{top}/plain").out == b"changed"
    inside = dfs("cp", "-r", f"{top}/tree", f"{top}/tree/sub", status=1)
    assert "copied into itself" in inside.errors
    assert "same file" in dfs("cp", f"{top}/plain", f"{top}/plain", status=1).errors


def test_ln(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", f"{top}/dir")
    dfs("upload", "-", f"{top}/file", stdin=b"x")
    dfs("ln", f"{top}/file", f"{top}/hard")
    assert stat(dfs, f"{top}/file")["nlink"] == 2
    dfs("ln", f"{top}/file", f"{top}/dir")
    assert stat(dfs, f"{top}/dir/file")["inode"] == stat(dfs, f"{top}/hard")["inode"]
    dfs("ln", "-s", "some/where", f"{top}/soft")
    assert stat(dfs, f"{top}/soft")["target"] == "some/where"
    assert "File exists" in dfs("ln", "-s", "other", f"{top}/soft", status=1).errors
    dfs("ln", "-sf", "other", f"{top}/soft")
    assert stat(dfs, f"{top}/soft")["target"] == "other"
    dfs("ln", "-f", f"{top}/file", f"{top}/hard")
    assert names(dfs, top) == ["dir", "file", "hard", "soft"]
    assert dfs("ln", f"{top}/dir", f"{top}/dirlink", status=1).errors
    assert "not a remote path" in dfs("ln", "relative", f"{top}/x", status=2).errors


def test_chmod(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", "-p", f"{top}/d/e")
    dfs("touch", f"{top}/d/f")
    dfs("ln", "-s", "f", f"{top}/d/l")
    dfs("chmod", "-R", "u=rwX,go=rX", f"{top}/d")
    assert stat(dfs, f"{top}/d/f")["mode"] == "0644"
    assert stat(dfs, f"{top}/d/e")["mode"] == "0755"
    dfs("chmod", "-w", f"{top}/d/f")
    assert stat(dfs, f"{top}/d/f")["mode"] == "0444"
    dfs("chmod", "4711", f"{top}/d/l")
    assert stat(dfs, f"{top}/d/f")["mode"] == "4711"
    assert "not a mode" in dfs("chmod", "u+q", f"{top}/d/f", status=2).errors
    assert "No such file" in dfs("chmod", "600", f"{top}/gone", status=1).errors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_chown(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", f"{top}/d")
    dfs("touch", f"{top}/d/f")
    dfs("ln", "-s", "f", f"{top}/d/l")
    dfs("chown", "-R", "1234:4321", f"{top}/d")
    for path in ("d", "d/f", "d/l"):
        found = stat(dfs, f"{top}/{path}")
        assert (found["uid"], found["gid"]) == (1234, 4321)
    dfs("chown", ":7", f"{top}/d/f")
    assert (stat(dfs, f"{top}/d/f")["uid"], stat(dfs, f"{top}/d/f")["gid"]) == (1234, 7)
    dfs("chown", "-h", "root:root", f"{top}/d/l")
    assert stat(dfs, f"{top}/d/l")["uid"] == 0
    assert stat(dfs, f"{top}/d/f")["uid"] == 1234
    assert "no such user" in dfs("chown", "nobody-here", f"{top}/d", status=2).errors


def test_touch(dfs: Dfs) -> None:
    top = dfs.fresh()
    before = time.time_ns()
    dfs("touch", f"{top}/f")
    made = stat(dfs, f"{top}/f")
    assert made["mode"] == "0644"
    assert abs(made["mtime_ns"] - before) < 60e9
    dfs("touch", "-c", f"{top}/none")
    assert names(dfs, top) == ["f"]
    dfs("touch", "-d", "@1000000000.25", f"{top}/f")
    assert stat(dfs, f"{top}/f")["mtime_ns"] == 1_000_000_000_250_000_000
    dfs("touch", "-m", "-d", "@5", f"{top}/f")
    found = stat(dfs, f"{top}/f")
    assert (found["atime_ns"], found["mtime_ns"]) == (1_000_000_000_250_000_000, 5_000_000_000)
    dfs("touch", "-r", f"{top}/f", f"{top}/g")
    assert stat(dfs, f"{top}/g")["mtime_ns"] == 5_000_000_000
    assert "not a time" in dfs("touch", "-d", "noon", f"{top}/f", status=2).errors


def test_names_that_are_not_utf8(dfs: Dfs) -> None:
    top = dfs.fresh()
    name = top.encode() + b"/caf\xe9\n"
    dfs("mkdir", name)
    assert dfs("ls", top).text == "caf\\xe9\\n\n"
    (entry,) = dfs("ls", "--json", top).json["entries"]
    assert entry["name"] == "caf\\xe9\\n"
    assert entry["name_base64"] == "Y2Fm6Qo="
    assert dfs("find", top, "--print0", "--min-depth", "1").out == name + b"\0"
    dfs("rm", "-r", name)
    assert dfs("ls", top).out == b""


@pytest.mark.parametrize(
    "command", ["ls", "cat", "stat", "mkdir", "rm", "tree", "du", "find", "touch", "locate"]
)
def test_a_relative_path_is_wrong_usage(dfs: Dfs, command: str) -> None:
    assert "remote paths are absolute" in dfs(command, "a/b", status=2).errors


def test_of_two_sources_with_one_name_the_second_stays(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", "-p", f"{top}/a/both", f"{top}/b/both", f"{top}/c")
    for each in ("a", "b"):
        dfs("upload", "-", f"{top}/{each}/name", stdin=each.encode())
        dfs("touch", f"{top}/{each}/both/{each}")
    for command in ("cp", "mv"):
        done = dfs(command, f"{top}/a/name", f"{top}/b/name", f"{top}/c", status=1)
        assert done.errors.startswith(f"dfs: {top}/b/name: ")
        assert dfs("cat", f"{top}/c/name").text == "a"
        assert dfs("cat", f"{top}/b/name").text == "b"
    dfs("cp", "-r", f"{top}/a/both", f"{top}/b/both", f"{top}/c")
    assert names(dfs, f"{top}/c/both") == ["a", "b"]


def test_mv_into_itself_says_so(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", "-p", f"{top}/a/b")
    assert "into itself" in dfs("mv", f"{top}/a", f"{top}/a/b", status=1).errors
