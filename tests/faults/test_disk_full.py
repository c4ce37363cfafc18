"""Full disks: clear errors, nothing lost, deleting works, writing works again after."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.cluster import Cluster, wait_until

CAPACITY = 96 * 1024 * 1024


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", servers=4, capacity=str(CAPACITY)) as cluster:
        cluster.broken = True
        yield cluster


def fill(cluster: Cluster, tmp_path: Path, policy: str) -> tuple[list[str], str]:
    """Upload files of 8 MiB until one fails; the names that are in, and the error."""
    cluster.dfs("mkdir", "/full")
    cluster.dfs("policy", "set", "/full", policy)
    names: list[str] = []
    while True:
        number = len(names)
        file = oracle.random_file(tmp_path / f"fill{number}", 8 << 20, seed=number)
        done = cluster.dfs("--on-unavailable", "error", "upload", file, "/full", check=False)
        if done.returncode != 0:
            return names, done.stderr
        names.append(file.name)
        assert len(names) < 100, "never full"


def test_full_disks_refuse_lose_nothing_and_recover(cluster: Cluster, tmp_path: Path) -> None:
    names, error = fill(cluster, tmp_path, "default")
    assert len(names) >= 6
    assert error.startswith("dfs: ")
    assert len(error.strip().splitlines()) == 1
    assert "space" in error.lower() or "full" in error.lower(), error
    for number, name in enumerate(names):
        cluster.dfs("download", f"/full/{name}", tmp_path / "back")
        expected = oracle.random_file(tmp_path / "expected", 8 << 20, seed=number)
        assert oracle.digest(tmp_path / "back") == oracle.digest(expected)
    # Metadata still changes, deleting works, and what it freed can be written again.
    cluster.dfs("mkdir", "/full/directory")
    for name in names[: len(names) // 2]:
        cluster.dfs("rm", f"/full/{name}")
    file = oracle.random_file(tmp_path / "again", 8 << 20, seed=999)

    def writes_again() -> bool:
        done = cluster.dfs("--on-unavailable", "error", "upload", file, "/full", check=False)
        return done.returncode == 0

    wait_until(writes_again, 60, what="freed space is used again")
    cluster.dfs("download", "/full/again", tmp_path / "back")
    assert oracle.digest(tmp_path / "back") == oracle.digest(file)


def test_one_full_server_is_passed_over(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", servers=4) as cluster:
        cluster.broken = True
        small = cluster.add_server("small", capacity=str(16 << 20))
        small.spawn()
        cluster.wait_ready()
        for number in range(12):
            file = oracle.random_file(tmp_path / f"f{number}", 8 << 20, seed=number)
            done = cluster.dfs("upload", file, "/")
            assert not done.stderr
        for number in range(12):
            cluster.dfs("download", f"/f{number}", tmp_path / "back")
            assert oracle.digest(tmp_path / "back") == oracle.digest(tmp_path / f"f{number}")
