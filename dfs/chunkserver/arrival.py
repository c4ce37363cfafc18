"""Fragments that are being made on a disk: out of sight until they are whole and durable.

One is written in DIR/incoming, as any fragment file is: records, footer, fdatasync, and the name
that says it is sealed. Then it is moved to where fragments are, in the place of what the disk
held of its chunk before. A crash leaves in DIR/incoming what the next start settles: an open
file is of no use and goes; a sealed one is whole, and its move is made up for.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from dfs.chunkserver import identity as identities
from dfs.chunkserver.fragment_file import Batch, FragmentFile
from dfs.chunkserver.fragment_format import (
    FragmentHeader,
    FragmentName,
    directory_of,
    parse_name,
)
from dfs.chunkserver.health import Health
from dfs.chunkserver.page_cache import drop
from dfs.chunkserver.room import Room
from dfs.core.errors import DfsError, FragmentError
from dfs.core.ids import ChunkId


class Arrival:
    """One fragment that is being made; `Arrivals.make` gives it, and removes it unless shown."""

    def __init__(self, directory: str, header: FragmentHeader, health: Health, room: Room) -> None:
        self.file = FragmentFile(directory, header)
        self.over = trio.Event()
        """Set when it is shown or removed."""
        self.abandoned = False
        """Nobody wants it any more: its chunk was deleted meanwhile."""
        self._directory = directory
        self._health = health
        self._room = room
        self._shown = False

    async def append(self, batch: Batch) -> None:
        """Verify and store the next records.

        Raises:
            DfsError: they are refused (damaged, no room, the disk failed), or nobody wants them.
        """
        self._check_wanted()
        await self._health.run(_append, self.file, batch, self._room)

    async def seal(self, length: int) -> None:
        """See `FragmentFile.seal`: it is durable then, and a crash does not undo it any more."""
        self._check_wanted()
        await self._health.run(_seal, self.file, length, self._room)

    async def publish(self, directory: str, held: FragmentName | None) -> int:
        """Move it to `directory`, in the place of `held`; the bytes that frees. Of `Disk.adopt`."""
        self._check_wanted()
        replaced = [] if held is None else [held]
        freed = await self._health.run(_move, self._directory, self.file.name, directory, replaced)
        self._shown = True
        return freed

    def _check_wanted(self) -> None:
        if self.abandoned:
            raise FragmentError(f"chunk {self.file.header.chunk} was deleted meanwhile")

    async def end(self) -> None:
        """Remove what was not shown."""
        stored = self.file.stored_bytes
        if self.file.exists and not self._shown:
            self._room.account(-stored)
            # On a disk that fails just now it stays; the next start removes it.
            with contextlib.suppress(DfsError):
                await self._health.run(os.unlink, self.file.path)
        self.file.close()


class Arrivals:
    """All that is being made on one disk."""

    def __init__(self, path: str, health: Health, room: Room) -> None:
        self._directory = os.path.join(path, identities.INCOMING)
        self._health = health
        self._room = room
        self._under_way: dict[ChunkId, Arrival] = {}

    @contextlib.asynccontextmanager
    async def make(self, header: FragmentHeader) -> AsyncIterator[Arrival]:
        """Make a fragment; one of a chunk at a time, others wait."""
        chunk = header.chunk
        while chunk in self._under_way:
            await self._under_way[chunk].over.wait()
        arrival = Arrival(self._directory, header, self._health, self._room)
        self._under_way[chunk] = arrival
        try:
            yield arrival
        finally:
            with trio.CancelScope(shield=True):
                await arrival.end()
            del self._under_way[chunk]
            arrival.over.set()

    def abandon(self, chunk: ChunkId) -> None:
        """Nobody wants what is being made of a chunk."""
        arrival = self._under_way.get(chunk)
        if arrival is not None:
            arrival.abandoned = True


def _append(file: FragmentFile, batch: Batch, room: Room) -> None:
    start = file.index.file_end
    (outcome,) = file.append([batch], room.claim_upkeep)
    if isinstance(outcome, DfsError):
        raise outcome
    # Has it written at once, a bit at a time: all of it at the end would hold up clients' syncs.
    drop(file.fd, start, file.index.file_end - start)


def _seal(file: FragmentFile, length: int, room: Room) -> None:
    file.seal(length, room.account)
    # Nobody reads it right now: the page cache is for what clients use.
    drop(file.fd, 0, 0)


def settle(disk: Path) -> None:
    """At start: finish what a crash left in the middle. Blocks; raises OSError."""
    incoming = disk / identities.INCOMING
    if not incoming.exists():
        incoming.mkdir()
        identities.sync_directory(disk)
        return
    for file in sorted(incoming.iterdir()):
        name = parse_name(file.name)
        if name is None or name.length is None:
            file.unlink()
            continue
        target = disk / identities.FRAGMENTS / directory_of(name.chunk)
        target.mkdir(exist_ok=True)
        held = [parse_name(each.name) for each in target.iterdir()]
        replaced = [each for each in held if each is not None and each.chunk == name.chunk]
        _move(str(incoming), name, str(target), replaced)


def _move(source: str, name: FragmentName, target: str, held: Sequence[FragmentName]) -> int:
    """Put a sealed file in the place of others of its chunk; the bytes that frees.

    A power cut at any moment leaves those, or the new one, here or (for `settle`) there.
    """
    freed = 0
    new = os.path.join(target, str(name))
    for each in held:
        old = os.path.join(target, str(each))
        with contextlib.suppress(FileNotFoundError):
            freed += os.stat(old).st_size
            if old != new:
                identities.sync_directory(source)
                os.unlink(old)
    os.rename(os.path.join(source, str(name)), new)
    identities.sync_directory(target)
    return freed
