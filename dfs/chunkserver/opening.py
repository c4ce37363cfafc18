"""Opens the disks of a server, all at the same time, and waits for none that hangs.

A disk that is read, however slowly, is waited for: a server that registers without it would have
the master give it up. One that does not answer at all is left out with an error in the log, and
joins when it answers after all.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Final
from uuid import UUID

import trio

from dfs.chunkserver.config import ChunkServerConfig
from dfs.chunkserver.disk import Cache, Disk
from dfs.chunkserver.identity import Identity
from dfs.chunkserver.room import Room
from dfs.chunkserver.threads import DiskWorkers
from dfs.core.errors import ConfigError, DfsError, DiskError

_log = logging.getLogger(__name__)

HANGS_AFTER_S: Final = 3.0
"""A disk that has not taken one step for so long is not waited for."""
_LOOK_EVERY_S: Final = 0.1


class _Attempt:
    """One disk that is being opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps = 0
        """Goes up, in the thread that opens it, with everything the disk has answered."""
        self.hangs = False

    def step(self) -> None:
        self.steps += 1


class Opening:
    """Made by `open_disks`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.disks: list[Disk] = []
        """Those that work, in the order of the settings; `late` ones are added by their taker."""
        self._errors: list[DfsError] = []
        self.attempts = [_Attempt(path) for path in paths]
        self._under_way = self.attempts[:]
        self._changed = trio.Event()
        self._started = False
        self._send_late, self.late = trio.open_memory_channel[Disk](100)
        """Disks that answered after the server had started without them."""

    async def open(
        self, attempt: _Attempt, fresh: Identity, workers: DiskWorkers, room: Room, cache: Cache
    ) -> None:
        try:
            disk = await Disk.open(
                attempt.path,
                fresh=fresh,
                workers=workers,
                room=room,
                cache=cache,
                step=attempt.step,
            )
        except DfsError as error:
            if self._started or isinstance(error, DiskError):
                _log.error("%s", error)
            self._errors.append(error)
        else:
            if self._started:
                _log.info("disk %s answers now", attempt.path)
                self._send_late.send_nowait(disk)
            else:
                self.disks.append(disk)
        finally:
            self._under_way.remove(attempt)
            self._changed.set()

    async def wait(self) -> None:
        """Until every disk is open, has failed, or hangs, and one is open.

        Raises:
            ConfigError: one may not be used.
            DiskError: none works.
        """
        seen: dict[_Attempt, tuple[int, float]] = {}
        while self._under_way and not (self.disks and all(a.hangs for a in self._under_way)):
            with trio.move_on_after(_LOOK_EVERY_S):
                await self._changed.wait()
            self._changed = trio.Event()
            now = trio.current_time()
            for attempt in self._under_way:
                steps, since = seen.get(attempt, (-1, now))
                if steps != attempt.steps:
                    seen[attempt] = attempt.steps, now
                    attempt.hangs = False
                elif now - since >= HANGS_AFTER_S and not attempt.hangs:
                    attempt.hangs = True
                    _log.error(
                        "disk %s has not answered for %g s; it joins when it does",
                        attempt.path, HANGS_AFTER_S,
                    )  # fmt: skip
        for error in self._errors:
            if not isinstance(error, DiskError):
                raise error
        if not self.disks:
            raise self._errors[0]
        check_identities(self.disks)
        paths = [attempt.path for attempt in self.attempts]
        self.disks.sort(key=lambda disk: paths.index(disk.path))
        self._started = True


@asynccontextmanager
async def open_disks(
    config: ChunkServerConfig, random: Random, workers: Callable[[], DiskWorkers], cache: Cache
) -> AsyncIterator[Opening]:
    """Open all disks of the settings, and close them at the end."""
    opening = Opening(config.disks)
    try:
        async with trio.open_nursery() as nursery:
            for attempt in opening.attempts:
                fresh = Identity(disk=_make_uuid(random), server=_make_uuid(random))
                room = Room(
                    attempt.path, capacity_bytes=config.capacity_bytes, reserve=config.reserve
                )
                nursery.start_soon(opening.open, attempt, fresh, workers(), room, cache)
            await opening.wait()
            yield opening
            nursery.cancel_scope.cancel()
    finally:
        while True:
            try:
                opening.disks.append(opening.late.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        for disk in opening.disks:
            disk.close()


def check_identities(disks: Sequence[Disk]) -> None:
    """Raises ConfigError where these disks cannot be served together."""
    clusters = {disk.identity.cluster: disk for disk in disks if disk.identity.cluster}
    if len(clusters) > 1:
        one, other = list(clusters.values())[:2]
        raise ConfigError(
            f"disk {one.path} belongs to cluster {one.identity.cluster}, "
            f"disk {other.path} to cluster {other.identity.cluster}",
            hint="one chunk server serves one cluster",
        )
    (uuid, count), *_ = Counter(disk.identity.disk for disk in disks).most_common(1)
    if count > 1:
        paths = [disk.path for disk in disks if disk.identity.disk == uuid]
        raise ConfigError(
            f"{paths[0]} and {paths[1]} have the same disk UUID {uuid}",
            hint="one is a copy of the other: empty it",
        )


def _make_uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))
