"""Real trees through the real command line: what comes back is what went in."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.cluster import Cluster

POLICIES = {"rep": "rep:3", "ec": "ec:4+2"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", servers=6) as cluster:
        yield cluster


def use_policy(cluster: Cluster, directory: str, redundancy: str) -> None:
    name = redundancy.replace(":", "-").replace("+", "-")
    cluster.dfs("policy", "create", name, "--redundancy", redundancy)
    cluster.dfs("mkdir", directory)
    cluster.dfs("policy", "set", directory, name)


def test_trees_come_back_identical_also_with_two_servers_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=1, files=300)
    for name, redundancy in POLICIES.items():
        use_policy(cluster, f"/{name}", redundancy)
        cluster.dfs("upload", "-r", tree, f"/{name}")
        back = tmp_path / f"back-{name}"
        back.mkdir()
        cluster.dfs("download", "-r", f"/{name}/tree", back)
        oracle.assert_same(tree, back / "tree")
    cluster.kill("cs2", "cs5")
    for name in POLICIES:
        back = tmp_path / f"back-{name}-degraded"
        back.mkdir()
        cluster.dfs("download", "-r", f"/{name}/tree", back)
        oracle.assert_same(tree, back / "tree")


def test_a_stream_goes_in_and_out(cluster: Cluster, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    cluster.dfs("upload", "-", "/stream", stdin=data)
    done = subprocess.run(
        cluster.command("--master", cluster.master_address, "download", "/stream", "-"),
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])},
    )
    assert done.stdout == data


def test_replacing_a_file_shows_the_old_or_the_new_content(
    cluster: Cluster, tmp_path: Path
) -> None:
    old = oracle.random_file(tmp_path / "old", 3_000_000, seed=1)
    new = oracle.random_file(tmp_path / "new", 4_000_000, seed=2)
    cluster.dfs("upload", old, "/file")
    cluster.dfs("upload", new, "/file")
    cluster.dfs("download", "/file", tmp_path / "back")
    assert oracle.digest(tmp_path / "back") == oracle.digest(new)


def test_copies_inside_the_cluster_outlive_their_original(cluster: Cluster, tmp_path: Path) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=2, files=60)
    cluster.dfs("upload", "-r", tree, "/")
    cluster.dfs("cp", "-r", "/tree", "/copy")
    cluster.dfs("rm", "-r", "/tree")
    (tmp_path / "back").mkdir()
    cluster.dfs("download", "-r", "/copy", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back" / "copy", times=False, hard_links=False)


def test_a_stopped_cluster_starts_with_the_same_data(cluster: Cluster, tmp_path: Path) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=3, files=60)
    cluster.dfs("upload", "-r", tree, "/")
    cluster.stop()
    cluster.start_all()
    (tmp_path / "back").mkdir()
    cluster.dfs("download", "-r", "/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back" / "tree")
