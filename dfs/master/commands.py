"""Every change of the master's state, as a value.

`State.apply` is a pure function of the state and one of these: the time, the random choices
(placement, uuids) and the caller's identity are inside the command, so that a log of commands
replayed anywhere gives the same state, byte for byte. Numbers are never reused; append fields
with defaults, never reorder.

`Command[R]` says what `State.apply` and `Journal.append` return for it.
"""

from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from dfs.core.chunk import Chunk, FragmentState
from dfs.core.ids import ChunkId, DiskId, InodeId, PolicyId, ServerId, SessionId
from dfs.core.inode import Inode
from dfs.core.policy import Policy
from dfs.master.check.fixes import AnyFix
from dfs.master.keyspace import DiskRecord, JobRecord, ServerRecord, SessionRecord
from dfs.wire.messages import AnyOp, Cred, JobState

R = TypeVar("R")


class Command(msgspec.Struct, Generic[R], array_like=True, frozen=True, tag_field="command"):
    """Base of all. `time_ns` is the master's clock when it made the command."""

    time_ns: int


class SessionCommand(Command[R], Generic[R], frozen=True):
    """Takes effect once: a repeat of (session, sequence) returns the first result.

    Raises SessionError where the session is unknown, or the sequence has left the window.
    A command that raises has no effect and is not remembered.
    """

    session: SessionId
    sequence: int


# ------------------------------------------------------------------ the cluster as a whole


class Format(Command[None], frozen=True, tag=1):
    """Make the root, the built-in policies and the cluster's identity. Only on an empty store."""

    cluster: str
    uid: int = 0
    gid: int = 0


class StartMaster(Command[None], frozen=True, tag=2):
    """A master begins to serve: skip `skip_ids` ids of inodes, chunks and sessions.

    A power cut may take the last second of the log with it, and with that the memory of ids
    that clients and disks still know. They must not be given twice.
    """

    skip_ids: int = 1 << 20
    run: int = 0
    """A number for this run, chosen at random; 0: none is noted."""
    position: int = 0
    """How far the log reaches at its beginning."""


# ------------------------------------------------------------------ sessions


class OpenSession(Command[SessionRecord], frozen=True, tag=10):
    """A retry with the same client and nonce gets the same session."""

    client: str
    nonce: int
    address: str = ""


class CloseSession(Command[None], frozen=True, tag=11):
    """Release everything a session holds. An unknown one is no error: it is closed."""

    session: SessionId


class ExpireSession(Command[None], frozen=True, tag=12):
    """As CloseSession, by the master's decision: the lease ran out."""

    session: SessionId


# ------------------------------------------------------------------ the namespace


class ApplyOps(SessionCommand[bytes], frozen=True, tag=20):
    """messages.Apply. Returns the msgpack body of messages.Applied."""

    cred: Cred
    ops: tuple[AnyOp, ...]


class PurgeResult(msgspec.Struct, frozen=True):
    freed: int
    """Rows that this step removed."""
    more: bool
    """There is more to purge now."""
    upto: InodeId
    """`after` of the next step."""


class PurgeStep(Command[PurgeResult], frozen=True, tag=21):
    """Free up to `limit` rows of removed and truncated files and of closed sessions.

    Files are taken from the queue in order of inode, past `after`.
    """

    limit: int = 1000
    after: InodeId = 0


class CreatePolicy(SessionCommand[Policy], frozen=True, tag=22):
    """Raises FileSystemError: EEXIST for a name in use, EINVAL for values out of range."""

    policy: Policy


class DelegateDirectory(SessionCommand[Inode | None], frozen=True, tag=23):
    """Give the session a directory that no session has. None: it is no such directory."""

    ino: InodeId


class ReserveInodes(SessionCommand[InodeId], frozen=True, tag=24):
    """Set `count` numbers aside for the session; the first of them."""

    count: int


class RevokeDelegation(Command[None], frozen=True, tag=25):
    """Take a directory from the session that has it and does not give it back."""

    ino: InodeId
    session: SessionId


# ------------------------------------------------------------------ chunks


class Placement(msgspec.Struct, array_like=True, frozen=True):
    """Where a new chunk goes: `disks[i]` gets fragment i. `k` 1 may have fewer than 1 + m."""

    k: int
    m: int
    disks: tuple[DiskId, ...]


class AllocateChunks(SessionCommand[tuple[Chunk, ...]], frozen=True, tag=30):
    """One new OPEN chunk for each placement, owned by the session."""

    policy: PolicyId
    placements: tuple[Placement, ...]


class SealChunk(SessionCommand[None], frozen=True, tag=31):
    """By its owner. `lost` are indexes of fragments that failed."""

    chunk: ChunkId
    length: int
    lost: tuple[int, ...] = ()


class SealAbandoned(Command[None], frozen=True, tag=32):
    """By the master, for an OPEN chunk whose session is gone. Other chunks are left alone."""

    chunk: ChunkId
    length: int
    lost: tuple[int, ...] = ()


ANY_INDEX: Final = -1
"""Whichever fragment the chunk has on a disk."""


class FragmentMark(msgspec.Struct, array_like=True, frozen=True):
    chunk: ChunkId
    disk: DiskId
    state: FragmentState
    index: int = ANY_INDEX
    """Which it is."""


class MarkFragments(Command[None], frozen=True, tag=33):
    """Note what became of fragments. Marks of unknown chunks or disks are left out, and those of
    a fragment in whose place another one is by now."""

    marks: tuple[FragmentMark, ...]


class DropFragments(Command[None], frozen=True, tag=34):
    """The disk has deleted its fragments of these DOOMED chunks: forget them.

    A chunk is gone with its last fragment. What is not doomed there is left alone.
    """

    disk: DiskId
    chunks: tuple[ChunkId, ...]


class PlaceFragment(Command[bool], frozen=True, tag=35):
    """Disk `disk` holds fragment `index` of a SEALED chunk now, whole and sealed.

    What other disks hold of that index becomes stale. True: it counts. False, and nothing has
    changed: the chunk is gone or not SEALED, the disk has another fragment of it or is about
    to delete a stale one. With `reclaim` the stale one is the fragment meant: it is taken back.
    """

    chunk: ChunkId
    index: int
    disk: DiskId
    reclaim: bool = False


class MarkVerified(Command[None], frozen=True, tag=36):
    """All fragments of these chunks were read and found whole."""

    chunks: tuple[ChunkId, ...]


class MarkStale(Command[None], frozen=True, tag=37):
    """A disk holds fragments of chunks that have that index elsewhere: they shall be deleted.

    `held` are (chunk, index). What the chunk counts on, or lacks, is left alone.
    """

    disk: DiskId
    held: tuple[tuple[ChunkId, int], ...]


class AbandonFragments(Command[None], frozen=True, tag=38):
    """What this disk, which is gone for good, held of these chunks does not count any more."""

    disk: DiskId
    chunks: tuple[ChunkId, ...]


# ------------------------------------------------------------------ chunks written anew


class AllocateTarget(Command[Chunk], frozen=True, tag=80):
    """A new OPEN chunk of the master's own: a chunk server will write bytes of others into it.

    It never outlives the master that made it: `StartMaster` gives up those it finds.
    """

    policy: PolicyId
    placement: Placement


class AbandonTarget(Command[None], frozen=True, tag=81):
    """What was written into this chunk is of no use. One that is SEALED by now is left alone."""

    chunk: ChunkId


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a row of extent-by-chunk is in its chunk."""

    chunk_offset: int
    ino: InodeId
    file_offset: int


class Repointed(msgspec.Struct, frozen=True):
    rows: int
    """Extents that are in the target now."""
    bytes: int
    """The sum of their lengths."""
    upto: Place | None
    """`after` of the next step; None: all have been looked at."""


class Repoint(Command[Repointed], frozen=True, tag=82):
    """Extents that lie in copied parts of a SEALED chunk move to the chunk that has the copies.

    The target is SEALED with the first of them. Chunks never change, so whatever file refers to
    those bytes by now, and however its extents were cut meanwhile, reads the same there; what
    files do not have any more is not in the tables, and what was not copied stays where it is.
    Looks at up to `limit` extents. Without effect where one of the chunks is gone.

    Raises FileSystemError (EINVAL) where the parts do not fit into the target.
    """

    target: ChunkId
    length: int
    """Of the target."""
    lost: tuple[int, ...]
    """Indexes of the target's fragments that could not be written."""
    source: ChunkId
    parts: tuple[tuple[int, int], ...]
    """(offset, length) in the source, in order, without overlap."""
    base: int
    """Where the copy of the first begins in the target; those of the others follow."""
    only: PolicyId = 0
    """Only extents of files that have this policy; 0: of all."""
    after: Place | None = None
    limit: int = 500


class ExpireRetired(Command[None], frozen=True, tag=83):
    """These RETIRED chunks need not be kept any longer: they are DOOMED. Others are left alone."""

    chunks: tuple[ChunkId, ...]


# ------------------------------------------------------------------ servers and disks


class DiskIdentity(msgspec.Struct, array_like=True, frozen=True):
    uuid: str
    path: str


class Registration(msgspec.Struct, frozen=True):
    server: ServerRecord
    disks: tuple[DiskRecord, ...]
    """In the order of the command."""


class RegisterServer(Command[Registration], frozen=True, tag=40):
    """A server announced itself: give ids to what is new, note what changed."""

    uuid: str
    address: str
    rack: str
    zone: str
    version: str
    disks: tuple[DiskIdentity, ...]


class SetDraining(Command[None], frozen=True, tag=41):
    """Disks shall be emptied, or not any more. Unknown disks are left out."""

    disks: tuple[DiskId, ...]
    draining: bool


class ForgetDisks(Command[None], frozen=True, tag=42):
    """These disks are gone for good, and so is each of their servers that has no other.

    Raises FileSystemError (EBUSY) where a disk still has fragments in the tables: nothing has
    changed then. Its stale and doomed rows go with it.
    """

    disks: tuple[DiskId, ...]
    servers: tuple[ServerId, ...] = ()
    """Gone, too, where they have no other disk."""


# ------------------------------------------------------------------ jobs


class StartJob(Command[JobRecord], frozen=True, tag=60):
    """Write a new job down. One of the same kind and subject that has not ended is returned."""

    kind: str
    subject: str
    disks: tuple[DiskId, ...] = ()
    threshold: float = 0.0
    bandwidth: int = 0
    ino: InodeId = 0
    items_total: int = 0
    bytes_total: int = 0
    policy: PolicyId = 0


class JobProgress(msgspec.Struct, array_like=True, frozen=True):
    job: int
    items_done: int
    items_total: int
    bytes_done: int
    bytes_total: int
    failures: int
    position: int
    note: str
    place: tuple[tuple[InodeId, bytes], ...] = ()


class UpdateJobs(Command[None], frozen=True, tag=61):
    """How far jobs have come. Those that have ended are left as they are."""

    jobs: tuple[JobProgress, ...]


class SetJobState(Command[bool], frozen=True, tag=62):
    """False: it has ended before, or is unknown."""

    job: int
    state: JobState
    note: str = ""


class SetBudget(Command[None], frozen=True, tag=63):
    """Bytes a second for all background work together; 0: no bound."""

    bandwidth: int


# ------------------------------------------------------------------ repairs, backups


class MendMetadata(Command[tuple[bool, ...]], frozen=True, tag=70):
    """Make these repairs, each by itself. Returns which of them changed something."""

    fixes: tuple[AnyFix, ...]


class CompleteRestore(Command[None], frozen=True, tag=71):
    """The rows of a backup have been loaded into an empty store.

    Skips `skip_ids` ids of inodes, chunks and sessions: those may have been given since the
    backup. The sessions are closed by commands of their own.
    """

    backup_ns: int
    """When the backup was made."""
    skip_ids: int
    run: int
    """A new number, chosen at random: as of it, the log begins at `position`."""
    position: int
    """How far the log reached in the backup."""


class ConfirmRestore(Command[bool], frozen=True, tag=72):
    """A person confirms the restore: what the metadata do not know may be deleted.

    False: there was nothing to confirm.
    """


class RaiseNextChunk(Command[None], frozen=True, tag=73):
    """A disk holds chunks that this master has yet to make: make none of these numbers."""

    at_least: ChunkId


AnyCommand: TypeAlias = (
    Format
    | StartMaster
    | OpenSession
    | CloseSession
    | ExpireSession
    | ApplyOps
    | PurgeStep
    | CreatePolicy
    | DelegateDirectory
    | ReserveInodes
    | RevokeDelegation
    | AllocateChunks
    | SealChunk
    | SealAbandoned
    | MarkFragments
    | DropFragments
    | PlaceFragment
    | MarkVerified
    | MarkStale
    | AbandonFragments
    | AllocateTarget
    | AbandonTarget
    | Repoint
    | ExpireRetired
    | RegisterServer
    | MendMetadata
    | CompleteRestore
    | ConfirmRestore
    | RaiseNextChunk
    | SetDraining
    | ForgetDisks
    | StartJob
    | UpdateJobs
    | SetJobState
    | SetBudget
)
"""For decoding a logged command."""
