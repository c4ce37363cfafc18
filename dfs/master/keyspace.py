"""The canonical schema of the master's store: every table, its key, its value, its invariants.

A key is one prefix byte, then fixed-width big-endian integers (so that byte order is number
order), then at most one name as raw bytes. A value is a msgpack array (a `Struct`), a plain
big-endian integer, or raw bytes. This module is the only one that knows the bytes of a key.

|     | table             | key                                     | value                     |
| --- | ----------------- | --------------------------------------- | ------------------------- |
| `m` | meta              | name                                    | see META_* below          |
| `i` | inode             | ino                                     | Inode                     |
| `d` | dentry            | parent, name                            | ino (8 bytes)             |
| `e` | extent            | ino, file offset                        | Extent                    |
| `t` | trim              | ino, start                              | end (8 bytes)             |
| `a` | xattr             | ino, name                               | the value's bytes         |
| `c` | chunk             | chunk                                   | Chunk                     |
| `x` | extent by chunk   | chunk, chunk offset (4), ino, file off. | length (4 bytes)          |
| `f` | fragment by disk  | disk, chunk                             | fragment index (1 byte)   |
| `g` | doomed fragment   | disk, chunk                             | empty; stale: its index   |
| `R` | retired chunk     | rewritten_s of the chunk, chunk         | empty                     |
| `W` | wanting chunk     | chunk                                   | since when, ns (8 bytes)  |
| `y` | removed disk      | uuid                                    | when, ns (8 bytes)        |
| `j` | job               | job                                     | JobRecord                 |
| `p` | policy            | policy                                  | Policy                    |
| `n` | policy by name    | name                                    | policy (8 bytes)          |
| `s` | server            | server                                  | ServerRecord              |
| `v` | server by uuid    | uuid                                    | server (8 bytes)          |
| `k` | disk              | disk                                    | DiskRecord                |
| `l` | disk by uuid      | uuid                                    | disk (8 bytes)            |
| `S` | session           | session                                 | SessionRecord             |
| `N` | session by nonce  | nonce, client                           | session (8 bytes)         |
| `o` | open              | ino, session                            | Access bits (1 byte)      |
| `O` | open by session   | session, ino                            | empty                     |
| `b` | chunk by session  | session, chunk                          | empty                     |
| `r` | reply cache       | session, sequence % WINDOW (2)          | sequence (8 bytes), reply |
| `u` | orphan            | ino                                     | Orphan (1 byte)           |
| `q` | purge queue       | ino                                     | resume offset (8 bytes)   |
| `z` | session leftovers | session                                 | empty                     |
| `h` | delegation        | ino of a directory                      | session (8 bytes)         |
| `H` | delegation by s.  | session, ino                            | empty                     |
| `w` | reserved inodes   | session                                 | InodeRanges               |

Invariants (`invariants.check` walks them all):

- Every dentry names an inode, in a directory that exists. A directory has one dentry, and
  `parent` names the directory that holds it; the root holds itself and has none.
- `nlink` of a directory is 2 + its sub-directories; of anything else, the dentries that name
  it. `nlink` 0 exactly for orphans. `size` of a directory is the number of its dentries.
- An orphan is open in at least one session; otherwise its inode would be gone.
- Extents of one ino never overlap, are never empty, and lie within their chunk. Their owner is a
  regular file, or an ino in the purge queue whose inode is gone. `allocated` is the sum of
  their lengths.
- A trim says that all stored extents in [start, end) are dead: readers see a hole, the purge frees
  them. No extent straddles the edge of a trim; trims of one ino neither overlap nor touch.
  An inode with trims has the flag TRIMMED; one with that flag is in the purge queue.
- An inode that has extended attributes has the flag XATTRS, one that is open the flag OPENED.
- Each extent has its row in extent-by-chunk, and the other way round. `live` of a chunk is the
  sum of its extents' lengths. A SEALED chunk has live bytes; one without is DOOMED, and each
  fragment of a DOOMED one is in the doomed table. One that bytes were copied from (`rewritten_s`)
  is RETIRED before it is DOOMED, and exactly then in the table of those.
- Open and open-by-session mirror each other; so do chunk-by-session and the OPEN chunks' `owner`
  (0: its session is gone, the master shall seal it),
  fragment-by-disk and the chunks' fragments, and each by-uuid, by-name and by-nonce index.
- Delegation and delegation-by-session mirror each other, and name directories and sessions that
  exist. Reserved numbers are below `next_inode`.
- A row of the doomed table whose chunk is not DOOMED is a stale fragment: bytes on a disk that the
  chunk no longer counts on, since another disk has that index. Its chunk has no fragment on
  that disk, and gets none there while the row stands. Rows of chunks that are gone may remain.
- A chunk is wanting exactly if it is SEALED and lacks a GOOD fragment of one of its indexes.
- Counters: ids are greater than all in use; totals are what a count would give.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Final, Protocol

import msgspec

from dfs.core.chunk import Chunk
from dfs.core.ids import (
    FIRST_FREE_POLICY,
    ROOT_INODE,
    ChunkId,
    DiskId,
    InodeId,
    PolicyId,
    ServerId,
    SessionId,
)
from dfs.core.inode import Extent, Inode
from dfs.core.policy import Policy
from dfs.wire.messages import FIRST_FREE_JOB, JobState

SCHEMA_VERSION: Final = 3
"""2: wanting chunks, jobs and stale fragments; 3: retired chunks, the standing compaction."""

META_SCHEMA: Final = b"mschema"
"""Schema version, 8 bytes. Absent in a store that was never formatted."""
META_CLUSTER: Final = b"mcluster"
"""The cluster's UUID, ASCII."""
META_COUNTERS: Final = b"mcounters"
"""Counters."""
META_RUNS: Final = b"mruns"
"""LogPosition of the beginning of each run of the master, as far as they are kept."""
META_RESTORED: Final = b"mrestored"
"""`hold.Restored` in a store that was made of a backup, until a person confirms that."""
META_BUDGET: Final = b"mbudget"
"""Bytes a second that background work may move, 8 bytes. Absent: no bound."""

INODE, DENTRY, EXTENT, TRIM, XATTR = b"i", b"d", b"e", b"t", b"a"
CHUNK, EXTENT_BY_CHUNK, FRAGMENT_BY_DISK, DOOMED, RETIRED = b"c", b"x", b"f", b"g", b"R"
POLICY, POLICY_BY_NAME = b"p", b"n"
SERVER, SERVER_BY_UUID, DISK, DISK_BY_UUID = b"s", b"v", b"k", b"l"
SESSION, SESSION_BY_NONCE, OPEN, OPEN_BY_SESSION = b"S", b"N", b"o", b"O"
CHUNK_BY_SESSION, REPLY, ORPHAN, PURGE, LEFTOVERS = b"b", b"r", b"u", b"q", b"z"
DELEGATION, DELEGATION_BY_SESSION, RESERVED = b"h", b"H", b"w"
WANTING, JOB, REMOVED_DISK = b"W", b"j", b"y"


REPAIR_JOB: Final = 1
SCRUB_JOB: Final = 2
COMPACT_JOB: Final = 3


class Orphan(IntEnum):
    """Why an inode has no name."""

    UNLINKED = 0
    """Its last name was removed while it was open; it cannot be named again."""
    UNNAMED = 1
    """Made without one (O_TMPFILE); Link may name it."""


class Counters(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The next ids to give, and totals kept in step with the tables."""

    next_inode: InodeId = ROOT_INODE + 1
    next_chunk: ChunkId = 1
    next_session: SessionId = 1
    next_policy: PolicyId = FIRST_FREE_POLICY
    next_server: ServerId = 1
    next_disk: DiskId = 1
    inodes: int = 0
    """Inodes that exist, orphans among them."""
    live: int = 0
    """Raw bytes that extents refer to, over all chunks."""
    chunks: int = 0
    """Chunks that exist, in any state."""
    chunks_open: int = 0
    chunks_doomed: int = 0
    purging: int = 0
    """Inodes in the purge queue."""
    next_job: int = FIRST_FREE_JOB
    wanting: int = 0
    """Chunks in the wanting table."""
    stale: int = 0
    """Rows of the doomed table that are no fragment of a DOOMED chunk."""
    length: int = 0
    """Raw bytes that chunks hold, live and dead, those of DOOMED ones till they are deleted."""
    redundancy: int = 0
    """Raw bytes of the fragments that these have beyond k."""
    chunks_retired: int = 0


class SessionRecord(msgspec.Struct, array_like=True, frozen=True):
    session: SessionId
    client: str
    nonce: int
    opened_ns: int
    address: str = ""


class InodeRanges(msgspec.Struct, array_like=True, frozen=True):
    """Numbers that a session may still give, the ranges in order: (next, end) of each."""

    ranges: tuple[tuple[InodeId, InodeId], ...] = ()


class ServerRecord(msgspec.Struct, array_like=True, frozen=True):
    """What a chunk server said when it last registered."""

    server: ServerId
    uuid: str
    address: str
    rack: str
    zone: str
    version: str


class DiskRecord(msgspec.Struct, array_like=True, frozen=True):
    disk: DiskId
    uuid: str
    server: ServerId
    path: str
    draining: bool = False
    """It shall be emptied: it takes no new data."""


class JobRecord(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A job as it was last written down; while it runs, its progress is ahead of this."""

    job: int
    kind: str
    state: JobState
    subject: str
    created_ns: int
    ended_ns: int = 0
    disks: tuple[DiskId, ...] = ()
    threshold: float = 0.0
    bandwidth: int = 0
    ino: InodeId = 0
    items_done: int = 0
    items_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    failures: int = 0
    position: int = 0
    """How far it has come, where it goes through a table in order."""
    note: str = ""
    policy: PolicyId = 0
    place: tuple[tuple[InodeId, bytes], ...] = ()
    """How far it has come, where it goes through a tree: see `jobs.tree_walk`."""


class Reader(Protocol):
    """The read side of a store or a transaction."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]: ...

    def scan(
        self, start: bytes, end: bytes, /, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Writer(Reader, Protocol):
    """A transaction, as the functions here need it."""

    def put(self, key: bytes, value: bytes, /) -> None: ...

    def delete(self, key: bytes, /) -> None: ...


Changes = Mapping[bytes, bytes | None]
"""Keys and their new values; None deletes."""

# ------------------------------------------------------------------ keys


def u64(number: int) -> bytes:
    """8 bytes, big-endian. Raises OverflowError outside of [0, 2**64)."""
    return number.to_bytes(8, "big")


def from_u64(data: bytes) -> int:
    return int.from_bytes(data, "big")


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix` (a table's, or a table's and an id's)."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def inode_key(ino: InodeId) -> bytes:
    return b"i" + ino.to_bytes(8, "big")


def dentry_key(parent: InodeId, name: bytes) -> bytes:
    return b"d" + parent.to_bytes(8, "big") + name


def dentry_name(key: bytes) -> bytes:
    return key[9:]


def extent_key(ino: InodeId, file_offset: int) -> bytes:
    return b"e" + ino.to_bytes(8, "big") + file_offset.to_bytes(8, "big")


def extent_place(key: bytes) -> tuple[InodeId, int]:
    """(ino, file offset) of an extent key."""
    return int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:17], "big")


def trim_key(ino: InodeId, start: int) -> bytes:
    return b"t" + ino.to_bytes(8, "big") + start.to_bytes(8, "big")


def xattr_key(ino: InodeId, name: bytes) -> bytes:
    return b"a" + ino.to_bytes(8, "big") + name


def xattr_name(key: bytes) -> bytes:
    return key[9:]


def chunk_key(chunk: ChunkId) -> bytes:
    return b"c" + chunk.to_bytes(8, "big")


def extent_by_chunk_key(chunk: ChunkId, chunk_offset: int, ino: InodeId, file_offset: int) -> bytes:
    return (
        b"x"
        + chunk.to_bytes(8, "big")
        + chunk_offset.to_bytes(4, "big")
        + ino.to_bytes(8, "big")
        + file_offset.to_bytes(8, "big")
    )


def extent_by_chunk_place(key: bytes) -> tuple[ChunkId, int, InodeId, int]:
    """(chunk, chunk offset, ino, file offset) of an extent-by-chunk key."""
    number = int.from_bytes
    return (
        number(key[1:9], "big"),
        number(key[9:13], "big"),
        number(key[13:21], "big"),
        number(key[21:29], "big"),
    )


def fragment_by_disk_key(disk: DiskId, chunk: ChunkId) -> bytes:
    return b"f" + disk.to_bytes(8, "big") + chunk.to_bytes(8, "big")


def fragment_by_disk_place(key: bytes) -> tuple[DiskId, ChunkId]:
    return int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:17], "big")


def doomed_key(disk: DiskId, chunk: ChunkId) -> bytes:
    return b"g" + disk.to_bytes(8, "big") + chunk.to_bytes(8, "big")


def retired_key(rewritten_s: int, chunk: ChunkId) -> bytes:
    return b"R" + rewritten_s.to_bytes(8, "big") + chunk.to_bytes(8, "big")


def wanting_key(chunk: ChunkId) -> bytes:
    return b"W" + chunk.to_bytes(8, "big")


def job_key(job: int) -> bytes:
    return b"j" + job.to_bytes(8, "big")


def policy_key(policy: PolicyId) -> bytes:
    return b"p" + policy.to_bytes(8, "big")


def policy_by_name_key(name: str) -> bytes:
    return b"n" + name.encode()


def server_key(server: ServerId) -> bytes:
    return b"s" + server.to_bytes(8, "big")


def server_by_uuid_key(uuid: str) -> bytes:
    return b"v" + uuid.encode()


def disk_key(disk: DiskId) -> bytes:
    return b"k" + disk.to_bytes(8, "big")


def disk_by_uuid_key(uuid: str) -> bytes:
    return b"l" + uuid.encode()


def removed_disk_key(uuid: str) -> bytes:
    return b"y" + uuid.encode()


def session_key(session: SessionId) -> bytes:
    return b"S" + session.to_bytes(8, "big")


def session_by_nonce_key(nonce: int, client: str) -> bytes:
    return b"N" + (nonce & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big") + client.encode()


def open_key(ino: InodeId, session: SessionId) -> bytes:
    return b"o" + ino.to_bytes(8, "big") + session.to_bytes(8, "big")


def open_by_session_key(session: SessionId, ino: InodeId) -> bytes:
    return b"O" + session.to_bytes(8, "big") + ino.to_bytes(8, "big")


def chunk_by_session_key(session: SessionId, chunk: ChunkId) -> bytes:
    return b"b" + session.to_bytes(8, "big") + chunk.to_bytes(8, "big")


def reply_key(session: SessionId, slot: int) -> bytes:
    return b"r" + session.to_bytes(8, "big") + slot.to_bytes(2, "big")


def orphan_key(ino: InodeId) -> bytes:
    return b"u" + ino.to_bytes(8, "big")


def purge_key(ino: InodeId) -> bytes:
    return b"q" + ino.to_bytes(8, "big")


def leftovers_key(session: SessionId) -> bytes:
    return b"z" + session.to_bytes(8, "big")


def delegation_key(ino: InodeId) -> bytes:
    return b"h" + ino.to_bytes(8, "big")


def delegation_by_session_key(session: SessionId, ino: InodeId) -> bytes:
    return b"H" + session.to_bytes(8, "big") + ino.to_bytes(8, "big")


def reserved_key(session: SessionId) -> bytes:
    return b"w" + session.to_bytes(8, "big")


def key_id(key: bytes) -> int:
    """The first id of a key, after its prefix byte."""
    return int.from_bytes(key[1:9], "big")


def second_id(key: bytes) -> int:
    """The second id of a key of two ids."""
    return int.from_bytes(key[9:17], "big")


# ------------------------------------------------------------------ values

encode = msgspec.msgpack.Encoder().encode
"""Any struct of the schema to its stored bytes."""

decode_inode = msgspec.msgpack.Decoder(Inode).decode
decode_extent = msgspec.msgpack.Decoder(Extent).decode
decode_chunk = msgspec.msgpack.Decoder(Chunk).decode
decode_policy = msgspec.msgpack.Decoder(Policy).decode
decode_counters = msgspec.msgpack.Decoder(Counters).decode
decode_session = msgspec.msgpack.Decoder(SessionRecord).decode
decode_ranges = msgspec.msgpack.Decoder(InodeRanges).decode
decode_server = msgspec.msgpack.Decoder(ServerRecord).decode
decode_disk = msgspec.msgpack.Decoder(DiskRecord).decode
decode_job = msgspec.msgpack.Decoder(JobRecord).decode

# ------------------------------------------------------------------ accessors


def get_inode(reader: Reader, ino: InodeId) -> Inode | None:
    raw = reader.get(b"i" + ino.to_bytes(8, "big"))
    return None if raw is None else decode_inode(raw)


def put_inode(txn: Writer, inode: Inode) -> None:
    txn.put(b"i" + inode.ino.to_bytes(8, "big"), encode(inode))


def get_dentry(reader: Reader, parent: InodeId, name: bytes) -> InodeId | None:
    raw = reader.get(b"d" + parent.to_bytes(8, "big") + name)
    return None if raw is None else int.from_bytes(raw, "big")


def put_dentry(txn: Writer, parent: InodeId, name: bytes, ino: InodeId) -> None:
    txn.put(b"d" + parent.to_bytes(8, "big") + name, ino.to_bytes(8, "big"))


def get_chunk(reader: Reader, chunk: ChunkId) -> Chunk | None:
    raw = reader.get(chunk_key(chunk))
    return None if raw is None else decode_chunk(raw)


def get_chunks(reader: Reader, chunks: Iterable[ChunkId]) -> list[Chunk | None]:
    """For those who go through many: cheaper, and nothing is kept at hand for others to read."""
    raws = reader.get_many([chunk_key(chunk) for chunk in chunks])
    return [None if raw is None else decode_chunk(raw) for raw in raws]


def put_chunk(txn: Writer, chunk: Chunk) -> None:
    txn.put(chunk_key(chunk.chunk), encode(chunk))


def get_policy(reader: Reader, policy: PolicyId) -> Policy | None:
    raw = reader.get(policy_key(policy))
    return None if raw is None else decode_policy(raw)


def get_policy_named(reader: Reader, name: str) -> Policy | None:
    raw = reader.get(policy_by_name_key(name))
    return None if raw is None else get_policy(reader, from_u64(raw))


def put_policy(txn: Writer, policy: Policy) -> None:
    """Store a policy and its name; the name must be free or this policy's."""
    txn.put(policy_key(policy.policy), encode(policy))
    txn.put(policy_by_name_key(policy.name), u64(policy.policy))


def policies(reader: Reader) -> list[Policy]:
    return [decode_policy(value) for _, value in reader.scan(POLICY, prefix_end(POLICY))]


def get_session(reader: Reader, session: SessionId) -> SessionRecord | None:
    raw = reader.get(session_key(session))
    return None if raw is None else decode_session(raw)


def get_counters(reader: Reader) -> Counters:
    raw = reader.get(META_COUNTERS)
    return Counters() if raw is None else decode_counters(raw)


def put_counters(txn: Writer, counters: Counters) -> None:
    txn.put(META_COUNTERS, encode(counters))


def enqueue_purge(txn: Writer, ino: InodeId) -> None:
    """Put an inode that is not there yet into the purge queue."""
    txn.put(purge_key(ino), u64(0))
    counters = get_counters(txn)
    put_counters(txn, msgspec.structs.replace(counters, purging=counters.purging + 1))


def dequeue_purge(txn: Writer, ino: InodeId) -> None:
    txn.delete(purge_key(ino))
    counters = get_counters(txn)
    put_counters(txn, msgspec.structs.replace(counters, purging=counters.purging - 1))


def scan_prefix(
    reader: Reader, prefix: bytes, *, after: bytes = b""
) -> Iterator[tuple[bytes, bytes]]:
    """Rows whose key starts with `prefix`, in order; with `after` (a whole key), those past it."""
    return reader.scan(after + b"\0" if after else prefix, prefix_end(prefix))
