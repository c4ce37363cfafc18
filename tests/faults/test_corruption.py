"""Damaged fragments: noticed by the reader, read around, reported; never wrong bytes.

Each test damages as many fragments of every chunk as the policy can lose.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import damage, oracle
from tests.cluster import Cluster, wait_until

SERVERS = 6
SPARE = {"default": 2, "ec": 2}
"""Fragments of a chunk that may be lost: rep:3 and ec:4+2."""

Damage = Callable[[Path, random.Random], None]
KINDS: dict[str, Damage] = {
    "flipped-bit": damage.flip_bits,
    "flipped-bits-everywhere": damage.flip_bits_everywhere,
    "truncated": damage.truncate,
    "emptied": damage.empty,
    "deleted": damage.delete,
    "zeroed-pages": damage.zero_pages,
}


@pytest.fixture(params=["default", "ec"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(tmp_path: Path, policy: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", servers=SERVERS) as cluster:
        cluster.broken = True
        cluster.dfs("policy", "set", "/", policy)
        yield cluster


@pytest.fixture
def tree(tmp_path: Path, cluster: Cluster) -> Path:
    tree = oracle.make_tree(tmp_path / "tree", seed=21, files=80)
    oracle.random_file(tree / "big", 12_000_000, seed=22)
    cluster.dfs("upload", "-r", tree, "/")
    return tree


def check_download(cluster: Cluster, tree: Path, back: Path) -> None:
    back.mkdir()
    done = cluster.dfs("download", "-r", "/tree", back)
    assert not done.stderr, f"an error was shown: {done.stderr}"
    oracle.assert_same(tree, back / "tree")


def bad_fragments(cluster: Cluster) -> int:
    """Fragments that the master knows not to be good."""
    document = cluster.json("admin", "chunks")
    rows: list[dict[str, Any]] = document["chunks"] if isinstance(document, dict) else document
    return sum(
        str(fragment["state"]).lower() != "good" for row in rows for fragment in row["fragments"]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["running", "stopped"])
def test_damage_is_read_around_and_reported(
    cluster: Cluster, tree: Path, tmp_path: Path, policy: str, kind: str, when: str
) -> None:
    rng = random.Random(f"{policy} {kind} {when}")
    chunks = damage.by_chunk(damage.fragments(cluster))
    assert chunks
    victims = [
        fragment
        for found in chunks.values()
        # The first ones: readers try to do with data fragments, so these are met.
        for fragment in sorted(found, key=lambda fragment: fragment.index)[: SPARE[policy]]
    ]
    names = sorted({victim.server for victim in victims})
    if when == "stopped":
        cluster.kill(*names)
    for victim in victims:
        KINDS[kind](victim.path, rng)
    if when == "stopped":
        cluster.restart(*names)
    check_download(cluster, tree, tmp_path / "back")

    attempt = 0

    def reported() -> bool:
        # With copies, a reader may have had luck and met good ones only: read again.
        nonlocal attempt
        if bad_fragments(cluster) > 0:
            return True
        attempt += 1
        check_download(cluster, tree, tmp_path / f"again{attempt}")
        return False

    if kind != "flipped-bit":  # one bit may be where nobody has to look
        wait_until(reported, 30, what="the damage is reported to the master")
    check_download(cluster, tree, tmp_path / "back2")


@pytest.mark.parametrize("when", ["running", "stopped"])
def test_swapped_fragments_are_not_taken_for_each_other(
    cluster: Cluster, tree: Path, tmp_path: Path, policy: str, when: str
) -> None:
    # A second chunk to swap with.
    for number in range(4):
        file = oracle.random_file(tmp_path / f"other{number}", 3_000_000, seed=30 + number)
        cluster.dfs("upload", file, "/")
    chunks = damage.by_chunk(damage.fragments(cluster))
    names = list(cluster.servers)
    if when == "stopped":
        cluster.kill(*names)
    for found in chunks.values():
        if policy == "ec":  # two indexes of one chunk
            damage.swap(found[0].path, found[1].path)
    alike: dict[str, list[damage.FragmentFile]] = {}
    for found in chunks.values():
        alike.setdefault(found[-1].server, []).append(found[-1])
    if policy != "ec":
        for files in alike.values():  # two chunks on one server
            for left, right in zip(files[::2], files[1::2], strict=False):
                damage.swap(left.path, right.path)
    if when == "stopped":
        cluster.restart(*names)
    check_download(cluster, tree, tmp_path / "back")
    for number in range(4):
        cluster.dfs("download", f"/other{number}", tmp_path / "other")
        assert oracle.digest(tmp_path / "other") == oracle.digest(tmp_path / f"other{number}")


def test_more_damage_than_the_policy_can_bear_is_an_error_and_no_wrong_bytes(
    cluster: Cluster, tree: Path, tmp_path: Path, policy: str
) -> None:
    rng = random.Random(policy)
    for fragment in damage.fragments(cluster):
        damage.flip_bits_everywhere(fragment.path, rng)
    done = cluster.dfs(
        "--on-unavailable", "error", "download", "/tree/big", tmp_path / "back", check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dfs: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "back").exists()
    status = cluster.dfs("admin", "status", check=False)
    assert status.returncode == 1
