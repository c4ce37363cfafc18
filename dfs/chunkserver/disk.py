"""One data directory: what it holds, and the fragments in use.

Lives on the event loop. Everything that blocks goes through the disk's `health` to its threads.
"""

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import msgspec
import trio
from outcome import Error, Outcome

from dfs.chunkserver import identity as identities
from dfs.chunkserver.arrival import Arrival, Arrivals
from dfs.chunkserver.catalog import Catalog
from dfs.chunkserver.data_directory import take
from dfs.chunkserver.fragment import Fragment
from dfs.chunkserver.fragment_file import Batch, FragmentFile, FragmentGoneError, Reached
from dfs.chunkserver.fragment_format import FragmentHeader, FragmentName, directory_of
from dfs.chunkserver.health import Health
from dfs.chunkserver.identity import Identity
from dfs.chunkserver.pace import Traffic
from dfs.chunkserver.room import Room
from dfs.chunkserver.threads import DiskWorkers
from dfs.core.errors import ConfigError, DfsError, DiskError, FragmentError, NoSpaceError
from dfs.core.ids import ChunkId, DiskId
from dfs.wire.messages import DiskReport, FragmentStatus, HeldFragment

_log = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody looks."""


class Cache(msgspec.Struct, frozen=True):
    """Bounds of what a disk keeps open."""

    fragments: int = 512
    index_bytes: int = 32 * 1024 * 1024


class Disk:
    """Made by `Disk.open`; `close` gives the directory up."""

    def __init__(
        self,
        path: str,
        identity: Identity,
        lock_fd: int,
        catalog: Catalog,
        room: Room,
        health: Health,
        cache: Cache,
    ) -> None:
        self.path = path
        self.identity = identity
        self.catalog = catalog
        self.room = room
        self.health = health
        self.traffic = Traffic()
        self.arrivals = Arrivals(path, health, room)
        self._lock_fd = lock_fd
        self._cache = cache
        self._in_use: OrderedDict[ChunkId, Fragment] = OrderedDict()
        self._opening: dict[ChunkId, trio.Event] = {}

    @classmethod
    async def open(
        cls,
        path: str,
        *,
        fresh: Identity,
        workers: DiskWorkers,
        room: Room,
        cache: Cache | None = None,
        step: Callable[[], None] = _nothing,
    ) -> "Disk":
        """Lock the directory, read its identity (a fresh one becomes `fresh`) and what it holds.

        `step` is called, in a thread, for each thing the disk has answered. Cancelling leaves
        behind a disk that answers nothing.

        Raises:
            ConfigError: not a disk, or in use.
            DiskError: it does not work.
        """
        identity, lock_fd, catalog = await take(
            path, fresh=fresh, workers=workers, room=room, step=step
        )
        return cls(path, identity, lock_fd, catalog, room, Health(path, workers), cache or Cache())

    def close(self) -> None:
        """Give the directory up. Nothing may run on the disk any more."""
        for fragment in self._in_use.values():
            fragment.retire()
        self._in_use.clear()
        os.close(self._lock_fd)

    @property
    def number(self) -> DiskId:
        """The master's number for the disk; 0: none yet."""
        return self.identity.disk_number

    def report(self) -> DiskReport:
        """Does not block: sizes are as of the last `probe` or write."""
        used = self.room.used_bytes
        free = 0 if self.health.error else self.room.free_bytes
        return DiskReport(
            uuid=self.identity.disk,
            path=self.path,
            capacity=used + free,
            used=used,
            free=free,
            fragments=len(self.catalog),
            failed=bool(self.health.error),
            error=self.health.error,
        )

    async def join(
        self, *, cluster: str, disk_number: int, server: str, server_number: int
    ) -> None:
        """Note what the master said at registration.

        Raises:
            ConfigError: the disk belongs to another cluster.
        """
        identity = self.identity
        if identity.cluster and identity.cluster != cluster:
            raise ConfigError(
                f"disk {self.path} belongs to cluster {identity.cluster}, not to {cluster}",
                hint="check the master's address, or give an empty directory",
            )
        joined = msgspec.structs.replace(
            identity,
            cluster=cluster,
            disk_number=disk_number,
            server=server,
            server_number=server_number,
        )
        if joined != identity:
            self.identity = joined
            # A failed or full disk is still worth reading; the note is made at another start.
            with contextlib.suppress(DiskError, NoSpaceError):
                await self.health.run(identities.save, Path(self.path), joined)

    # ------------------------------------------------------------------ fragments in use

    def peek(self, chunk: ChunkId) -> Fragment | None:
        """The chunk's fragment if it is in use already, not pinned. Does not block."""
        fragment = self._in_use.get(chunk)
        if fragment is None or not fragment.file.exists:
            return None
        self._in_use.move_to_end(chunk)
        return fragment

    async def fragment(self, chunk: ChunkId) -> Fragment:
        """The chunk's fragment, pinned; unpin it when done.

        Raises:
            FragmentError: it is not here, or unreadable.
        """
        while True:
            fragment = self.peek(chunk)
            if fragment is not None:
                fragment.pin()
                return fragment
            if chunk in self._opening:
                await self._opening[chunk].wait()
                continue
            name = self.catalog.get(chunk)
            if name is None:
                raise FragmentError(
                    f"disk {self.path} holds no fragment of chunk {chunk}: it is missing"
                )
            opened = self._opening[chunk] = trio.Event()
            try:
                return await self._open_fragment(name)
            finally:
                del self._opening[chunk]
                opened.set()

    async def _open_fragment(self, name: FragmentName) -> Fragment:
        directory = self.directory_of(name.chunk)
        cluster = UUID(self.identity.cluster)
        try:
            file = await self.health.run_read(FragmentFile.open, directory, name, cluster)
        except FragmentGoneError:
            self.catalog.remove(name.chunk)
            raise
        self.room.account(file.size_change)
        if self.catalog.get(name.chunk) != name:
            file.close()
            raise FragmentError(f"the fragment of chunk {name.chunk} was deleted meanwhile")
        return self._enlist(file)

    async def _fragment_to_write(self, header: FragmentHeader, first_block: int) -> Fragment:
        """As `fragment`, but one that is not here yet gets ready to be created."""
        chunk = header.chunk
        while True:
            fragment = self._in_use.get(chunk)
            if fragment is not None:
                fragment.pin()
                return fragment
            if chunk not in self.catalog and chunk not in self._opening:
                return self._enlist(FragmentFile(self.directory_of(chunk), header))
            try:
                return await self.fragment(chunk)
            except FragmentGoneError:
                continue
            except FragmentError as error:
                if first_block != 0:
                    raise
                # Whoever starts anew knows that what is here is of no use.
                _log.warning("%s; it is replaced", error.message)
                await self.delete([chunk])

    def _enlist(self, file: FragmentFile) -> Fragment:
        fragment = Fragment(file, self.health, self.catalog.put)
        fragment.pin()
        if file.exists:
            self.catalog.put(file.name)
        self._in_use[file.header.chunk] = fragment
        self._trim()
        return fragment

    def _trim(self) -> None:
        """Close what was not used for long, when there is too much; an eighth at a time."""
        bounds = self._cache
        count = len(self._in_use)
        index_bytes = sum(fragment.file.index_bytes for fragment in self._in_use.values())
        if count <= bounds.fragments and index_bytes <= bounds.index_bytes:
            return
        idle = [
            (chunk, fragment)
            for chunk, fragment in self._in_use.items()
            if fragment.pins == 0 and fragment.file.exists
        ]
        # Sealed ones first: an open one is read as a whole when it is opened again.
        idle.sort(key=lambda item: not item[1].file.sealed)
        for chunk, fragment in idle:
            if count <= bounds.fragments * 7 // 8 and index_bytes <= bounds.index_bytes * 7 // 8:
                break
            count -= 1
            index_bytes -= fragment.file.index_bytes
            del self._in_use[chunk]
            fragment.retire()

    async def look_again(self, fragment: Fragment) -> None:
        """After a FragmentError: where the file is not what it was, open it anew at next use."""
        async with fragment.order:
            self._look(fragment)

    def _look(self, fragment: Fragment) -> None:
        if fragment.retired or not fragment.file.exists:
            return
        try:
            fragment.file.check_present(fragment.file.stored_bytes)
        except FragmentError as error:
            _log.warning("disk %s: %s", self.path, error.message)
            self._forget(fragment)

    def _forget(self, fragment: Fragment) -> None:
        """Nobody finds it any more."""
        chunk = fragment.file.header.chunk
        if self._in_use.get(chunk) is fragment:
            del self._in_use[chunk]
        fragment.retire()

    def directory_of(self, chunk: ChunkId) -> str:
        return os.path.join(self.path, identities.FRAGMENTS, directory_of(chunk))

    # ------------------------------------------------------------------ requests

    def begin_append(
        self,
        chunk: ChunkId,
        place: tuple[int, int, int],
        batch: Batch,
        wake: Callable[[Outcome[Reached]], None],
        *,
        sync: bool,
    ) -> bool:
        """As `append` for a client, to a fragment in use, `place` being (index, k, m) of it.

        `wake` is told the outcome. False where something has to be waited for, or looked at more
        closely: then `append`. Raises DiskError.
        """
        fragment = self._in_use.get(chunk)
        if fragment is None or not fragment.file.exists or not fragment.is_next(batch, sync=sync):
            return False
        held = fragment.file.header
        if (held.index, held.k, held.m) != place:
            return False

        def ended(outcome: "Outcome[Reached]") -> None:
            self.traffic.end()
            try:
                fragment.unpin()
                if isinstance(outcome, Error):
                    if isinstance(outcome.error, NoSpaceError):
                        self.health.changed()
                    elif isinstance(outcome.error, FragmentError) and fragment.order.value:
                        self._look(fragment)
            except OSError as error:
                self.health.judge_read(error)
            finally:
                wake(outcome)

        self.health.check()
        fragment.pin()
        self.traffic.begin()
        try:
            fragment.begin_append(batch, self.room.claim, ended, sync=sync)
        except BaseException:
            self.traffic.end()
            fragment.unpin()
            raise
        return True

    async def append(
        self, header: FragmentHeader, batch: Batch, *, sync: bool = False, upkeep: bool = False
    ) -> Reached:
        """Store records of a fragment; the first ones create it. With `sync`, durably; with
        `upkeep`, also where a client finds the disk full.

        Raises:
            DfsError: refused, and nothing of them is stored.
        """
        self.health.check()
        fragment = await self._fragment_to_write(header, batch.first_block)
        try:
            held = fragment.file.header
            if held != header:
                raise FragmentError(
                    f"disk {self.path} holds fragment {held.index} of {held.k}+{held.m} of chunk "
                    f"{held.chunk}, not fragment {header.index} of {header.k}+{header.m}"
                )
            claim = self.room.claim_upkeep if upkeep else self.room.claim
            return await fragment.append(batch, claim, sync=sync)
        except NoSpaceError:
            self.health.changed()
            raise
        except FragmentError:
            await self.look_again(fragment)
            raise
        finally:
            if fragment.pins == 1 and not fragment.file.exists:
                self._forget(fragment)
            fragment.unpin()

    async def sync(self, lengths: Mapping[ChunkId, int]) -> None:
        """Make fragments durable, all at the same time.

        Raises:
            FragmentError: one is not here, or ends before its length.
            DiskError: the disk has failed.
        """
        errors: list[DfsError] = []

        async def sync_one(chunk: ChunkId) -> None:
            try:
                fragment = await self.fragment(chunk)
                try:
                    await fragment.sync()
                    # A power cut may have taken what was acknowledged before it.
                    fragment.file.check_reaches(lengths[chunk])
                finally:
                    fragment.unpin()
            except DfsError as error:
                errors.append(error)

        names = {chunk: self.catalog.get(chunk) for chunk in lengths}
        # Sealed ones are durable.
        unsure = [
            chunk
            for chunk, name in names.items()
            if name is None or name.length is None or name.length < lengths[chunk]
        ]
        if len(unsure) == 1:
            await sync_one(unsure[0])
        else:
            async with trio.open_nursery() as nursery:
                for chunk in unsure:
                    nursery.start_soon(sync_one, chunk)
        if errors:
            raise errors[0]

    async def seal(self, chunk: ChunkId, length: int) -> FragmentStatus:
        """Raises FragmentError where the fragment is not here or does not reach `length`."""
        fragment = await self.fragment(chunk)
        try:
            await fragment.seal(length, self.room.account)
            return fragment.file.status()
        except FragmentError:
            await self.look_again(fragment)
            raise
        finally:
            fragment.unpin()

    async def delete(self, chunks: Iterable[ChunkId]) -> None:
        """Delete fragments; readers under way finish. What is not here counts as deleted."""
        idle: list[FragmentName] = []
        try:
            for chunk in chunks:
                self.arrivals.abandon(chunk)
                while chunk in self._opening:
                    await self._opening[chunk].wait()
                fragment = self._in_use.get(chunk)
                if fragment is not None:
                    await self._delete_in_use(fragment)
                elif (name := self.catalog.get(chunk)) is not None:
                    self.catalog.remove(chunk)
                    idle.append(name)
            if idle:
                paths = [os.path.join(self.directory_of(name.chunk), str(name)) for name in idle]
                self.room.account(-await self.health.run(_unlink, paths))
        except BaseException:
            # Which of them are gone is found out when they are next asked for.
            for name in idle:
                self.catalog.put(name)
            raise

    async def _delete_in_use(self, fragment: Fragment) -> None:
        fragment.pin()
        try:
            async with fragment.order:
                if not fragment.retired:
                    if fragment.file.exists:
                        self.room.account(-await self.health.run(_unlink, [fragment.file.path]))
                    self.catalog.remove(fragment.file.header.chunk)
                    self._forget(fragment)
        finally:
            fragment.unpin()

    async def adopt(self, arrival: Arrival) -> None:
        """Show a sealed fragment in the place of what is held of its chunk; readers finish.

        Raises:
            FragmentError: it was deleted meanwhile.
        """
        chunk = arrival.file.header.chunk
        while chunk in self._opening:
            await self._opening[chunk].wait()
        shown = self._opening[chunk] = trio.Event()
        fragment = self._in_use.get(chunk)
        try:
            if fragment is None:
                await self._show(arrival)
                return
            fragment.pin()
            try:
                async with fragment.order:
                    self._forget(fragment)
                    await self._show(arrival)
            finally:
                fragment.unpin()
        finally:
            del self._opening[chunk]
            shown.set()

    async def _show(self, arrival: Arrival) -> None:
        chunk = arrival.file.header.chunk
        freed = await arrival.publish(self.directory_of(chunk), self.catalog.get(chunk))
        self.catalog.put(arrival.file.name)
        self.room.account(-freed)

    async def held(self, chunks: Sequence[ChunkId]) -> list[HeldFragment]:
        """What is held of these chunks; unreadable ones are left out, as if they were missing."""
        found = []
        for chunk in chunks:
            name = self.catalog.get(chunk)
            if name is None:
                continue
            length = name.length
            if length is None:
                try:
                    fragment = await self.fragment(chunk)
                except (FragmentError, DiskError) as error:
                    _log.warning("disk %s: %s", self.path, error.message)
                    continue
                length = fragment.file.reached.length
                name = fragment.file.name
                fragment.unpin()
            found.append(HeldFragment(chunk, name.index, length, name.length is not None))
        return found


def _unlink(paths: list[str]) -> int:
    """Delete files; how many bytes they took. Those that are gone already are no error."""
    freed = 0
    for path in paths:
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            continue
        freed += size
    return freed
