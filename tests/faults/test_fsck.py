"""`dfs admin fsck` on a real cluster: it finds what is damaged, and mends what it may."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from dfs.core.inode import Extent
from dfs.master import keyspace as keys
from dfs.master.store import RocksStore
from tests import damage, oracle
from tests.cluster import Cluster, wait_until

NOTED = "1 fragments are noted as lost and 2 as corrupt: dfs admin status says what that endangers"

Rows = dict[bytes, bytes | None]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.make_tree(tmp_path_factory.mktemp("source") / "tree", seed=5, files=80)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("fsck") / "cluster", servers=3) as cluster:
        cluster.dfs("upload", "-r", tree, "/tree")
        yield cluster


def edit(cluster: Cluster, change: Callable[[RocksStore], Rows]) -> None:
    """Change rows of the master's store behind its back."""
    cluster.broken = True
    cluster.master.signal(signal.SIGTERM)
    cluster.master.wait(15)
    store = RocksStore(cluster.root / "master" / "metadata")
    store.write(change(store))
    store.close()
    cluster.restart("master")


def test_a_cluster_that_is_written_to_is_found_sound(cluster: Cluster, tree: Path) -> None:
    for number in range(3):
        writer = cluster.spawn_dfs("upload", "-r", tree, f"/written{number}")
        remover = cluster.spawn_dfs("rm", "-r", f"/written{number - 1}") if number else None
        while writer.poll() is None:
            assert cluster.json("admin", "fsck")["sound"]
        assert writer.communicate()[1] == b""
        if remover is not None:
            remover.communicate()
    last = cluster.dfs("admin", "fsck")
    assert "all in order" in last.stdout
    assert not list((cluster.root / "master" / "snapshots").iterdir())


def test_damaged_metadata_are_found_and_mended_while_the_cluster_serves(
    cluster: Cluster, tree: Path, tmp_path: Path
) -> None:
    local = tmp_path / "m"
    (local / "lost").mkdir(parents=True)
    for name in ("nlink", "nameless", "recordless", "short"):
        (local / name).write_bytes(name.encode() * 5000)
    cluster.dfs("upload", "-r", local, "/m")
    names = ("", "nlink", "nameless", "recordless", "short", "lost")
    entries = cluster.json("stat", *(f"/m/{name}" for name in names))["entries"]
    numbers = {name: entry["inode"] for name, entry in zip(names, entries, strict=True)}

    def change(store: RocksStore) -> Rows:
        def inode(name: str, **changes: object) -> Rows:
            found = keys.get_inode(store, numbers[name])
            assert found is not None
            return {keys.inode_key(numbers[name]): keys.encode(replace(found, **changes))}

        _, value = next(keys.scan_prefix(store, keys.EXTENT + keys.u64(numbers["short"])))
        extent = keys.decode_extent(value)
        place = keys.extent_by_chunk_key(
            extent.chunk, extent.chunk_offset, numbers["short"], extent.file_offset
        )
        chunk = keys.get_chunk(store, extent.chunk)
        assert chunk is not None
        fragment = chunk.fragments[0]
        return {
            **inode("nlink", nlink=4),
            **inode("", size=77, nlink=9),
            keys.dentry_key(numbers[""], b"nameless"): None,
            keys.dentry_key(numbers[""], b"lost"): None,
            keys.inode_key(numbers["recordless"]): None,
            place: None,
            keys.chunk_key(chunk.chunk): keys.encode(replace(chunk, live=chunk.live + 1)),
            keys.fragment_by_disk_key(fragment.disk, chunk.chunk): None,
            keys.META_COUNTERS: keys.encode(replace(keys.get_counters(store), inodes=3, live=5)),
        }

    edit(cluster, change)
    found = cluster.dfs("admin", "fsck", check=False)
    assert found.returncode == 1
    for text in ("has nlink 4, not 1", "fsck --repair", "not in extent-by-chunk"):
        assert text in found.stdout
    assert " 0 repaired" in found.stdout
    repaired = cluster.dfs("admin", "fsck", "--repair", check=False)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "left" not in repaired.stdout.splitlines()[-1]
    assert cluster.json("admin", "fsck")["sound"]
    there = f"/lost+found/#{numbers['nameless']}"
    read = cluster.dfs("cat", "/m/recordless", "/m/short", there).stdout
    assert read == "".join(name * 5000 for name in ("recordless", "short", "nameless"))
    assert cluster.dfs("stat", f"/lost+found/#{numbers['lost']}").returncode == 0
    cluster.dfs("download", "-r", "/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back")
    cluster.dfs("rm", "-r", "/lost+found", "/m")


def test_what_cannot_be_mended_is_left_and_it_is_said_what_to_do(cluster: Cluster) -> None:
    cluster.dfs("upload", "-", "/gone", stdin=b"x" * 100)
    ino = cluster.json("stat", "/gone")["entries"][0]["inode"]
    edit(
        cluster,
        lambda _: {keys.extent_key(ino, 1 << 20): keys.encode(Extent(1 << 20, 50, 999_999, 0))},
    )
    repaired = cluster.json("admin", "fsck", "--repair")
    assert not repaired["sound"]
    assert repaired["left"] > 0
    (gone,) = [each for each in repaired["problems"] if "999999, which is gone" in each["what"]][:1]
    assert gone["outcome"] == "left"
    assert "backup" in gone["todo"]
    assert "what to do: restore" in cluster.dfs("admin", "fsck", check=False).stdout
    cluster.dfs("rm", "/gone")
    assert cluster.json("admin", "fsck")["sound"]


def test_a_lost_record_of_a_chunk_is_made_anew_of_its_fragments(cluster: Cluster) -> None:
    """Not even a disk that reports meanwhile deletes them, as it does those of unknown chunks."""
    cluster.allow_logs("whose records are lost, such as chunk")
    cluster.dfs("upload", "-", "/needed", stdin=b"n" * 300_000)
    chunk = cluster.json("locate", "/needed")["files"][0]["chunks"][0]["chunk"]
    edit(cluster, lambda _: {keys.chunk_key(chunk): None})
    assert cluster.dfs("cat", "/needed", check=False).returncode == 1
    found = cluster.dfs("admin", "fsck", check=False)
    assert found.returncode == 1
    assert f"chunk {chunk}, which files need, has lost its record; 3 of" in found.stdout
    repaired = cluster.json("admin", "fsck", "--repair")
    assert repaired["sound"], repaired
    assert cluster.dfs("cat", "/needed").stdout == "n" * 300_000
    wait_until(
        lambda: cluster.json("locate", "/needed")["files"][0]["chunks"][0]["state"] == "sealed",
        what="the chunk sealed again",
    )


def test_fragments_that_are_missing_cut_or_anothers_are_found_noted_and_mended(
    cluster: Cluster,
) -> None:
    cluster.broken = True
    cluster.allow_logs("missing", "short", "unreadable", "not what its name says")
    cluster.dfs("admin", "jobs", "pause", "1")  # repair
    for number in range(3):
        cluster.dfs("upload", "-", f"/f{number}", stdin=bytes([number]) * 300_000)
    chunks = [
        cluster.json("locate", f"/f{number}")["files"][0]["chunks"][0]["chunk"]
        for number in range(3)
    ]
    files = damage.by_chunk(damage.fragments(cluster))
    missing, cut, other = (files[chunk][0].path for chunk in chunks)
    source = files[chunks[2]][1].path
    missing.unlink()
    damage.empty(cut, Random(1))
    other.write_bytes(source.read_bytes())

    found = cluster.json("admin", "fsck")
    texts = [each["what"] for each in found["problems"]]
    assert len(texts) == 3, texts
    assert all(any(f"chunk {chunk} " in text for text in texts) for chunk in chunks)
    assert cluster.json("admin", "fsck", "--repair")["repaired"] == 3
    after = cluster.json("admin", "fsck")
    assert after["found"] == 0
    # Or made anew already: whoever notes them makes them interesting to the background.
    assert all("are noted as lost" in note for note in after["notes"])
    assert cluster.dfs("cat", "/f1").stdout.encode() == b"\1" * 300_000

    cluster.dfs("admin", "jobs", "resume", "1")
    wait_until(lambda: not cluster.json("admin", "fsck")["notes"], what="all three are mended")


def test_a_server_that_is_down_is_not_passed_over_in_silence(cluster: Cluster) -> None:
    cluster.kill("cs2")
    found = cluster.json("admin", "fsck")
    assert not found["sound"]
    assert found["found"] == 0
    assert len(found["unchecked"]) == 1
    assert "cs2" in found["unchecked"][0]
    cluster.restart("cs2")
    assert cluster.json("admin", "fsck")["unchecked"] == []


def test_what_a_killed_master_left_of_a_check_is_cleared(cluster: Cluster) -> None:
    rest = cluster.root / "master" / "snapshots" / "7" / "metadata"
    rest.mkdir(parents=True)
    (rest / "CURRENT").write_text("x")
    cluster.kill("master")
    cluster.restart("master")
    assert cluster.json("admin", "fsck")["sound"]
    assert not rest.exists()
