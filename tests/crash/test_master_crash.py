"""The master dies (SIGKILL) at random moments during uploads: nothing acknowledged is lost.

DFS_CRASH_ROUNDS sets the number of crashes (5 by default; `scripts/soak` runs 50).
"""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.cluster import Cluster

ROUNDS = int(os.environ.get("DFS_CRASH_ROUNDS", "5"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", servers=4) as cluster:
        yield cluster


def remote_names(cluster: Cluster, directory: str) -> set[str]:
    return set(cluster.dfs("ls", directory).stdout.split())


@pytest.mark.time_limit(120 + 30 * ROUNDS)
def test_uploads_survive_the_master_being_killed_again_and_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    tree = oracle.make_tree(tmp_path / "tree", seed=seed, files=400)
    oracle.random_file(tree / "big", 60_000_000, seed=seed)
    big = {"big": oracle.digest(tree / "big")}
    done: list[str] = []
    for number in range(ROUNDS):
        name = f"round{number}"
        upload = cluster.spawn_dfs("upload", "-r", tree, f"/{name}")
        time.sleep(rng.uniform(0.2, 2.0))
        cluster.kill("master")
        time.sleep(rng.uniform(0, 0.5))
        cluster.restart("master", wait=False)
        # A file under its final name is whole, at any moment.
        seen = tmp_path / f"seen{number}"
        if cluster.dfs("download", f"/{name}/big", seen, check=False).returncode == 0:
            assert oracle.digest(seen) == big["big"], "a half-written file under its final name"
            seen.unlink()
        _, errors = upload.communicate(timeout=120)
        assert upload.returncode == 0, errors.decode()
        done.append(name)
    cluster.wait_ready()
    assert remote_names(cluster, "/") >= set(done)
    for name in done:
        back = tmp_path / "back" / name
        back.parent.mkdir(exist_ok=True)
        cluster.dfs("download", "-r", f"/{name}", back.parent)
        oracle.assert_same(tree, back)
        subprocess.run(["rm", "-rf", back], check=True)


def test_everything_acknowledged_survives_all_processes_being_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=11, files=200)
    cluster.dfs("upload", "-r", tree, "/")
    cluster.dfs("mkdir", "-p", "/a/b/c")
    cluster.dfs("mv", "/a/b", "/moved")
    cluster.dfs("cp", "-r", "/tree", "/copy")
    unfinished = cluster.spawn_dfs("upload", "-r", tree, "/unfinished")
    time.sleep(0.7)
    cluster.kill_all()
    cluster.start_all()
    unfinished.communicate(timeout=120)
    assert {"tree", "a", "moved", "copy"} <= remote_names(cluster, "/")
    assert "c" in remote_names(cluster, "/moved")
    for name in ("tree", "copy"):
        (tmp_path / name).mkdir(exist_ok=True)
        back = tmp_path / f"back-{name}"
        back.mkdir()
        cluster.dfs("download", "-r", f"/{name}", back)
        # `cp -r` keeps neither times nor hard links, as that of coreutils.
        whole = name == "tree"
        oracle.assert_same(tree, back / name, times=whole, hard_links=whole)


def test_uploading_again_after_an_interrupted_upload_completes_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=12, files=400)
    upload = cluster.spawn_dfs("upload", "-r", tree, "/")
    time.sleep(0.8)
    upload.kill()
    upload.communicate(timeout=30)
    cluster.dfs("upload", "-r", tree, "/")
    (tmp_path / "back").mkdir()
    cluster.dfs("download", "-r", "/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back" / "tree")
