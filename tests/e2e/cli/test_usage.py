"""Wrong usage is status 2 and one line; help is enough to use a command."""

import subprocess

import pytest

import dfs
from tests.e2e.cli.conftest import CommandServer, Dfs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-such-flag"], "no-such-flag"),
        (["no-such-command"], "no-such-command"),
        (["upload"], "LOCAL"),
        (["ls", "--bogus", "/"], "bogus"),
        (["mv", "/a"], "at least two"),
        (["dev", "start", "--servers", "many"], "many"),
        (["dev", "start", "--servers", "0"], "0"),
        (["admin", "chunks", "--health", "bad"], "healthy"),
        (["master"], "--data"),
        (["chunkserver", "--master", "127.0.0.1:1"], "--disk"),
        (["chunkserver", "--disk", "/x"], "--master"),
        (["master", "--data", "/x", "--http", "nowhere"], "http"),
        (["chunkserver", "--disk", "/x", "--master", "here"], "master"),
        (["chunkserver", "--disk", "/x", "--master", "h:1", "--capacity", "lots"], "capacity"),
        (["ls", "/", "--master", "here"], "here"),
        (["ls", "/", "--master", "::1:9420"], "[::1]:9420"),
        (["master", "--data", ""], "--data: no path"),
        (["chunkserver", "--disk", "", "--master", "h:1"], "--disk: no path"),
        (["chunkserver", "--disk", "/x", "--disk", "/x/", "--master", "h:1"], "/x is given twice"),
        (["chunkserver", "--disk", "/x", "--master", "h:1", "--capacity", "0"], "capacity"),
        (["mount", "", "--master", "h:1"], "POINT"),
        (["umount", ""], "POINT"),
        (["admin", "restore", "-", "--data", ""], "--data: no path"),
    ],
)
def test_wrong_usage(command_server: CommandServer, arguments: list[str], says: str) -> None:
    failed = Dfs(command_server)(*arguments, status=2)
    assert len(failed.errors.splitlines()) == 1
    assert says in failed.errors


def test_settings_of_servers_name_what_is_wrong(tmp_path: object) -> None:
    file = f"{tmp_path}/server.toml"
    with open(file, "w") as config:
        config.write('data = "/x"\nlistne = "127.0.0.1:0"\n')
    assert "listne" in Dfs()("master", "--config", file, status=2).errors
    assert "cannot read" in Dfs()("master", "--config", f"{tmp_path}/none", status=2).errors
    failed = Dfs(DFS_LISTEN="nowhere")("master", "--data", f"{tmp_path}/data", status=2)
    assert "listen" in failed.errors


def test_a_missing_command_shows_help() -> None:
    for arguments in ([], ["policy"], ["admin"], ["dev"]):
        done = subprocess.run(Dfs().command(*arguments), capture_output=True, check=False)
        assert done.returncode == 2
        assert b"Commands:" in done.stderr
        assert b"dfs: a command is missing" in done.stderr


def test_the_version_is_shown() -> None:
    assert Dfs()("--version").text == f"dfs {dfs.__version__}\n"


def test_no_cluster_named_says_how_to_name_one(tmp_path: object) -> None:
    failed = Dfs(HOME=str(tmp_path))("ls", "/", status=2)
    for part in ("--master", "DFS_MASTER", "dfs dev start"):
        assert part in failed.errors


def test_help_has_examples() -> None:
    shown = Dfs()("upload", "--help").text
    assert "Examples:\n    dfs upload a.jpg b.jpg /photos\n" in shown
    assert "--policy" in shown
