"""Whose disk a data directory is: its identity file, and the lock against a second process.

    DIR/disk.json    the identity: written once when the directory is first used, then only to
                     note the cluster it joined and the numbers the master gave (FORMAT.md)
    DIR/lock         held with flock(2) by the process that serves the disk
    DIR/fragments/   the fragment files
    DIR/incoming/    fragments that are being made (`arrival`)

Blocking calls only.
"""

import fcntl
import os
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from dfs.chunkserver.fragment_format import DIRECTORIES
from dfs.core.errors import ConfigError

IDENTITY_FILE: Final = "disk.json"
LOCK_FILE: Final = "lock"
FRAGMENTS: Final = "fragments"
INCOMING: Final = "incoming"

_FORMAT: Final = 1
_MAY_BE_THERE: Final = {
    "lost+found", LOCK_FILE, FRAGMENTS, INCOMING, IDENTITY_FILE, f"{IDENTITY_FILE}.new"
}  # fmt: skip
"""In a directory without an identity: of the file system, or of a first start that was cut off."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `disk.json`."""

    format: int = _FORMAT
    disk: str
    """The disk's UUID, for ever."""
    server: str
    """UUID of the chunk server that last served the disk."""
    cluster: str = ""
    """UUID of the cluster; "" until the disk has joined one."""
    disk_number: int = 0
    """The number the cluster's master gave the disk; 0: none yet."""
    server_number: int = 0


def prepare(directory: Path, *, disk: str, server: str) -> Identity:
    """The identity of `directory`; a fresh one is made a disk with the UUIDs given.

    Raises:
        ConfigError: it holds something else, or its identity cannot be understood.
        OSError: the disk does not answer as a disk should.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / IDENTITY_FILE
    if file.exists() and file.stat().st_size:
        return _read(file)
    strangers = sorted(set(os.listdir(directory)) - _MAY_BE_THERE)
    if strangers:
        raise ConfigError(
            f"{directory} is no dfs disk: it has no {IDENTITY_FILE}, but holds {strangers[0]!r}",
            hint="give an empty directory, or check that the right disk is mounted there",
        )
    fragments = directory / FRAGMENTS
    if fragments.exists() and any(os.listdir(each) for each in fragments.iterdir()):
        raise ConfigError(
            f"{directory} holds fragments but no {IDENTITY_FILE}",
            hint=f"restore {IDENTITY_FILE}, or move the fragments away to start afresh",
        )
    for number in range(DIRECTORIES):
        (fragments / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    identity = Identity(disk=disk, server=server)
    # Last, since a disk with an identity is whole; not synced, since nobody counts on it before
    # it joins a cluster.
    (directory / IDENTITY_FILE).write_bytes(_encode(identity))
    return identity


def save(directory: Path, identity: Identity) -> None:
    """Write `disk.json` so that a crash leaves the old one or the new one, on a whole disk."""
    sync_directory(directory / FRAGMENTS)
    temporary = directory / f"{IDENTITY_FILE}.new"
    with temporary.open("wb") as file:
        file.write(_encode(identity))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / IDENTITY_FILE)
    sync_directory(directory)
    sync_directory(directory.parent)


def load(directory: Path) -> Identity:
    """Raises ConfigError or OSError."""
    return _read(directory / IDENTITY_FILE)


def take_lock(directory: Path) -> int:
    """The descriptor that holds the lock; close it to give the disk up.

    Raises:
        ConfigError: another process serves this disk.
    """
    # Open for reading only: a file open for writing would keep an operator from remounting a sick
    # disk read-only.
    fd = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note_holder(directory)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise ConfigError(
            f"disk {directory} is in use by another process{holder and f' (pid {holder})'}",
            hint="stop that chunk server first, or give another directory",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def note_holder(directory: Path) -> None:
    """Write our pid into the lock file: for people, and to see whether the disk is writable."""
    (directory / LOCK_FILE).write_text(f"{os.getpid()}\n", encoding="ascii")


def sync_directory(directory: str | Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode(identity: Identity) -> bytes:
    return msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n"


def _read(file: Path) -> Identity:
    data = file.read_bytes()
    try:
        identity = msgspec.json.decode(data, type=Identity)
        for uuid in (identity.disk, identity.server, identity.cluster or identity.disk):
            UUID(uuid)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}", hint="restore it, or start with an empty directory"
        ) from error
    if identity.format != _FORMAT:
        raise ConfigError(
            f"{file} has format {identity.format}; this program knows {_FORMAT}",
            hint="upgrade dfs on this server",
        )
    return identity
