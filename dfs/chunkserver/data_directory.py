"""Taking a data directory over: its lock, its identity, and what it holds."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import trio

from dfs.chunkserver import identity as identities
from dfs.chunkserver.arrival import settle
from dfs.chunkserver.catalog import Catalog, scan
from dfs.chunkserver.identity import Identity
from dfs.chunkserver.room import Room
from dfs.chunkserver.threads import DiskWorkers
from dfs.core.errors import DfsError, DiskError


class Taken(NamedTuple):
    """A directory that nobody else uses, until `lock_fd` is closed."""

    identity: Identity
    lock_fd: int
    catalog: Catalog


async def take(
    path: str, *, fresh: Identity, workers: DiskWorkers, room: Room, step: Callable[[], None]
) -> Taken:
    """See `Disk.open`."""
    abandoned = False

    def load() -> Taken:
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        lock_fd = identities.take_lock(directory)
        step()
        try:
            identity = identities.prepare(directory, disk=fresh.disk, server=fresh.server)
            step()
            settle(directory)
            catalog, used = scan(os.path.join(path, identities.FRAGMENTS), step)
            room.account(used)
            room.refresh()
            if abandoned:
                raise DiskError(f"disk {path} answered too late")
        except BaseException:
            os.close(lock_fd)
            raise
        return Taken(identity, lock_fd, catalog)

    try:
        return await workers.run_abandonable(load)
    except trio.Cancelled:
        abandoned = True
        raise
    except DfsError:
        raise
    except OSError as error:
        raise DiskError(
            f"disk {path} does not work: {error.strerror or error}",
            errno=error.errno,
            hint="check that it is mounted, writable and healthy",
        ) from error
