"""Bytes of files that the master has not heard of yet: published together with the file.

A small file that was made in a directory of this client's own (`delegations`) keeps its bytes in a
`NewFile` that hangs on the logged Create (`write_behind`). When that is told, the bytes of all the
files of a batch go to the disks in one piece, and each Create is followed by the Commit of its
bytes in the same request: nobody, and no crash of this client, sees the name without the bytes.
So a `close` need not wait. Whatever has the log told (a recall, a question, an fsync of the
directory, the end) publishes the bytes too.

Where the disks do not take them in a moment, the names go on without, and the bytes follow as
those of any file; for a while what is written to new files then takes the ordinary way, on which a
`close` waits. Bytes that are lost are reported as lost names are.
"""

import errno
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from dfs.core.errors import DfsError
from dfs.core.ids import InodeId, PolicyId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Access, Cred

if TYPE_CHECKING:
    from dfs.client.open_file import OpenFile
    from dfs.client.open_files import OpenFiles
    from dfs.client.ticket import Ticket

STORE_S: Final = 5.0
"""So long names wait for their bytes: well within the time that a recall may take."""
NOT_AGAIN_S: Final = 30.0
"""So long after a failure no file is closed before its bytes are published."""

log = logging.getLogger(__name__)


class NewFile:
    """What was written to a file that the master has not heard of, from its beginning on.

    Changed under the log's lock while its Create is in the log, and not after.
    """

    __slots__ = ("_ended", "closed", "cred", "data", "extent", "file", "time_ns")

    def __init__(self, file: "OpenFile", cred: Cred) -> None:
        self.file = file
        self.cred = cred
        """Whose rights it is made, and written, with."""
        self.data = bytearray()
        self.time_ns = 0
        """When it was written to last."""
        self.closed = False
        """Its only handle is closed, and given back when the bytes are published."""
        self.extent: Extent | None = None
        """Where the disks have the bytes."""
        self._ended: trio.Event | None = None

    @property
    def ino(self) -> InodeId:
        return self.file.ino

    async def ended(self) -> None:
        """Return when the bytes are published, taken over, or lost."""
        if self._ended is None:
            self._ended = trio.Event()
        await self._ended.wait()

    def end(self) -> None:
        """They are, and the file says so."""
        if self._ended is not None:
            self._ended.set()


class NewFiles:
    """Brings the bytes of new files to the disks, and tells the files. For the log, whose `send`
    calls it in trio's thread; owned by OpenFiles.
    """

    def __init__(self, files: "OpenFiles") -> None:
        self._files = files
        self._not_before = 0.0

    @property
    def allowed(self) -> bool:
        """Whether the disks took what they were given lately. From any thread."""
        return not self._not_before or time.monotonic() >= self._not_before

    async def store(self, files: Sequence[NewFile]) -> "list[Ticket]":
        """Give an extent to all that the disks have; settle the tickets when those are committed.

        Never fails. While the disks take nothing it does not wait for them again: a recall gives
        the log less time than a few batches would wait.
        """
        if not self.allowed:
            return []
        by_policy: dict[PolicyId, list[NewFile]] = {}
        for new in files:
            by_policy.setdefault(new.file.inode.policy, []).append(new)
        tickets: list[Ticket] = []
        with trio.move_on_after(STORE_S):
            async with trio.open_nursery() as nursery:
                for policy, batch in by_policy.items():
                    nursery.start_soon(self._store, policy, batch, tickets)
        missing = sum(new.extent is None for new in files)
        if missing:
            log.info("%d new files are told without their bytes", missing)
            self._not_before = time.monotonic() + NOT_AGAIN_S
        return tickets

    async def _store(
        self, policy: PolicyId, files: Sequence[NewFile], tickets: "list[Ticket]"
    ) -> None:
        try:
            writer = await self._files.writers.of(policy)
            ticket = await writer.submit([memoryview(new.data) for new in files])
            tickets.append(ticket)
            await ticket.wait()
        except DfsError as error:
            log.info("%d new files are not on disks yet: %s", len(files), error)
            return
        chunks = {chunk.chunk: chunk for chunk in ticket.ends}
        unsynced = self._files.writers.unsynced
        for new, (chunk, offset) in zip(files, ticket.places, strict=True):
            length = len(new.data)
            new.extent = Extent(0, length, chunk, offset)
            unsynced.note(new.ino, chunks[chunk], offset + length)

    def published(self, new: NewFile, inode: Inode) -> None:
        """The master has the file and its bytes."""
        file = new.file
        assert new.extent is not None
        # Without an await, so that readers see the bytes in one place or the other; and the
        # attributes first, for those in other threads.
        file.committed(inode, [new.extent], 1, file.version)
        file.new = None
        self._end(new)

    def unpublished(self, new: NewFile) -> None:
        """The master has the file, and not its bytes."""
        try:
            self._files.nursery.start_soon(self._follow, new)
        except RuntimeError:
            # The client is closing, and what follows comes too late.
            log.warning("%d bytes of inode %d are lost: it is closed", len(new.data), new.ino)
            self.lost(new)

    def lost(self, new: NewFile) -> None:
        """The master does not have the file: who made it is told of that."""
        new.file.new = None
        new.file.epoch += 1
        self._end(new)

    def _end(self, new: NewFile) -> None:
        new.end()
        if new.closed:
            self._files.forget_handle(new.file)

    async def _follow(self, new: NewFile) -> None:
        """Publish bytes after their file, as `on_unavailable` says."""
        file = new.file
        try:
            if new.closed:
                # The program may, and has its answer: that the mode forbids to write is no matter.
                await self._files.meta.open(file.ino, Access.WRITE, cred=Cred(0, 0))
            await file.open_writer()
            file.take_over(new)
            new.end()
            await file.flush()
        except DfsError as error:
            unwanted = new.closed and error.errno in (errno.ENOENT, errno.ESTALE)
            if not unwanted and (file.new is new or (new.closed and file.handles == 1)):
                log.warning("%d bytes of inode %d are lost: %s", len(new.data), file.ino, error)
                self._files.meta.delegations.log.note_lost(file.ino, error)
            if file.new is new:
                self.lost(new)
                return
            # Whoever else has it open tries again.
            if new.closed and file.handles == 1 and file.writer is not None:
                file.writer.discard()
        if new.closed:
            self._files.let_go(file)
