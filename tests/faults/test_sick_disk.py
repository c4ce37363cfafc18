"""A disk that hangs, is full, or answers with errors."""

import errno
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.chunkserver.daemon import STOP_S
from tests import damage, oracle
from tests.cluster import Cluster, wait_until
from tests.sick_disk import SickDisk, is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs /dev/fuse")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SickDisk]:
    with SickDisk(tmp_path / "sick", tmp_path / "aside") as disk:
        yield disk


@pytest.fixture
def cluster(tmp_path: Path, disk: SickDisk) -> Iterator[Cluster]:
    """Three servers, so that each has a fragment of every chunk; the sick disk is that of one."""
    cluster = Cluster(tmp_path / "cluster", servers=3)
    argv = cluster.servers["cs1"].argv
    argv[argv.index("--disk") + 1] = str(disk.path)
    with cluster:
        cluster.broken = True
        cluster.allow_logs("disk .* has failed")
        yield cluster


def state(cluster: Cluster, disk: SickDisk) -> str:
    (found,) = [d for d in cluster.json("admin", "disks")["disks"] if d["path"] == str(disk.path)]
    return str(found["state"])


def test_a_server_whose_disk_hangs_stops_when_it_is_told_to(
    cluster: Cluster, disk: SickDisk, tmp_path: Path
) -> None:
    file = oracle.random_file(tmp_path / "file", 1 << 20, seed=1)
    disk.hang()
    writer = cluster.spawn_dfs("upload", file, "/")
    wait_until(lambda: damage.fragments(cluster, "cs2"), what="another disk has its fragment")
    time.sleep(0.3)
    server = cluster.servers["cs1"]
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait(STOP_S + 5) == 0
    assert time.monotonic() - begun < STOP_S + 3
    assert "disk that hangs" in server.log_tail()
    disk.wake()
    cluster.restart("cs1")
    _, said = writer.communicate(timeout=60)
    assert writer.returncode == 0, said


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_writes_go_on_when_a_disk_is_full_or_broken_in_the_middle(
    cluster: Cluster, disk: SickDisk, tmp_path: Path, error: int
) -> None:
    file = oracle.random_file(tmp_path / "file", 24 << 20, seed=1)
    writer = cluster.spawn_dfs("upload", file, "/")
    with disk.sick(error):
        time.sleep(0.5)
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
        cluster.dfs("upload", file, "/again")
        wanted = "full" if error == errno.ENOSPC else "failed"
        wait_until(lambda: state(cluster, disk) == wanted, 20, what=f"the disk is {wanted}")
        for name in ("/file", "/again"):
            cluster.dfs("download", name, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == file.read_bytes()
    if error == errno.ENOSPC:
        wait_until(lambda: state(cluster, disk) == "up", 20, what="the disk has room again")
