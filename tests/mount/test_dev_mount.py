"""`dfs dev start --mount`: a cluster and its mount, in one command each way."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.cli.process import ProcessId, identify, is_running, send_signal
from dfs_fuse.mount_table import mounted_at
from tests.cluster import environment, wait_until
from tests.mount.conftest import last_resort, require
from tests.mount.test_lifecycle import somebody_in


class Dev:
    """`dfs dev ...` on one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "dev"
        self.point = directory / "mnt"
        self.point.mkdir()

    def __call__(self, *args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = ["-m", "dfs", "dev", *args, "--dir", str(self.directory)]
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=90,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    @property
    def entry(self) -> dict[str, Any]:
        """The mount, in cluster.json."""
        document = json.loads((self.directory / "cluster.json").read_text())
        found = [each for each in document["processes"] if each["role"] == "mount"]
        assert len(found) == 1
        return dict(found[0])

    @property
    def process(self) -> ProcessId:
        found = identify(self.entry["pid"])
        assert found is not None
        return found

    def states(self, *, status: int = 0) -> dict[str, str]:
        document = json.loads(self("status", "--json", status=status).stdout)
        return {each["name"]: each["state"] for each in document["processes"]}

    @property
    def mounted(self) -> bool:
        return mounted_at(str(self.point)) is not None


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    require("auto")
    with last_resort(tmp_path):
        dev = Dev(tmp_path)
        try:
            yield dev
        finally:
            if (dev.directory / "dev.json").exists():
                dev("destroy", "--yes")
            assert not dev.mounted


def test_the_mount_lives_and_ends_with_the_cluster(dev: Dev) -> None:
    started = dev("start", "--servers", "1", "--mount", str(dev.point)).stdout
    assert f"Mounted on {dev.point}\n" in started
    assert dev.entry["name"] == "mount"
    assert dev.entry["point"] == str(dev.point)
    assert dev.states() == {"master": "running", "cs1": "running", "mount": "running"}
    assert str(dev.point) in dev("status").stdout
    (dev.point / "kept").write_text("kept")
    first = dev.process

    # Again: nothing to do. Elsewhere: no.
    dev("start", "--mount", str(dev.point))
    assert dev.process == first
    assert "already" in dev("start", "--mount", str(dev.directory), status=1).stderr

    dev("restart", "mount")
    assert dev.process != first
    assert not is_running(first)
    dev("restart", "master")
    assert (dev.point / "kept").read_text() == "kept"

    # Who works there does not keep it from stopping.
    second = dev.process
    with somebody_in(dev.point) as worker:
        stopped = dev("stop")
        assert f"(pid {worker.pid}) works in" in stopped.stderr
    assert "mount" in stopped.stdout
    assert not dev.mounted
    assert not is_running(second)

    dev("start")
    assert not dev.mounted
    dev("start", "--mount", str(dev.point))
    assert (dev.point / "kept").read_text() == "kept"

    # Unmounted by hand, it is no longer missed.
    subprocess.run(
        [sys.executable, "-m", "dfs", "umount", dev.point],
        env=environment(),
        check=True,
        timeout=60,
    )
    assert dev.states() == {"master": "running", "cs1": "running"}


def test_a_killed_mount_is_mounted_again_by_start(dev: Dev) -> None:
    dev("start", "--servers", "1", "--mount", str(dev.point))
    (dev.point / "kept").write_text("kept")
    killed = dev.process
    assert send_signal(killed, signal.SIGKILL)
    wait_until(lambda: not is_running(killed), what="killed")
    assert dev.states(status=1)["mount"] == "stopped"
    dev("restart", "cs1")
    dev("start")
    assert dev.states()["mount"] == "running"
    assert (dev.point / "kept").read_text() == "kept"

    killed = dev.process
    assert send_signal(killed, signal.SIGKILL)
    wait_until(lambda: not is_running(killed), what="killed")
    dev("destroy", "--yes")
    assert not dev.mounted
