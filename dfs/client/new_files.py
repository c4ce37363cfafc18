"""Bytes of files that the master has not heard of yet: published together with the file.

A small file that was made in a directory of this client's own (`delegations`) keeps its bytes in a
`NewFile` that hangs on the logged Create (`write_behind`). When that is told, the bytes of all the
files of a batch go to the disks in one piece, and each Create is followed by the Commit of its
bytes in the same request: nobody, and no crash of this client, sees the name without the bytes.
So a `close` need not wait. Whatever has the log told (a recall, a question, an fsync of the
directory, the end) publishes the bytes too.

Where the disks do not take them in a moment, the names go on without. The bytes follow, however
long that takes, since programs may have been told that all is well; they are published only where
nobody has written to the file meanwhile. Until they are, and for a while, what is written to new
files takes the ordinary way, on which a `close` waits, so there are never many. Bytes that are lost
are reported as lost names are.
"""

import errno
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import published
from dfs.client.new_file import NewFile
from dfs.core.errors import DfsError, FileSystemError, SessionError
from dfs.core.ids import PolicyId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Access, Commit, Cred

if TYPE_CHECKING:
    from dfs.client.open_files import OpenFiles
    from dfs.client.ticket import Ticket

STORE_S: Final = 5.0
"""So long names wait for their bytes: well within the time that a recall may take."""
NOT_AGAIN_S: Final = 30.0
"""So long after a failure no file is closed before its bytes are published."""
_FOLLOW_AGAIN_S: Final = 1.0
"""After the first attempt to publish bytes after their file; twice as long after each further."""
_FOLLOW_AGAIN_MOST_S: Final = 30.0
_VERSION: Final = 0
"""Of a file to which nobody has ever written."""

log = logging.getLogger(__name__)


class NewFiles:
    """Brings the bytes of new files to the disks, and tells the files. For the log, whose `send`
    calls it in trio's thread; owned by OpenFiles.
    """

    def __init__(self, files: "OpenFiles") -> None:
        self._files = files
        self._not_before = 0.0
        self._following: dict[NewFile, None] = {}
        """Whose names are told, and whose bytes are not."""

    @property
    def allowed(self) -> bool:
        """Whether the disks took what they were given lately. From any thread."""
        if self._following:
            return False
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
        self._take_up(new, inode, new.file.version)
        self._end(new)

    def _take_up(self, new: NewFile, inode: Inode, since: int, *, known: bool = True) -> None:
        """The file has its bytes; `known`: by the change that made it of version `since`."""
        file = new.file
        assert new.extent is not None
        # Without an await, so that readers see the bytes in one place or the other; and the
        # attributes first, for those in other threads.
        file.committed(inode, [new.extent] if known else None, 1, since)
        file.new = None

    def unpublished(self, new: NewFile) -> None:
        """The master has the file, and not its bytes."""
        new.extent = None
        try:
            self._files.nursery.start_soon(self._follow, new)
        except RuntimeError:
            # The client is closing, and what follows comes too late.
            self._note_lost(new, SessionError("the client is closed"))
            self.lost(new)
        else:
            self._following[new] = None

    def lost(self, new: NewFile) -> None:
        """The master does not have the file: who made it is told of that."""
        self._forget(new)
        self._end(new)

    def _forget(self, new: NewFile) -> None:
        new.file.new = None
        new.file.epoch += 1

    def _end(self, new: NewFile) -> None:
        new.end()
        if new.closed:
            self._files.forget_handle(new.file)

    # ---------------------------------------------------------------- bytes that follow

    def keep(self, new: NewFile) -> bool:
        """The last handle of a file is closed: it is given back when its bytes are published.

        False: they do not follow.
        """
        if new not in self._following:
            return False
        new.closed = True
        return True

    async def settled(self) -> None:
        """Return when no bytes follow. Raises DfsError, as `on_unavailable` says."""
        deadline = self._files.meta.link.patience().deadline
        for new in list(self._following):
            await new.ended(deadline)

    async def _follow(self, new: NewFile) -> None:
        """Publish bytes after their file, as soon as that can be."""
        meta = self._files.meta
        pause_s = _FOLLOW_AGAIN_S
        try:
            while True:
                try:
                    await self._publish(new)
                    break
                except DfsError as error:
                    if meta.session.closed or _is_final(error):
                        if not (new.closed and error.errno == errno.ENOENT):
                            self._note_lost(new, _why(error, new))
                        self._forget(new)
                        break
                    log.info("%d bytes of inode %d follow: %s", len(new.data), new.ino, error)
                    new.fail(error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _FOLLOW_AGAIN_MOST_S)
        except trio.Cancelled:
            self._note_lost(new, SessionError("the client is closed"))
            raise
        finally:
            del self._following[new]
        new.end()
        if new.closed:
            self._files.let_go(new.file)

    async def _publish(self, new: NewFile) -> None:
        """Raises DfsError: try again, unless it is final."""
        file, meta = new.file, self._files.meta
        # The program may, and has its answer: that the mode forbids to write is no matter.
        await meta.open(file.ino, Access.WRITE, cred=Cred(0, 0))
        since = file.version
        if new.extent is not None:
            # A commit was sent, and its answer never came.
            inode = await published.find(meta, file.ino, [new.extent])
            if inode is not None:
                self._take_up(new, inode, since, known=False)
                return
            new.extent = None
        writer = await self._files.writers.of(file.inode.policy)
        ticket = await writer.submit([memoryview(new.data)])
        try:
            await ticket.wait()
            ((chunk, offset),) = ticket.places
            new.extent = Extent(0, len(new.data), chunk, offset)
            for opened, end in ticket.ends.items():
                self._files.writers.unsynced.note(new.ino, opened, end)
            # A time that somebody has set since stays.
            mtime_ns = (await meta.get_inode(file.ino)).mtime_ns
            time_ns = new.time_ns if mtime_ns == new.made_ns else mtime_ns
            op = Commit(file.ino, (new.extent,), mtime_ns=time_ns, version=_VERSION)
            inode = await meta.do(op, cred=new.cred)
        except DfsError as error:
            if isinstance(error, FileSystemError):
                new.extent = None
            if isinstance(error, SessionError) or error.errno == errno.ESTALE:
                ticket.abandon()
            raise
        finally:
            ticket.settle()
        assert inode is not None
        self._take_up(new, inode, since)

    def _note_lost(self, new: NewFile, error: DfsError) -> None:
        log.warning("%d bytes of inode %d are lost: %s", len(new.data), new.ino, error)
        self._files.meta.delegations.log.note_lost(new.ino, error)


def _is_final(error: DfsError) -> bool:
    """Whether the master refuses the bytes themselves, and not the chunk that they are in."""
    return isinstance(error, FileSystemError) and error.errno != errno.ESTALE


def _why(error: DfsError, new: NewFile) -> DfsError:
    if error.errno != errno.ECANCELED:
        return error
    return DfsError(
        f"the {len(new.data)} bytes that were written to inode {new.ino} when it was made are not "
        "in it: others have written to it since",
        hint="write it again, if it shall have them",
    )
