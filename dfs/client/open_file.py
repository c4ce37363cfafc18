"""A file that this client has open: one object per inode, shared by all its handles.

An `OpenFile` joins what is published (extents, read through the block cache) with what is
written and not committed yet, so that handles of one client see each other's writes at once.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dfs.client.extent_map import ExtentMap
from dfs.client.fetcher import StaleExtentError
from dfs.client.interval_map import Span
from dfs.client.new_file import NewFile
from dfs.client.together import together
from dfs.client.writer import FileWriter
from dfs.core.errors import DfsError, LostChangesError
from dfs.core.ids import ChunkId, InodeId
from dfs.core.inode import Extent, Inode
from dfs.wire.messages import Access, Cred, SetAttr

if TYPE_CHECKING:
    from dfs.client.open_files import OpenFiles

READ_STEP_BYTES: Final = 4 * 1024 * 1024
"""Requests are cut at multiples of this in the file, which are block boundaries too."""
_READS_AT_ONCE: Final = 4
_STALE_MAX: Final = 5
"""So often a read starts anew because others overwrote the file meanwhile."""

Part = bytes | memoryview


class OpenFile:
    """One inode in use. Created and counted by `OpenFiles`."""

    def __init__(self, files: "OpenFiles", inode: Inode) -> None:
        self.ino: InodeId = inode.ino
        self.inode = inode
        """As last heard of; `size` below knows better."""
        self.handles = 0
        self.access = 0
        """What the session has it open for (Access)."""
        self.grants: dict[Cred | None, int] = {}
        """The same, by who asked for it."""
        self.lost: DfsError | None = None
        """Why the master would not have it open in a new session."""
        self.epoch = 0
        """Goes up whenever the bytes may read differently than before."""
        self.written_ns = 0
        """When `wrote` was last told of a write; 0: the time of publishing is the file's."""
        self.losses = files.meta.barrier.losses
        """Of the master, as far as they were told here or before."""
        self.extents = ExtentMap(inode.ino, files.meta, files.resolver)
        self.writer: FileWriter | None = None
        self.new: NewFile | None = None
        """Its bytes, while they are to be published together with the file. Then that is all."""
        self._files = files
        self._opening_writer = trio.Lock()

    @property
    def size(self) -> int:
        """Bytes, counting what is written and not committed (but for appends)."""
        if self.new is not None:
            return max(self.inode.size, len(self.new.data))
        pending = self.writer.overlay.end if self.writer is not None else 0
        return max(self.inode.size, pending)

    @property
    def size_with_appends(self) -> int:
        """`size`, with appends where they go unless others append at the same time."""
        return self.size + (self.writer.appended_bytes if self.writer is not None else 0)

    @property
    def unfinished(self) -> bool:
        """More of the last append may follow. From any thread."""
        return self.writer is not None and self.writer.unfinished

    @property
    def placing(self) -> bool:
        """The inode may count appends already that `size_with_appends` adds to it."""
        return self.writer is not None and self.writer.placing

    @property
    def dirty(self) -> bool:
        return self.new is not None or (self.writer is not None and self.writer.dirty)

    @property
    def version(self) -> int:
        """The inode's, as last heard of."""
        return self.inode.version

    def learn(self, inode: Inode, *, since: int = -1) -> None:
        """Take over a newer state of the inode.

        `since` is the version that was known before the master was asked. An older one in the
        answer says that a power cut took the last changes from the master.
        """
        if inode.version >= self.inode.version or inode.version < since:
            self.inode = inode

    def refresh(self, inode: Inode) -> None:
        """The master's answer to a question: others may have changed the file since."""
        if inode.version > self.inode.version:
            self.epoch += 1
            if inode.version != self.extents.version:
                self.extents.forget(inode.version)
            self.learn(inode)

    # ---------------------------------------------------------------- reading

    async def read(self, offset: int, length: int) -> list[Part]:
        """The bytes of [offset, offset + length) that are before the end, in parts.

        Raises:
            UnavailableError: they cannot be read now, nor within what `on_unavailable` allows.
            CorruptError: no disk has them any more.
        """
        if self.new is not None:
            return [bytes(self.new.data[offset : offset + length])]
        if self.writer is not None and self.writer.appending:
            await self.writer.commit()
        for tries in range(1, _STALE_MAX + 1):
            end = min(offset + length, self.size)
            if offset >= end:
                return []
            while not self.extents.knows(offset, end):
                since = self.version
                inode = await self.extents.ensure(offset, end)
                if inode is not None:
                    if inode.version > self.version:
                        self.epoch += 1
                    self.learn(inode, since=since)
            # No await up to here: the plan is of one moment.
            plan = self._plan(offset, end)
            try:
                return await self._carry_out(plan)
            except StaleExtentError:
                if tries == _STALE_MAX:
                    raise
                self.extents.forget()
        raise AssertionError

    def _plan(self, offset: int, end: int) -> "list[Part | Span[ChunkId]]":
        """Where each byte comes from: memory, chunks, or nowhere (zeros). Does not yield."""
        plan: list[Part | Span[ChunkId]] = []
        at = offset
        pending = self.writer.overlay.slices(offset, end) if self.writer is not None else []
        for span in pending:
            self._plan_published(plan, at, span.start)
            plan.append(bytes(span.value.data[span.skip : span.skip + span.end - span.start]))
            at = span.end
        self._plan_published(plan, at, end)
        return plan

    def _plan_published(self, plan: "list[Part | Span[ChunkId]]", offset: int, end: int) -> None:
        at = offset
        for span in self.extents.slices(offset, end):
            if span.start > at:
                plan.append(bytes(span.start - at))
            plan += _steps(span)
            at = span.end
        if at < end:
            plan.append(bytes(end - at))

    async def _carry_out(self, plan: "list[Part | Span[ChunkId]]") -> list[Part]:
        reader = self._files.reader
        wanted = [step for step in plan if isinstance(step, Span)]
        if len(wanted) == 1:
            span = wanted[0]
            found = await reader.read(span.value, span.skip, span.end - span.start)
            if len(plan) == 1:
                return list(found)
            got = {0: found}
        else:
            got = {}

            async def fetch(number: int, span: Span[ChunkId]) -> None:
                got[number] = await reader.read(span.value, span.skip, span.end - span.start)

            await together(
                [partial(fetch, number, span) for number, span in enumerate(wanted)],
                at_once=_READS_AT_ONCE,
            )
        parts: list[Part] = []
        number = 0
        for step in plan:
            if isinstance(step, Span):
                parts += got[number]
                number += 1
            else:
                parts.append(step)
        return parts

    def is_cached(self, offset: int, end: int) -> bool:
        """Whether a read of published bytes would have nothing to wait for."""
        if self.new is not None or not self.extents.knows(offset, end):
            return False
        reader = self._files.reader
        return all(
            reader.has(span.value, span.skip, span.skip + span.end - span.start)
            for span in self.extents.slices(offset, end)
        )

    def prefetch(self, offset: int, end: int, once: bool) -> None:
        """Have published bytes of [offset, end) in the cache soon. Never waits, never fails.

        `once`: until they have been read.
        """
        end = min(end, self.inode.size)
        if offset < end and self.extents.knows(offset, end):
            for span in self.extents.slices(offset, end):
                for step in _steps(span):
                    self._files.reader.prefetch(
                        step.value, step.skip, step.skip + step.end - step.start, once=once
                    )

    # ---------------------------------------------------------------- writing

    def _check(self) -> None:
        """Raises DfsError if it was open for writing, and is not any more."""
        if self.lost is not None and self.access & Access.WRITE:
            raise self.lost.again()

    async def open_writer(self) -> FileWriter:
        """What publishes its bytes."""
        async with self._opening_writer:
            if self.writer is None:
                files = self._files
                chunks = await files.writers.of(self.inode.policy)
                writer = FileWriter(
                    self.ino, files.meta, chunks, files.nursery, files.writers, self
                )
                # What another thread writes to a new file is there by now, or goes to the writer.
                with files.meta.delegations.log.lock:
                    self.writer = writer
            return self.writer

    def committed(
        self, inode: Inode, extents: list[Extent] | None, operations: int, since: int
    ) -> None:
        """See `writer.Owner`."""
        if extents is None or inode.version < since + operations:
            self.extents.forget(inode.version)
        else:
            self.extents.committed(inode, extents, operations)
        if inode.version != since + operations:
            # Others have changed it too.
            self.epoch += 1
        if self._files.on_commit is not None:
            self._files.on_commit(inode, since, operations)
        # A commit that does not come after what was known: the master has lost that.
        self.learn(inode, since=since + operations if extents is not None else since)

    def write_new(self, offset: int, data: bytes, time_ns: int) -> bool:
        """Write to a small file that the master has not heard of. From any thread.

        False: it is none (any more): `write` it. What is taken is published with the file, in a
        moment, or as soon as anybody else looks (see `new_files`).
        """
        if self.writer is not None or not self._files.meta.delegations.log.write_new(
            self, offset, data, time_ns
        ):
            return False
        self.written_ns = time_ns
        self.epoch += 1
        return True

    async def go_on_alone(self) -> None:
        """Have the bytes of a new file for this file alone, where they are not on their way yet."""
        if self.new is not None:
            await self._own_writer()

    async def _own_writer(self) -> FileWriter:
        """What takes all further bytes. In this order: none become those of a new file after it."""
        writer = self.writer or await self.open_writer()
        new = self.new
        if new is not None and not self._files.meta.delegations.log.withdraw(new):
            await self._new_published()
        return writer

    def take_over(self, new: NewFile) -> None:
        """Its bytes are published without the file. Does not yield; the writer is there."""
        assert self.writer is not None
        self.writer.take_over(new.data, new.time_ns, new.cred)
        self.new = None
        self.epoch += 1

    async def _new_published(self) -> None:
        """Return when the bytes of a new file are published, taken over, or lost.

        Raises DfsError where the disks do not take them, as `on_unavailable` says.
        """
        meta = self._files.meta
        deadline = meta.link.patience().deadline
        while self.new is not None:
            await meta.delegations.log.settled((self.ino,))
            if self.new is not None:
                await self.new.ended(deadline)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that will never change. They are published by `flush`, or in a while."""
        self._check()
        writer = await self._own_writer()
        if writer.appending and offset + len(data) > self.inode.size:
            # It may lie in what was appended before it.
            await writer.commit()
        self.epoch += 1
        try:
            await writer.write(offset, data)
        finally:
            # It may have waited before it took them: what was read meanwhile is of before.
            self.epoch += 1

    async def append(self, data: bytes, *, more: bool = False) -> None:
        """Write at the end of the file, wherever it is when the bytes are published.

        With `more` the next append may be a part of the same write: see `FileWriter.append`.
        """
        self._check()
        writer = await self._own_writer()
        self.epoch += 1
        try:
            await writer.append(data, more=more)
        finally:
            self.epoch += 1

    def finish_append(self) -> None:
        """No more of the last append follows."""
        if self.writer is not None:
            self.writer.finish_append()

    def wrote(self, time_ns: int, cred: Cred) -> None:
        """What was just written happened at `time_ns`, and is published with the rights of `cred`.

        So that the times a mount shows before publishing are those it shows after.
        """
        self.written_ns = time_ns
        if self.writer is not None:
            self.writer.mtime_ns = time_ns
            self.writer.cred = cred

    async def flush(self) -> None:
        """Publish what was written. Raises DfsError; the bytes are kept for another try."""
        self._check()
        if self.new is not None:
            await self._new_published()
        if self.writer is not None:
            await self.writer.commit()

    async def sync(self) -> None:
        """Publish what was written, and return when it is on the disks.

        Raises LostChangesError, once, where the master has lost what was published before.
        """
        self._check()
        await self.go_on_alone()
        barrier = self._files.meta.barrier
        answered: dict[int, int] | None = barrier.answered()
        unsynced = self._files.writers.unsynced
        if self.writer is None and (unsynced.of(self.ino) or unsynced.of_any()):
            # Of an earlier open.
            await self.open_writer()
        if self.writer is None or not await self.writer.sync():
            answered = None
        try:
            await barrier.wait(self.losses, answered)
        except LostChangesError:
            self.losses = barrier.losses
            self.extents.forget()
            raise

    async def set_attr(self, change: SetAttr, *, cred: Cred | None = None) -> Inode:
        """chmod, chown, utimens, truncate: after what was written before."""
        await self.flush()
        since = self.version
        inode = await self._files.meta.set_attr(change, cred=cred)
        self.changed(inode, since=since)
        return inode

    def changed(self, inode: Inode, *, since: int) -> None:
        """`inode` is how the file is after a change that was no commit; `since` as for `learn`."""
        self.epoch += 1
        if inode.version != self.extents.version:
            self.extents.forget(inode.version)
        # A change of our own that came after may have been answered before.
        self.learn(inode, since=since)


def _steps(span: Span[ChunkId]) -> list[Span[ChunkId]]:
    """A span cut into requests."""
    steps = []
    at = span.start
    while at < span.end:
        stop = min(span.end, (at // READ_STEP_BYTES + 1) * READ_STEP_BYTES)
        steps.append(span.cut(at, stop))
        at = stop
    return steps
