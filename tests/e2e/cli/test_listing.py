"""ls, tree, stat, find, du, df, locate: what they show, as text and as JSON."""

import re

import pytest

from tests.e2e.cli.conftest import Dfs


@pytest.fixture(scope="module")
def tree(dfs: Dfs) -> str:
    """/listing with: big (3000 bytes), .hidden, dir/small (5), dir/deep/empty, link, dir2/."""
    dfs("mkdir", "-p", "/listing/dir/deep", "/listing/dir2")
    dfs("upload", "-", "/listing/big", stdin=bytes(range(250)) * 12)
    dfs("upload", "-", "/listing/dir/small", stdin=b"small")
    dfs("touch", "/listing/.hidden", "/listing/dir/deep/empty")
    dfs("ln", "-s", "dir/small", "/listing/link")
    dfs("touch", "-d", "@1000000000", "/listing/dir/deep/empty")
    return "/listing"


def test_ls(dfs: Dfs, tree: str) -> None:
    assert dfs("ls", tree).lines == ["big", "dir", "dir2", "link"]
    assert dfs("ls", "-a", tree).lines == [".hidden", "big", "dir", "dir2", "link"]
    assert dfs("ls", "-r", tree).lines == ["link", "dir2", "dir", "big"]
    assert dfs("ls", "-S", tree).lines[0] == "big"
    assert dfs("ls", "-d", tree, f"{tree}/dir").lines == [tree, f"{tree}/dir"]
    assert dfs("ls", f"{tree}/link", f"{tree}/dir2").lines == [
        f"{tree}/link",
        "",
        f"{tree}/dir2:",
    ]
    assert dfs("ls", "-R", f"{tree}/dir").lines == [
        f"{tree}/dir:",
        "deep",
        "small",
        "",
        f"{tree}/dir/deep:",
        "empty",
    ]


def test_ls_long_has_the_columns_of_ls(dfs: Dfs, tree: str) -> None:
    total, big, *_, link = dfs("ls", "-l", tree).lines
    assert total == "total 3"
    assert re.fullmatch(r"-rw-r--r-- 1 \S+ +\S+ +3000 \w{3} [ \d]\d \d\d:\d\d big", big)
    assert link.startswith("lrwxrwxrwx 1 ")
    assert link.endswith(" link -> dir/small")
    assert " 3.0K " in dfs("ls", "-lh", f"{tree}/big").text
    old = dfs("ls", "-n", f"{tree}/dir/deep/empty").text
    assert re.fullmatch(r"-rw-r--r-- 1 \d+ \d+ 0 Sep +[89]  2001 /listing/dir/deep/empty\n", old)


def test_ls_json(dfs: Dfs, tree: str) -> None:
    entries = dfs("ls", "--json", tree).json["entries"]
    assert [entry["name"] for entry in entries] == [".hidden", "big", "dir", "dir2", "link"]
    big = entries[1]
    assert big["path"] == f"{tree}/big"
    assert (big["type"], big["size"], big["mode"], big["policy"]) == (
        "file",
        3000,
        "0644",
        "default",
    )
    assert set(big) == {
        "path", "name", "type", "mode", "nlink", "uid", "gid", "size", "allocated",
        "atime_ns", "mtime_ns", "ctime_ns", "inode", "policy",
    }  # fmt: skip
    assert entries[4]["target"] == "dir/small"
    below = dfs("ls", "-R", "--json", tree).json["entries"]
    assert f"{tree}/dir/deep/empty" in [entry["path"] for entry in below]


def test_what_is_missing_is_one_line_and_the_rest_is_listed(dfs: Dfs, tree: str) -> None:
    done = dfs("ls", f"{tree}/none", f"{tree}/dir", status=1)
    assert done.errors == f"dfs: {tree}/none: No such file or directory\n"
    assert "small" in done.text
    assert dfs("ls", "--json", f"{tree}/none", status=1).json == {"entries": []}


def test_tree(dfs: Dfs, tree: str) -> None:
    assert dfs("tree", tree).lines == [
        tree,
        "├── big",
        "├── dir",
        "│   ├── deep",
        "│   │   └── empty",
        "│   └── small",
        "├── dir2",
        "└── link -> dir/small",
        "",
        "3 directories, 4 files",
    ]
    assert dfs("tree", "-d", "-L", "1", tree).lines == [
        tree,
        "├── dir",
        "└── dir2",
        "",
        "2 directories, 0 files",
    ]
    document = dfs("tree", "--json", tree).json
    assert (document["directories"], document["files"]) == (3, 5)
    names = {child["name"]: child for child in document["tree"]["children"]}
    assert names["dir"]["children"][0]["children"] == [{"name": "empty", "type": "file", "size": 0}]


def test_stat(dfs: Dfs, tree: str) -> None:
    shown = dfs("stat", f"{tree}/dir/deep/empty").text
    assert re.search(r"Modify: 2001-09-\d\d \d\d:46:40\.000000000 [+-]\d{4}", shown)
    assert "Policy: default (rep:3, zstd:3)" in shown
    assert "(0644/-rw-r--r--)" in shown
    assert "-> dir/small" in dfs("stat", f"{tree}/link").text
    assert "Size: 5" in dfs("stat", "-L", f"{tree}/link").text


def test_find(dfs: Dfs, tree: str) -> None:
    def found(*conditions: str) -> list[str]:
        return [line.removeprefix(tree) for line in dfs("find", tree, *conditions).lines]

    assert found() == [
        "", "/.hidden", "/big", "/dir", "/dir/deep", "/dir/deep/empty", "/dir/small", "/dir2",
        "/link",
    ]  # fmt: skip
    assert found("--name", "d*", "--type", "d") == ["/dir", "/dir/deep", "/dir2"]
    assert found("-name", "s*", "-type", "f,l") == ["/dir/small"]
    assert found("--iname", "BIG") == ["/big"]
    assert found("--size", "+1k") == ["/big"]
    assert found("--mtime", "+365") == ["/dir/deep/empty"]
    assert found("--empty", "--type", "d") == ["/dir2"]
    assert found("--max-depth", "1", "--min-depth", "1", "--path", "*dir*") == ["/dir", "/dir2"]
    assert found("--policy", "ec") == []
    entries = dfs("find", tree, "--name", "big", "--json").json["entries"]
    assert [entry["path"] for entry in entries] == [f"{tree}/big"]
    assert "no such policy" in dfs("find", tree, "--policy", "none", status=1).errors
    assert "not a size" in dfs("find", tree, "--size", "much", status=2).errors
    assert "is no type" in dfs("find", tree, "--type", "q", status=2).errors


def test_du(dfs: Dfs, tree: str) -> None:
    assert dfs("du", tree).lines == [
        f"0\t{tree}/dir/deep",
        f"1\t{tree}/dir",
        f"0\t{tree}/dir2",
        f"3\t{tree}",
    ]
    assert dfs("du", "-sb", tree).lines == [f"{3000 + 5 + len('dir/small')}\t{tree}"]
    assert dfs("du", "-a", "-d", "1", tree).lines[1] == f"3\t{tree}/big"
    total = dfs("du", "-s", "--json", tree).json["entries"][0]
    assert (total["allocated"], total["files"], total["directories"]) == (3005, 5, 4)


def test_du_counts_a_file_with_two_names_once(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("upload", "-", f"{top}/a", stdin=bytes(5000))
    dfs("ln", f"{top}/a", f"{top}/b")
    assert dfs("du", "-s", "--json", top).json["entries"][0]["allocated"] == 5000


def test_df(dfs: Dfs) -> None:
    titles, values = dfs("df").lines
    assert titles.split() == [
        *("1K-blocks", "Used", "Avail", "Use%", "Files", "Stored", "Room"),
        *("Live", "Dead", "Redundancy"),
    ]
    assert len(values.split()) == len(titles.split())
    document = dfs("df", "--json").json
    assert document["expansion"] == 3.0
    space = document["space"]
    assert space["live"] + space["dead"] + space["redundancy"] == document["used"]
    assert sum(space.values()) == document["capacity"]


def test_locate(dfs: Dfs, tree: str) -> None:
    (file,) = dfs("locate", "--json", f"{tree}/big").json["files"]
    assert file["size"] == 3000
    assert sum(extent["length"] for extent in file["extents"]) == 3000
    (chunk,) = file["chunks"]
    assert (chunk["health"], chunk["redundancy"]) == ("healthy", "rep:3")
    assert len({fragment["address"] for fragment in chunk["fragments"]}) == 3
    assert all(fragment["disk_state"] == "up" for fragment in chunk["fragments"])
    assert "disk1" in chunk["fragments"][0]["path"]
    shown = dfs("locate", f"{tree}/big").text
    assert shown.startswith(f"{tree}/big: 3000 bytes, 1 extent in 1 chunk\n")
    assert "healthy" in shown
    assert "0 bytes, 0 extents" in dfs("locate", f"{tree}/.hidden").text
    assert "not a regular file" in dfs("locate", f"{tree}/dir", status=1).errors
