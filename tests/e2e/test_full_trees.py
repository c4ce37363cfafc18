"""The system's own trees, whole, and files of GiBs. `scripts/soak` runs this.

DFS_SOAK_SCALE shrinks the big files: 0.1 makes them a tenth.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.cluster import Cluster

pytestmark = [pytest.mark.long, pytest.mark.time_limit(3 * 3600)]

SCALE = float(os.environ.get("DFS_SOAK_SCALE", "1"))
TREES = [
    path
    for path in (
        *sorted(Path("/usr/lib").glob("python3*")),
        Path("/usr/share/doc"),
        Path("/usr/include"),
    )
    if path.is_dir()
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of the trees (so that nothing changes them meanwhile), and the big files."""
    root = tmp_path_factory.mktemp("full")
    for tree in TREES:
        subprocess.run(["cp", "-a", tree, root / tree.name], check=True)
    oracle.random_file(root / "random.bin", int(SCALE * (2 << 30)), seed=1)
    oracle.text_file(root / "words.txt", int(SCALE * (1 << 30)), seed=2)
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("redundancy", ["rep:3", "ec:4+2"])
def test_the_systems_trees_and_huge_files_come_back_identical(
    tmp_path: Path, source: Path, redundancy: str
) -> None:
    with Cluster(tmp_path / "cluster", servers=6) as cluster:
        cluster.dfs("policy", "create", "tested", "--redundancy", redundancy)
        cluster.dfs("mkdir", "/t")
        cluster.dfs("policy", "set", "/t", "tested")

        def download(what: str) -> None:
            back = tmp_path / "back"
            cluster.dfs("download", "-r", "/t/full", back, timeout_s=3600)
            oracle.assert_same(source, back)
            shutil.rmtree(back)
            print(f"{redundancy}: identical {what}")

        cluster.dfs("upload", "-r", source, "/t/full", timeout_s=3600)
        cluster.kill("cs2", "cs6")
        download("with two of six servers killed")
        cluster.restart("cs2", "cs6")
        cluster.dfs("rm", "-r", "/t/full")

        # What is written while a server is away has a fragment less, until repair.
        upload = cluster.spawn_dfs("upload", "-r", source, "/t/full")
        time.sleep(5)
        cluster.kill("cs1")
        _, errors = upload.communicate(timeout=3600)
        assert upload.returncode == 0, errors.decode()
        assert not errors, errors.decode()
        cluster.restart("cs1")
        download("after a server was killed during the upload")

        running = cluster.spawn_dfs("download", "-r", "/t/full", tmp_path / "during")
        time.sleep(5)
        cluster.kill("cs2")
        _, errors = running.communicate(timeout=3600)
        assert running.returncode == 0, errors.decode()
        assert not errors, errors.decode()
        oracle.assert_same(source, tmp_path / "during")
        shutil.rmtree(tmp_path / "during")
        print(f"{redundancy}: identical while a server was killed during the download")
