"""All chunk writers of a client, by policy, and what is held in memory for all of them."""

import logging
from typing import Final
from weakref import WeakValueDictionary

import trio

from dfs.client.chunk_writer import ChunkWriter
from dfs.client.retry import worth_retrying
from dfs.client.unsynced import Unsynced
from dfs.client.write_context import WriteContext
from dfs.client.writer import FileWriter
from dfs.core.errors import DfsError, refuse
from dfs.core.ids import InodeId, PolicyId
from dfs.core.inode import AppendMark
from dfs.core.policy import Policy

HELD_TOTAL_BYTES: Final = 96 * 1024 * 1024
"""With so many raw bytes held by all files, all of them commit, and writing waits."""
WRITE_BACK_S: Final = 5.0
"""How long written bytes stay unpublished when nobody flushes."""
_CLOSE_TIMEOUT_S: Final = 15.0

log = logging.getLogger(__name__)


class ChunkWriters:
    """Owned by the client, which runs `write_back` in the background."""

    def __init__(self, context: WriteContext) -> None:
        self.context = context
        self._policies: dict[PolicyId, Policy] = {}
        self._writers: dict[PolicyId, ChunkWriter] = {}
        self._dirty: dict[FileWriter, None] = {}
        self._held = 0
        self._identity = 0
        self._marks = 0
        self.unsynced = Unsynced()
        self._committing: WeakValueDictionary[InodeId, trio.Lock] = WeakValueDictionary()
        context.meta.session.on_replaced.append(self._session_replaced)

    @property
    def held_bytes(self) -> int:
        """Raw bytes written and not yet published."""
        return self._held

    def mark(self) -> AppendMark:
        """For one more append, by which it is known again."""
        if not self._marks:
            self._identity = self.context.meta.link.rng.getrandbits(63)
        self._marks += 1
        return AppendMark(self._identity, self._marks)

    async def policies(self, *, refresh: bool = False) -> dict[PolicyId, Policy]:
        """All policies by number."""
        if refresh or not self._policies:
            self._policies = {p.policy: p for p in await self.context.meta.policies()}
        return self._policies

    async def named(self, name: str) -> Policy:
        """Raises FileSystemError (ENOENT-like, with the names there are) for an unknown one."""
        for refresh in (False, True):
            for policy in (await self.policies(refresh=refresh)).values():
                if policy.name == name:
                    return policy
        names = ", ".join(sorted(policy.name for policy in self._policies.values()))
        raise DfsError(f"there is no policy {name!r}", errno=22, hint=f"there are: {names}")

    async def of(self, policy: PolicyId) -> ChunkWriter:
        """The writer for a policy."""
        writer = self._writers.get(policy)
        if writer is None:
            known = (await self.policies()).get(policy)
            if known is None:
                known = (await self.policies(refresh=True)).get(policy)
            if known is None:
                raise refuse(2, f"policy {policy}")
            writer = self._writers.get(policy)
            if writer is None:
                writer = self._writers[policy] = ChunkWriter(known, self.context)
        return writer

    def held(self, writer: FileWriter, change: int) -> None:
        """`writer` holds `change` more bytes."""
        self._held += change
        if writer.held_bytes:
            self._dirty[writer] = None
        else:
            self._dirty.pop(writer, None)
        if change > 0 and self._held > HELD_TOTAL_BYTES:
            for dirty in self._dirty:
                dirty.start_commit(partial=True)

    async def make_room(self) -> None:
        """Wait until less than the limit is held.

        Raises:
            DfsError: what is held could not be published; see `FileWriter.commit`. One file that
                fails is no reason to refuse the others, as long as those can be published.
        """
        failure: DfsError | None = None
        failed: set[FileWriter] = set()
        while self._held >= HELD_TOTAL_BYTES:
            others = [writer for writer in self._dirty if writer not in failed]
            if not others:
                assert failure is not None
                raise failure
            writer = max(others, key=lambda writer: writer.held_bytes)
            try:
                await writer.commit()
            except DfsError as error:
                if worth_retrying(error):
                    raise
                failed.add(writer)
                failure = failure or error

    def committing(self, ino: InodeId) -> trio.Lock:
        """Held while a file is committed, also when it was closed and opened again meanwhile."""
        lock = self._committing.get(ino)
        if lock is None:
            lock = self._committing[ino] = trio.Lock()
        return lock

    async def write_back(self) -> None:
        """Publish what nobody flushes, a few seconds after it was written. Runs for ever."""
        while True:
            await trio.sleep(WRITE_BACK_S / 2)
            now = trio.current_time()
            for writer in list(self._dirty):
                if writer.dirty_since is not None and now - writer.dirty_since >= WRITE_BACK_S:
                    writer.start_commit(partial=True)

    async def sync(self) -> None:
        """Publish everything and make it durable on the disks (the master's is the caller's)."""
        for file_writer in list(self._dirty):
            await file_writer.commit()
        for writer in list(self._writers.values()):
            await writer.sync()

    async def close(self) -> None:
        """Seal all open chunks. Bounded in time: the master seals what is left."""
        with trio.move_on_after(_CLOSE_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for writer in self._writers.values():
                    nursery.start_soon(writer.close)

    def _session_replaced(self) -> None:
        for writer in self._writers.values():
            writer.session_replaced()
