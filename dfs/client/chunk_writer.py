"""Writes raw bytes of many files into chunks: one open chunk for each policy.

    ticket = await writer.submit([b"..."])     # waits only while too much is in flight
    await ticket.wait()                        # acknowledged by the disks
    ticket.places                              # [(chunk, chunk_offset)], for an extent each
    ticket.settle()                            # its extents are committed (or given up)

Pieces of up to `PACK_BYTES` share blocks, longer ones are blocks of their own. Blocks are
compressed and checksummed in worker threads, a run of them at a time, and several runs are on
their way. A full chunk is sealed in the background and the next one allocated ahead. When
fragments fail, the runs that are not safe go to a new chunk on other disks; raw bytes are kept
until they are acknowledged.
"""

import errno
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from dfs.client.open_chunk import ChunkBrokenError, OpenChunk
from dfs.client.retry import OnUnavailable, Patience, worth_retrying
from dfs.client.streams import Run
from dfs.client.ticket import Ticket
from dfs.client.write_context import IN_FLIGHT_BYTES, WriteContext
from dfs.core.block import BLOCK_BYTES, BLOCKS_MAX, EncodedBlock, encode_block
from dfs.core.buffers import Buffer
from dfs.core.chunk import CHUNK_MAX_BYTES, DiskLocation
from dfs.core.errors import DfsError, NoSpaceError, SessionError, UnavailableError
from dfs.core.ids import ChunkId
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy

PACK_BYTES: Final = 64 * 1024
"""Pieces shorter than this share blocks with others."""
RUN_BYTES: Final = 2 * 1024 * 1024
"""Raw bytes that are encoded in one hop and travel in one append: with half of it the servers and
the client take a fifth longer for a long stream, with twice as much no less."""
RUNS_IN_FLIGHT: Final = 6
_INLINE_BYTES: Final = 32 * 1024
"""Runs up to this are encoded where they are."""
_RAW_RUNS: Final = 3
"""After so many runs that do not compress, the next one is not expected to."""
_AHEAD_BYTES: Final = CHUNK_MAX_BYTES // 4
"""With this much in a chunk, the next one is allocated."""
_SEAL_AGAIN_S: Final = 10.0
"""Between two attempts to seal a chunk at a master that does not answer."""

log = logging.getLogger(__name__)


class _Piece:
    __slots__ = ("order", "position", "raw", "ticket")

    def __init__(self, ticket: Ticket, position: int, raw: Buffer, order: int) -> None:
        self.ticket = ticket
        self.position = position
        self.raw = raw
        self.order = order


_Block = list[_Piece]


class ChunkWriter:
    """See the module. One for each policy in use; owned by the client."""

    def __init__(self, policy: Policy, context: WriteContext) -> None:
        self.policy = policy
        self._context = context
        self._queue: deque[_Piece] = deque()
        self._order = 0
        self._runs = 0
        self._current: OpenChunk | None = None
        self._ahead: OpenChunk | None = None
        self._allocating = False
        self._finishing: dict[ChunkId, OpenChunk] = {}
        self._unsynced: dict[ChunkId, OpenChunk] = {}
        self._pumping = False
        self._closed = False
        self._closing = trio.Event()
        self._raw_runs = 0
        """Runs in a row that did not compress."""
        self._broken: list[tuple[ChunkId, DfsError]] = []
        """Chunks that broke since the last run that was good, and why."""
        self._trouble: Patience | None = None
        """What is left of waiting since then."""
        self._idle = trio.lowlevel.ParkingLot()

    async def submit(
        self, raws: Sequence[Buffer], *, sync: bool = False, start: bool = True
    ) -> Ticket:
        """Queue pieces of 1 to BLOCK_BYTES bytes each; none of them may be changed any more.

        With `sync` the servers are asked to answer when the pieces are on their disks. Without
        `start` the caller has to `start` or `push` at once.
        """
        lengths = [len(raw) for raw in raws]
        await self._context.budget.acquire(_charge(sum(lengths)))
        ticket = Ticket(lengths, self._give_back, sync=sync)
        if self._closed:
            ticket.fail(_closed())
            return ticket
        for position, raw in enumerate(raws):
            self._order += 1
            self._queue.append(_Piece(ticket, position, raw, self._order))
        if start:
            self.start()
        return ticket

    async def push(self) -> None:
        """As `start`, but it may be the caller who sends it, which spares a task.

        It must not be cancelled but by the end of the client: it may send what is others'.
        """
        if self._may_pump:
            self._pumping = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            await self._pump()

    def _give_back(self, ticket: Ticket) -> None:
        self._context.budget.release(_charge(ticket.size))

    def session_replaced(self) -> None:
        """Chunks of an expired session are of no more use."""
        for chunk in (self._current, self._ahead):
            if chunk is not None:
                chunk.close()

    async def sync(self) -> None:
        """Make durable whatever is acknowledged now. Raises DfsError when it could not be."""
        for chunk in list(self._unsynced.values()):
            await self.sync_chunk(chunk)

    async def sync_chunk(self, chunk: OpenChunk) -> None:
        """`OpenChunk.sync`, again while servers cannot be reached, as `on_unavailable` says."""
        patience = self._context.meta.link.patience()
        while True:
            try:
                await chunk.sync(self._context.resolver)
            except DfsError as error:
                if not worth_retrying(error):
                    raise
                await patience.pause(error)
            else:
                if chunk.closed and chunk.synced:
                    self._unsynced.pop(chunk.chunk, None)
                return

    async def close(self) -> None:
        """Seal all chunks; what is queued is written first, what is not committed is waited for."""
        while self._queue or self._runs:
            await self._idle.park()
        self._closed = True
        self._closing.set()
        self._retire(self._current)
        self._retire(self._ahead)
        self._current = self._ahead = None
        while self._finishing:
            await self._idle.park()

    # ---------------------------------------------------------------- the pump

    @property
    def _may_pump(self) -> bool:
        return not self._pumping and bool(self._queue) and self._runs < RUNS_IN_FLIGHT

    def start(self) -> None:
        """Have sent what is queued."""
        if self._may_pump:
            self._pumping = True
            self._context.nursery.start_soon(self._pump)

    async def _pump(self) -> None:
        """Cut the queue into runs, as long as there is room in flight.

        Started one tick after the first piece came, so that small ones of that tick share blocks.
        The last run of them is written by this task: often it is the only one, and small.
        """
        last: tuple[OpenChunk, Run, list[_Block]] | None = None
        try:
            while last is None and self._queue and self._runs < RUNS_IN_FLIGHT:
                try:
                    chunk = await self._writable()
                except DfsError as error:
                    self._trouble = None
                    self._fail_queue(error)
                    return
                blocks = self._cut(chunk)
                run = chunk.assign([sum(len(p.raw) for p in block) for block in blocks])
                self._runs += 1
                self._unsynced[chunk.chunk] = chunk
                if self._queue and self._runs < RUNS_IN_FLIGHT:
                    self._context.nursery.start_soon(self._write, chunk, run, blocks)
                else:
                    last = chunk, run, blocks
        except BaseException:
            self._fail_queue(_closed())
            raise
        finally:
            self._pumping = False
            self._tell()
        if last is not None:
            await self._write(*last)

    def _tell(self) -> None:
        if self._idle:
            self._idle.unpark_all()

    def _fail_queue(self, error: DfsError) -> None:
        queue, self._queue = self._queue, deque()
        for piece in queue:
            piece.ticket.fail(error)

    def _cut(self, chunk: OpenChunk) -> list[_Block]:
        """Take pieces off the queue for one run: at least one, as many as fit."""
        queue = self._queue
        blocks: list[_Block] = []
        room = min(chunk.room, RUN_BYTES)
        packed: _Block | None = None
        packed_size = 0
        while queue:
            piece = queue[0]
            size = len(piece.raw)
            if size > room and blocks:
                break
            room -= size
            queue.popleft()
            if size >= PACK_BYTES:
                blocks.append([piece])
            elif packed is not None and packed_size + size <= BLOCK_BYTES:
                packed.append(piece)
                packed_size += size
            else:
                packed, packed_size = [piece], size
                blocks.append(packed)
        return blocks

    async def _write(self, chunk: OpenChunk, run: Run, blocks: list[_Block]) -> None:
        try:
            try:
                encoded = await self._encode(chunk, run, blocks)
            except BaseException:
                chunk.abandon(run)
                raise
            sync = any(piece.ticket.sync for block in blocks for piece in block)
            await chunk.append(run, encoded, sync=sync)
        except ChunkBrokenError as error:
            log.info("writing elsewhere: %s", error)
            if not self._broken or self._broken[-1][0] != chunk.chunk:
                self._broken.append((chunk.chunk, error))
            self._take_back(blocks)
        except BaseException:
            for block in blocks:
                for piece in block:
                    piece.ticket.fail(_closed())
            raise
        else:
            self._broken.clear()
            self._trouble = None
            for block, place in zip(blocks, encoded, strict=True):
                offset = place.raw_offset
                for piece in block:
                    piece.ticket.place(piece.position, chunk, offset)
                    offset += len(piece.raw)
        finally:
            self._runs -= 1
            self.start()
            self._tell()

    async def _encode(self, chunk: OpenChunk, run: Run, blocks: list[_Block]) -> list[EncodedBlock]:
        """Compress, split and checksum; in a thread, unless that takes longer than the work.

        Checksums alone are so quick that handing them to a thread and back, with three
        hand-overs of the interpreter's lock for each block, costs several times as much. So does
        handing over a few KiB, whatever is to be done with them.
        """
        level = self.policy.compression
        work = partial(
            _encode_blocks,
            chunk.chunk,
            run.first_block,
            run.start,
            blocks,
            chunk.redundancy,
            level,
        )
        checksums_only = chunk.redundancy.k == 1 and (level is None or self._raw_runs >= _RAW_RUNS)
        if checksums_only or run.end - run.start <= _INLINE_BYTES:
            encoded = work()
        else:
            encoded = await self._context.workers.run(work)
        raw = all(len(block.fragments[0][1]) == block.raw_length for block in encoded)
        self._raw_runs = self._raw_runs + 1 if raw else 0
        return encoded

    def _take_back(self, blocks: list[_Block]) -> None:
        """Queue pieces again, in their old order, before all that came later."""
        pieces = [piece for block in blocks for piece in block if not piece.ticket.done]
        if self._queue and pieces and self._queue[0].order < pieces[-1].order:
            pieces = sorted([*pieces, *self._queue], key=lambda piece: piece.order)
            self._queue = deque(pieces)
        else:
            self._queue.extendleft(reversed(pieces))

    # ---------------------------------------------------------------- chunks

    async def _writable(self) -> OpenChunk:
        """The open chunk, with room for the next piece and a block more."""
        size = len(self._queue[0].raw)
        while True:
            chunk = self._current
            if chunk is not None and chunk.room >= size and chunk.next_block < BLOCKS_MAX - 1024:
                if chunk.assigned >= _AHEAD_BYTES:
                    self._allocate_ahead()
                return chunk
            self._retire(chunk)
            self._current = None
            self._current = await self._next_chunk()

    async def _next_chunk(self) -> OpenChunk:
        while self._allocating:
            await self._idle.park()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            holds = self._context.avoidance.holds
            if not ahead.closed and not any(holds(s.disk.disk) for s in ahead.streams):
                return ahead
            self._retire(ahead)
        if self._trouble is None:
            self._trouble = self._context.meta.link.patience()
        if len(self._broken) > 1:
            # One after the other: the master does not know yet how few disks there are.
            await self._trouble.pause(self._broken[-1][1])
        return await self._allocate(self._trouble)

    async def _allocate(self, patience: Patience) -> OpenChunk:
        """A new chunk, away from disks that just failed. Waits as `on_unavailable` says."""
        context = self._context
        while True:
            avoid = context.avoidance.disks()
            try:
                layout = await context.meta.allocate_chunks(
                    self.policy.policy, avoid=avoid, near=context.near, once=True
                )
            except DfsError as error:
                refused = self._full(error, avoid)
                if refused is not None:
                    raise refused from error
                if not worth_retrying(error):
                    raise
                await patience.pause(error)
                continue
            context.resolver.learn(layout)
            chunk = layout.chunks[0]
            places = {disk.disk: disk for disk in layout.disks}
            if chunk.owner != context.meta.session.current_id:
                continue  # the session was replaced meanwhile
            opened = OpenChunk(
                chunk,
                [places[fragment.disk] for fragment in chunk.fragments],
                context.pool,
                self._disk_failed,
            )
            refused = self._full(None, tuple(set(avoid) & set(places)))
            if refused is None:
                return opened
            self._retire(opened)
            raise refused

    def _full(self, error: DfsError | None, avoid: Sequence[int]) -> NoSpaceError | None:
        """NoSpaceError, if disks that said they are full are why there is no chunk.

        The master takes avoided disks where it has no others, so being given one that has
        just said it is full (before the master heard of it) means the same as a refusal.
        """
        if error is not None and not isinstance(error, UnavailableError):
            return None
        answers = self._context.avoidance.errors()
        full = {disk: answers[disk] for disk in avoid if disk in answers}
        full = {disk: said for disk, said in full.items() if isinstance(said, NoSpaceError)}
        if not full:
            return None
        said = "; ".join(said.message for said in list(full.values())[:6])
        return NoSpaceError(
            f"no space for policy {self.policy.name!r}: {said}",
            hint="delete files, or add disks or servers",
        )

    def _allocate_ahead(self) -> None:
        if self._ahead is None and not self._allocating:
            self._allocating = True
            self._context.nursery.start_soon(self._fill_ahead)

    async def _fill_ahead(self) -> None:
        try:
            patience = Patience(OnUnavailable(0.0), self._context.meta.link.rng)
            self._ahead = await self._allocate(patience)
        except DfsError as error:
            # Asked for again when it is needed; what is wrong then is reported then.
            log.debug("no chunk allocated ahead: %s", error)
        finally:
            self._allocating = False
            self._idle.unpark_all()

    def _disk_failed(self, chunk: ChunkId, disk: DiskLocation, error: DfsError) -> None:
        self._context.avoidance.note(disk.disk, error)
        if isinstance(error, UnavailableError):
            self._context.resolver.failed(disk.address)
            self._context.reports.add(chunk, disk.disk, "unreachable")

    def _retire(self, chunk: OpenChunk | None) -> None:
        """See to it that a chunk is sealed once nothing of it is in flight or uncommitted."""
        if chunk is None:
            return
        chunk.close()
        self._finishing[chunk.chunk] = chunk
        self._context.nursery.start_soon(self._finish, chunk)

    async def _finish(self, chunk: OpenChunk) -> None:
        try:
            await chunk.drained()
            await chunk.seal_fragments()
            if chunk.synced:
                self._unsynced.pop(chunk.chunk, None)
            await chunk.released()
            await self._seal(chunk)
        finally:
            del self._finishing[chunk.chunk]
            self._idle.unpark_all()

    async def _seal(self, chunk: OpenChunk) -> None:
        """Seal at the master, again and again while it is away, until the client closes."""
        meta = self._context.meta
        while chunk.owner == meta.session.current_id:
            last = self._closed
            try:
                await meta.seal_chunk(chunk.chunk, chunk.good_length, chunk.lost)
            except DfsError as error:
                if isinstance(error, SessionError) or error.errno == errno.ESTALE:
                    log.info("chunk %d is left to the master to seal: %s", chunk.chunk, error)
                    return
                if last or not worth_retrying(error):
                    log.warning("chunk %d could not be sealed: %s", chunk.chunk, error)
                    return
                log.info("chunk %d is not sealed yet: %s", chunk.chunk, error)
                with trio.move_on_after(_SEAL_AGAIN_S):
                    await self._closing.wait()
            else:
                return


def _encode_blocks(
    chunk: ChunkId,
    first_block: int,
    start: int,
    blocks: list[_Block],
    redundancy: Redundancy,
    level: int | None,
) -> list[EncodedBlock]:
    encoded = []
    offset = start
    for index, block in enumerate(blocks, first_block):
        raw = block[0].raw if len(block) == 1 else b"".join([piece.raw for piece in block])
        encoded.append(encode_block(chunk, index, offset, raw, redundancy=redundancy, level=level))
        offset += len(raw)
    return encoded


def _charge(size: int) -> int:
    """What a ticket takes of the budget; a very large one takes all of it."""
    return min(size, IN_FLIGHT_BYTES)


def _closed() -> DfsError:
    return SessionError("the client is closed")
