"""Sessions: what a client holds, and how it is let go.

A session's open inodes, open chunks and remembered replies live and die with it. Closing one
makes it unknown at once; what it held is released in bounded steps, the rest of a big one by the
purge. Whether a lease has run out is not decided here: that is time, and comes as a command.
"""

import errno
import stat
from typing import Final

import msgspec

from dfs.core.errors import FileSystemError, SessionError, refuse
from dfs.core.ids import InodeId, SessionId
from dfs.core.inode import Inode, InodeFlag
from dfs.core.permissions import READ, WRITE, may, refused, require, shown
from dfs.master import chunks, commands, delegations, removal
from dfs.master.context import Context
from dfs.master.keyspace import (
    OPEN,
    OPEN_BY_SESSION,
    REPLY,
    SESSION,
    Reader,
    SessionRecord,
    decode_session,
    from_u64,
    get_counters,
    get_dentry,
    get_inode,
    get_session,
    leftovers_key,
    open_by_session_key,
    open_key,
    prefix_end,
    put_counters,
    put_inode,
    reply_key,
    scan_prefix,
    second_id,
    session_by_nonce_key,
    session_key,
    u64,
)
from dfs.master.transaction import Transaction
from dfs.wire.messages import WINDOW, Cred, Open, OpenNamed, Release

CLIENT_NAME_MAX_BYTES: Final = 255
RELEASE_INLINE_ROWS: Final = 1000
"""Rows a close releases by itself before it leaves the rest to the purge."""

CREATED_ACCESS: Final = READ | WRITE
"""Who makes a file may read and write it through this open, whatever its mode says."""

OPENED: Final = int(InodeFlag.OPENED)

_ACCESS_BITS: Final = 7
_NOBODY: Final = Cred(0, 0)

# ------------------------------------------------------------------ life of a session


def open_session(txn: Transaction, command: commands.OpenSession) -> SessionRecord:
    """Raises EINVAL for a client name that is too long."""
    if len(command.client.encode()) > CLIENT_NAME_MAX_BYTES:
        raise FileSystemError(
            f"the client's name is longer than {CLIENT_NAME_MAX_BYTES} bytes",
            errno=errno.EINVAL,
            hint="give it a shorter one",
        )
    nonce_key = session_by_nonce_key(command.nonce, command.client)
    known = txn.get(nonce_key)
    if known is not None and (record := get_session(txn, from_u64(known))):
        return record
    counters = get_counters(txn)
    record = SessionRecord(
        session=counters.next_session,
        client=command.client,
        nonce=command.nonce,
        opened_ns=command.time_ns,
        address=command.address,
    )
    put_counters(txn, msgspec.structs.replace(counters, next_session=counters.next_session + 1))
    txn.put(session_key(record.session), msgspec.msgpack.encode(record))
    txn.put(nonce_key, u64(record.session))
    return record


def close_session(
    txn: Transaction, command: commands.CloseSession | commands.ExpireSession
) -> None:
    """Forget the session and release what it holds. An unknown one is closed already."""
    record = get_session(txn, command.session)
    if record is None:
        return
    txn.delete(session_key(record.session))
    txn.delete(session_by_nonce_key(record.nonce, record.client))
    delegations.release_session(txn, record.session)
    if release_some(txn, command.time_ns, record.session, RELEASE_INLINE_ROWS) == 0:
        txn.put(leftovers_key(record.session), b"")


def release_some(txn: Transaction, now_ns: int, session: SessionId, limit: int) -> int:
    """Release up to `limit` things that a closed session held; returns what is left of `limit`.

    0 means that there may be more.
    """
    ctx = Context(txn, now_ns, session, _NOBODY)
    limit -= chunks.release_session(txn, session, limit)
    prefix = OPEN_BY_SESSION + u64(session)
    for ino in _ids(txn, prefix, limit):
        release(ctx, ino)
        limit -= 1
    if limit:
        limit -= chunks.release_session(txn, session, limit)
    if limit:
        prefix = REPLY + u64(session)
        for key in _keys(txn, prefix, limit):
            txn.delete(key)
            limit -= 1
    return limit


def _keys(reader: Reader, prefix: bytes, limit: int) -> list[bytes]:
    rows = reader.scan(prefix, prefix_end(prefix))
    return [key for (key, _), _ in zip(rows, range(limit), strict=False)]


def _ids(reader: Reader, prefix: bytes, limit: int) -> list[InodeId]:
    return [second_id(key) for key in _keys(reader, prefix, limit)]


def all_sessions(reader: Reader) -> list[SessionRecord]:
    return [decode_session(value) for _, value in scan_prefix(reader, SESSION)]


# ------------------------------------------------------------------ at most once


def first_reply(reader: Reader, session: SessionId, sequence: int) -> bytes | None:
    """What this session's request `sequence` was answered before, or None if it is new.

    Raises:
        SessionError: the session is unknown, or the request's number is negative or has left
            the window.
    """
    if session < 0 or reader.get(session_key(session)) is None:
        raise SessionError(
            f"session {session} is unknown or has expired", hint="open a new session"
        )
    if sequence < 0:
        raise SessionError(f"request {sequence} of session {session}: number them from 0 on")
    stored = reader.get(reply_key(session, sequence % WINDOW))
    if stored is None:
        return None
    last = from_u64(stored[:8])
    if sequence > last:
        return None
    if sequence == last:
        return stored[8:]
    raise SessionError(
        f"request {sequence} of session {session} is too old: request {last} took its place",
        hint=f"keep at most {WINDOW} requests in flight",
    )


def remember_reply(txn: Transaction, session: SessionId, sequence: int, reply: bytes) -> None:
    txn.put(reply_key(session, sequence % WINDOW), sequence.to_bytes(8, "big") + reply)


# ------------------------------------------------------------------ open inodes


def is_open(reader: Reader, inode: Inode) -> bool:
    """In any session."""
    if not inode.flags & OPENED:
        return False
    prefix = OPEN + u64(inode.ino)
    return next(reader.scan(prefix, prefix_end(prefix)), None) is not None


def granted(reader: Reader, inode: Inode, session: SessionId) -> int:
    """Access bits that the session was given when it opened the inode; 0 if it is not open."""
    value = reader.get(open_key(inode.ino, session)) if inode.flags & OPENED else None
    return 0 if value is None else value[0]


def grant(ctx: Context, inode: Inode, access: int) -> Inode:
    """The session has the inode open with `access`, beside what it was granted before."""
    txn, ino = ctx.txn, inode.ino
    access |= granted(txn, inode, ctx.session)
    txn.put(open_key(ino, ctx.session), bytes((access,)))
    txn.put(open_by_session_key(ctx.session, ino), b"")
    if not inode.flags & OPENED:
        inode = msgspec.structs.replace(inode, flags=inode.flags | OPENED)
        put_inode(txn, inode)
    return inode


def require_data(ctx: Context, inode: Inode, want: int) -> None:
    """To read or write data: by permission now, or by an open of this session. Raises EACCES."""
    if not may(inode, ctx.cred, want) and granted(ctx.txn, inode, ctx.session) & want != want:
        raise refused(errno.EACCES, inode)


def open_inode(ctx: Context, inode: Inode, access: int) -> Inode:
    """Raises EINVAL, ELOOP for a symlink, EISDIR for a directory to be written, EACCES."""
    if access & ~_ACCESS_BITS:
        raise refused(errno.EINVAL, inode)
    if stat.S_ISLNK(inode.mode):
        raise refused(errno.ELOOP, inode)
    if access & WRITE and stat.S_ISDIR(inode.mode):
        raise refused(errno.EISDIR, inode)
    require(inode, ctx.cred, access)
    return grant(ctx, inode, access)


def open_op(ctx: Context, op: Open | OpenNamed) -> Inode:
    inode = get_inode(ctx.txn, op.ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {op.ino}")
    return open_inode(ctx, inode, op.access)


def open_named(ctx: Context, op: OpenNamed) -> Inode:
    if get_dentry(ctx.txn, op.parent, op.name) != op.ino:
        raise refuse(errno.ESTALE, f"{shown(op.name)} is not inode {op.ino} any more")
    return open_op(ctx, op)


def release_op(ctx: Context, op: Release) -> Inode | None:
    return release(ctx, op.ino)


def release(ctx: Context, ino: InodeId) -> Inode | None:
    """The session has the inode open no more. An orphan goes with its last open.

    Returns the inode, or None if it is gone. What is not open is released already.
    """
    txn = ctx.txn
    inode = get_inode(txn, ino)
    if txn.get(open_key(ino, ctx.session)) is None:
        return inode
    txn.delete(open_key(ino, ctx.session))
    txn.delete(open_by_session_key(ctx.session, ino))
    if inode is None or inode.nlink or is_open(txn, inode):
        return inode
    removal.remove(ctx, inode)
    return None
