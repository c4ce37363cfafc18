"""Sealing chunks whose writer is gone, and fragments that missed their seal.

A session that ends leaves its open chunks behind, abandoned. For each, every disk is asked how
far its fragment goes; the chunk is sealed where the shortest one that has all committed bytes
ends, on all that have. Fragments that lack committed bytes, and those on disks that are DOWN or
failed, are noted as LOST (a disk that comes back with a whole one has it adopted). While a
disk is only SUSPECT, or too few answer, the chunk waits.
"""

import logging
from collections import deque
from typing import Final

import msgspec
import trio

from dfs.core.chunk import Chunk, ChunkState, DiskState, Fragment, FragmentState
from dfs.core.errors import DfsError, DiskError, FragmentError
from dfs.core.ids import ChunkId, DiskId
from dfs.master import chunks
from dfs.master.backup import hold
from dfs.master.commands import SealAbandoned
from dfs.master.jobs.context import JobContext
from dfs.master.jobs.waits import Waits
from dfs.master.keyspace import get_chunk
from dfs.wire.messages import FragmentStatus, SealFragment, StatFragment

log = logging.getLogger(__name__)

BATCH: Final = 32
"""Chunks worked on at a time."""
CALL_TIMEOUT_S: Final = 20.0
UNSEALED_MAX: Final = 100_000
"""Fragments remembered that missed their seal; further ones are found by the next report."""


WAIT_FIRST_S: Final = 1.0
WAIT_MOST_S: Final = 30.0
"""Pauses between two attempts at the same chunk, each twice the last."""


class Unsealed(msgspec.Struct, frozen=True):
    """A whole fragment of a SEALED chunk that has no seal on its disk."""

    disk: DiskId
    chunk: ChunkId
    length: int


class SealJob:
    """Owned by the daemon; the service hands it fragments through `add_unsealed`."""

    name = "sealing abandoned chunks"
    idle_s = 1.0

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._after: ChunkId = 0
        self._waits = Waits(WAIT_FIRST_S, WAIT_MOST_S)
        """Abandoned chunks that could not be sealed yet."""
        self._unsealed: deque[Unsealed] = deque(maxlen=UNSEALED_MAX)

    def add_unsealed(self, fragment: Unsealed) -> None:
        self._unsealed.append(fragment)

    async def run_once(self) -> bool:
        """A batch of abandoned chunks, in turn, and of fragments that missed their seal."""
        reader = self._context.reader
        ids: list[ChunkId] = []
        if not hold.is_held(reader):
            # Sealing may cut off what only newer metadata speak of.
            ids = chunks.abandoned(reader, after_chunk=self._after, limit=BATCH)
        self._after = ids[-1] if len(ids) == BATCH else 0
        late = [self._unsealed.popleft() for _ in range(min(BATCH, len(self._unsealed)))]
        async with trio.open_nursery() as nursery:
            for chunk_id in ids:
                if trio.current_time() >= self._waits.until(chunk_id):
                    nursery.start_soon(self._try_abandoned, chunk_id)
            for fragment in late:
                nursery.start_soon(self._seal_late, fragment)
        return bool(self._after or self._unsealed)

    async def _seal_late(self, fragment: Unsealed) -> None:
        place = self._context.liveness.location(fragment.disk)
        if place is None:
            return
        request = SealFragment(fragment.disk, fragment.chunk, fragment.length)
        try:
            await self._context.pool.call(
                place.address, request, FragmentStatus, timeout_s=CALL_TIMEOUT_S
            )
        except DfsError as error:
            # Readable as it is; the disk's next report brings it up again.
            log.info("chunk %d on disk %d: no seal: %s", fragment.chunk, fragment.disk, error)

    async def _try_abandoned(self, chunk_id: ChunkId) -> None:
        if await self._seal_abandoned(chunk_id):
            self._waits.forget(chunk_id)
        else:
            self._waits.put_off(chunk_id)

    async def _seal_abandoned(self, chunk_id: ChunkId) -> bool:
        """Seal or doom one chunk. False: it is too early for that."""
        chunk = get_chunk(self._context.reader, chunk_id)
        if chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner:
            return True
        if chunk.live == 0:
            self._commit(chunk, chunk.length, ())
            return True
        survey = _Survey(self._context, chunk)
        await survey.ask()
        if survey.waiting or len(survey.lengths) < chunk.k:
            log.debug("chunk %d waits to be sealed: %r", chunk_id, survey)
            return False
        length = min(survey.lengths.values())
        await survey.seal(length)
        if survey.waiting or len(survey.lengths) < chunk.k:
            return False
        self._commit(chunk, length, tuple(sorted(survey.lost)))
        return True

    def _commit(self, chunk: Chunk, length: int, lost: tuple[int, ...]) -> None:
        context = self._context
        # Lists of what disks hold may be older than the seal.
        context.reports.note_changed(chunk.chunk)
        context.journal.append(
            SealAbandoned(time_ns=context.now_ns(), chunk=chunk.chunk, length=length, lost=lost)
        )
        log.info("sealed chunk %d, left open by a client, at %d bytes", chunk.chunk, length)


class _Survey:
    """How far the fragments of one chunk go."""

    def __init__(self, context: JobContext, chunk: Chunk) -> None:
        self._context = context
        self._chunk = chunk
        self.lengths: dict[int, int] = {}
        """By fragment index: of those with all committed bytes."""
        self.lost: set[int] = set()
        self.waiting: set[int] = set()
        """Of these nothing can be said yet."""

    def __repr__(self) -> str:
        return f"<_Survey lengths {self.lengths}, lost {self.lost}, waiting for {self.waiting}>"

    async def ask(self) -> None:
        async with trio.open_nursery() as nursery:
            for fragment in self._chunk.fragments:
                if fragment.state is FragmentState.GOOD:
                    nursery.start_soon(self._ask_one, fragment)

    async def seal(self, length: int) -> None:
        async with trio.open_nursery() as nursery:
            for fragment in self._chunk.fragments:
                if fragment.index in self.lengths:
                    nursery.start_soon(self._seal_one, fragment, length)

    async def _ask_one(self, fragment: Fragment) -> None:
        request = StatFragment(fragment.disk, self._chunk.chunk)
        status = await self._call(fragment, request)
        if status is None:
            return
        if status.index == fragment.index and status.length >= self._chunk.length:
            self.lengths[fragment.index] = status.length
        else:
            self.lost.add(fragment.index)

    async def _seal_one(self, fragment: Fragment, length: int) -> None:
        request = SealFragment(fragment.disk, self._chunk.chunk, length)
        if await self._call(fragment, request) is None:
            del self.lengths[fragment.index]

    async def _call(
        self, fragment: Fragment, request: StatFragment | SealFragment
    ) -> FragmentStatus | None:
        """The answer; or None, with the fragment among the lost or the waiting."""
        place = self._context.liveness.location(fragment.disk)
        if place is None or place.state in (DiskState.DOWN, DiskState.FAILED):
            self.lost.add(fragment.index)
            return None
        try:
            return await self._context.pool.call(
                place.address, request, FragmentStatus, timeout_s=CALL_TIMEOUT_S
            )
        except (FragmentError, DiskError):
            self.lost.add(fragment.index)
        except DfsError as error:
            log.debug("chunk %d: disk %d: %s", self._chunk.chunk, fragment.disk, error)
            self.waiting.add(fragment.index)
        return None
