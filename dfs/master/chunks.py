"""The life of chunks and their fragments: pure functions over a transaction.

A chunk moves through its states only by `TRANSITIONS`; what is not in that table cannot happen.

    event      from      to       when
    ALLOCATE   (none)    OPEN     a session asks for a chunk to append to
    ABANDON    OPEN      OPEN     its session is gone, live bytes are not: the master will seal it
    SEAL       OPEN      SEALED   its owner, or the master for an abandoned one, sets its length
    EMPTY      OPEN      DOOMED   sealed or abandoned without a live byte
    EMPTY      SEALED    DOOMED   the last live byte went, and none had been copied elsewhere
    RETIRE     SEALED    RETIRED  the last live byte went, and some had been copied elsewhere
    EXPIRE     RETIRED   DOOMED   it was kept long enough, or its space is needed
    DROP       DOOMED    (none)   the last fragment is deleted

An OPEN chunk never becomes DOOMED while its session lives, however often its live bytes go to 0:
the session may be about to commit more of it.

Called by `State` for chunk commands, by `extents` for accounting and `sessions` at a session's
end. Keeps the chunk table, fragment-by-disk, chunk-by-session, doomed fragments and the counters
in step. What happens to single fragments of a SEALED chunk is in `fragments`.
"""

import errno
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final

from msgspec.structs import replace

from dfs.core.chunk import CHUNK_MAX_BYTES, Chunk, ChunkState, Fragment, FragmentState
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import ChunkId, PolicyId, SessionId
from dfs.master import fragments as of_chunks
from dfs.master.commands import (
    AllocateChunks,
    DropFragments,
    ExpireRetired,
    Placement,
    SealAbandoned,
    SealChunk,
)
from dfs.master.keyspace import (
    CHUNK_BY_SESSION,
    RETIRED,
    Counters,
    Reader,
    Writer,
    chunk_by_session_key,
    chunk_key,
    doomed_key,
    fragment_by_disk_key,
    get_chunk,
    get_counters,
    key_id,
    put_chunk,
    put_counters,
    retired_key,
    scan_prefix,
    second_id,
    u64,
)


class Event(Enum):
    ALLOCATE = auto()
    ABANDON = auto()
    SEAL = auto()
    EMPTY = auto()
    RETIRE = auto()
    EXPIRE = auto()
    DROP = auto()


TRANSITIONS: Final[dict[tuple[ChunkState | None, Event], ChunkState | None]] = {
    (None, Event.ALLOCATE): ChunkState.OPEN,
    (ChunkState.OPEN, Event.ABANDON): ChunkState.OPEN,
    (ChunkState.OPEN, Event.SEAL): ChunkState.SEALED,
    (ChunkState.OPEN, Event.EMPTY): ChunkState.DOOMED,
    (ChunkState.SEALED, Event.EMPTY): ChunkState.DOOMED,
    (ChunkState.SEALED, Event.RETIRE): ChunkState.RETIRED,
    (ChunkState.RETIRED, Event.EXPIRE): ChunkState.DOOMED,
    (ChunkState.DOOMED, Event.DROP): None,
}


def after(state: ChunkState | None, event: Event) -> ChunkState | None:
    """The state that `event` leads to; None: there is no such chunk (any more).

    Raises FileSystemError (EINVAL) where the event cannot happen to a chunk in `state`.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        name = "gone" if state is None else state.name
        raise FileSystemError(
            f"a chunk that is {name} cannot take {event.name}", errno=errno.EINVAL
        ) from None


def allocate(txn: Writer, command: AllocateChunks) -> tuple[Chunk, ...]:
    """New OPEN chunks, owned by the session, one for each placement."""
    return allot(txn, command.session, command.policy, command.placements)


def allot(
    txn: Writer, session: SessionId, policy: PolicyId, placements: Sequence[Placement]
) -> tuple[Chunk, ...]:
    """New OPEN chunks of an owner, one for each placement."""
    counters = get_counters(txn)
    made = []
    for number, placement in enumerate(placements, counters.next_chunk):
        fragments = tuple(Fragment(index, disk) for index, disk in enumerate(placement.disks))
        chunk = Chunk(
            number, ChunkState.OPEN, placement.k, placement.m, policy, session, 0, 0, fragments
        )
        put_chunk(txn, chunk)
        txn.put(chunk_by_session_key(session, number), b"")
        for fragment in fragments:
            txn.put(fragment_by_disk_key(fragment.disk, number), bytes((fragment.index,)))
        made.append(chunk)
    count = len(made)
    put_counters(
        txn,
        replace(
            counters,
            next_chunk=counters.next_chunk + count,
            chunks=counters.chunks + count,
            chunks_open=counters.chunks_open + count,
        ),
    )
    return tuple(made)


def seal(txn: Writer, command: SealChunk) -> None:
    """The owner says that `length` raw bytes stand on all fragments but the `lost` ones.

    Raises FileSystemError: ESTALE where the session does not own the chunk, EINVAL where bytes
    already committed lie beyond `length`.
    """
    session, chunk_id, length = command.session, command.chunk, command.length
    chunk = get_chunk(txn, chunk_id)
    if chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner != session:
        raise FileSystemError(
            f"chunk {chunk_id} is not open for session {session}", errno=errno.ESTALE
        )
    if not chunk.length <= length <= CHUNK_MAX_BYTES:
        raise FileSystemError(
            f"chunk {chunk_id} cannot be sealed at {length} bytes: "
            f"{chunk.length} are committed and {CHUNK_MAX_BYTES} allowed",
            errno=errno.EINVAL,
        )
    _seal(txn, chunk, length, command.lost, command.time_ns)


def seal_abandoned(txn: Writer, command: SealAbandoned) -> None:
    """Seal an OPEN chunk whose session is gone. Any other chunk is left as it is."""
    chunk = get_chunk(txn, command.chunk)
    if chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner:
        return
    _seal(txn, chunk, max(command.length, chunk.length), command.lost, command.time_ns)


def _seal(txn: Writer, chunk: Chunk, length: int, lost: Iterable[int], time_ns: int) -> None:
    if chunk.live == 0:
        doom(txn, _close(txn, chunk, length, lost))
        return
    seal_before_use(txn, chunk, length, lost, time_ns)


def seal_before_use(
    txn: Writer, chunk: Chunk, length: int, lost: Iterable[int], time_ns: int
) -> None:
    """Seal an OPEN chunk, which has a live byte when the transaction ends."""
    state = after(chunk.state, Event.SEAL)
    assert state is not None
    closed = _close(txn, chunk, length, lost)
    of_chunks.settle(txn, replace(closed, state=state), time_ns)


def give_up(txn: Writer, chunk: Chunk) -> None:
    """An OPEN chunk without a live byte will not be used."""
    doom(txn, _close(txn, chunk, chunk.length))


def _close(txn: Writer, chunk: Chunk, length: int, lost: Iterable[int] = ()) -> Chunk:
    """An OPEN chunk leaves that state: it has its final length, and no owner.

    The `lost` ones of its fragments did not get that far.
    """
    gone = frozenset(lost)
    fragments = tuple(
        replace(fragment, state=FragmentState.LOST)
        if fragment.index in gone and fragment.state is FragmentState.GOOD
        else fragment
        for fragment in chunk.fragments
    )
    closed = replace(chunk, length=length, fragments=fragments, owner=0)
    txn.delete(chunk_by_session_key(chunk.owner, chunk.chunk))
    counters = _resized(get_counters(txn), chunk, closed)
    put_counters(txn, replace(counters, chunks_open=counters.chunks_open - 1))
    return closed


def _resized(counters: Counters, before: Chunk, now: Chunk) -> Counters:
    """The counters, when the length of a chunk has changed."""
    return replace(
        counters,
        length=counters.length + now.length - before.length,
        redundancy=counters.redundancy + now.redundancy - before.redundancy,
    )


def release_session(txn: Writer, session: SessionId, limit: int) -> int:
    """A session is gone: its open chunks wait to be sealed, or are doomed where nothing is live.

    Handles up to `limit` of them and returns how many; fewer than `limit` means all.
    """
    rows = scan_prefix(txn, CHUNK_BY_SESSION + u64(session))
    ids = [second_id(key) for key, _ in _first(rows, limit)]
    for chunk_id in ids:
        chunk = get_chunk(txn, chunk_id)
        if chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner != session:
            # Damage must not keep a master from its start; fsck mends what else is wrong.
            txn.delete(chunk_by_session_key(session, chunk_id))
            continue
        if chunk.live == 0:
            give_up(txn, chunk)
            continue
        after(chunk.state, Event.ABANDON)
        txn.delete(chunk_by_session_key(session, chunk_id))
        txn.put(chunk_by_session_key(0, chunk_id), b"")
        put_chunk(txn, replace(chunk, owner=0))
    return len(ids)


def _first(rows: Iterable[tuple[bytes, bytes]], limit: int) -> Iterable[tuple[bytes, bytes]]:
    for _, row in zip(range(limit), rows, strict=False):
        yield row


def abandoned(reader: Reader, *, after_chunk: ChunkId = 0, limit: int) -> list[ChunkId]:
    """OPEN chunks without a session, in order of id, past `after_chunk`."""
    start = chunk_by_session_key(0, after_chunk)
    rows = scan_prefix(reader, CHUNK_BY_SESSION + u64(0), after=start)
    return [second_id(key) for key, _ in _first(rows, limit)]


def add_live(txn: Writer, chunk_id: ChunkId, change: int, end: int = 0) -> None:
    """Extents refer to `change` more bytes of a chunk (fewer, if negative).

    `end` is where the last of new extents ends: it raises the length of an OPEN chunk.
    A SEALED chunk that has no live byte left becomes DOOMED, or RETIRED.

    What refers to a chunk that is gone, through damage, can still be taken away.
    """
    chunk = get_chunk(txn, chunk_id)
    is_gone = chunk is None or chunk.state in (ChunkState.DOOMED, ChunkState.RETIRED)
    counters = get_counters(txn)
    if is_gone and change <= 0:
        put_counters(txn, replace(counters, live=counters.live + change))
        return
    if chunk is None or is_gone or chunk.live + change < 0:
        raise _broken(chunk_id)
    now = replace(chunk, live=chunk.live + change)
    counters = replace(counters, live=counters.live + change)
    if chunk.state is ChunkState.OPEN and end > chunk.length:
        now = replace(now, length=end)
        counters = _resized(counters, chunk, now)
    put_counters(txn, counters)
    if chunk.state is ChunkState.SEALED and now.live == 0:
        (_retire if now.rewritten_s else doom)(txn, now)
    else:
        put_chunk(txn, now)


def _retire(txn: Writer, chunk: Chunk) -> None:
    state = after(chunk.state, Event.RETIRE)
    assert state is not None
    txn.put(retired_key(chunk.rewritten_s, chunk.chunk), b"")
    counters = get_counters(txn)
    put_counters(txn, replace(counters, chunks_retired=counters.chunks_retired + 1))
    of_chunks.settle(txn, replace(chunk, state=state), 0)


def expire_retired(txn: Writer, command: ExpireRetired) -> None:
    """See `ExpireRetired`."""
    for number in command.chunks:
        chunk = get_chunk(txn, number)
        if chunk is not None and chunk.state is ChunkState.RETIRED and not chunk.live:
            txn.delete(retired_key(chunk.rewritten_s, number))
            counters = get_counters(txn)
            put_counters(txn, replace(counters, chunks_retired=counters.chunks_retired - 1))
            doom(txn, chunk, Event.EXPIRE)


def retired(reader: Reader, limit: int) -> list[tuple[int, ChunkId]]:
    """(when it was last copied from, chunk) of RETIRED chunks, the oldest first."""
    return [(key_id(key), second_id(key)) for key, _ in _first(scan_prefix(reader, RETIRED), limit)]


def doom(txn: Writer, chunk: Chunk, event: Event = Event.EMPTY) -> None:
    """A chunk without a live byte: its fragments are to be deleted."""
    state = after(chunk.state, event)
    assert state is not None
    doomed = replace(chunk, state=state)
    counters = get_counters(txn)
    put_counters(txn, replace(counters, chunks_doomed=counters.chunks_doomed + 1))
    # It wants nothing any more, so no time is noted.
    of_chunks.settle(txn, doomed, 0)
    for fragment in chunk.fragments:
        txn.put(doomed_key(fragment.disk, chunk.chunk), b"")
    if not chunk.fragments:
        _forget(txn, doomed)


def _forget(txn: Writer, chunk: Chunk) -> None:
    after(chunk.state, Event.DROP)
    txn.delete(chunk_key(chunk.chunk))
    counters = _resized(get_counters(txn), chunk, replace(chunk, length=0))
    put_counters(
        txn,
        replace(counters, chunks=counters.chunks - 1, chunks_doomed=counters.chunks_doomed - 1),
    )


def drop_fragments(txn: Writer, command: DropFragments) -> None:
    """A disk has deleted its stale and doomed fragments of these chunks. Others are left alone."""
    disk = command.disk
    for chunk_id in command.chunks:
        key = doomed_key(disk, chunk_id)
        chunk = get_chunk(txn, chunk_id)
        if of_chunks.forget_stale(txn, disk, chunk_id):
            continue
        if chunk is None or txn.get(key) is None:
            continue
        txn.delete(key)
        txn.delete(fragment_by_disk_key(disk, chunk_id))
        left = tuple(fragment for fragment in chunk.fragments if fragment.disk != disk)
        chunk = replace(chunk, fragments=left)
        if left:
            put_chunk(txn, chunk)
        else:
            _forget(txn, chunk)


def _broken(chunk_id: ChunkId) -> DfsError:
    return DfsError(
        f"the metadata of chunk {chunk_id} contradicts that of the files in it",
        hint="run dfs admin fsck",
    )
