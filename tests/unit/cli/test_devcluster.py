import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from dfs.cli import devcluster
from dfs.cli.devcluster import DevCluster
from dfs.cli.process import identify
from dfs.core.errors import ConfigError, DfsError


def define(path: Path, servers: int | None = None, disks: int = 1) -> devcluster.Definition:
    cluster = DevCluster(path)
    with cluster.locked():
        return cluster.define(servers, disks, default_servers=4)


def test_a_cluster_keeps_its_ports_and_grows(tmp_path: Path) -> None:
    first = define(tmp_path / "dev", 2)
    again = define(tmp_path / "dev")
    assert again == first
    assert [server.name for server in again.servers] == ["cs1", "cs2"]
    larger = define(tmp_path / "dev", 3, disks=2)
    assert larger.servers[:2] == first.servers
    assert larger.servers[2].disks == ["cs3/disk1", "cs3/disk2"]
    assert len({member.port for member in larger.members}) == 4
    assert DevCluster(tmp_path / "dev").definition() == larger


def test_the_default_number_of_servers_is_for_new_clusters(tmp_path: Path) -> None:
    assert len(define(tmp_path).servers) == 4


def test_a_cluster_does_not_shrink(tmp_path: Path) -> None:
    define(tmp_path, 3)
    with pytest.raises(ConfigError, match="has 3 chunk servers"):
        define(tmp_path, 2)


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other things"):
        define(tmp_path)


def test_a_damaged_definition_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dev\.json"):
        define(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    define(tmp_path, 1)
    document = json.loads((tmp_path / "dev.json").read_text())
    (tmp_path / "dev.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(ConfigError, match="newer dfs"):
        define(tmp_path)


def test_a_port_that_is_taken_is_moved_unless_we_hold_it(tmp_path: Path) -> None:
    definition = define(tmp_path, 1)
    cluster = DevCluster(tmp_path)
    before = [member.port for member in definition.members]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", definition.master.port))
        listener.listen()
        assert not cluster.move_taken_ports(definition, {"master"})
        assert [member.port for member in definition.members] == before
        assert cluster.move_taken_ports(definition, set())
    assert definition.master.port != before[0]
    assert definition.servers[0].port == before[1]
    assert cluster.definition() == definition


def test_what_runs_is_written_and_read(tmp_path: Path) -> None:
    definition = define(tmp_path, 1)
    cluster = DevCluster(tmp_path)
    me = identify(os.getpid())
    assert me is not None
    cluster.record(definition, {"master": me})
    document = json.loads((tmp_path / "cluster.json").read_text())
    assert document["master"] == definition.master.address
    entry = document["processes"][0]
    assert (entry["name"], entry["role"], entry["pid"]) == ("master", "master", os.getpid())
    assert cluster.alive() == {"master": me}
    cluster.record(definition, {})
    assert not (tmp_path / "cluster.json").exists()


def test_an_unreadable_cluster_json_counts_as_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"master": 3}')
    assert DevCluster(tmp_path).alive() == {}


def test_destroy_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    definition = define(tmp_path / "dev", 1)
    cluster = DevCluster(tmp_path / "dev")
    (tmp_path / "dev" / "cs1" / "disk1").mkdir(parents=True)
    (tmp_path / "dev" / "notes").write_text("keep")
    with cluster.locked():
        assert cluster.destroy(definition) == ["notes"]
    assert os.listdir(tmp_path / "dev") == ["notes"]
    with pytest.raises(DfsError, match="no dev cluster here"):
        cluster.require()


def test_destroy_takes_the_directory_with_it(tmp_path: Path) -> None:
    definition = define(tmp_path / "dev", 1)
    cluster = DevCluster(tmp_path / "dev")
    with cluster.locked():
        assert cluster.destroy(definition) == []
    assert not (tmp_path / "dev").exists()


def _hold_lock(path: Path, held: "multiprocessing.synchronize.Event", done: object) -> None:
    with DevCluster(path).locked():
        held.set()
        done.wait(30)  # type: ignore[attr-defined]


def test_two_commands_do_not_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devcluster, "LOCK_TIMEOUT_S", 0.2)
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(DfsError, match="another dfs dev command"),
            DevCluster(tmp_path).locked(),
        ):
            pass
    finally:
        done.set()
        other.join(30)
    with DevCluster(tmp_path).locked():
        pass
