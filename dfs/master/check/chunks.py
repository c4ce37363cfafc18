"""Chunks: their live bytes, and the tables that mirror them and the extents."""

from collections.abc import Generator, Iterator

from dfs.core.chunk import Chunk, ChunkState
from dfs.core.ids import MASTER_SESSION
from dfs.core.inode import Extent
from dfs.master import keyspace as keys
from dfs.master.check.fixes import AdjustChunk, DropRow, IndexChunk, SettleExtent
from dfs.master.check.inodes import gone, past_the_end
from dfs.master.check.problem import RESTORE_ALL, Problem
from dfs.master.check.walk import END, Cursor, Walk, decoded
from dfs.master.keyspace import key_id, second_id

Found = Iterator[Problem]


def check_chunks(walk: Walk) -> Found:
    """After `check_inodes`: chunks beside the extents that refer to them."""
    chunks, extents = walk.cursor(keys.CHUNK), walk.cursor(keys.EXTENT_BY_CHUNK)
    while (number := min(chunks.id, extents.id)) < END:
        raw = chunks.one(number)
        chunk = None if raw is None else decoded(keys.decode_chunk, raw)
        if raw is not None and chunk is None:
            yield Problem(f"the record of chunk {number} cannot be read", todo=RESTORE_ALL)
        elif chunk is not None and chunk.chunk != number:
            yield Problem(f"the record of chunk {number} says {chunk.chunk}", todo=RESTORE_ALL)
            chunk = None
        live = yield from _extents_of(walk, number, chunk, extents)
        if chunk is not None:
            walk.last_chunk = number
            walk.seen["chunks"] += 1
            walk.seen["length"] += chunk.length
            walk.seen["redundancy"] += chunk.redundancy
            walk.seen[chunk.state.name] += 1
            yield from _live(chunk, live)
            yield from _owner(walk, chunk)
            yield from _fragments(walk, chunk)
            yield from _redundancy(walk, chunk)
    yield from _mirrors(walk)


def _extents_of(
    walk: Walk, number: int, chunk: Chunk | None, extents: Cursor
) -> Generator[Problem, None, int]:
    """The rows of extent-by-chunk; returns the sum of their lengths."""
    live = 0
    for key, value in extents.of(number):
        _, chunk_offset, ino, offset = keys.extent_by_chunk_place(key)
        length = int.from_bytes(value, "big")
        live += length
        walk.seen["extents by chunk"] += 1
        if chunk is None or chunk.state in (ChunkState.DOOMED, ChunkState.RETIRED):
            yield gone(ino, offset, number)
        elif chunk_offset + length > chunk.length:
            yield past_the_end(ino, offset, number)
    return live


def _live(chunk: Chunk, live: int) -> Found:
    number = chunk.chunk
    if chunk.live != live:
        yield Problem(
            f"chunk {number} has {live} live bytes, it says {chunk.live}",
            AdjustChunk(number, live - chunk.live),
        )
    elif chunk.state is ChunkState.SEALED and not live:
        yield Problem(f"chunk {number} is sealed without a live byte", AdjustChunk(number))


def _owner(walk: Walk, chunk: Chunk) -> Found:
    number, owner = chunk.chunk, chunk.owner
    if chunk.state is not ChunkState.OPEN:
        if owner:
            yield Problem(f"chunk {number} is {chunk.state.name} and owned", IndexChunk(number))
        return
    known = owner in (0, MASTER_SESSION) or owner in walk.sessions or owner in walk.leftovers
    if not known:
        yield Problem(
            f"chunk {number} is open for session {owner}, which is unknown", IndexChunk(number)
        )
    if walk.reader.get(keys.chunk_by_session_key(owner, number)) is None:
        yield Problem(f"chunk {number} is open and not among its session's", IndexChunk(number))


def _fragments(walk: Walk, chunk: Chunk) -> Found:
    number = chunk.chunk
    doomed = chunk.state is ChunkState.DOOMED
    reader = walk.reader
    if chunk.state is ChunkState.RETIRED:
        if reader.get(keys.retired_key(chunk.rewritten_s, number)) is None:
            yield Problem(f"chunk {number} is retired and not in that table", IndexChunk(number))
    listed = reader.get_many(
        [keys.fragment_by_disk_key(each.disk, number) for each in chunk.fragments]
    )
    for fragment, index in zip(chunk.fragments, listed, strict=True):
        walk.seen[fragment.state.name] += chunk.state in (ChunkState.OPEN, ChunkState.SEALED)
        if index != bytes((fragment.index,)):
            yield Problem(
                f"fragment {fragment.index} of chunk {number} is not in fragment-by-disk",
                IndexChunk(number),
            )
        if doomed and reader.get(keys.doomed_key(fragment.disk, number)) is None:
            yield Problem(
                f"chunk {number} is doomed and not so on disk {fragment.disk}", IndexChunk(number)
            )


def _redundancy(walk: Walk, chunk: Chunk) -> Found:
    number = chunk.chunk
    indexes = {fragment.index for fragment in chunk.good}
    if len(indexes) < len(chunk.good) or any(index >= chunk.width for index in indexes):
        yield Problem(
            f"chunk {number} has a good fragment twice, or one that it cannot have",
            todo="restart its servers: their reports settle what is there",
        )
    wants = chunk.state is ChunkState.SEALED and len(indexes) < chunk.width
    if wants != (walk.reader.get(keys.wanting_key(number)) is not None):
        yield Problem(
            f"chunk {number} lacks a fragment and is not in the wanting table"
            if wants
            else f"chunk {number} is in the wanting table by mistake",
            IndexChunk(number),
        )


# ------------------------------------------------------------------ the other way round


def _mirrors(walk: Walk) -> Found:
    """Rows of the mirroring tables that mirror nothing."""
    # Each extent has its row there: with as many rows as extents, there is no other.
    if walk.unindexed or walk.seen["extents by chunk"] != walk.seen["extents"]:
        yield from _extents_by_chunk(walk)
    yield from _by_disk(walk)
    yield from _stale(walk)
    yield from _wanting(walk)
    yield from _retired(walk)
    yield from _by_session(walk)


def _extents_by_chunk(walk: Walk) -> Found:
    for key, value in walk.rows(keys.EXTENT_BY_CHUNK):
        chunk, chunk_offset, ino, offset = keys.extent_by_chunk_place(key)
        expected = Extent(offset, int.from_bytes(value, "big"), chunk, chunk_offset)
        raw = walk.reader.get(keys.extent_key(ino, offset))
        if raw is None or decoded(keys.decode_extent, raw) != expected:
            yield Problem(
                f"extent-by-chunk has {expected} of {ino}, its extent is another",
                SettleExtent(chunk, chunk_offset, ino, offset),
            )


def _by_disk(walk: Walk) -> Found:
    for table, what in ((keys.FRAGMENT_BY_DISK, "listed for"), (keys.DOOMED, "doomed on")):
        for key, value in walk.rows(table):
            if table == keys.DOOMED and value:
                continue
            disk, number = keys.fragment_by_disk_place(key)
            chunk = walk.chunk(number)
            held = chunk is not None and any(each.disk == disk for each in chunk.fragments)
            if table == keys.DOOMED and chunk is not None:
                held = held and chunk.state is ChunkState.DOOMED
            if not held:
                yield Problem(f"chunk {number} is {what} disk {disk} by mistake", DropRow(key))


def _stale(walk: Walk) -> Found:
    for key, value in walk.rows(keys.DOOMED):
        if not value:
            continue
        walk.seen["stale"] += 1
        disk, number = keys.fragment_by_disk_place(key)
        chunk = walk.chunk(number)
        if chunk is not None and chunk.on(disk) is not None:
            yield Problem(
                f"the fragment of chunk {number} on disk {disk} is called stale", DropRow(key)
            )


def _wanting(walk: Walk) -> Found:
    for key, _ in walk.rows(keys.WANTING):
        walk.seen["wanting"] += 1
        if walk.reader.get(keys.chunk_key(key_id(key))) is None:
            yield Problem(
                f"chunk {key_id(key)} is in the wanting table and does not exist", DropRow(key)
            )


def _retired(walk: Walk) -> Found:
    for key, _ in walk.rows(keys.RETIRED):
        chunk = walk.chunk(second_id(key))
        right = chunk is not None and chunk.rewritten_s == key_id(key)
        if chunk is None or chunk.state is not ChunkState.RETIRED or not right:
            yield Problem(
                f"chunk {second_id(key)} is in the table of retired ones by mistake", DropRow(key)
            )


def _by_session(walk: Walk) -> Found:
    for key, _ in walk.rows(keys.CHUNK_BY_SESSION):
        session, number = key_id(key), second_id(key)
        chunk = walk.chunk(number)
        if chunk is None or chunk.state is not ChunkState.OPEN or chunk.owner != session:
            yield Problem(
                f"chunk {number} is listed for session {session} by mistake", DropRow(key)
            )
