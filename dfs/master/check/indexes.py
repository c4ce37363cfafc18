"""Sessions, policies, servers and disks: small tables and their indexes. And the counters."""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from dfs.core.chunk import ChunkState
from dfs.master import keyspace as keys
from dfs.master.check.fixes import AdjustCounters, DropRow, IndexRecord, TidyOpen
from dfs.master.check.problem import RESTORE_ALL, Problem
from dfs.master.check.walk import Walk, decoded
from dfs.master.keyspace import from_u64, key_id, scan_prefix, second_id, u64

Found = Iterator[Problem]


def _policy(raw: bytes) -> tuple[bytes, int]:
    policy = keys.decode_policy(raw)
    return keys.policy_by_name_key(policy.name), policy.policy


def _server(raw: bytes) -> tuple[bytes, int]:
    server = keys.decode_server(raw)
    return keys.server_by_uuid_key(server.uuid), server.server


def _disk(raw: bytes) -> tuple[bytes, int]:
    disk = keys.decode_disk(raw)
    return keys.disk_by_uuid_key(disk.uuid), disk.disk


def _session(raw: bytes) -> tuple[bytes, int]:
    session = keys.decode_session(raw)
    return keys.session_by_nonce_key(session.nonce, session.client), session.session


class Index(msgspec.Struct, frozen=True):
    """How a table's records are found by something else than their number."""

    table: bytes
    names: str
    enter: Callable[[bytes], tuple[bytes, int]]
    """A record's key in the index, and the number under it."""


INDEXES: Final = {
    keys.POLICY: Index(keys.POLICY_BY_NAME, "policies and their names", _policy),
    keys.SERVER: Index(keys.SERVER_BY_UUID, "servers and their UUIDs", _server),
    keys.DISK: Index(keys.DISK_BY_UUID, "disks and their UUIDs", _disk),
    keys.SESSION: Index(keys.SESSION_BY_NONCE, "sessions and their nonces", _session),
}
"""By table."""

_DROPPED: Final = frozenset((keys.POLICY_BY_NAME, keys.SESSION_BY_NONCE))
"""A row of these that leads nowhere is useless. The number of a server or disk is not: when it
registers again it gets its record back under that number, and with it its fragments."""


def check_indexes(walk: Walk) -> Found:
    reader = walk.reader
    for table, index in INDEXES.items():
        for key, value in scan_prefix(reader, table):
            entered = decoded(index.enter, value)
            if entered is None:
                yield Problem(
                    f"record {key_id(key)} of {index.names} cannot be read", todo=RESTORE_ALL
                )
            elif entered[1] != key_id(key):
                yield Problem(
                    f"record {key_id(key)} of {index.names} says {entered[1]}", todo=RESTORE_ALL
                )
            elif reader.get(entered[0]) != u64(entered[1]):
                yield Problem(
                    f"{index.names} do not match: {entered[1]} is not in the index",
                    IndexRecord(key),
                )
        for key, value in scan_prefix(reader, index.table):
            record = reader.get(table + value)
            if record is None or ((entered := decoded(index.enter, record)) and entered[0] != key):
                yield _astray(index, key, value, record)


def _astray(index: Index, key: bytes, value: bytes, record: bytes | None) -> Problem:
    text = f"{index.names} do not match: the index leads to {from_u64(value)}, which is no such one"
    if index.table in _DROPPED or record is not None:
        return Problem(text, DropRow(key))
    return Problem(text, todo="restart the chunk servers: they register anew")


def check_sessions(walk: Walk) -> Found:
    """After `check_inodes`."""
    reader = walk.reader
    for key, _ in walk.rows(keys.OPEN_BY_SESSION):
        session, ino = key_id(key), second_id(key)
        if reader.get(keys.open_key(ino, session)) is None:
            yield Problem(
                f"inode {ino} open in session {session} is in one of the two tables only",
                TidyOpen(ino, session),
            )
    for session in walk.leftovers & walk.sessions:
        yield Problem(
            f"session {session} is known and left over", DropRow(keys.leftovers_key(session))
        )
    for key, _ in walk.rows(keys.REPLY):
        if key_id(key) not in walk.sessions and key_id(key) not in walk.leftovers:
            yield Problem(
                f"a reply is kept for session {key_id(key)}, which is unknown", DropRow(key)
            )


def check_counters(walk: Walk) -> Found:
    """After all others: they have counted."""
    counters = keys.get_counters(walk.reader)
    seen = walk.seen
    expected = msgspec.structs.replace(
        counters,
        inodes=seen["inodes"],
        live=seen["live"],
        chunks=seen["chunks"],
        chunks_open=seen[ChunkState.OPEN.name],
        chunks_doomed=seen[ChunkState.DOOMED.name],
        chunks_retired=seen[ChunkState.RETIRED.name],
        purging=seen["purging"],
        wanting=seen["wanting"],
        stale=seen["stale"],
        length=seen["length"],
        redundancy=seen["redundancy"],
    )
    if counters != expected:
        yield Problem(
            f"the counters say {counters}, a count {expected}",
            AdjustCounters(
                inodes=expected.inodes - counters.inodes,
                live=expected.live - counters.live,
                chunks=expected.chunks - counters.chunks,
                chunks_open=expected.chunks_open - counters.chunks_open,
                chunks_doomed=expected.chunks_doomed - counters.chunks_doomed,
                chunks_retired=expected.chunks_retired - counters.chunks_retired,
                purging=expected.purging - counters.purging,
                wanting=expected.wanting - counters.wanting,
                stale=expected.stale - counters.stale,
                length=expected.length - counters.length,
                redundancy=expected.redundancy - counters.redundancy,
            ),
        )
    last_job = max((key_id(key) for key, _ in scan_prefix(walk.reader, keys.JOB)), default=0)
    for name, last, next_id, fix in (
        ("inode", walk.last_inode, counters.next_inode, "next_inode"),
        ("chunk", walk.last_chunk, counters.next_chunk, "next_chunk"),
        ("session", max(walk.sessions, default=0), counters.next_session, "next_session"),
        ("job", last_job, counters.next_job, "next_job"),
    ):
        if last >= next_id:
            yield Problem(
                f"{name} {last} exists, {next_id} would be given next",
                AdjustCounters(**{fix: last + 1}),
            )
