"""Making a master's data directory of an archive, with no master running. Blocks.

The rows are loaded into a store under another name, which becomes the master's when it is
complete and on the disk: a restore that was stopped leaves nothing that a master would start on.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import BinaryIO, Final

import msgspec

from dfs.core.archive import ArchiveReader, Description, Kind
from dfs.core.errors import ConfigError, CorruptError, DfsError
from dfs.master import sessions
from dfs.master.backup.hold import skipped_ids
from dfs.master.commands import CloseSession, CompleteRestore, PurgeStep
from dfs.master.keyspace import LEFTOVERS, SCHEMA_VERSION, get_counters, scan_prefix
from dfs.master.state import State
from dfs.master.store import RocksStore

METADATA: Final = "metadata"
PARTIAL: Final = "metadata.partial"
READ_BYTES: Final = 1024 * 1024


class RestoreReport(msgspec.Struct, frozen=True):
    cluster: str
    created_ns: int
    """When the backup was made."""
    rows: int
    inodes: int
    chunks: int
    sessions: int
    """Ended: no client holds anything any more."""


Told = Callable[[int, Description], None]
"""Called with the rows done, and what the backup says of itself."""


def restore(source: BinaryIO, data: Path, told: Told, now_ns: int | None = None) -> RestoreReport:
    """Restore what `source` gives into `data`, which is not there, or empty.

    Raises:
        ConfigError: `data` is in use, or `source` is no backup, or one of a newer version.
        CorruptError: the backup is damaged or cut short.
        OSError, DfsError: what it comes from, or goes to, fails.
    """
    _claim(data)
    partial = data / PARTIAL
    if partial.exists():
        shutil.rmtree(partial)
    try:
        store = RocksStore(partial)
        try:
            description, rows = _load(source, store, told)
            at_ns = time.time_ns() if now_ns is None else now_ns
            report = _complete(store, description, rows, at_ns)
            store.sync()
        finally:
            store.close()
        os.rename(partial, data / METADATA)
        _sync_directory(data)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return report


def _claim(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        found = sorted(set(os.listdir(data)) - {PARTIAL})
    except OSError as error:
        raise ConfigError(
            f"cannot restore into {data}: {error.strerror}", hint="name a new directory"
        ) from error
    if found:
        raise ConfigError(
            f"{data} is not empty: it holds {found[0]}",
            hint="name a new directory; a master's old data are never written over",
        )


def _load(source: BinaryIO, store: RocksStore, told: Told) -> tuple[Description, int]:
    archive = ArchiveReader()
    last = b""
    while data := source.read(READ_BYTES):
        for block in archive.feed(data):
            if block.kind is not Kind.ROWS:
                _check_schema(archive)
                continue
            rows = dict(block.pairs())
            keys = list(rows)
            if len(rows) != block.rows or keys != sorted(keys) or (keys and keys[0] <= last):
                raise CorruptError("the rows of the backup are not in order")
            last = keys[-1] if keys else last
            store.write(rows)
            if archive.description is not None:
                told(archive.rows, archive.description)
    archive.finish()
    if archive.description is None:
        raise CorruptError("the backup does not say what it is of")
    return archive.description, archive.rows


def _check_schema(archive: ArchiveReader) -> None:
    described = archive.description
    if described is not None and described.schema > SCHEMA_VERSION:
        raise ConfigError(
            f"the backup has schema version {described.schema}, "
            f"this dfs knows versions up to {SCHEMA_VERSION}",
            hint=f"restore it with dfs {described.dfs} or a newer one",
        )


def _complete(store: RocksStore, description: Description, rows: int, now_ns: int) -> RestoreReport:
    """What makes it a restored state, by commands like any other."""
    state = State(store)
    if not state.formatted or state.cluster != description.cluster:
        raise CorruptError("the backup does not hold the metadata it says it holds")
    counters = get_counters(store)
    ended = [record.session for record in sessions.all_sessions(store)]
    state.apply(
        CompleteRestore(
            time_ns=now_ns,
            backup_ns=description.created_ns,
            skip_ids=skipped_ids(description.created_ns, now_ns),
            run=SystemRandom().getrandbits(63),
            position=description.position,
        )
    )
    for session in ended:
        state.apply(CloseSession(time_ns=now_ns, session=session))
    while next(scan_prefix(store, LEFTOVERS), None) is not None:
        state.apply(PurgeStep(time_ns=now_ns))
    return RestoreReport(
        description.cluster,
        description.created_ns,
        rows,
        counters.inodes,
        counters.chunks,
        len(ended),
    )


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise DfsError(f"{path}: {error.strerror}", errno=error.errno) from error
    finally:
        os.close(fd)
