"""The master's state machine: `apply(command) -> result`, deterministic, one atomic write each.

Owns the store. A command runs in a transaction; when its handler returns, the changes are
written as one batch, and when it raises, nothing has changed. Nothing here looks at a clock, a
random number or the network, so the same commands give the same bytes in every store.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace as changed

from dfs.core.chunk import Chunk
from dfs.core.errors import ConfigError
from dfs.core.ids import DEFAULT_POLICY, ROOT_INODE
from dfs.core.inode import Inode
from dfs.core.policy import Policy
from dfs.master import (
    chunks,
    commands,
    delegations,
    fragments,
    job_table,
    membership,
    operations,
    policies,
    purge,
    rewrites,
    runs,
    sessions,
    upgrades,
)
from dfs.master.backup import hold
from dfs.master.check import mend
from dfs.master.commands import Command, SessionCommand
from dfs.master.keyspace import (
    META_CLUSTER,
    META_SCHEMA,
    PURGE,
    SCHEMA_VERSION,
    Counters,
    encode,
    from_u64,
    get_counters,
    put_counters,
    put_inode,
    scan_prefix,
    u64,
)
from dfs.master.store import Store
from dfs.master.transaction import Tails, Transaction
from dfs.wire.messages import LogPosition

R = TypeVar("R")

ROOT_MODE: Final = 0o040755


def format_store(txn: Transaction, command: commands.Format) -> None:
    """Raises ConfigError on a store that holds a file system already."""
    if txn.get(META_SCHEMA) is not None:
        raise ConfigError("the store is formatted already")
    txn.put(META_SCHEMA, u64(SCHEMA_VERSION))
    txn.put(META_CLUSTER, command.cluster.encode())
    put_counters(txn, Counters(inodes=1))
    policies.put_built_in(txn)
    now = command.time_ns
    job_table.put_standing(txn, now)
    put_inode(
        txn,
        Inode(
            ROOT_INODE,
            ROOT_MODE,
            2,
            command.uid,
            command.gid,
            0,
            now,
            now,
            now,
            DEFAULT_POLICY,
            parent=ROOT_INODE,
        ),
    )


def start_master(txn: Transaction, command: commands.StartMaster) -> None:
    """Servers and disks are known by their UUIDs: their numbers, which people read, need no gap."""
    upgrades.upgrade(txn, command.time_ns)
    counters = get_counters(txn)
    put_counters(
        txn,
        changed(
            counters,
            next_inode=counters.next_inode + command.skip_ids,
            next_chunk=counters.next_chunk + command.skip_ids,
            next_session=counters.next_session + command.skip_ids,
            # Stores of before this was counted say 0.
            purging=sum(1 for _ in scan_prefix(txn, PURGE)),
        ),
    )
    rewrites.give_up_all(txn)
    if command.run:
        runs.note(txn, LogPosition(command.run, command.position))


_HANDLERS: Final[dict[type[Command[Any]], Callable[[Transaction, Any], Any]]] = {
    commands.Format: format_store,
    commands.StartMaster: start_master,
    commands.OpenSession: sessions.open_session,
    commands.CloseSession: sessions.close_session,
    commands.ExpireSession: sessions.close_session,
    commands.ApplyOps: operations.apply_ops,
    commands.PurgeStep: purge.purge_step,
    commands.CreatePolicy: policies.create_policy,
    commands.DelegateDirectory: delegations.delegate,
    commands.ReserveInodes: delegations.reserve,
    commands.RevokeDelegation: delegations.revoke,
    commands.AllocateChunks: chunks.allocate,
    commands.SealChunk: chunks.seal,
    commands.SealAbandoned: chunks.seal_abandoned,
    commands.MarkFragments: fragments.mark,
    commands.DropFragments: chunks.drop_fragments,
    commands.PlaceFragment: fragments.place,
    commands.MarkVerified: fragments.mark_verified,
    commands.MarkStale: fragments.mark_stale,
    commands.AbandonFragments: fragments.abandon,
    commands.AllocateTarget: rewrites.allocate,
    commands.AbandonTarget: rewrites.abandon,
    commands.Repoint: rewrites.repoint,
    commands.ExpireRetired: chunks.expire_retired,
    commands.RegisterServer: membership.register,
    commands.MendMetadata: mend.mend,
    commands.CompleteRestore: hold.complete,
    commands.ConfirmRestore: hold.confirm,
    commands.RaiseNextChunk: hold.raise_next_chunk,
    commands.SetDraining: membership.set_draining,
    commands.ForgetDisks: membership.forget,
    commands.StartJob: job_table.start,
    commands.UpdateJobs: job_table.update,
    commands.SetJobState: job_table.set_state,
    commands.SetBudget: job_table.set_budget,
}

_REPLIES: Final[dict[type[SessionCommand[Any]], Callable[[bytes], Any]]] = {
    commands.ApplyOps: bytes,
    commands.AllocateChunks: msgspec.msgpack.Decoder(tuple[Chunk, ...]).decode,
    commands.SealChunk: msgspec.msgpack.Decoder(None).decode,
    commands.CreatePolicy: msgspec.msgpack.Decoder(Policy).decode,
    commands.DelegateDirectory: msgspec.msgpack.Decoder(Inode | None).decode,
    commands.ReserveInodes: msgspec.msgpack.Decoder(int).decode,
}
"""How a remembered reply becomes the result again; ApplyOps' result is bytes already."""


class State:
    """See the module's docstring. `store` is for the read functions in `queries`.

    Raises:
        ConfigError: a newer version of dfs wrote the store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._tails = Tails()
        version = store.get(META_SCHEMA)
        if version is not None and from_u64(version) > SCHEMA_VERSION:
            raise ConfigError(
                f"the metadata has schema version {from_u64(version)}, "
                f"this dfs knows versions up to {SCHEMA_VERSION}",
                hint="start a newer dfs, or restore a backup made with this one",
            )

    @property
    def formatted(self) -> bool:
        return self.store.get(META_SCHEMA) is not None

    @property
    def cluster(self) -> str:
        """The cluster's UUID, or "" before Format."""
        return (self.store.get(META_CLUSTER) or b"").decode()

    @property
    def counters(self) -> Counters:
        return get_counters(self.store)

    def apply(self, command: Command[R]) -> R:
        """Raises what the command's handler raises; nothing has changed then."""
        txn = Transaction(self.store, self._tails)
        result: R
        if isinstance(command, SessionCommand):
            result = _once(txn, command)
        else:
            result = _HANDLERS[type(command)](txn, command)
        if txn.changes:
            self.store.write(txn.changes)
        return result


def _once(txn: Transaction, command: SessionCommand[Any]) -> Any:
    """Run a session's command, unless it ran before: then its first reply is the result."""
    kind = type(command)
    reply = sessions.first_reply(txn, command.session, command.sequence)
    if reply is not None:
        return _REPLIES[kind](reply)
    result = _HANDLERS[kind](txn, command)
    reply = result if kind is commands.ApplyOps else encode(result)
    sessions.remember_reply(txn, command.session, command.sequence, reply)
    return result
