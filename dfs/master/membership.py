"""Identity of chunk servers and disks, as the store keeps it: pure functions over a transaction.

A server and each of its disks bring a UUID that they made for themselves; the master gives each
a number when it first sees it, and that number stays. Whether they are alive is not
state but observation: see `liveness`.
"""

import errno
from typing import Final

from msgspec.structs import replace

from dfs.core.errors import ConfigError, FileSystemError
from dfs.core.ids import DiskId, ServerId
from dfs.master.commands import (
    DiskIdentity,
    ForgetDisks,
    RegisterServer,
    Registration,
    SetDraining,
)
from dfs.master.keyspace import (
    DISK,
    SERVER,
    DiskRecord,
    Reader,
    ServerRecord,
    Writer,
    decode_disk,
    decode_server,
    disk_by_uuid_key,
    disk_key,
    doomed_key,
    encode,
    fragment_by_disk_key,
    from_u64,
    get_counters,
    put_counters,
    removed_disk_key,
    scan_prefix,
    server_by_uuid_key,
    server_key,
    u64,
)

UUID_MAX_BYTES: Final = 64
PLACE_MAX_BYTES: Final = 255
"""Longest name of a rack or zone, and longest address."""
DISKS_MAX: Final = 256
"""Disks of one server."""


def register(txn: Writer, command: RegisterServer) -> Registration:
    """Give numbers to what is new, and note what changed: addresses, racks, moved disks.

    Registering again without a change writes nothing.

    Disks that were removed are left out: the others of their server have done nothing.

    Raises ConfigError for values that cannot be kept, and where all disks were removed.
    """
    _check(command)
    disks = [disk for disk in command.disks if txn.get(removed_disk_key(disk.uuid)) is None]
    if command.disks and not disks:
        raise ConfigError(
            f"disk {command.disks[0].path} of {command.address} was removed from this cluster",
            hint="stop this chunk server; to use the disk again, empty its directory first",
        )
    known = txn.get(server_by_uuid_key(command.uuid))
    number = _next_server(txn) if known is None else from_u64(known)
    server = ServerRecord(
        number, command.uuid, command.address, command.rack, command.zone, command.version
    )
    _put(txn, server_key(number), encode(server))
    _put(txn, server_by_uuid_key(command.uuid), u64(number))
    return Registration(server, tuple(_disk(txn, number, disk) for disk in disks))


def _disk(txn: Writer, server: ServerId, identity: DiskIdentity) -> DiskRecord:
    known = txn.get(disk_by_uuid_key(identity.uuid))
    number = _next_disk(txn) if known is None else from_u64(known)
    old = None if known is None else txn.get(disk_key(number))
    draining = old is not None and decode_disk(old).draining
    disk = DiskRecord(number, identity.uuid, server, identity.path, draining)
    _put(txn, disk_key(number), encode(disk))
    _put(txn, disk_by_uuid_key(identity.uuid), u64(number))
    return disk


def _check(command: RegisterServer) -> None:
    uuids = [command.uuid, *(disk.uuid for disk in command.disks)]
    if not all(0 < len(uuid.encode()) <= UUID_MAX_BYTES for uuid in uuids):
        raise ConfigError(f"a server's or disk's UUID must have 1 to {UUID_MAX_BYTES} bytes")
    if len(set(uuids)) < len(uuids):
        raise ConfigError(
            f"server {command.address} has two disks with the same UUID",
            hint="a disk's directory was copied or is named twice; remove one",
        )
    if len(command.disks) > DISKS_MAX:
        raise ConfigError(f"server {command.address} has more than {DISKS_MAX} disks")
    for what in (command.address, command.rack, command.zone):
        if len(what.encode()) > PLACE_MAX_BYTES:
            raise ConfigError(f"{what[:40]!r}... is longer than {PLACE_MAX_BYTES} bytes")


def _put(txn: Writer, key: bytes, value: bytes) -> None:
    if txn.get(key) != value:
        txn.put(key, value)


def _next_server(txn: Writer) -> ServerId:
    counters = get_counters(txn)
    put_counters(txn, replace(counters, next_server=counters.next_server + 1))
    return counters.next_server


def _next_disk(txn: Writer) -> DiskId:
    counters = get_counters(txn)
    put_counters(txn, replace(counters, next_disk=counters.next_disk + 1))
    return counters.next_disk


def set_draining(txn: Writer, command: SetDraining) -> None:
    """See `SetDraining`."""
    for number in command.disks:
        raw = txn.get(disk_key(number))
        if raw is not None:
            _put(
                txn, disk_key(number), encode(replace(decode_disk(raw), draining=command.draining))
            )


def forget(txn: Writer, command: ForgetDisks) -> None:
    """See `ForgetDisks`."""
    servers = set(command.servers)
    for number in command.disks:
        raw = txn.get(disk_key(number))
        if raw is None:
            continue
        for start, end in (
            (fragment_by_disk_key(number, 0), fragment_by_disk_key(number + 1, 0)),
            (doomed_key(number, 0), doomed_key(number + 1, 0)),
        ):
            if next(txn.scan(start, end), None) is not None:
                raise FileSystemError(
                    f"disk {number} still has fragments", errno=errno.EBUSY, hint="drain it first"
                )
        disk = decode_disk(raw)
        txn.put(removed_disk_key(disk.uuid), u64(command.time_ns))
        txn.delete(disk_key(number))
        txn.delete(disk_by_uuid_key(disk.uuid))
        servers.add(disk.server)
    left = {disk.server for disk in all_disks(txn)}
    for server in servers - left:
        raw = txn.get(server_key(server))
        if raw is not None:
            txn.delete(server_key(server))
            txn.delete(server_by_uuid_key(decode_server(raw).uuid))


def all_servers(reader: Reader) -> list[ServerRecord]:
    return [decode_server(value) for _, value in scan_prefix(reader, SERVER)]


def all_disks(reader: Reader) -> list[DiskRecord]:
    return [decode_disk(value) for _, value in scan_prefix(reader, DISK)]
