"""Brings a store that an older dfs wrote to today's schema, in one command."""

from msgspec.structs import replace

from dfs.core.chunk import ChunkState
from dfs.master import fragments, job_table
from dfs.master.keyspace import (
    CHUNK,
    META_SCHEMA,
    SCHEMA_VERSION,
    Writer,
    decode_chunk,
    from_u64,
    get_counters,
    put_counters,
    scan_prefix,
    u64,
)


def upgrade(txn: Writer, time_ns: int) -> None:
    """Do what is missing since the version that wrote the store; nothing on a store of today's."""
    version = from_u64(txn.get(META_SCHEMA) or u64(SCHEMA_VERSION))
    if version < 2:
        _note_what_is_wanting(txn, time_ns)
    if version < 3:
        _add_up(txn)
        job_table.put_standing(txn, time_ns)
    if version < SCHEMA_VERSION:
        txn.put(META_SCHEMA, u64(SCHEMA_VERSION))


def _note_what_is_wanting(txn: Writer, time_ns: int) -> None:
    for _, value in scan_prefix(txn, CHUNK):
        chunk = decode_chunk(value)
        if chunk.state is ChunkState.SEALED and not fragments.is_whole(chunk):
            fragments.settle(txn, chunk, time_ns)


def _add_up(txn: Writer) -> None:
    length = redundancy = 0
    for _, value in scan_prefix(txn, CHUNK):
        chunk = decode_chunk(value)
        length += chunk.length
        redundancy += chunk.redundancy
    put_counters(txn, replace(get_counters(txn), length=length, redundancy=redundancy))
