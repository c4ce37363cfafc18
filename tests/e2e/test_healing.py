"""Real servers die, come, go and are emptied, as the command line orders and shows it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.cluster import Cluster, wait_until

DOWN_AFTER_S = 4


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(
        tmp_path / "cluster",
        servers=4,
        down_after=f"{DOWN_AFTER_S}s",
        keep_retired="0s",
        capacity="2GiB",
    ) as made:
        yield made


def healthy(cluster: Cluster) -> bool:
    chunks = cluster.json("admin", "status")["chunks"]
    return bool(chunks["healthy"]) and chunks["healthy"] == chunks["total"]


def survives(cluster: Cluster) -> Any:
    (found,) = cluster.json("safety", "/data")["paths"]
    assert found["lost"]["bytes"] == 0
    return found["survives"]


def server_named(cluster: Cluster, name: str) -> dict[str, Any]:
    address = cluster.servers[name].address
    found = cluster.json("admin", "servers")["servers"]
    return next(server for server in found if server["address"] == address)


def test_a_killed_server_is_seen_repaired_removed_and_replaced(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=7, files=60)
    oracle.random_file(tree / "big", 80_000_000, seed=8)
    cluster.dfs("mkdir", "/data")
    cluster.dfs("policy", "set", "/data", "default")
    cluster.dfs("upload", "-r", tree, "/data/tree")
    wait_until(lambda: healthy(cluster), what="all chunks whole", timeout_s=30)

    assert survives(cluster) == {"disks": 2, "servers": 2}

    number = server_named(cluster, "cs2")["server"]
    one = cluster.json("admin", "plan", "lose", str(number))
    assert one["unreadable"]["bytes"] == one["at_risk"]["bytes"] == 0
    assert one["bytes_to_move"] > 0
    everything = [str(server_named(cluster, name)["server"]) for name in cluster.servers]
    gone = cluster.dfs("admin", "plan", "lose", *everything, check=False)
    assert gone.returncode == 1
    assert "cannot be read" in gone.stdout
    otherwise = cluster.json("admin", "plan", "policy", "/data", "scratch")
    assert otherwise["stored_now"] == 3 * otherwise["stored_after"] > 0
    assert cluster.json("admin", "plan", "drain", str(number))["bytes"] > 0

    cluster.kill("cs2")
    wait_until(lambda: server_named(cluster, "cs2")["state"] != "up", what="the dead server seen")
    wait_until(lambda: healthy(cluster), what="full redundancy again", timeout_s=60)
    assert survives(cluster) == {"disks": 2, "servers": 2}
    jobs = {job["kind"]: job for job in cluster.json("admin", "jobs", "list")["jobs"]}
    assert jobs["repair"]["bytes_done"] > 0
    assert jobs["repair"]["failures"] == 0

    cluster.dfs("admin", "remove", str(number))
    assert len(cluster.json("admin", "servers")["servers"]) == 3
    cluster.dfs("admin", "status")

    cluster.add_server("cs9", capacity="2GiB").spawn()
    wait_until(
        lambda: len(cluster.json("admin", "servers")["servers"]) == 4,
        what="the new server",
        timeout_s=20,
    )
    time.sleep(2.5)
    plan = cluster.json("admin", "rebalance", "--dry-run", "--threshold", "2%")
    assert plan["bytes"] > 0
    cluster.dfs("admin", "rebalance", "--threshold", "10%")
    used = [server["used"] for server in cluster.json("admin", "servers")["servers"]]
    assert min(used) > 0
    cluster.dfs("download", "-r", "/data/tree", tmp_path / "back")
    oracle.assert_same(tree, tmp_path / "back")


def test_a_server_is_drained_while_clients_read_and_then_removed(
    cluster: Cluster, tmp_path: Path
) -> None:
    oracle.random_file(tmp_path / "big", 100_000_000, seed=9)
    cluster.dfs("policy", "set", "/", "default")
    cluster.dfs("upload", tmp_path / "big", "/big")
    number = server_named(cluster, "cs1")["server"]
    refused = cluster.dfs("admin", "remove", str(number), check=False)
    assert refused.returncode == 1
    assert "drain" in refused.stderr
    cluster.dfs("admin", "drain", str(number), "--wait")
    back = cluster.spawn_dfs("download", "/big", tmp_path / "back")
    cluster.dfs("admin", "scrub", "--wait")
    _, errors = back.communicate(timeout=60)
    assert back.returncode == 0, errors.decode()
    (found,) = cluster.json("safety", "/big")["paths"]
    assert found["verified"]["chunks"] == found["chunks"] > 0
    assert "Verified" in cluster.dfs("safety", "/big").stdout
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert server_named(cluster, "cs1")["fragments"] == 0
    cluster.dfs("admin", "remove", str(number))
    time.sleep(2.5)
    assert len(cluster.json("admin", "servers")["servers"]) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("drain", "99"), "no server or disk '99'"),
        (("rebalance", "--threshold", "500%"), "write 5%"),
        (("jobs", "pause", "99"), "no job 99"),
        (("jobs", "cancel", "1"), "cannot be cancelled"),
        (("jobs", "budget", "3"), "too little"),
        (("remove", "disk:77"), "no server or disk 'disk:77'"),
        (("plan", "lose", "rack:r9"), "no server is in rack 'r9'"),
        (("plan", "policy", "/", "nix"), "no policy 'nix'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    idle_cluster: Cluster, words: tuple[str, ...], says: str
) -> None:
    refused = idle_cluster.dfs("admin", *words, check=False)
    assert refused.returncode in (1, 2)
    assert says in refused.stderr


@pytest.fixture(scope="module")
def idle_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("idle") / "cluster", servers=1) as made:
        yield made


def test_the_space_of_removed_files_is_freed_while_others_are_read_and_the_master_dies(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=11, files=40)
    (tmp_path / "filler").mkdir()
    for number in range(20):
        oracle.random_file(tmp_path / "filler" / str(number), 1_500_000, seed=number)
    cluster.dfs("policy", "set", "/", "default")
    cluster.dfs("upload", "-r", tmp_path / "filler", tree, "/")
    cluster.dfs("upload", tmp_path / "filler" / "0", "/kept")
    cluster.dfs("rm", "-r", "/filler")
    used = sum(server["used"] for server in cluster.json("admin", "servers")["servers"])

    plan = cluster.json("admin", "compact", "--dry-run")
    assert plan["items"] > 0
    assert "of no use" in cluster.dfs("admin", "compact", "--dry-run").stdout
    back = cluster.spawn_dfs("download", "-r", "/tree", tmp_path / "back")
    number = cluster.json("admin", "compact", "--bandwidth", "4MiB")["job"]
    cluster.kill("master")
    cluster.restart("master")
    _, errors = back.communicate(timeout=60)
    assert back.returncode == 0, errors.decode()
    oracle.assert_same(tree, tmp_path / "back")

    def job() -> dict[str, Any]:
        jobs = cluster.json("admin", "jobs", "list")["jobs"]
        return next(each for each in jobs if each["job"] == number)

    wait_until(lambda: job()["state"] == "done", what="the compaction", timeout_s=60)
    assert not job()["failures"], job()
    assert not cluster.json("admin", "compact", "--dry-run")["items"]
    wait_until(
        lambda: sum(s["used"] for s in cluster.json("admin", "servers")["servers"]) < used / 2,
        what="free space",
        timeout_s=20,
    )
    assert cluster.dfs("admin", "fsck").returncode == 0
    cluster.dfs("download", "-r", "/tree", tmp_path / "again")
    oracle.assert_same(tree, tmp_path / "again")


def test_a_tree_is_converted_to_another_policy_while_it_is_read(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = oracle.make_tree(tmp_path / "tree", seed=12, files=40)
    oracle.random_file(tree / "big", 20_000_000, seed=3)
    cluster.dfs("policy", "create", "coded", "--redundancy", "ec:2+1")
    cluster.dfs("upload", "-r", tree, "/tree")
    plan = cluster.json("policy", "set", "-r", "/tree", "coded", "--convert", "--dry-run")
    assert plan["bytes"] > 1.5 * 20_000_000
    assert not plan["refusal"]
    refused = cluster.dfs("policy", "set", "/tree", "coded", "--convert", check=False)
    assert refused.returncode == 2
    assert "add -r" in refused.stderr
    job = cluster.json("policy", "set", "-r", "/tree", "coded", "--convert", "--bandwidth", "20M")
    assert job["subject"] == "/tree to coded"
    back = cluster.spawn_dfs("download", "-r", "/tree", tmp_path / "back")
    _, errors = back.communicate(timeout=60)
    assert back.returncode == 0, errors.decode()
    oracle.assert_same(tree, tmp_path / "back")
    # It joins the one that runs.
    done = cluster.dfs("policy", "set", "-r", "/tree", "coded", "--convert", "--wait")
    assert "all is kept as coded says" in done.stdout
    after = cluster.json("policy", "set", "-r", "/tree", "coded", "--convert", "--dry-run")
    assert after["bytes"] == 0
    (big,) = cluster.json("locate", "/tree/big")["files"]
    assert {chunk["redundancy"] for chunk in big["chunks"]} == {"ec:2+1"}, big
    assert cluster.dfs("admin", "fsck").returncode == 0
    cluster.dfs("download", "-r", "/tree", tmp_path / "again")
    oracle.assert_same(tree, tmp_path / "again")
