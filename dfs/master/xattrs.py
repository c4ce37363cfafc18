"""Extended attributes: limits, name spaces and permissions as Linux has them.

`user.` is for regular files and directories and follows the mode bits; `trusted.` is root's;
`security.` is readable by all and written by root. `system.` (access control lists) is not
supported.
"""

import errno
import stat
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.errors import FileSystemError, refuse
from dfs.core.ids import XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES, InodeId
from dfs.core.inode import Inode
from dfs.core.permissions import READ, WRITE, is_owner, refused, require
from dfs.master.context import Context
from dfs.master.keyspace import (
    XATTR,
    Reader,
    get_inode,
    put_inode,
    scan_prefix,
    u64,
    xattr_key,
    xattr_name,
)
from dfs.master.removal import XATTRS
from dfs.wire.messages import Cred, RemoveXattr, SetXattr, XattrMode

NAMES_MAX_BYTES: Final = 65536
"""Names of one inode, each with its end: what listxattr(2) can return at most."""

VALUES_MAX_BYTES: Final = 1024 * 1024
"""Values of one inode together: listing the names goes through them too."""


def _inode(reader: Reader, ino: InodeId) -> Inode:
    inode = get_inode(reader, ino) if ino >= 0 else None
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {ino}")
    return inode


def _check_name(name: bytes, inode: Inode) -> None:
    """Raises ERANGE, EINVAL, EOPNOTSUPP."""
    if not 1 <= len(name) <= XATTR_NAME_MAX_BYTES:
        raise refused(errno.ERANGE, inode)
    if b"\0" in name:
        raise refused(errno.EINVAL, inode)
    space, dot, rest = name.partition(b".")
    if not dot or space not in (b"user", b"trusted", b"security"):
        raise refused(errno.EOPNOTSUPP, inode)
    if not rest:
        raise refused(errno.EINVAL, inode)


def _may_hold_user(inode: Inode) -> bool:
    return stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)


def _require_write(inode: Inode, cred: Cred, name: bytes) -> None:
    """Raises EPERM, EACCES."""
    if not name.startswith(b"user."):
        if cred.uid != 0:
            raise refused(errno.EPERM, inode)
        return
    if not _may_hold_user(inode):
        raise refused(errno.EPERM, inode)
    if stat.S_ISDIR(inode.mode) and inode.mode & stat.S_ISVTX and not is_owner(inode, cred):
        raise refused(errno.EPERM, inode)
    require(inode, cred, WRITE)


def set_xattr(ctx: Context, op: SetXattr) -> Inode:
    """Raises also E2BIG for a long value, EEXIST and ENODATA as the mode asks, ENOSPC."""
    txn = ctx.txn
    inode = _inode(txn, op.ino)
    _check_name(op.name, inode)
    if op.mode not in (XattrMode.ANY, XattrMode.CREATE, XattrMode.REPLACE):
        raise refused(errno.EINVAL, inode)
    if len(op.value) > XATTR_VALUE_MAX_BYTES:
        raise refused(errno.E2BIG, inode)
    _require_write(inode, ctx.cred, op.name)
    key = xattr_key(op.ino, op.name)
    there = txn.get(key) is not None
    if there and op.mode == XattrMode.CREATE:
        raise refused(errno.EEXIST, inode)
    if not there and op.mode == XattrMode.REPLACE:
        raise refused(errno.ENODATA, inode)
    _require_room(txn, inode, op)
    txn.put(key, op.value)
    inode = changed(inode, flags=inode.flags | XATTRS, ctime_ns=ctx.now)
    put_inode(txn, inode)
    return inode


def _require_room(reader: Reader, inode: Inode, op: SetXattr) -> None:
    """Raises ENOSPC."""
    names, values = len(op.name) + 1, len(op.value)
    for name, value in _rows(reader, inode):
        if name != op.name:
            names += len(name) + 1
            values += len(value)
    if names > NAMES_MAX_BYTES or values > VALUES_MAX_BYTES:
        raise FileSystemError(
            f"inode {op.ino} has no room for more extended attributes",
            errno=errno.ENOSPC,
            hint="remove some of them",
        )


def remove_xattr(ctx: Context, op: RemoveXattr) -> Inode:
    """Raises also ENODATA."""
    txn = ctx.txn
    inode = _inode(txn, op.ino)
    _check_name(op.name, inode)
    _require_write(inode, ctx.cred, op.name)
    key = xattr_key(op.ino, op.name)
    if txn.get(key) is None:
        raise refused(errno.ENODATA, inode)
    txn.delete(key)
    flags = inode.flags if _names(txn, inode) else inode.flags & ~XATTRS
    inode = changed(inode, flags=flags, ctime_ns=ctx.now)
    put_inode(txn, inode)
    return inode


def _rows(reader: Reader, inode: Inode) -> list[tuple[bytes, bytes]]:
    """Name and value of each."""
    if not inode.flags & XATTRS:
        return []
    rows = scan_prefix(reader, XATTR + u64(inode.ino))
    return [(xattr_name(key), value) for key, value in rows]


def _names(reader: Reader, inode: Inode) -> list[bytes]:
    return [name for name, _ in _rows(reader, inode)]


def get_xattr(reader: Reader, cred: Cred, ino: InodeId, name: bytes) -> bytes:
    """Raises ENOENT, ERANGE, EOPNOTSUPP, EACCES, ENODATA."""
    inode = _inode(reader, ino)
    _check_name(name, inode)
    if name.startswith(b"user."):
        if not _may_hold_user(inode):
            raise refused(errno.ENODATA, inode)
        require(inode, cred, READ)
    if name.startswith(b"trusted.") and cred.uid != 0:
        raise refused(errno.ENODATA, inode)
    value = reader.get(xattr_key(ino, name)) if inode.flags & XATTRS else None
    if value is None:
        raise refused(errno.ENODATA, inode)
    return value


def list_xattr(reader: Reader, ino: InodeId) -> tuple[bytes, ...]:
    """All names, in order; `trusted.` ones are the caller's to hide. Raises ENOENT."""
    return tuple(_names(reader, _inode(reader, ino)))
