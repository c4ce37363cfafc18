"""Drain: empty disks while they serve, so that they can be removed and nothing is ever missing.

Each fragment is made anew on another disk first and counts there before the old one is deleted.
What the rest of the cluster cannot take is refused before anything begins, with numbers.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from dfs.core.chunk import Chunk, ChunkState, DiskState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, DiskId
from dfs.core.units import format_size
from dfs.master import fragments
from dfs.master.commands import ExpireRetired, SetDraining, StartJob
from dfs.master.jobs.board import RunningJob, seconds_for
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.mover import Mover
from dfs.master.keyspace import get_chunk, get_policy
from dfs.master.liveness import DEAD
from dfs.master.placement import NAMED_MAX
from dfs.wire.messages import PlannedDisk, PlanReply, ServerInfo
from dfs.wire.messages import StartJob as StartRequest

log = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Chunks moved at a time."""
SLICE: Final = 128
SAMPLE: Final = 2_000
"""Fragments of each disk for which a plan looks for a place."""
PAUSE_FIRST_S: Final = 1.0
PAUSE_MOST_S: Final = 30.0


def _wait_for(servers: Sequence[ServerInfo]) -> str:
    """Advice where servers may just not have been heard yet; "" where all are there."""
    silent = [f"server {s.server} at {s.address}" for s in servers if s.state != DiskState.UP]
    if not silent:
        return ""
    more = len(silent) - NAMED_MAX
    names = ", ".join(silent[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return f"wait for {names}: not heard lately, or not yet by a master that has just begun"


class Drain:
    """The kind `drain`."""

    name = "drain"

    def __init__(self, context: JobContext, mover: Mover) -> None:
        self._context = context
        self._mover = mover

    # ------------------------------------------------------------------ planning

    async def plan(self, request: StartRequest) -> tuple[PlanReply, StartJob]:
        """Raises FileSystemError for unknown disks."""
        context = self._context
        disks = tuple(dict.fromkeys(request.disks))
        if not disks:
            raise FileSystemError("drain what?", hint="name a server or a disk")
        servers = context.liveness.server_infos()
        known = {disk.disk: (server, disk) for server in servers for disk in server.disks}
        for disk in disks:
            if disk not in known:
                raise FileSystemError(f"there is no disk {disk}", hint="see dfs admin disks")
        subject = ", ".join(f"disk {disk} ({known[disk][1].path})" for disk in disks)
        moved = sum(known[disk][1].used for disk in disks)
        items = sum(known[disk][1].fragments for disk in disks)
        planned = tuple(
            PlannedDisk(
                disk,
                known[disk][0].server,
                known[disk][1].path,
                known[disk][0].address,
                known[disk][1].capacity,
                known[disk][1].used,
                0,
            )
            for disk in disks
        )
        room = sum(
            disk.free
            for _, disk in known.values()
            if disk.disk not in disks and disk.state in (DiskState.UP, DiskState.UNSTEADY)
        )
        refusal = ""
        if moved > room:
            refusal = (
                f"the rest has no room: {format_size(moved)} are to be moved, "
                f"{format_size(room)} are free on the other disks; "
                + (_wait_for(servers) or "add disks or delete files")
            )
        refusal = refusal or self._homeless(disks, servers)
        command = StartJob(
            context.now_ns(),
            self.name,
            subject,
            disks=disks,
            bandwidth=request.bandwidth,
            items_total=items,
            bytes_total=moved,
        )
        seconds = seconds_for(context, moved, request.bandwidth)
        reply = PlanReply(self.name, subject, items, moved, seconds, planned, (), refusal)
        return reply, command

    def _homeless(self, disks: Sequence[DiskId], servers: Sequence[ServerInfo]) -> str:
        """Why fragments of these disks have no other place; "" where a sample of them has."""
        context = self._context
        for disk in disks:
            for number in fragments.on_disk(context.reader, disk, 0, SAMPLE):
                found = self._mover.movable(number, disk)
                if found is None or self._target(*found, disks):
                    continue
                chunk = found[0]
                policy = get_policy(context.reader, chunk.policy)
                name = policy.name if policy else str(chunk.policy)
                advice = _wait_for(servers) or "add a server first"
                return (
                    f"no disk is left for fragments of chunk {number}: policy {name!r} spreads "
                    f"{chunk.width} fragments over as many servers, and each server that would be "
                    f"left with room holds one already; {advice}"
                )
        return ""

    def _target(self, chunk: Chunk, index: int, disks: Sequence[DiskId]) -> DiskId:
        """A disk outside of `disks`."""
        stay = [
            fragment.disk
            for fragment in chunk.good
            if fragment.index != index and fragment.disk not in disks
        ]
        return self._mover.elsewhere(chunk, stay, avoid=disks)

    # ------------------------------------------------------------------ running

    async def run(self, job: RunningJob) -> str:
        context = self._context
        disks = job.record.disks
        context.journal.append(SetDraining(context.now_ns(), disks, True))
        context.liveness.set_draining(disks, True)
        pause_s = PAUSE_FIRST_S
        while True:
            moved_before = job.items_done
            for disk in disks:
                await self._empty(job, disk)
            if any(fragments.on_disk(context.reader, disk, 0, 1) for disk in disks):
                # Open chunks want their writer to finish; others another server, or a second try.
                moved = job.items_done > moved_before
                pause_s = PAUSE_FIRST_S if moved else min(PAUSE_MOST_S, 2 * pause_s)
                job.note = self._what_is_left(disks)
            elif any(self._is_deleting(disk) for disk in disks):
                pause_s = PAUSE_FIRST_S
                job.note = "what has been moved away is being deleted"
            else:
                return "empty: everything has been moved, it can be removed"
            await trio.sleep(pause_s)

    def _is_deleting(self, disk: DiskId) -> bool:
        """A disk that is given up deletes nothing, and can be removed all the same."""
        context = self._context
        if context.liveness.state(disk) in DEAD:
            return False
        return bool(fragments.doomed_on(context.reader, disk, 0, 1))

    def _what_is_left(self, disks: Sequence[DiskId]) -> str:
        states = [
            chunk.state
            for disk in disks
            for number in fragments.on_disk(self._context.reader, disk, 0, SLICE)
            if (chunk := get_chunk(self._context.reader, number)) is not None
        ]
        still_open = sum(state is ChunkState.OPEN for state in states)
        if still_open and still_open == len(states):
            return (
                f"{still_open} chunks are being written; they follow once they are full or closed"
            )
        return f"{len(states)} or more fragments found no place yet; trying again"

    async def _empty(self, job: RunningJob, disk: DiskId) -> None:
        """Move all fragments of a disk that can be moved now."""
        after: ChunkId = 0
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            while numbers := fragments.on_disk(self._context.reader, disk, after, SLICE):
                for number in numbers:
                    await job.turn()
                    await limit.acquire_on_behalf_of(number)
                    nursery.start_soon(self._move_one, job, disk, number, limit)
                after = numbers[-1]

    async def _move_one(
        self, job: RunningJob, disk: DiskId, number: ChunkId, limit: trio.CapacityLimiter
    ) -> None:
        try:
            await self._move(job, disk, number)
        except DfsError as error:
            job.failures += 1
            log.info("drain: chunk %d stays on disk %d for now: %s", number, disk, error)
        finally:
            limit.release_on_behalf_of(number)

    async def _move(self, job: RunningJob, disk: DiskId, number: ChunkId) -> None:
        found = self._mover.movable(number, disk)
        if found is None:
            chunk = get_chunk(self._context.reader, number)
            if chunk is not None and chunk.state is ChunkState.RETIRED:
                # Not worth moving: it is kept while that costs nothing.
                self._context.journal.append(ExpireRetired(self._context.now_ns(), (number,)))
            return
        # Without the claim: a job that is paused must not keep repair from the chunk.
        async with job.paid(found[0].fragment_length) as bill:
            with self._context.claims.chunk(number) as free:
                found = self._mover.movable(number, disk)
                if not free or found is None:
                    return
                chunk, index = found
                target = self._target(chunk, index, job.record.disks)
                if not target:
                    raise FileSystemError("no other disk may take it")
                bill.moved = await self._mover.make(chunk, index, target)
            job.moved(1, bill.moved)
