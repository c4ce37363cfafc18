"""One chunk while this client writes it: its fragments' streams, their failures, its end.

Life: OPEN -> (a fragment fails, or it is full) CLOSED to new batches -> batches in flight end ->
fragments sealed -> all extents committed or given up -> sealed at the master. The master drops a
sealed chunk that no file refers to, so the last two steps must not change places.

Batches are sent to every fragment in order, several at a time. A batch is good when every
fragment that has not failed has acknowledged it, and no fewer than the write minimum. What is
good stands on all fragments but the failed ones up to `good_length`, which is where the chunk
is sealed.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

import trio

from dfs.client.resolver import Resolver
from dfs.client.streams import SYNC_TIMEOUT_S, Flight, Run, Stream
from dfs.core.block import EncodedBlock
from dfs.core.buffers import Buffer
from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState, DiskLocation
from dfs.core.errors import (
    BusyError,
    DeadlineError,
    DfsError,
    DiskError,
    FragmentError,
    UnavailableError,
)
from dfs.core.ids import ChunkId
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    Append,
    Appended,
    Empty,
    FragmentStatus,
    SealFragment,
    SyncFragments,
)
from dfs.wire.pool import Pool

SEAL_TIMEOUT_S: Final = 30.0
_RESENDS: Final = 6
_RESEND_FIRST_S: Final = 0.01

log = logging.getLogger(__name__)


class ChunkBrokenError(UnavailableError):
    """Too few fragments took a batch: it has to go to another chunk."""


class FailureSink(Protocol):
    """Told of every disk that fails an append."""

    def __call__(self, chunk: ChunkId, disk: DiskLocation, error: DfsError) -> None: ...


class OpenChunk:
    """See the module. Owned by one ChunkWriter."""

    def __init__(
        self, chunk: Chunk, disks: Sequence[DiskLocation], pool: Pool, on_failure: FailureSink
    ) -> None:
        """`disks`: where `chunk.fragments` lie, in the same order."""
        self.chunk: ChunkId = chunk.chunk
        self.owner = chunk.owner
        self.redundancy = Redundancy(chunk.k, chunk.m)
        self.streams = [
            Stream(fragment.index, disk)
            for fragment, disk in zip(chunk.fragments, disks, strict=True)
        ]
        self.assigned = 0
        """Raw bytes given to runs."""
        self.next_block = 0
        self.good_length = 0
        self.closed = False
        """Takes no more runs."""
        self._pool = pool
        self._on_failure = on_failure
        self._in_flight = 0
        self._held = 0
        self._changed = trio.lowlevel.ParkingLot()
        self.synced_length = 0
        """How far the chunk is on as many disks as a write needs."""
        self._last_on_its_way = trio.Event()
        self._last_on_its_way.set()

    def __repr__(self) -> str:
        return f"<OpenChunk {self.chunk} {self.redundancy} {self.good_length}/{self.assigned}>"

    @property
    def room(self) -> int:
        """Raw bytes that still go in."""
        return 0 if self.closed else CHUNK_MAX_BYTES - self.assigned

    @property
    def synced(self) -> bool:
        """All that is good is on the disks."""
        return self.synced_length >= self.good_length

    # ---------------------------------------------------------------- appending

    def assign(self, lengths: Sequence[int]) -> Run:
        """Take the next blocks of the chunk, of these raw lengths. Send them with `append`."""
        start = self.assigned
        run = Run(self.next_block, len(lengths), start, start + sum(lengths), self._last_on_its_way)
        self.assigned = run.end
        self.next_block += len(lengths)
        self._last_on_its_way = run.on_its_way
        self._in_flight += 1
        return run

    def abandon(self, run: Run) -> None:
        """Give up an assigned run that was never appended; the chunk ends before it."""
        self.closed = True
        run.on_its_way.set()
        self._ended()

    async def append(
        self, run: Run, encoded: Sequence[EncodedBlock], *, sync: bool = False
    ) -> None:
        """Send a run to all fragments; returns when it is good.

        With `sync`, when it is on their disks too, with all before it; `synced_length` says so.

        Raises:
            ChunkBrokenError: it is not, and has to be written elsewhere.
        """
        run.sync = sync
        try:
            if not run.before.is_set():
                await run.before.wait()
            flight = Flight(self, self._pool, run)
            slow = [
                stream
                for stream in self.streams
                if stream.error is None
                and not flight.post(stream, self._request(stream, run), _of(stream, encoded))
            ]
            if slow:
                async with trio.open_nursery() as nursery:
                    for stream in slow:
                        nursery.start_soon(self._append_to, stream, run, _of(stream, encoded))
                    # A call queues its frame before it first yields, so after this tick all of
                    # the run's frames are queued, and those of the next run come behind them.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    run.on_its_way.set()
                    await flight.wait()
            else:
                run.on_its_way.set()
                await flight.wait()
            if flight.again:
                async with trio.open_nursery() as nursery:
                    for stream in flight.again:
                        nursery.start_soon(self._append_to, stream, run, _of(stream, encoded))
            self._judge(run)
        finally:
            run.on_its_way.set()
            self._ended()

    def _judge(self, run: Run) -> None:
        survivors = [stream for stream in self.streams if stream.error is None]
        if len(survivors) < self.redundancy.write_minimum:
            failed = "; ".join(f"{s}: {s.error}" for s in self.streams if s.error is not None)
            raise ChunkBrokenError(f"chunk {self.chunk} lost too many fragments ({failed})")
        self.good_length = max(self.good_length, run.end)
        synced = [s for s in survivors if s.synced_length >= run.end and not s.damaged]
        if len(synced) >= self.redundancy.write_minimum:
            self.synced_length = max(self.synced_length, run.end)

    def _ended(self) -> None:
        self._in_flight -= 1
        self._tell()

    def _tell(self) -> None:
        if self._changed:
            self._changed.unpark_all()

    def _request(self, stream: Stream, run: Run) -> Append:
        return Append(
            stream.disk.disk,
            self.chunk,
            stream.index,
            self.redundancy.k,
            self.redundancy.m,
            run.first_block,
            run.blocks,
            run.sync,
        )

    async def _append_to(self, stream: Stream, run: Run, buffers: list[Buffer]) -> None:
        """Send a run to one fragment, with all the patience that takes."""
        if stream.error is not None:
            return
        scope = run.scope()
        stream.sending.add(scope)
        try:
            with scope:
                synced = await self._send(stream, run, buffers)
                self.acknowledged(stream, run, synced=synced)
            if scope.cancelled_caught:
                lag = DeadlineError(f"{stream} lags behind: more than {run.lag_s:g} s")
                self.refused(stream, run, lag)
        except DfsError as error:
            self.refused(stream, run, error)
        finally:
            stream.sending.discard(scope)

    def acknowledged(self, stream: Stream, run: Run, *, synced: bool) -> None:
        """See `streams.Sink`."""
        stream.acked_blocks = max(stream.acked_blocks, run.first_block + run.blocks)
        stream.acked_length = max(stream.acked_length, run.end)
        if synced:
            stream.synced_length = max(stream.synced_length, run.end)
        if stream.moved:
            stream.moved.unpark_all()
        run.hurry()

    def refused(self, stream: Stream, run: Run, error: DfsError) -> None:
        """See `streams.Sink`."""
        if run.sync and isinstance(error, DiskError):
            # What was appended before may be gone with it.
            stream.damaged = True
        self._fail(stream, error)

    async def _send(self, stream: Stream, run: Run, buffers: list[Buffer]) -> bool:
        """Append, again where the server was busy or got this run before the one before it.

        Whether the fragment is on the disk now, up to the end of the run.
        """
        delay_s = _RESEND_FIRST_S
        for attempt in range(_RESENDS):
            try:
                reply = await self._pool.call(
                    stream.disk.address,
                    self._request(stream, run),
                    Appended,
                    payload=buffers,
                    timeout_s=run.timeout_s,
                )
            except (BusyError, FragmentError):
                if attempt == _RESENDS - 1:
                    raise
                while stream.error is None and stream.acked_blocks < run.first_block:
                    await stream.moved.park()
                if stream.error is not None:
                    raise stream.error from None
                await trio.sleep(delay_s)
                delay_s *= 2
                continue
            run.check(stream, reply)
            return reply.synced
        raise AssertionError

    def _fail(self, stream: Stream, error: DfsError) -> None:
        """Send nothing more to a fragment, and nothing new to this chunk."""
        if stream.error is not None:
            return
        stream.error = error
        self.closed = True
        log.info("chunk %d: fragment %d failed: %s", self.chunk, stream.index, error)
        for sending in list(stream.sending):
            sending.cancel()
        stream.moved.unpark_all()
        self._changed.unpark_all()
        self._on_failure(self.chunk, stream.disk, error)

    # ---------------------------------------------------------------- extents and the end

    def hold(self) -> None:
        """Somebody has extents in this chunk that are not committed yet."""
        self._held += 1

    def release(self) -> None:
        """They are committed, or given up."""
        self._held -= 1
        self._tell()

    def close(self) -> None:
        """Take no more runs."""
        self.closed = True
        self._changed.unpark_all()

    async def drained(self) -> None:
        """Wait until no run is in flight."""
        while self._in_flight:
            await self._changed.park()

    async def released(self) -> None:
        """Wait until nobody holds uncommitted extents."""
        while self._held:
            await self._changed.park()

    @property
    def lost(self) -> tuple[int, ...]:
        """Indexes of fragments that do not hold all that is good."""
        return tuple(
            stream.index
            for stream in self.streams
            if stream.damaged or stream.acked_length < self.good_length
        )

    async def seal_fragments(self) -> None:
        """Cut and seal all fragments that can be reached. Never fails: unsealed ones are found."""
        length = self.good_length
        if not length:
            return
        sealed: list[Stream] = []

        async def seal(stream: Stream) -> None:
            try:
                await self._pool.call(
                    stream.disk.address,
                    SealFragment(stream.disk.disk, self.chunk, length),
                    FragmentStatus,
                    timeout_s=SEAL_TIMEOUT_S,
                )
            except DfsError as error:
                log.info("chunk %d: %s did not seal its fragment: %s", self.chunk, stream, error)
                self._note_damage(stream, error)
            else:
                sealed.append(stream)

        async with trio.open_nursery() as nursery:
            for stream in self.streams:
                if stream.acked_length >= length and not stream.damaged:
                    nursery.start_soon(seal, stream)
        if len(sealed) >= self.redundancy.write_minimum:
            self.synced_length = max(self.synced_length, length)

    async def sync(self, resolver: Resolver) -> None:
        """Make all that is good durable, on as many disks as a write needs.

        Raises:
            DfsError: too few of them could; says what each answered.
        """
        length = self.good_length
        try:
            await self._sync_streams()
        except DfsError:
            # It may be the master's meanwhile, and lie elsewhere.
            now = await resolver.chunk(self.chunk, refresh=True)
            if now is not None and now.state is ChunkState.OPEN:
                raise
            if now is not None and now.state is ChunkState.SEALED:
                places = [resolver.disk(fragment.disk) for fragment in now.good]
                await self._sync_sealed(now, [place for place in places if place is not None])
            # Else no file refers to it any more: what was moved elsewhere is durable there.
            self.synced_length = max(self.synced_length, length)

    async def _sync_streams(self) -> None:
        length = self.good_length
        if self.synced_length >= length:
            return
        answers: dict[int, DfsError] = {}
        done: list[Stream] = []

        async def sync_one(stream: Stream) -> None:
            try:
                await self._pool.call(
                    stream.disk.address,
                    SyncFragments(stream.disk.disk, (self.chunk,), (length,)),
                    Empty,
                    timeout_s=SYNC_TIMEOUT_S,
                )
            except DfsError as error:
                answers[stream.index] = error
                self._note_damage(stream, error)
            else:
                done.append(stream)

        async with trio.open_nursery() as nursery:
            for stream in self.streams:
                if stream.acked_length >= length and not stream.damaged:
                    nursery.start_soon(partial(sync_one, stream))
        said = "; ".join(
            f"{stream}: {answers.get(stream.index) or stream.error or 'damaged'}"
            for stream in self.streams
            if stream not in done
        )
        retry = any(error.retry for error in answers.values())
        self._judge_sync(len(done), UnavailableError if retry else DiskError, said)
        self.synced_length = max(self.synced_length, length)

    async def _sync_sealed(self, now: Chunk, disks: Sequence[DiskLocation]) -> None:
        """Its fragments may have moved. Those that missed their seal get it.

        Raises UnavailableError where too few could be reached, or are left: repair makes others.
        """
        said: list[str] = []

        async def seal(disk: DiskLocation) -> None:
            request = SealFragment(disk.disk, self.chunk, now.length)
            try:
                await self._pool.call(
                    disk.address, request, FragmentStatus, timeout_s=SEAL_TIMEOUT_S
                )
            except DfsError as error:
                said.append(f"disk {disk.disk} at {disk.address}: {error}")

        async with trio.open_nursery() as nursery:
            for disk in disks:
                nursery.start_soon(seal, disk)
        self._judge_sync(len(disks) - len(said), UnavailableError, "; ".join(said))

    def _judge_sync(self, done: int, kind: type[DfsError], said: str) -> None:
        """Raises `kind` where too few disks have it for sure."""
        if done < self.redundancy.write_minimum:
            raise kind(
                f"chunk {self.chunk} ({self.redundancy}) is on {done} disks for sure, "
                f"{self.redundancy.write_minimum} are needed ({said})",
                hint="the data was written; what a power cut would leave of it is not known",
            )

    def _note_damage(self, stream: Stream, error: DfsError) -> None:
        """A server that does not answer may have it all; a disk that failed may not."""
        if isinstance(error, DiskError | FragmentError):
            stream.damaged = True
            self._fail(stream, error)


def _of(stream: Stream, encoded: Sequence[EncodedBlock]) -> list[Buffer]:
    """The records of a fragment."""
    return [buffer for block in encoded for buffer in block.fragments[stream.index]]
