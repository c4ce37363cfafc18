"""Backups of a real cluster's metadata, and a cluster brought back with one."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import dfs.client
from dfs.core.archive import ArchiveReader
from dfs.core.errors import FileSystemError, LostChangesError
from tests import damage, oracle
from tests.cluster import Cluster, environment, wait_until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.make_tree(tmp_path_factory.mktemp("source") / "tree", seed=9, files=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("backup") / "cluster", servers=3) as cluster:
        cluster.dfs("upload", "-r", tree, "/tree")
        yield cluster


def held(cluster: Cluster) -> set[tuple[str, int, int]]:
    return {(each.server, each.chunk, each.index) for each in damage.fragments(cluster)}


def restore(cluster: Cluster, backup: Path) -> None:
    """As an operator would: the old data aside, the new in its place, the master again."""
    data = cluster.root / "master"
    if cluster.master.alive:
        cluster.kill("master")
    shutil.rmtree(cluster.root / "master.old", ignore_errors=True)
    data.rename(cluster.root / "master.old")
    done = cluster.dfs("admin", "restore", backup, "--data", data)
    assert "dfs admin confirm-restore" in done.stdout
    cluster.restart("master")


def heard(cluster: Cluster) -> dict[str, object]:
    """What the restored master says of its restore, once all disks have reported."""
    found: dict[str, object] = {}

    def asked() -> bool:
        found.update(cluster.json("admin", "confirm-restore"))
        return found["disks_heard"] == found["disks"]

    wait_until(asked, what="reports of all disks")
    return found


def test_a_backup_of_a_busy_cluster_brings_it_back_without_losing_what_is_newer(
    tree: Path, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster", servers=3) as cluster:
        cluster.dfs("upload", "-r", tree, "/tree")
        _back_and_forth(cluster, tree, tmp_path)


def _back_and_forth(cluster: Cluster, tree: Path, tmp_path: Path) -> None:
    writer = cluster.spawn_dfs("upload", "-r", tree, "/meanwhile")
    said = cluster.dfs("admin", "backup", tmp_path / "backup")
    assert said.stdout.startswith("Backed up ")
    assert writer.wait(60) == 0
    writer.communicate()
    cluster.dfs("upload", "-r", tree, "/newer")
    cluster.dfs("mv", "/tree", "/moved")
    before = held(cluster)
    newest = max(chunk for _, chunk, _ in before)

    restore(cluster, tmp_path / "backup")
    told = heard(cluster)
    assert told["restored"]
    assert int(str(told["newer"])) >= 3
    cluster.dfs("download", "-r", "/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back")
    names = cluster.dfs("ls", "/").stdout.split()
    assert "newer" not in names
    assert "moved" not in names
    checked = cluster.json("admin", "fsck")
    assert checked["sound"], checked
    assert any("restored from a backup" in note for note in checked["notes"])
    assert "restored from a backup" in cluster.json("admin", "status")["problems"][0]

    # What is new now meets nothing that is newer than the backup.
    cluster.dfs("upload", "-r", tree, "/after")
    after = held(cluster)
    assert after > before
    assert all(chunk > newest + (1 << 32) for _, chunk, _ in after - before)

    # Newer metadata can still take the place of the restored.
    cluster.kill("master")
    shutil.move(cluster.root / "master", cluster.root / "master.restored")
    shutil.move(cluster.root / "master.old", cluster.root / "master")
    cluster.restart("master")
    shutil.rmtree(tmp_path / "back")
    cluster.dfs("download", "-r", "/newer", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back")


def test_what_is_newer_goes_when_a_person_confirms(
    cluster: Cluster, tree: Path, tmp_path: Path
) -> None:
    cluster.dfs("admin", "backup", tmp_path / "backup")
    known = held(cluster)
    cluster.dfs("upload", "-r", tree, "/newest")
    restore(cluster, tmp_path / "backup")
    assert int(str(heard(cluster)["newer"])) >= 3
    refused = cluster.dfs("admin", "confirm-restore", check=False)
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    assert held(cluster) > known

    cluster.dfs("admin", "confirm-restore", "--yes")
    wait_until(lambda: held(cluster) == known, what="deletion of what is newer")
    assert cluster.json("admin", "status")["problems"] == []
    assert cluster.json("admin", "fsck")["sound"]
    assert "no restore" in cluster.dfs("admin", "confirm-restore").stdout
    cluster.dfs("download", "-r", "/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back")


def test_a_client_of_before_the_restore_has_to_begin_anew_and_is_told_what_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    async def body() -> None:
        async with dfs.client.connect(cluster.master_address) as client:
            await client.write_file("/before", b"1" * 1000)
            await client.sync()
            await trio.to_thread.run_sync(cluster.dfs, "admin", "backup", tmp_path / "backup")
            await client.write_file("/lost", b"2" * 1000)
            restored.set()
            await again.wait()
            with pytest.raises(LostChangesError):
                await client.sync()
            assert await client.read_file("/before") == b"1" * 1000
            with pytest.raises(FileSystemError, match="No such file"):
                await client.read_file("/lost")
            await client.write_file("/after", b"3" * 200_000)
            await client.sync()

    restored, again = trio.Event(), trio.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(body)
            await restored.wait()
            # Processes have to be started from the main thread, which blocks the loop meanwhile.
            restore(cluster, tmp_path / "backup")
            again.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "servers_up", lambda: len(cluster.servers))
        trio.run(main)
    assert cluster.dfs("cat", "/after").stdout == "3" * 200_000
    assert cluster.json("admin", "fsck")["found"] == 0


def test_a_backup_that_is_killed_leaves_the_last_one_in_place(
    cluster: Cluster, tmp_path: Path
) -> None:
    target = tmp_path / "backups" / "latest"
    target.parent.mkdir()
    cluster.dfs("admin", "backup", target)
    for delay_s in (0.15, 0.3, 0.4, 0.5):
        killed = cluster.spawn_dfs("admin", "backup", target)
        time.sleep(delay_s)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        archive = ArchiveReader()
        archive.feed(target.read_bytes())
        archive.finish()  # the old one or the new one, and whole
    cluster.dfs("admin", "backup", target)
    assert [path.name for path in target.parent.iterdir()] == ["latest"]
    cluster.dfs("admin", "restore", target, "--data", tmp_path / "new")


def test_a_master_that_dies_in_a_backup_is_an_error_and_leaves_no_file(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.pause("master")
    backup = cluster.spawn_dfs("--on-unavailable", "error", "admin", "backup", tmp_path / "b")
    time.sleep(1.0)
    cluster.resume("master")
    cluster.kill("master")
    _, errors = backup.communicate(timeout=60)
    if backup.returncode:
        assert errors.startswith(b"dfs: ")
        assert not list(tmp_path.glob("b*"))
    cluster.restart("master")
    assert not list((cluster.root / "master" / "snapshots").glob("*"))


def test_a_disk_without_room_is_named_and_nothing_is_left_on_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        cluster.command("admin", "backup", tmp_path / "b"),
        capture_output=True,
        env=environment(DFS_MASTER=cluster.master_address),
        preexec_fn=little_room,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"dfs: {tmp_path / 'b'}: File too large\n".encode()
    assert not list(tmp_path.glob("b*"))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cluster.command("admin", "backup", "-"),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(DFS_MASTER=cluster.master_address),
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert b"standard output: No space left on device" in done.stderr


def test_a_backup_goes_through_pipes_and_a_bad_one_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    whole = subprocess.run(
        cluster.command("admin", "backup", "-"),
        capture_output=True,
        env=environment(DFS_MASTER=cluster.master_address),
        timeout=60,
        check=True,
    ).stdout
    cut, flipped = whole[:-100], bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for bad, said in ((cut, "cut short"), (bytes(flipped), "damaged"), (b"no", "no backup")):
        done = cluster.dfs(
            "admin", "restore", "-", "--data", tmp_path / "new", stdin=bad, check=False
        )
        assert done.returncode != 0
        assert said in done.stderr
        assert os.listdir(tmp_path / "new") == []
    restored = cluster.dfs(
        "admin", "restore", "-", "--data", tmp_path / "new", "--json", stdin=whole
    )
    assert '"cluster"' in restored.stdout
    again = cluster.dfs(
        "admin", "restore", "-", "--data", tmp_path / "new", stdin=whole, check=False
    )
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_fragments_that_moved_after_the_backup_are_found_again(tree: Path, tmp_path: Path) -> None:
    """A server was emptied since, and left the cluster: the backup knows only where it was."""
    with Cluster(tmp_path / "cluster", servers=4) as cluster:
        cluster.dfs("upload", "-r", tree, "/tree")
        cluster.dfs("admin", "backup", tmp_path / "backup")
        cluster.dfs("admin", "drain", cluster.servers["cs1"].address)
        while damage.fragments(cluster, "cs1"):
            checked = cluster.json("admin", "fsck")
            assert checked["sound"], checked  # what moves is not taken for damage
        before = held(cluster)
        restore(cluster, tmp_path / "backup")
        heard(cluster)
        cluster.dfs("download", "-r", "/tree", tmp_path / "back")
        oracle.assert_same(tree, tmp_path / "back")

        def is_healthy() -> bool:
            chunks = cluster.json("admin", "status")["chunks"]
            return chunks["healthy"] == chunks["total"] > 0

        wait_until(is_healthy, what="all chunks whole")
        assert held(cluster) >= before
        cluster.dfs("admin", "confirm-restore", "--yes")
        wait_until(lambda: cluster.json("admin", "fsck")["sound"], what="a sound cluster")
        shutil.rmtree(tmp_path / "back")
        cluster.dfs("download", "-r", "/tree", tmp_path / "back")
        oracle.assert_same(tree, tmp_path / "back")


def test_what_compaction_has_moved_after_the_backup_is_still_where_it_was(
    tree: Path, tmp_path: Path
) -> None:
    """Nobody removed these files: a backup from before must bring them back."""
    with Cluster(tmp_path / "cluster", servers=3, keep_retired="24h") as cluster:
        oracle.random_file(tmp_path / "filler", 8_000_000, seed=1)
        cluster.dfs("upload", "-r", tree, tmp_path / "filler", "/")
        cluster.dfs("rm", "/filler")
        cluster.dfs("admin", "backup", tmp_path / "backup")
        cluster.dfs("admin", "compact", "--threshold", "1%", "--wait")
        status = cluster.json("admin", "status")
        assert status["chunks"]["retired"] > 0
        assert "kept for older backups" in cluster.dfs("admin", "status").stdout
        restore(cluster, tmp_path / "backup")
        heard(cluster)
        cluster.dfs("download", "-r", "/tree", tmp_path / "back")
        oracle.assert_same(tree, tmp_path / "back")
        assert not cluster.json("admin", "status")["chunks"]["lost"]
        cluster.dfs("admin", "confirm-restore", "--yes")
        wait_until(lambda: cluster.json("admin", "fsck")["sound"], what="a sound cluster")
