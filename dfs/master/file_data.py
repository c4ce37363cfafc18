"""Operations on a file's data: commit, truncate, punch a hole, clone a range."""

import errno
import stat
from collections.abc import Sequence
from itertools import islice
from typing import Final

from msgspec.structs import replace as changed

from dfs.core.errors import BusyError, DfsError, FileSystemError, refuse
from dfs.core.ids import FILE_SIZE_MAX_BYTES
from dfs.core.inode import APPENDS_MAX, AppendMark, Extent, Inode
from dfs.core.permissions import READ, WRITE, mode_after_write, refused
from dfs.master import extents, sessions, trims
from dfs.master.context import CLONE_ROWS_PER_COMMAND, Context
from dfs.master.keyspace import get_inode, put_inode, xattr_key
from dfs.master.limits import check_size, check_time
from dfs.master.removal import TRIMMED, XATTRS, cut_off
from dfs.wire.messages import CloneRange, Commit, PunchHole

CAPABILITY: Final = b"security.capability"
"""Whoever writes to a file, or gives it away, takes its capabilities, as with the set-id bits."""


def regular_file(ctx: Context, ino: int) -> Inode:
    """Raises ENOENT, EISDIR, or EINVAL for what is neither file nor directory."""
    inode = get_inode(ctx.txn, ino)
    if inode is None:
        raise refuse(errno.ENOENT, f"inode {ino}")
    if not stat.S_ISREG(inode.mode):
        raise refused(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL, inode)
    return inode


def drop_capability(ctx: Context, inode: Inode) -> None:
    if inode.flags & XATTRS:
        # The flag stays: it says that there may be attributes.
        ctx.txn.delete(xattr_key(inode.ino, CAPABILITY))


def written(ctx: Context, inode: Inode, *, mtime_ns: int | None = None) -> Inode:
    """The inode after a change of its data, apart from what changed. Drops privileges."""
    drop_capability(ctx, inode)
    return changed(
        inode,
        mode=mode_after_write(inode, ctx.cred),
        mtime_ns=ctx.now if mtime_ns is None else mtime_ns,
        ctime_ns=ctx.now,
        version=inode.version + 1,
    )


def commit(ctx: Context, op: Commit) -> Inode:
    """Raises, beside the refusals of `regular_file` and `extents.check`, EACCES and EFBIG.

    ECANCELED where `op.version` says what the file was to be like, and it is not.
    """
    inode = regular_file(ctx, op.ino)
    sessions.require_data(ctx, inode, WRITE)
    if op.version is not None and op.version != inode.version:
        raise refuse(errno.ECANCELED, f"inode {inode.ino} has been written to meanwhile")
    check_time(op.mtime_ns)
    base = inode.size if op.append else 0
    extents.check(ctx.txn, ctx.session, op.extents, base)
    size = inode.size
    if op.size is not None:
        size = max(size, check_size(base + op.size))
    if not op.extents and size == inode.size and op.mtime_ns is None:
        return inode
    if op.extents:
        size = max(size, base + max(extent.end for extent in op.extents))
    allocated = inode.allocated + _lay(ctx, inode, op.extents, base)
    inode = changed(written(ctx, inode, mtime_ns=op.mtime_ns), size=size, allocated=allocated)
    if op.append and op.mark is not None:
        inode = changed(inode, appends=_with_mark(inode.appends, op.mark))
    put_inode(ctx.txn, inode)
    return inode


def _with_mark(marks: tuple[AppendMark, ...], mark: AppendMark) -> tuple[AppendMark, ...]:
    others = tuple(each for each in marks if each.client != mark.client)
    return (*others[1 - APPENDS_MAX :], mark)


def _lay(ctx: Context, inode: Inode, pieces: Sequence[Extent], base: int) -> int:
    """Lay extents over the file's, shifted by `base`. Returns the change of allocated bytes."""
    if base:
        pieces = [extents.shifted(extent, base) for extent in pieces]
    ledger = extents.Ledger()
    trimmed = bool(inode.flags & TRIMMED)
    if inode.allocated == 0 and not trimmed and extents.ascending(pieces):
        change = extents.fill(ctx.txn, inode.ino, pieces, ledger)
    else:
        change = 0
        size = inode.size
        for extent in pieces:
            if extent.file_offset >= size and not trimmed:
                change += extents.add(ctx.txn, inode.ino, extent, ledger)
                size = extent.end
                continue
            size = max(size, extent.end)
            change += extents.replace(ctx.txn, inode.ino, extent, ledger, trimmed=trimmed)
    ledger.book(ctx.txn)
    return change


def truncated(ctx: Context, inode: Inode, size: int) -> Inode:
    """The inode cut or extended to `size`, not stored yet. The caller checked permission."""
    allocated, flags = inode.allocated, inode.flags
    if size < inode.size:
        allocated, flags = cut_off(ctx, inode, size, extents.ALL)
    return changed(written(ctx, inode), size=size, allocated=allocated, flags=flags)


def punch_hole(ctx: Context, op: PunchHole) -> Inode:
    """As fallocate(2) with KEEP_SIZE: the size stays."""
    inode = regular_file(ctx, op.ino)
    if op.offset < 0 or op.length <= 0:
        raise refuse(errno.EINVAL, f"hole of {op.length} bytes at {op.offset}")
    if op.offset + op.length > FILE_SIZE_MAX_BYTES:
        raise refuse(errno.EFBIG, f"hole of {op.length} bytes at {op.offset}")
    sessions.require_data(ctx, inode, WRITE)
    allocated, flags = cut_off(ctx, inode, op.offset, op.offset + op.length)
    inode = changed(written(ctx, inode), allocated=allocated, flags=flags)
    put_inode(ctx.txn, inode)
    return inode


def clone_range(ctx: Context, op: CloneRange) -> Inode:
    """As ioctl_ficlonerange(2), without its alignment rules. Returns the target's inode."""
    source = regular_file(ctx, op.ino)
    target = source if op.new_ino == op.ino else regular_file(ctx, op.new_ino)
    offset, new_offset, length = op.offset, op.new_offset, op.length
    if offset < 0 or new_offset < 0 or length < 0:
        raise refuse(errno.EINVAL, f"clone of {length} bytes at {offset}")
    sessions.require_data(ctx, source, READ)
    sessions.require_data(ctx, target, WRITE)
    if length == 0:
        length = max(0, source.size - offset)
    if offset > source.size or offset + length > source.size:
        raise refuse(errno.EINVAL, f"clone past the end of inode {source.ino}")
    if length == 0:
        return target
    if new_offset + length > FILE_SIZE_MAX_BYTES:
        raise refuse(errno.EFBIG, f"clone to {new_offset}")
    if source.ino == target.ino and abs(offset - new_offset) < length:
        raise refuse(errno.EINVAL, f"clone of a range of inode {source.ino} onto itself")
    pieces = _shared(ctx, source, offset, length, new_offset - offset)
    freed = _clear(ctx, target, new_offset, new_offset + length)
    ctx.clone_rows = max(0, ctx.clone_rows - len(pieces))
    target = changed(
        written(ctx, target),
        size=max(target.size, new_offset + length),
        allocated=target.allocated - freed,
    )
    target = changed(target, allocated=target.allocated + _lay(ctx, target, pieces, 0))
    put_inode(ctx.txn, target)
    return target


def _shared(ctx: Context, source: Inode, offset: int, length: int, shift: int) -> list[Extent]:
    """The extents of a range of `source`, cut to it and moved by `shift`."""
    pieces: list[Extent] = []
    end = offset + length
    trimmed = bool(source.flags & TRIMMED)
    if not source.allocated:
        return pieces
    for extent in extents.visible(ctx.txn, source.ino, offset, end, trimmed=trimmed):
        low, high = max(extent.file_offset, offset), min(extent.end, end)
        pieces.append(
            Extent(
                low + shift,
                high - low,
                extent.chunk,
                extent.chunk_offset + low - extent.file_offset,
            )
        )
        if len(pieces) > ctx.clone_rows:
            raise _too_many(ctx, source)
    return pieces


def _clear(ctx: Context, target: Inode, start: int, end: int) -> int:
    """Free a range that a clone will fill. Returns the bytes that were allocated."""
    if not target.allocated:
        return 0
    under = extents.stored(ctx.txn, target.ino, start, end)
    found = list(islice(under, ctx.clone_rows + 1))
    if len(found) > ctx.clone_rows:
        raise _too_many(ctx, target)
    ctx.clone_rows -= len(found)
    ledger = extents.Ledger()
    freed = extents.cut(ctx.txn, target.ino, found, start, end, ledger)
    ledger.book(ctx.txn)
    if target.flags & TRIMMED:
        trims.subtract(ctx.txn, target.ino, start, end)
    return freed


def _too_many(ctx: Context, inode: Inode) -> DfsError:
    """The refusal of a clone that would take more rows than its command may."""
    alone = ctx.clone_rows == CLONE_ROWS_PER_COMMAND
    # The attempt was work too: clones after this one are not to repeat it.
    ctx.clone_rows = 0
    if not alone:
        return BusyError(
            f"the clones of one request share more than {CLONE_ROWS_PER_COMMAND} extents",
            hint="send them in several requests",
        )
    return FileSystemError(
        f"inode {inode.ino} has more than {CLONE_ROWS_PER_COMMAND} extents in that range",
        errno=errno.EFBIG,
        hint="clone it in several ranges",
    )
