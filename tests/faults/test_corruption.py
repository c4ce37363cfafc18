"""Damaged fragments: noticed by the reader, read around, reported; never wrong bytes.

Each test stores data of its own and damages as many fragments of every chunk of it as the policy
can lose.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import damage, oracle
from tests.cluster import Cluster, wait_until

SERVERS = 6
SPARE = 2
"""Fragments of a chunk that may be lost, with rep:3 as with ec:4+2."""

Damage = Callable[[Path, random.Random], None]
KINDS: dict[str, Damage] = {
    "flipped-bit": damage.flip_bits,
    "flipped-bits-everywhere": damage.flip_bits_everywhere,
    "truncated": damage.truncate,
    "emptied": damage.empty,
    "deleted": damage.delete,
    "zeroed-pages": damage.zero_pages,
}
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["default", "ec"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, policy: str) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp(policy) / "cluster", servers=SERVERS) as cluster:
        cluster.broken = True
        cluster.allow_logs("corrupt", "damaged", "Corrupt")
        cluster.dfs("policy", "set", "/", policy)
        yield cluster


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = oracle.make_tree(tmp_path_factory.mktemp("source") / "tree", seed=21, files=60)
    oracle.random_file(tree / "big", 9_000_000, seed=22)
    return tree


class Stored:
    """A tree in the cluster, and the fragments that hold it."""

    def __init__(self, cluster: Cluster, tree: Path, work: Path) -> None:
        self.cluster = cluster
        self.tree = tree
        self.work = work
        self.remote = f"/t{next(_numbers)}"
        before = {fragment.chunk for fragment in damage.fragments(cluster)}
        cluster.dfs("upload", "-r", tree, self.remote)
        everything = damage.by_chunk(damage.fragments(cluster))
        self.chunks = {c: found for c, found in everything.items() if c not in before}
        assert self.chunks

    def check(self) -> None:
        """Download it: identical, and no error shown."""
        back = self.work / f"back{next(_numbers)}"
        done = self.cluster.dfs("download", "-r", self.remote, back)
        assert not done.stderr, f"an error was shown: {done.stderr}"
        oracle.assert_same(self.tree, back)

    def bad_fragments(self) -> int:
        """Fragments of it that the master knows not to be good."""
        document = self.cluster.json("admin", "chunks")
        rows: list[dict[str, Any]] = document["chunks"] if isinstance(document, dict) else document
        return sum(
            str(fragment["state"]).lower() != "good"
            for row in rows
            if row["chunk"] in self.chunks
            for fragment in row["fragments"]
        )


REPAIR = "1"
"""Number of the job."""


def read_first(found: list[damage.FragmentFile], policy: str) -> list[damage.FragmentFile]:
    """Fragments of a chunk in the order in which a reader with a free choice asks for them, so
    that damage to the first is met: data pieces, or copies in turns."""
    width = len(found)
    return sorted(found, key=lambda f: f.index if policy == "ec" else (f.index + f.chunk) % width)


@pytest.fixture
def stored(cluster: Cluster, tree: Path, tmp_path: Path) -> Stored:
    return Stored(cluster, tree, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["running", "stopped"])
def test_damage_is_read_around_reported_and_mended(
    cluster: Cluster, stored: Stored, policy: str, kind: str, when: str
) -> None:
    cluster.dfs("admin", "jobs", "pause", REPAIR)
    rng = random.Random(f"{kind} {when}")
    victims = [
        fragment
        for found in stored.chunks.values()
        for fragment in read_first(found, policy)[:SPARE]
    ]
    names = sorted({victim.server for victim in victims})
    if when == "stopped":
        cluster.kill(*names)
    for victim in victims:
        KINDS[kind](victim.path, rng)
    if when == "stopped":
        cluster.restart(*names)
    stored.check()

    def reported() -> bool:
        if stored.bad_fragments() > 0:
            return True
        # Another copy may have been quicker: read again.
        stored.check()
        return False

    if kind != "flipped-bit":  # one bit may be where nobody has to look
        wait_until(reported, 60, what="the damage is reported to the master")
        stored.check()
    cluster.dfs("admin", "jobs", "resume", REPAIR)
    wait_until(lambda: not stored.bad_fragments(), 60, what="all that is known to be bad is mended")
    stored.check()


@pytest.mark.parametrize("when", ["running", "stopped"])
def test_swapped_fragments_are_not_taken_for_each_other(
    cluster: Cluster, tree: Path, tmp_path: Path, policy: str, when: str
) -> None:
    several = [Stored(cluster, tree, tmp_path) for _ in range(4)]
    chunks = [found for stored in several for found in stored.chunks.values()]
    pairs: list[tuple[damage.FragmentFile, damage.FragmentFile]] = []
    if policy == "ec":  # two indexes of one chunk
        pairs = [(found[0], found[1]) for found in chunks]
    else:  # two chunks on one server
        alike: dict[str, list[damage.FragmentFile]] = {}
        for found in chunks:
            alike.setdefault(found[-1].server, []).append(found[-1])
        for files in alike.values():
            pairs += zip(files[::2], files[1::2], strict=False)
    names = sorted({fragment.server for pair in pairs for fragment in pair})
    if when == "stopped":
        cluster.kill(*names)
    for left, right in pairs:
        damage.swap(left.path, right.path)
    if when == "stopped":
        cluster.restart(*names)
    for stored in several:
        stored.check()


def test_more_damage_than_the_policy_can_bear_is_an_error_and_no_wrong_bytes(
    cluster: Cluster, stored: Stored, tmp_path: Path
) -> None:
    rng = random.Random(1)
    for found in stored.chunks.values():
        for fragment in found:
            damage.flip_bits_everywhere(fragment.path, rng)
    target = tmp_path / "back"
    done = cluster.dfs(
        "--on-unavailable", "error", "download", f"{stored.remote}/big", target, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("dfs: ")
    assert not target.exists()
    assert cluster.dfs("admin", "status", check=False).returncode == 1
