"""The table of namespace operations, and how an Apply runs them."""

import errno
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dfs.core.errors import DfsError, WireError, refuse
from dfs.core.inode import Inode
from dfs.master import (
    attributes,
    commands,
    delegations,
    file_data,
    namespace,
    rename,
    sessions,
    xattrs,
)
from dfs.master.context import Context
from dfs.master.limits import check_id
from dfs.master.transaction import Transaction
from dfs.wire import messages
from dfs.wire.messages import Applied, OpResult

OPERATIONS: Final[dict[type[messages.Op], Callable[[Context, Any], Inode | None]]] = {
    messages.Create: namespace.create,
    messages.Mkdir: namespace.mkdir,
    messages.Mknod: namespace.mknod,
    messages.Symlink: namespace.symlink,
    messages.Link: namespace.link,
    messages.Unlink: namespace.unlink,
    messages.Rmdir: namespace.rmdir,
    messages.Rename: rename.rename,
    messages.SetAttr: attributes.set_attr,
    messages.SetXattr: xattrs.set_xattr,
    messages.RemoveXattr: xattrs.remove_xattr,
    messages.Open: sessions.open_op,
    messages.Release: sessions.release_op,
    messages.Unnamed: namespace.unnamed,
    messages.Commit: file_data.commit,
    messages.PunchHole: file_data.punch_hole,
    messages.CloneRange: file_data.clone_range,
    messages.Put: namespace.put,
    messages.SetPolicy: attributes.set_policy,
    messages.Undelegate: delegations.undelegate,
    messages.OpenNamed: sessions.open_named,
}

_encode = msgspec.msgpack.Encoder().encode


def apply_ops(txn: Transaction, command: commands.ApplyOps) -> bytes:
    """Run all operations in order, each all or nothing. Returns the body of messages.Applied.

    Raises EINVAL, before anything runs, for more operations than a request may carry, and for a
    caller that nobody can be.
    """
    if len(command.ops) > messages.OPS_MAX:
        raise refuse(errno.EINVAL, f"{len(command.ops)} operations in one request")
    check_id(command.cred.uid)
    check_id(command.cred.gid)
    ctx = Context(txn, command.time_ns, command.session, command.cred)
    results: list[OpResult] = []
    for op in command.ops:
        # Where nothing has changed yet there is nothing to keep apart.
        own = ctx.txn = txn.child() if txn.changes else txn
        try:
            ctx.now = delegations.moment(ctx, op, command.time_ns)
            inode = OPERATIONS[type(op)](ctx, op)
        except DfsError as error:
            own.discard()
            results.append(OpResult(None, error.to_wire()))
        except OverflowError:
            # A number that no key can hold: negative, or past 64 bits.
            own.discard()
            results.append(OpResult(None, _out_of_range(op)))
        else:
            if own is not txn:
                own.commit()
            results.append(OpResult(inode, None, ctx.now if inode is None else 0))
    return _encode(Applied(tuple(results)))


def _out_of_range(op: messages.Op) -> WireError:
    name = type(op).__name__.lower()
    return refuse(errno.EINVAL, f"{name} with a number out of range").to_wire()
