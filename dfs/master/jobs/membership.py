"""Disks that go by a person's order: taken out of placement, put back, removed for good."""

import errno
import logging
from collections.abc import Sequence
from typing import Final

import trio

from dfs.core.chunk import ChunkState
from dfs.core.errors import FileSystemError
from dfs.core.ids import ChunkId, DiskId, ServerId
from dfs.master import fragments, job_table
from dfs.master.commands import AbandonFragments, DropFragments, ForgetDisks, SetDraining
from dfs.master.health import available
from dfs.master.jobs.board import JobBoard
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import get_chunk
from dfs.master.liveness import DEAD

log = logging.getLogger(__name__)

SLICE: Final = 128
"""Rows gone through between two turns of the event loop."""


class DiskKeeper:
    """Owned by the daemon, asked by the service."""

    def __init__(self, context: JobContext, board: JobBoard) -> None:
        self._context = context
        self._board = board

    def set_draining(self, disks: Sequence[DiskId], draining: bool) -> None:
        """Out of placement, or back into it; back ends the drain that empties them.

        Raises FileSystemError for unknown disks.
        """
        for disk in disks:
            if self._context.liveness.location(disk) is None:
                raise FileSystemError(f"there is no disk {disk}", hint="see dfs admin disks")
        self._context.journal.append(SetDraining(self._context.now_ns(), tuple(disks), draining))
        self._context.liveness.set_draining(disks, draining)
        if draining:
            return
        for disk in disks:
            job = job_table.draining_by(self._context.reader, disk)
            if job is not None:
                self._board.control(job.job, "cancel")

    async def remove(self, server: ServerId, disks: Sequence[DiskId]) -> None:
        """Forget disks, or a server with all of its disks.

        Raises FileSystemError for unknown ones, and (EBUSY) where something would be lost or is
        still to be moved.
        """
        liveness = self._context.liveness
        if server:
            if liveness.server(server) is None:
                raise FileSystemError(f"there is no server {server}", hint="see dfs admin servers")
            if not liveness.disks_of(server) and liveness.answers(server):
                raise FileSystemError(
                    f"server {server} has no disk, but runs: it would register again",
                    hint="stop it, then remove it",
                    errno=errno.EBUSY,
                )
            disks = (*disks, *liveness.disks_of(server))
        for disk in disks:
            if liveness.location(disk) is None:
                raise FileSystemError(f"there is no disk {disk}", hint="see dfs admin disks")
        for disk in disks:
            if liveness.state(disk) in DEAD:
                await self._refuse_last(disk)
            else:
                self._refuse_full(disk)
        for disk in disks:
            if liveness.state(disk) in DEAD:
                await self._abandon(disk)
        servers = (server,) if server else ()
        self._context.journal.append(ForgetDisks(self._context.now_ns(), tuple(disks), servers))
        liveness.forget(disks, server)
        log.info("removed disks %s", ", ".join(str(disk) for disk in disks) or "(none left)")

    def _refuse_full(self, disk: DiskId) -> None:
        """Raises FileSystemError (EBUSY) for a disk that answers and has something on it."""
        reader = self._context.reader
        if fragments.on_disk(reader, disk, 0, 1):
            raise FileSystemError(
                f"disk {disk} still holds fragments of files",
                hint=f"empty it first: dfs admin drain disk:{disk} --wait",
                errno=errno.EBUSY,
            )
        if fragments.doomed_on(reader, disk, 0, 1):
            raise FileSystemError(
                f"disk {disk} is still deleting fragments that were moved away or removed",
                hint="try again in a few seconds",
                errno=errno.EBUSY,
            )

    async def _refuse_last(self, disk: DiskId) -> None:
        """Raises FileSystemError (EBUSY) where chunks cannot be read without this dead disk."""
        last = 0
        liveness = self._context.liveness
        after: ChunkId = 0
        while numbers := fragments.on_disk(self._context.reader, disk, after, SLICE):
            for number in numbers:
                chunk = get_chunk(self._context.reader, number)
                if chunk is None or chunk.state is ChunkState.DOOMED or not chunk.live:
                    continue
                # One that is silent just now may be as dead.
                last += available(chunk, liveness.serves) < chunk.k
            after = numbers[-1]
            await trio.lowlevel.checkpoint()
        if last:
            raise FileSystemError(
                f"disk {disk} has what {last} chunk{'s' if last > 1 else ''} cannot be read "
                "without: removing it would lose files",
                hint="bring it back, or find the files with `dfs admin chunks --health lost` and "
                "delete them first",
                errno=errno.EBUSY,
            )

    async def _abandon(self, disk: DiskId) -> None:
        context = self._context
        while rows := fragments.doomed_on(context.reader, disk, 0, SLICE):
            chunks = tuple(chunk for chunk, _ in rows)
            context.journal.append(DropFragments(context.now_ns(), disk, chunks))
            await trio.lowlevel.checkpoint()
        after: ChunkId = 0
        while numbers := fragments.on_disk(context.reader, disk, after, SLICE):
            context.journal.append(AbandonFragments(context.now_ns(), disk, tuple(numbers)))
            after = numbers[-1]
            await trio.lowlevel.checkpoint()
