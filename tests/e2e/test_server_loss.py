"""Chunk servers die while data moves: the user sees a short pause and no error."""

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.cluster import Cluster, wait_until

PAUSE_MAX_S = 5.0
"""The longest a transfer may stand still because of a dead server."""


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("loss") / "cluster", servers=7) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster, empty and whole."""
    shared_cluster.dfs("mkdir", "/data")
    yield shared_cluster
    for process in shared_cluster.servers.values():
        if process.alive:
            shared_cluster.resume(process.name)
    dead = [name for name, process in shared_cluster.servers.items() if not process.alive]
    shared_cluster.restart(*dead)
    shared_cluster.dfs("rm", "-r", "/data")


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert not errors, f"an error was shown: {errors.decode()}"


@pytest.mark.parametrize("policy", ["default", "ec"])
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_an_upload_survives_losing_a_server(
    cluster: Cluster, tmp_path: Path, policy: str, how: str
) -> None:
    cluster.dfs("policy", "set", "/data", policy)
    tree = oracle.make_tree(tmp_path / "tree", seed=4, files=300)
    oracle.random_file(tree / "big", 100_000_000, seed=5)
    begun = time.monotonic()
    cluster.dfs("upload", "-r", tree, "/data/undisturbed")
    usual_s = time.monotonic() - begun
    begun = time.monotonic()
    upload = cluster.spawn_dfs("upload", "-r", tree, "/data/disturbed")
    time.sleep(usual_s * random.uniform(0.3, 0.7))
    if how == "kill":
        cluster.kill("cs3")
    else:
        cluster.pause("cs3")
    finish(upload)
    took_s = time.monotonic() - begun
    (tmp_path / "back").mkdir()
    cluster.dfs("download", "-r", "/data/disturbed", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back" / "disturbed")
    assert took_s < 2 * usual_s + PAUSE_MAX_S


@pytest.mark.parametrize("policy", ["default", "ec"])
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_download_survives_losing_a_server(
    cluster: Cluster, tmp_path: Path, policy: str, how: str
) -> None:
    cluster.dfs("policy", "set", "/data", policy)
    tree = oracle.make_tree(tmp_path / "tree", seed=6, files=300)
    oracle.random_file(tree / "big", 100_000_000, seed=7)
    cluster.dfs("upload", "-r", tree, "/data")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    begun = time.monotonic()
    cluster.dfs("download", "-r", "/data/tree", first)
    usual_s = time.monotonic() - begun
    begun = time.monotonic()
    download = cluster.spawn_dfs("download", "-r", "/data/tree", second)
    time.sleep(usual_s * random.uniform(0.3, 0.7))
    if how == "kill":
        cluster.kill("cs2")
    else:
        cluster.pause("cs2")
    finish(download)
    took_s = time.monotonic() - begun
    oracle.assert_same(tree, second / "tree")
    assert took_s < 2 * usual_s + PAUSE_MAX_S


def test_a_dead_server_is_noticed_within_five_seconds_and_welcome_back(cluster: Cluster) -> None:
    cluster.kill("cs4")
    wait_until(lambda: cluster.servers_up() == 6, 8, what="the dead server is noticed")
    cluster.restart("cs4")
    assert cluster.servers_up() == 7


def test_reads_wait_for_servers_that_come_back(cluster: Cluster, tmp_path: Path) -> None:
    cluster.dfs("policy", "set", "/data", "ec")
    file = oracle.random_file(tmp_path / "file", 1_000_000, seed=8)
    cluster.dfs("upload", file, "/data/file")
    cluster.kill("cs1", "cs2", "cs3", "cs4")
    download = cluster.spawn_dfs("download", "/data/file", tmp_path / "back")
    time.sleep(2)
    assert download.poll() is None, "did not wait"
    cluster.restart("cs1", "cs2", "cs3", "cs4", wait=False)
    finish(download)
    assert oracle.digest(tmp_path / "back") == oracle.digest(file)
