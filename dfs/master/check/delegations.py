"""Delegated directories and reserved inode numbers: small tables of the sessions."""

from collections.abc import Iterator

from dfs.master import keyspace as keys
from dfs.master.check.fixes import DropRow
from dfs.master.check.problem import Problem
from dfs.master.check.walk import Walk
from dfs.master.keyspace import from_u64, key_id, second_id


def check_delegations(walk: Walk) -> Iterator[Problem]:
    """After `check_sessions`."""
    reader = walk.reader
    for key, value in walk.rows(keys.DELEGATION):
        ino, session = key_id(key), from_u64(value)
        inode = keys.get_inode(reader, ino)
        if inode is None or not inode.is_dir or not inode.nlink:
            yield Problem(f"{ino} is delegated and no directory", DropRow(key))
        elif session not in walk.sessions:
            yield Problem(
                f"directory {ino} is delegated to session {session}, which is unknown",
                DropRow(key),
            )
        elif reader.get(keys.delegation_by_session_key(session, ino)) is None:
            yield Problem(
                f"directory {ino} is delegated to session {session}, which does not have it",
                DropRow(key),
            )
    for key, _ in walk.rows(keys.DELEGATION_BY_SESSION):
        session, ino = key_id(key), second_id(key)
        if reader.get(keys.delegation_key(ino)) != keys.u64(session):
            yield Problem(
                f"session {session} has directory {ino}, which is not delegated to it",
                DropRow(key),
            )
    next_inode = keys.get_counters(reader).next_inode
    for key, value in walk.rows(keys.RESERVED):
        ranges = keys.decode_ranges(value).ranges
        if key_id(key) not in walk.sessions or not all(
            first < end <= next_inode for first, end in ranges
        ):
            yield Problem(
                f"inode numbers {ranges} are kept for session {key_id(key)}", DropRow(key)
            )
