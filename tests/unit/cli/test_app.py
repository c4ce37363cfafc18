import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dfs.cli import app, connect, daemons
from dfs.cli.failures import StoppedError
from dfs.core.errors import ConfigError, DfsError, refuse


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ls / --master a:1", ("ls", "--master a:1 ls /")),
        ("ls --master=a:1 /", ("ls", "--master=a:1 ls /")),
        ("--master a:1 ls /", ("ls", "--master a:1 ls /")),
        ("chunkserver --master a:1 --quiet", ("chunkserver", "--quiet chunkserver --master a:1")),
        ("rm -- --verbose", ("rm", "rm -- --verbose")),
        ("cat /x --on-unavailable error", ("cat", "--on-unavailable error cat /x")),
        ("ls --master", ("ls", "--master ls")),
        ("--help", ("", "--help")),
        ("-v upload - /x", ("upload", "-v upload - /x")),
    ],
)
def test_global_options_may_stand_anywhere(given: str, expected: tuple[str, str]) -> None:
    command, arguments = app.hoist(given.split())
    assert (command, " ".join(arguments)) == expected


def test_every_command_is_registered_by_its_module() -> None:
    everything = app.build_app()
    commands = {info.name for info in everything.registered_commands}
    groups = {info.name for info in everything.registered_groups}
    assert commands | groups == set(app._COMMANDS)
    for name in app._COMMANDS:
        alone = app.build_app(name)
        found = {info.name for info in alone.registered_commands}
        assert name in found | {info.name for info in alone.registered_groups}


def test_starting_imports_nothing_slow() -> None:
    code = (
        "import sys; from dfs.cli.app import build_app; build_app();"
        "slow = {'trio', 'rich', 'dfs.client', 'dfs.master', 'dfs.wire'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (refuse(errno.ENOENT, "/a/b"), 1, "dfs: /a/b: No such file or directory"),
        (DfsError("it broke", hint="mend it"), 1, "dfs: it broke; mend it"),
        (ConfigError("bad\nvalue"), 2, r"dfs: bad\nvalue"),
        (FileNotFoundError(2, "No such file", "/x\udcff"), 1, r"dfs: /x\xff: No such file"),
        (StoppedError(15), 143, "dfs: stopped; it is safe to run the same command again"),
        (KeyboardInterrupt(), 130, "dfs: stopped; it is safe to run the same command again"),
        (SystemExit(3), 3, ""),
        (
            ExceptionGroup("g", [DfsError("one"), ExceptionGroup("h", [DfsError("one")])]),
            1,
            "dfs: one",
        ),
        (
            BaseExceptionGroup("g", [DfsError("one"), KeyboardInterrupt()]),
            130,
            "dfs: stopped; it is safe to run the same command again",
        ),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app._end(error) == status
    assert capsys.readouterr().err == (f"{line}\n" if line else "")


def test_a_bug_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError) as raised:
        raise TypeError("oops")
    assert app._end(raised.value) == 1
    shown = capsys.readouterr().err
    assert "internal error: TypeError: oops at test_app.py:" in shown
    assert "report it" in shown


@pytest.mark.parametrize("text", ["a:1", "a:1,b:2", "[::1]:9420", "10.0.0.1:65535"])
def test_good_addresses(text: str) -> None:
    assert connect.check_address(text, "--master") == text


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:1,", "a:x", "a:²", "::1:9420"]
)
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--master"):
        connect.check_address(text, "--master")


def test_the_master_is_named_by_flag_then_environment_then_a_local_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DFS_MASTER", "env:1")
    monkeypatch.setattr(connect.options, "master", "flag:1")
    assert connect.master_address() == "flag:1"
    monkeypatch.setattr(connect.options, "master", None)
    assert connect.master_address() == "env:1"
    monkeypatch.setenv("DFS_MASTER", "")
    with pytest.raises(ConfigError, match=r"--master HOST:PORT.*DFS_MASTER.*dfs dev start"):
        connect.master_address()


def test_the_parent_of_a_linked_directory_is_that_of_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "target").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere" / "target")
    (disk,) = daemons._disks((f"{tmp_path}/here/link/../disk",))
    assert Path(disk).resolve() == (tmp_path / "elsewhere" / "disk").resolve()
