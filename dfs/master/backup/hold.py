"""What a master knows of having been restored: pure functions over a transaction.

Between the backup and the restore the cluster went on. So a restored master gives no number that
could have been given since, to an inode, a chunk or a session; it knows no session; and until a
person has looked at it and confirmed, it deletes nothing on the disks: what is newer than the
backup can still be had with newer metadata.
"""

from typing import Final

import msgspec
from msgspec.structs import replace

from dfs.core.ids import ChunkId
from dfs.master import runs
from dfs.master.commands import CompleteRestore, ConfirmRestore, RaiseNextChunk
from dfs.master.keyspace import META_RESTORED, Reader, Writer, encode, get_counters, put_counters
from dfs.wire.messages import LogPosition

IDS_A_SECOND: Final = 1 << 20
"""More than a cluster can give of one kind."""
IDS_AT_LEAST: Final = 1 << 32
"""Skipped in any case: clocks may be wrong by an hour."""
CHUNK_MAX: Final = 1 << 60
"""A chunk with a greater number is none that a master made."""


class Restored(msgspec.Struct, array_like=True, frozen=True):
    """A restore that has not been confirmed."""

    backup_ns: int
    """When the backup was made."""
    restored_ns: int
    next_chunk: ChunkId
    """The next one when the backup was made: chunks from here on are newer."""


_decode = msgspec.msgpack.Decoder(Restored).decode


def restored(reader: Reader) -> Restored | None:
    """None: it was never restored, or that is confirmed."""
    raw = reader.get(META_RESTORED)
    return None if raw is None else _decode(raw)


def is_held(reader: Reader) -> bool:
    """Nothing on the disks may be deleted or cut."""
    return reader.get(META_RESTORED) is not None


def skipped_ids(backup_ns: int, now_ns: int) -> int:
    """How many ids may have been given since a backup, at the very most."""
    seconds = max(0, now_ns - backup_ns) // 1_000_000_000
    return IDS_AT_LEAST + seconds * IDS_A_SECOND


def complete(txn: Writer, command: CompleteRestore) -> None:
    """See `CompleteRestore`."""
    counters = get_counters(txn)
    skip = command.skip_ids
    put_counters(
        txn,
        replace(
            counters,
            next_inode=counters.next_inode + skip,
            next_chunk=counters.next_chunk + skip,
            next_session=counters.next_session + skip,
        ),
    )
    # The run that the backup was made in ends here: what it answered later is lost.
    runs.note(txn, LogPosition(command.run, command.position))
    record = Restored(command.backup_ns, command.time_ns, counters.next_chunk)
    txn.put(META_RESTORED, encode(record))


def confirm(txn: Writer, _: ConfirmRestore) -> bool:
    """See `ConfirmRestore`."""
    if not is_held(txn):
        return False
    txn.delete(META_RESTORED)
    return True


def raise_next_chunk(txn: Writer, command: RaiseNextChunk) -> None:
    """See `RaiseNextChunk`."""
    counters = get_counters(txn)
    if counters.next_chunk < command.at_least <= CHUNK_MAX:
        put_counters(txn, replace(counters, next_chunk=command.at_least))
