"""Servers and disks keep their numbers, whatever else about them changes."""

import pytest

from dfs.core.errors import ConfigError
from dfs.master import membership
from dfs.master.commands import DiskIdentity, RegisterServer, Registration
from dfs.master.store import MemoryStore
from dfs.master.transaction import Transaction


def register(
    txn: Transaction, uuid: str, *disks: str, address: str = "h:1", rack: str = ""
) -> Registration:
    identities = tuple(DiskIdentity(disk, f"/{disk}") for disk in disks)
    return membership.register(txn, RegisterServer(0, uuid, address, rack, "", "0.1", identities))


def test_numbers_are_given_once_and_stay() -> None:
    txn = Transaction(MemoryStore())
    one = register(txn, "a", "x", "y")
    two = register(txn, "b", "z")
    assert (one.server.server, two.server.server) == (1, 2)
    assert [disk.disk for disk in (*one.disks, *two.disks)] == [1, 2, 3]
    again = register(txn, "a", "y", "w", address="h:2", rack="r")
    assert again.server.server == 1
    assert [disk.disk for disk in again.disks] == [2, 4]
    assert [(s.address, s.rack) for s in membership.all_servers(txn)] == [("h:2", "r"), ("h:1", "")]
    assert [disk.uuid for disk in membership.all_disks(txn)] == ["x", "y", "z", "w"]


def test_registering_again_without_a_change_writes_nothing() -> None:
    store = MemoryStore()
    txn = Transaction(store)
    register(txn, "a", "x")
    store.write(txn.changes)
    txn = Transaction(store)
    register(txn, "a", "x")
    assert txn.changes == {}


def test_a_disk_may_move_to_another_server() -> None:
    txn = Transaction(MemoryStore())
    register(txn, "a", "x")
    moved = register(txn, "b", "x")
    assert [(disk.disk, disk.server) for disk in moved.disks] == [(1, 2)]
    assert [(disk.disk, disk.server) for disk in membership.all_disks(txn)] == [(1, 2)]


@pytest.mark.parametrize(
    ("uuid", "disks", "rack", "message"),
    [
        ("", ("x",), "", "UUID"),
        ("a", ("",), "", "UUID"),
        ("a", ("x" * 65,), "", "UUID"),
        ("a", ("x", "x"), "", "same UUID"),
        ("a", tuple(map(str, range(300))), "", "more than 256 disks"),
        ("a", ("x",), "r" * 256, "longer than 255 bytes"),
    ],
)
def test_values_that_cannot_be_kept_are_refused(
    uuid: str, disks: tuple[str, ...], rack: str, message: str
) -> None:
    txn = Transaction(MemoryStore())
    with pytest.raises(ConfigError, match=message):
        register(txn, uuid, *disks, rack=rack)
    assert txn.changes == {}
