"""What the chunk server tells the master: that it is there, how its disks are, what they hold.

    register   at start, and whenever the master does not know us (it restarted)
    heartbeat  at the interval the master asks for, and at once when a disk fails or fills up
    report     all fragments of a disk, in pages, when the master asks for it; what the master
               says is of no use any more is deleted

With several masters, the next one is tried when one cannot be reached. A master that is away
stops nothing here: clients are served on.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from random import Random
from typing import Final, NoReturn, TypeVar

import trio

from dfs import __version__
from dfs.chunkserver.disk import Disk
from dfs.chunkserver.service import ChunkService
from dfs.core.errors import BusyError, DfsError, ProtocolError, UnavailableError
from dfs.core.ids import DiskId
from dfs.wire.messages import (
    Heartbeat,
    HeartbeatReply,
    Registered,
    RegisterServer,
    ReportChunks,
    ReportChunksReply,
)
from dfs.wire.pool import Pool

_log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE: Final = 1000
"""Fragments in one ReportChunks."""
_CALL_TIMEOUT_S: Final = 5.0
_REPORT_TIMEOUT_S: Final = 60.0
_RETRY_FIRST_S: Final = 0.1
_RETRY_MOST_S: Final = 1.0
_PATIENCE_S: Final = 10.0
"""How long the master may be away until that is worth a warning."""
_EARLY_S: Final = 0.1
"""Between a disk's change and the heartbeat that tells of it: others may change with it."""


class Reporter:
    """Registers the server of `service` with the master and keeps it informed."""

    def __init__(
        self,
        service: ChunkService,
        pool: Pool,
        *,
        masters: Sequence[str],
        server: str,
        address: str,
        rack: str,
        zone: str,
        random: Random,
    ) -> None:
        """`server`: this server's UUID. `address`: where clients reach it."""
        self._service = service
        self._pool = pool
        self._masters = masters
        self._master = 0
        self._server = server
        self._address = address
        self._rack = rack
        self._zone = zone
        self._random = random
        self._cluster = next((d.identity.cluster for d in service.disks if d.identity.cluster), "")
        self._heartbeat_s = _RETRY_MOST_S
        self._changed = trio.Event()
        self._reporting: set[DiskId] = set()
        self._questions: dict[DiskId, int] = {}
        """What the master asked last of each disk."""
        self._joined = False
        """A disk has been added that the master does not know of."""

    async def run(
        self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Report for ever. Started, with the cluster's UUID, as soon as that is known.

        Raises:
            DfsError: the master refuses us at the first registration.
        """
        for disk in self._service.disks:
            disk.health.changed = self._note_change
        fresh = not self._cluster
        if not fresh:
            task_status.started(self._cluster)
        await self._insist(self._register, first=True)
        _log.info("this is server %d of cluster %s", self._service.server, self._cluster)
        if fresh:
            task_status.started(self._cluster)
        async with trio.open_nursery() as nursery:
            while True:
                reply = await self._insist(self._beat)
                if not reply.known or self._joined:
                    self._joined = False
                    await self._insist(self._register)
                    continue
                for number, question in zip_longest(
                    reply.report_disks, reply.questions, fillvalue=0
                ):
                    self._questions[number] = question
                    if number not in self._reporting:
                        self._reporting.add(number)
                        nursery.start_soon(self._report, number)
                with trio.move_on_after(self._heartbeat_s * self._random.uniform(0.9, 1.0)):
                    await self._changed.wait()
                    await trio.sleep(_EARLY_S)
                self._changed = trio.Event()

    def add(self, disk: Disk) -> None:
        """The service has one more disk: register it."""
        disk.health.changed = self._note_change
        self._joined = True
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()

    async def _insist(self, call: Callable[[str], Awaitable[T]], *, first: bool = False) -> T:
        """Call one master after the other until one answers."""
        since = trio.current_time()
        failures = 0
        warned = False
        while True:
            address = self._masters[self._master]
            self._pool.forgive(address)  # the pace is ours
            try:
                answer = await call(address)
            except DfsError as error:
                if first and not isinstance(error, UnavailableError | BusyError):
                    raise
                if not warned and trio.current_time() - since > _PATIENCE_S:
                    warned = True
                    _log.warning("cannot report to the master: %s", error)
            else:
                if warned:
                    _log.warning("the master at %s answers again", address)
                return answer
            self._master = (self._master + 1) % len(self._masters)
            pause_s = min(_RETRY_MOST_S, _RETRY_FIRST_S * 2.0 ** min(failures, 10))
            failures += 1
            await trio.sleep(pause_s * self._random.uniform(0.5, 1.0))

    async def _register(self, master: str) -> None:
        disks = self._service.disks
        request = RegisterServer(
            uuid=self._server,
            address=self._address,
            rack=self._rack,
            zone=self._zone,
            version=__version__,
            cluster=self._cluster,
            disks=tuple(disk.report() for disk in disks),
        )
        reply = await self._pool.call(master, request, Registered, timeout_s=_CALL_TIMEOUT_S)
        if len(reply.disks) != len(disks) or not reply.cluster:
            raise ProtocolError(f"the master at {master} gave an answer that makes no sense")
        for disk, number in zip(disks, reply.disks, strict=True):
            if not number:
                _log.warning("disk %s was removed from the cluster: it is not used", disk.path)
            await disk.join(
                cluster=reply.cluster,
                disk_number=number,
                server=self._server,
                server_number=reply.server,
            )
        self._cluster = reply.cluster
        self._heartbeat_s = reply.heartbeat_s
        self._service.server = reply.server
        self._service.renumber()

    async def _beat(self, master: str) -> HeartbeatReply:
        service = self._service
        request = Heartbeat(service.server, tuple(disk.report() for disk in service.disks))
        return await self._pool.call(master, request, HeartbeatReply, timeout_s=_CALL_TIMEOUT_S)

    # ------------------------------------------------------------------ chunk reports

    async def _report(self, number: DiskId) -> None:
        """List a disk to the master. Given up on an error: the master asks again.

        Begun anew where it is asked another question meanwhile.
        """
        try:
            disk = self._service.disk(number)
            question = None
            while question != self._questions[number]:
                question = self._questions[number]
                await self._list(disk, question, self._masters[self._master])
        except DfsError as error:
            _log.warning("the chunk report of disk %d was given up: %s", number, error)
        finally:
            self._reporting.discard(number)

    async def _list(self, disk: Disk, question: int, master: str) -> None:
        chunks = await disk.health.run_read(disk.catalog.chunks)
        after = 0
        for start in range(0, max(1, len(chunks)), PAGE):
            page = chunks[start : start + PAGE]
            fragments = tuple(await disk.held(page))
            if self._questions.get(disk.number) != question:
                return
            request = ReportChunks(
                server=self._service.server,
                disk=disk.number,
                after=after,
                fragments=fragments,
                last=start + PAGE >= len(chunks),
                question=question,
            )
            reply = await self._pool.call(
                master, request, ReportChunksReply, timeout_s=_REPORT_TIMEOUT_S, patient=True
            )
            if reply.drop:
                _log.info(
                    "disk %s: %d fragments are of no use any more and are deleted",
                    disk.path, len(reply.drop),
                )  # fmt: skip
                await disk.delete(reply.drop)
            after = page[-1] if page else 0
