"""dfs dev: a cluster through all of its life."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.cli import ports
from tests.cluster import wait_until
from tests.e2e.cli.conftest import CommandServer, Dfs


class Dev:
    """`dfs dev ...` on one directory."""

    def __init__(self, directory: Path, server: CommandServer) -> None:
        self.directory = directory
        self.dfs = Dfs(server)

    def __call__(self, *args: str, status: int = 0) -> Any:
        return self.dfs("dev", *args, "--dir", self.directory, status=status)

    @property
    def running(self) -> dict[str, Any]:
        document = json.loads((self.directory / "cluster.json").read_text())
        return {each["name"]: each for each in document["processes"]}

    def pid(self, name: str) -> int:
        return int(self.running[name]["pid"])

    def states(self, *, status: int) -> dict[str, str]:
        document = self("status", "--json", status=status).json
        return {each["name"]: each["state"] for each in document["processes"]}

    def at(self, *args: str, stdin: bytes = b"") -> Any:
        """A command against this cluster."""
        master = json.loads((self.directory / "cluster.json").read_text())["master"]
        return self.dfs("--master", master, *args, stdin=stdin)


@pytest.fixture
def dev(tmp_path: Path, command_server: CommandServer) -> Iterator[Dev]:
    dev = Dev(tmp_path / "dev", command_server)
    try:
        yield dev
    finally:
        if (dev.directory / "dev.json").exists():
            dev("destroy", "--yes")


def test_the_life_of_a_cluster(dev: Dev) -> None:
    shown = dev("start", "--servers", "1").text
    first = dev.running
    assert first["master"]["address"] in shown
    assert set(first) == {"master", "cs1"}
    assert first["cs1"]["disks"] == [str(dev.directory / "cs1" / "disk1")]
    dev.at("upload", "-", "/kept", stdin=b"kept")
    assert "already" in dev("start").text
    assert dev.running == first

    # One dies: status says so, start brings it back alone.
    os.kill(dev.pid("cs1"), signal.SIGKILL)
    assert dev.states(status=1) == {"master": "running", "cs1": "stopped"}
    dev("start")
    assert dev.pid("master") == first["master"]["pid"]
    assert dev.pid("cs1") != first["cs1"]["pid"]
    assert dev.running["cs1"]["address"] == first["cs1"]["address"]

    # More servers, while it runs.
    dev("start", "--servers", "2")
    assert dev.states(status=0) == {"master": "running", "cs1": "running", "cs2": "running"}
    assert "has 2 chunk servers" in dev("start", "--servers", "1", status=2).errors

    before = dev.pid("master")
    dev("restart", "master")
    assert dev.pid("master") != before
    assert "there are master, cs1, cs2" in dev("restart", "cs9", status=2).errors
    assert dev.at("cat", "/kept").out == b"kept"

    pids = [dev.pid(name) for name in dev.running]
    dev("stop")
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)
    assert not (dev.directory / "cluster.json").exists()
    assert "does not run" in dev("stop").text
    dev("start")
    assert dev.running["master"]["address"] == first["master"]["address"]
    assert dev.at("cat", "/kept").out == b"kept"
    for name in dev.running:
        log = (dev.directory / "logs" / f"{name}.log").read_text()
        assert "Traceback" not in log

    assert "--yes" in dev("destroy", status=2).errors
    dev("destroy", "--yes")
    assert not dev.directory.exists()


def test_two_starts_at_once_make_one_cluster(dev: Dev) -> None:
    start = dev.dfs.command("dev", "start", "--servers", "1", "--dir", dev.directory)
    both = [
        subprocess.Popen(start, env=dev.dfs.env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shown = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already" in text for text in shown) == [False, True]


def test_a_taken_port_is_changed(dev: Dev) -> None:
    dev("start", "--servers", "1")
    address = dev.running["master"]["address"]
    dev.at("mkdir", "/there")
    dev("stop")
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        dev("start")
        assert dev.running["master"]["address"] != address
        assert dev.at("ls", "/").lines == ["there"]


def test_a_failing_start_shows_the_log_and_leaves_nothing_running(dev: Dev) -> None:
    dev("start", "--servers", "1")
    dev("stop")
    (dev.directory / "cs1" / "disk1").rename(dev.directory / "cs1" / "kept")
    (dev.directory / "cs1" / "disk1").write_text("not a directory")
    done = subprocess.run(
        dev.dfs.command("dev", "start", "--dir", dev.directory),
        env=dev.dfs.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    *log, last = done.stderr.splitlines()
    assert last.startswith("dfs: cs1 ended with status 1 while starting")
    assert "disk1" in "".join(log)
    assert set(dev.states(status=1).values()) == {"stopped"}


def test_the_foreground_ends_with_its_processes(dev: Dev) -> None:
    start = ("dev", "start", "--foreground", "--servers", "1", "--dir", dev.directory)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with dev.dfs.running(*start, **how) as process:
        assert process.stdout is not None
        wait_until(lambda: "Ctrl-C" in str(process.stdout.readline()))  # type: ignore[union-attr]
        pids = [dev.pid(name) for name in dev.running]
        os.kill(dev.pid("cs1"), signal.SIGKILL)
        assert process.stderr is not None
        assert "cs1" in str(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def test_a_local_cluster_in_the_default_directory_needs_no_address(
    tmp_path: Path, command_server: CommandServer
) -> None:
    dfs = Dfs(command_server, HOME=str(tmp_path))
    dfs("dev", "start", "--servers", "1")
    try:
        assert (tmp_path / ".local/share/dfs/dev/cluster.json").exists()
        dfs("mkdir", "/found")
        assert dfs("ls").lines == ["found"]
        dfs("dev", "stop")
        assert "dfs dev start" in dfs("ls", status=2).errors
    finally:
        dfs("dev", "destroy", "--yes")


def test_what_is_no_dev_cluster_is_left_alone(
    tmp_path: Path, command_server: CommandServer
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    other = Dev(tmp_path / "mine", command_server)
    assert "no dev cluster here" in other("destroy", "--yes", status=1).errors
    assert "holds other things" in other("start", status=2).errors
    assert "no dev cluster here" in other("status", status=1).errors
    assert sorted(os.listdir(tmp_path / "mine")) in (["file"], [".lock", "file"])


def test_a_master_whose_port_was_taken_is_not_moved_away_from_its_servers(dev: Dev) -> None:
    dev("start", "--servers", "1")
    port = int(dev.running["master"]["address"].rpartition(":")[2])
    os.kill(dev.pid("master"), signal.SIGKILL)
    wait_until(lambda: ports.is_free(port))
    with socket.create_server(("127.0.0.1", port)):
        assert "another program" in dev("restart", "master", status=1).errors
    dev("restart", "master")
    assert dev.running["master"]["address"] == f"127.0.0.1:{port}"
