"""Delegated directories and reserved inode numbers: small tables of the sessions."""

from collections.abc import Iterator

from dfs.master import keyspace as keys
from dfs.master.check.fixes import AdjustCounters, DropRow, TidyDelegation
from dfs.master.check.problem import Problem
from dfs.master.check.walk import Walk, decoded
from dfs.master.keyspace import from_u64, key_id, second_id


def check_delegations(walk: Walk) -> Iterator[Problem]:
    """After `check_sessions`."""
    reader = walk.reader
    for key, value in walk.rows(keys.DELEGATION):
        ino, session = key_id(key), from_u64(value)
        inode = walk.inode(ino)
        if inode is None or not inode.is_dir or not inode.nlink:
            yield Problem(f"{ino} is delegated and no directory", TidyDelegation(ino))
        elif session not in walk.sessions:
            yield Problem(
                f"directory {ino} is delegated to session {session}, which is unknown",
                TidyDelegation(ino),
            )
        elif reader.get(keys.delegation_by_session_key(session, ino)) is None:
            yield Problem(
                f"directory {ino} is delegated to session {session}, which does not have it",
                TidyDelegation(ino),
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
        session = key_id(key)
        kept = decoded(keys.decode_ranges, value)
        if session not in walk.sessions or kept is None:
            yield Problem(f"inode numbers are kept for session {session}", DropRow(key))
        elif not all(first < end for first, end in kept.ranges):
            yield Problem(
                f"inode numbers {kept.ranges} are kept for session {session}", DropRow(key)
            )
        elif any(end > next_inode for _, end in kept.ranges):
            yield Problem(
                f"inode numbers {kept.ranges} are kept for session {session}, "
                f"{next_inode} would be given next",
                AdjustCounters(next_inode=max(end for _, end in kept.ranges)),
            )
