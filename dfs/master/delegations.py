"""Delegated directories: one session changes their entries by itself, and tells later.

While a directory is delegated, the master lets nobody else see or change its entries (see
`recalls`). What the session did there comes as operations with the time when it was done; they
are refused once the session has lost the directory, so nothing late is ever applied. Files that it
made have numbers which were reserved for it before.
"""

import errno
from typing import Final, cast

from msgspec.structs import replace as changed

from dfs.core.errors import SessionError, refuse
from dfs.core.ids import ROOT_INODE, InodeId, SessionId
from dfs.core.inode import Inode
from dfs.master import commands
from dfs.master.context import Context
from dfs.master.keyspace import (
    DELEGATION_BY_SESSION,
    InodeRanges,
    Reader,
    decode_ranges,
    delegation_by_session_key,
    delegation_key,
    encode,
    from_u64,
    get_counters,
    get_inode,
    put_counters,
    reserved_key,
    scan_prefix,
    second_id,
    u64,
)
from dfs.master.transaction import Transaction
from dfs.wire.messages import DELEGATIONS_MAX, RESERVE_MAX, Create, Op, Rename, Undelegate, Unlink

_DELEGABLE: Final = frozenset((Create, Unlink, Rename))
RANGES_MAX: Final = 8
"""Reserved ranges that are remembered of one session; the oldest go."""


def holder(reader: Reader, ino: InodeId) -> SessionId | None:
    """The session that has the directory."""
    raw = reader.get(delegation_key(ino))
    return None if raw is None else from_u64(raw)


# ------------------------------------------------------------------ commands


def delegate(txn: Transaction, command: commands.DelegateDirectory) -> Inode | None:
    """None where it is the root, no directory, another's, or one too many."""
    ino, session = command.ino, command.session
    inode = get_inode(txn, ino)
    if ino == ROOT_INODE or inode is None or not inode.is_dir or not inode.nlink:
        return None
    had = holder(txn, ino)
    if had == session:
        return inode
    if had is not None or len(_held(txn, session)) >= DELEGATIONS_MAX:
        return None
    txn.put(delegation_key(ino), u64(session))
    txn.put(delegation_by_session_key(session, ino), b"")
    return inode


def revoke(txn: Transaction, command: commands.RevokeDelegation) -> None:
    if holder(txn, command.ino) == command.session:
        forget(txn, command.ino)


def reserve(txn: Transaction, command: commands.ReserveInodes) -> InodeId:
    """Raises EINVAL for too many."""
    if not 1 <= command.count <= RESERVE_MAX:
        raise refuse(errno.EINVAL, f"{command.count} inode numbers in one request")
    counters = get_counters(txn)
    first, end = counters.next_inode, counters.next_inode + command.count
    put_counters(txn, changed(counters, next_inode=end))
    kept = _ranges(txn, command.session)[-(RANGES_MAX - 1) :]
    txn.put(reserved_key(command.session), encode(InodeRanges((*kept, (first, end)))))
    return first


def release_session(txn: Transaction, session: SessionId) -> None:
    """The session is over: nobody has its directories and numbers any more."""
    for ino in _held(txn, session):
        forget(txn, ino)
    txn.delete(reserved_key(session))


def _held(reader: Reader, session: SessionId) -> list[InodeId]:
    return [second_id(key) for key, _ in scan_prefix(reader, DELEGATION_BY_SESSION + u64(session))]


def forget(txn: Transaction, ino: InodeId) -> None:
    """Nobody has the directory any more."""
    session = holder(txn, ino)
    if session is not None:
        txn.delete(delegation_key(ino))
        txn.delete(delegation_by_session_key(session, ino))


# ------------------------------------------------------------------ operations


def undelegate(ctx: Context, op: Undelegate) -> None:
    if holder(ctx.txn, op.ino) == ctx.session:
        forget(ctx.txn, op.ino)


def moment(ctx: Context, op: Op, now_ns: int) -> int:
    """When an operation is done: now, or under a delegation when it says.

    Raises:
        SessionError: it was done under a delegation that the session does not have (any more).
    """
    if type(op) not in _DELEGABLE:
        return now_ns
    op = cast("Create | Unlink | Rename", op)
    if not op.time_ns:
        if isinstance(op, Create) and op.ino:
            raise refuse(errno.EINVAL, f"inode {op.ino} chosen by a client")
        return now_ns
    parents = (op.parent, op.new_parent) if isinstance(op, Rename) else (op.parent,)
    for ino in parents:
        if holder(ctx.txn, ino) != ctx.session:
            raise SessionError(
                f"directory {ino} is not delegated to session {ctx.session} any more",
                hint="what was done there since it was last flushed is lost: do it again",
            )
    if op.time_ns < 0:
        raise refuse(errno.EINVAL, f"time {op.time_ns} ns")
    return min(op.time_ns, now_ns)


def use_reserved(ctx: Context, ino: InodeId) -> None:
    """Give a file a number that is reserved for the session. Raises EINVAL for any other."""
    ranges = _ranges(ctx.txn, ctx.session)
    for at, (first, end) in enumerate(ranges):
        if first <= ino < end:
            rest = ((ino + 1, end),) if ino + 1 < end else ()
            left = (*ranges[:at], *rest, *ranges[at + 1 :])
            ctx.txn.put(reserved_key(ctx.session), encode(InodeRanges(left)))
            return
    raise refuse(errno.EINVAL, f"inode {ino} is not reserved for session {ctx.session}")


def _ranges(reader: Reader, session: SessionId) -> tuple[tuple[InodeId, InodeId], ...]:
    raw = reader.get(reserved_key(session))
    return () if raw is None else decode_ranges(raw).ranges
