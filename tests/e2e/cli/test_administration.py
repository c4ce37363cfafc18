"""policy and admin."""

import pytest

from tests.e2e.cli.conftest import Dfs


def test_policies(dfs: Dfs) -> None:
    built_in = {each["name"]: each for each in dfs("policy", "list", "--json").json["policies"]}
    assert {"default", "ec", "scratch"} <= set(built_in)
    assert built_in["ec"]["redundancy"] == "ec:4+2"
    assert built_in["default"]["fit"] is True
    made = dfs(
        "policy", "create", "wide", "--redundancy", "ec:2+1", "--compression", "none", "--json",
        "--spread", "disk",
    ).json  # fmt: skip
    assert made["number"] >= 16
    shown = dfs("policy", "show", "wide", "--json").json
    assert shown == made
    assert (shown["redundancy"], shown["compression"], shown["spread"], shown["expansion"]) == (
        "ec:2+1",
        "none",
        "disk",
        1.5,
    )
    assert "wide" in dfs("policy", "list").text
    assert "ec:2+1" in dfs("policy", "show", "wide").text
    assert "wide" in dfs("policy", "create", "wide", "--redundancy", "rep:1", status=1).errors
    assert "no such policy; there are" in dfs("policy", "show", "gold", status=1).errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--redundancy", "rep:0"],
        ["x", "--redundancy", "raid5"],
        ["X", "--redundancy", "rep:1"],
        ["x", "--redundancy", "rep:1", "--compression", "gzip"],
        ["x", "--redundancy", "rep:1", "--spread", "planet"],
        ["x"],
    ],
)
def test_impossible_policies_are_wrong_usage(dfs: Dfs, arguments: list[str]) -> None:
    assert len(dfs("policy", "create", *arguments, status=2).errors.splitlines()) == 1


def test_a_policy_is_set_and_inherited(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("mkdir", f"{top}/before")
    dfs("policy", "set", top, "scratch")
    dfs("mkdir", f"{top}/after")
    assert dfs("policy", "get", top).text == "scratch\n"
    assert dfs("policy", "get", f"{top}/before", f"{top}/after").lines == [
        f"{top}/before: default",
        f"{top}/after: scratch",
    ]
    dfs("policy", "set", "-R", top, "default")
    entries = dfs("policy", "get", "--json", top, f"{top}/after").json["entries"]
    assert entries == [
        {"path": top, "policy": "default"},
        {"path": f"{top}/after", "policy": "default"},
    ]
    assert "gold" in dfs("policy", "set", top, "gold", status=1).errors
    assert "No such file" in dfs("policy", "set", f"{top}/none", "ec", status=1).errors


def test_status(dfs: Dfs) -> None:
    document = dfs("admin", "status", "--json").json
    assert document["health"] == "healthy"
    assert document["problems"] == []
    assert len(document["servers"]) == 3
    assert document["chunks"]["lost"] == 0
    shown = dfs("admin", "status").text
    assert document["cluster"] in shown
    assert "healthy" in shown


def test_servers_disks_chunks_sessions(dfs: Dfs) -> None:
    top = dfs.fresh()
    dfs("upload", "-", f"{top}/f", stdin=b"x")
    servers = dfs("admin", "servers", "--json").json["servers"]
    assert {server["state"] for server in servers} == {"up"}
    disks = dfs("admin", "disks", "--json").json["disks"]
    assert {disk["disk"] for disk in disks} == {1, 2, 3}
    assert {disk["path"] for disk in disks} == {
        disk["path"] for server in servers for disk in server["disks"]
    }
    chunks = dfs("admin", "chunks", "--json").json["chunks"]
    assert {chunk["health"] for chunk in chunks} == {"healthy"}
    assert len(chunks[0]["fragments"]) == 3
    assert len(dfs("admin", "chunks", "--json", "--limit", "1").json["chunks"]) == 1
    assert dfs("admin", "chunks", "--health", "lost", "--json").json == {"chunks": []}
    with dfs.running("upload", "-", f"{top}/g", stdin=-1) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(3_000_000))
        process.stdin.flush()
        (session,) = dfs("admin", "sessions", "--json").json["sessions"]
        assert str(process.pid) in session["client"]
        assert session["open_files"] == 1
        process.communicate()
        assert process.returncode == 0
    for table in ("servers", "disks", "chunks", "sessions"):
        assert dfs("admin", table).lines
