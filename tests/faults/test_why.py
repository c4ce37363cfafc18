"""`dfs why` on a real cluster that is broken step by step: what it says, and its exit status."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import damage, oracle
from tests.cluster import Cluster, wait_until

FILE = "/why/file"
SIZE = 3_000_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", servers=5) as cluster:
        cluster.allow_logs("corrupt", "damaged", "Corrupt")
        source = oracle.random_file(tmp_path / "source", SIZE, seed=1)
        cluster.dfs("mkdir", "/why")
        cluster.dfs("upload", source, FILE)
        cluster.broken = True
        yield cluster


def why(cluster: Cluster, *args: str) -> subprocess.CompletedProcess[str]:
    """Exactly what a person sees; nothing on stderr, whatever is broken."""
    done = cluster.dfs("why", *args, check=False, timeout_s=60)
    assert not done.stderr
    return done


def copies(cluster: Cluster) -> list[damage.FragmentFile]:
    """The three copies of the file's chunk."""
    (found,) = damage.by_chunk(damage.fragments(cluster)).values()
    assert len(found) == 3
    return found


def heard(cluster: Cluster, alive: int) -> None:
    wait_until(lambda: cluster.servers_up() == alive, what=f"the master hears {alive} servers")


def findings(document: dict[str, Any]) -> list[str]:
    return [each["kind"] for each in document["findings"]]


def test_a_whole_file_is_explained(cluster: Cluster) -> None:
    fine = f"nothing is wrong: {FILE} reads fine, and survives the loss of any 2 disks"
    done = why(cluster, FILE)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [fine, "new data gets all 3 fragments (policy default (rep:3))"],
    )
    done = why(cluster, FILE, "--verify")
    assert done.stdout.startswith(f"{fine}; every record of it was read and matches its checksum")
    document = cluster.json("why", FILE)
    assert (document["verdict"], document["safe"], document["survives"]) == ("fine", True, 2)
    assert set(document) == {
        *("path", "inode", "type", "size", "policy", "verdict", "safe", "survives", "verified"),
        *("summary", "findings", "writing", "chunks"),
    }
    (chunk,) = document["chunks"]
    assert [each["answer"] for each in chunk["fragments"]] == ["holds"] * 3
    # What it asked for to see whether writing works is let go of.
    wait_until(
        lambda: len(cluster.json("admin", "chunks")["chunks"]) == 1, what="one chunk is left"
    )


def test_a_deleted_fragment_and_a_flipped_bit_are_explained(cluster: Cluster) -> None:
    cluster.dfs("admin", "jobs", "pause", "1")  # repair
    first, second, _ = copies(cluster)
    damage.delete(first.path, random.Random(1))
    done = why(cluster, FILE)
    assert done.returncode == 0
    assert done.stdout.startswith(
        f"{FILE} reads fine now, and survives the loss of 1 more disk; with all in order it would "
        "survive 2\n"
    )
    assert f"- fragment {first.index} of chunk {first.chunk} on disk " in done.stdout
    assert f"({first.path.parents[2]} on " in done.stdout
    assert "is not there" in done.stdout
    assert "what to do: nothing, while the file reads: the cluster makes it anew" in done.stdout
    assert "2 of 3 fragments can be read, 1 is needed" in done.stdout

    damage.flip_bits(second.path, random.Random(2), start=4096)
    assert why(cluster, FILE).returncode == 0  # nobody has looked at the bytes
    done = why(cluster, "--verify", FILE)
    assert done.returncode == 1
    assert done.stdout.startswith(
        f"{FILE} reads fine now, but is at risk: the loss of one more disk loses data\n"
    )
    assert f"- fragment {second.index} of chunk {second.chunk} on disk " in done.stdout
    assert "is damaged: " in done.stdout

    # It was reported to the master, so that it is known without reading.
    def noted() -> bool:
        return "fragment-noted-corrupt" in findings(cluster.json("why", FILE))

    wait_until(noted, what="the damage is noted")
    cluster.dfs("admin", "jobs", "resume", "1")
    wait_until(lambda: not findings(cluster.json("why", FILE)), what="all is mended")


def test_dead_servers_are_explained(cluster: Cluster, tmp_path: Path) -> None:
    names = [each.server for each in copies(cluster)]
    address = cluster.servers[names[0]].address
    cluster.kill(names[0])
    heard(cluster, 4)
    done = why(cluster, FILE)
    assert done.returncode == 0
    assert "survives the loss of 1 more disk; with all in order it would survive 2" in done.stdout
    assert f"- chunk server {address} does not answer (" in done.stdout
    assert "and the master has not heard it for " in done.stdout
    assert "it has fragments of 1 of the file's 1 chunk\n" in done.stdout
    assert "what to do: start it again" in done.stdout

    cluster.kill(names[1])
    heard(cluster, 3)
    assert why(cluster, FILE).returncode == 1

    cluster.kill(names[2])
    heard(cluster, 2)
    done = why(cluster, FILE)
    assert done.returncode == 1
    assert done.stdout.startswith(
        f"{FILE} cannot be read now: too few fragments of {SIZE} of its {SIZE} bytes can be "
        "reached; nothing is lost, it reads again when the servers are back\n"
    )
    assert "new data gets 2 of 3 fragments now (policy default (rep:3))" in done.stdout
    document = cluster.json("why", FILE)
    assert (document["verdict"], document["survives"]) == ("unavailable", -1)
    assert findings(document) == ["server-silent"] * 3 + ["writes-degraded"]

    other = min(set(cluster.servers) - set(names))
    cluster.kill(other)
    heard(cluster, 1)
    done = why(cluster, FILE)
    refusal = "policy 'default' (rep:3) needs at least 2 servers to write"
    assert f"- new data cannot be written now: {refusal}" in done.stdout

    cluster.restart(*names, other)
    done = why(cluster, FILE)
    assert done.stdout.startswith("nothing is wrong: "), done.stdout
    cluster.dfs("download", FILE, tmp_path / "back")
    assert oracle.digest(tmp_path / "back") == oracle.digest(tmp_path / "source")


def test_a_path_that_is_not_there_is_explained(cluster: Cluster) -> None:
    done = why(cluster, "/why/fiel")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        1,
        "/why/fiel cannot be opened: /why has no entry 'fiel'",
    )
    done = why(cluster, "/wyh/file")
    assert "/ has no entry 'wyh'" in done.stdout
    document = cluster.json("why", f"{FILE}/x")
    assert (document["verdict"], findings(document)) == ("refused", ["path-enotdir"])
    assert why(cluster, "/why").stdout.startswith("nothing is wrong: /why reads fine")
