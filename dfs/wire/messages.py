"""Every request and reply of dfs, and the numbered method table on one screen (`METHODS`).

Bodies are msgpack arrays: append fields with defaults, never reorder or reuse. Numbers of
methods and operations are never reused. Names and symlink targets are bytes, as POSIX has
them; they contain neither b"/" nor b"\\0".
"""

from enum import IntEnum, IntFlag
from typing import Final, TypeAlias

import msgspec

from dfs.core.chunk import Chunk, Layout
from dfs.core.errors import WireError
from dfs.core.ids import ChunkId, DiskId, InodeId, PolicyId, ServerId, SessionId
from dfs.core.inode import AppendMark, Extent, Inode
from dfs.core.policy import Policy


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all requests and replies."""


class Empty(Message, frozen=True):
    """A reply that says only: done."""


class Cred(msgspec.Struct, array_like=True, frozen=True):
    """Who asks. uid 0 passes every permission check but the structural ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


# ------------------------------------------------------------------ operations (in Apply)


class Op(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="op"):
    """Base of the namespace changes. The tag is the operation's number."""


class Create(Op, frozen=True, tag=1):
    """Make a regular file, or with `exclusive` False return the one that is there.

    An existing directory is EISDIR; an existing file needs permission for what `access` asks
    for, if it is opened too.
    Sticky, set-id bits, the group of a setgid parent: as POSIX and Linux have them.
    """

    parent: InodeId
    name: bytes
    mode: int
    exclusive: bool = True
    open: bool = False
    """Also Open it for this session, in the same transaction."""
    access: int = 6
    """With `open`: what an Open of a file that is already there asks for (READ | WRITE)."""
    ino: InodeId = 0
    """With `time_ns`: its number, of those reserved for this session; 0: the master gives one."""
    time_ns: int = 0
    """When it was done, under a delegation of `parent` that the session must still have."""


class Mkdir(Op, frozen=True, tag=2):
    parent: InodeId
    name: bytes
    mode: int


class Mknod(Op, frozen=True, tag=3):
    """FIFO, socket or device (S_IFREG too). Devices need uid 0 (EPERM)."""

    parent: InodeId
    name: bytes
    mode: int
    rdev: int = 0


class Symlink(Op, frozen=True, tag=4):
    parent: InodeId
    name: bytes
    target: bytes


class Link(Op, frozen=True, tag=5):
    """Another name for `ino` (never a directory: EPERM). Gives an Unnamed inode its first name."""

    ino: InodeId
    parent: InodeId
    name: bytes
    replace: bool = False
    """Take the place of an existing non-directory of that name, atomically."""


class Unlink(Op, frozen=True, tag=6):
    parent: InodeId
    name: bytes
    time_ns: int = 0
    """As of Create."""


class Rmdir(Op, frozen=True, tag=7):
    parent: InodeId
    name: bytes


class RenameFlag(IntFlag):
    """Values of renameat2(2)."""

    NOREPLACE = 1
    EXCHANGE = 2


class Rename(Op, frozen=True, tag=8):
    parent: InodeId
    name: bytes
    new_parent: InodeId
    new_name: bytes
    flags: int = 0
    time_ns: int = 0
    """As of Create; both directories must be delegated."""


class SetAttr(Op, frozen=True, tag=9):
    """chmod, chown, utimens and truncate in one; None leaves a field as it is.

    Clears set-id bits as Linux does. `now` names the times to set to the master's clock.
    """

    ino: InodeId
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


class XattrMode(IntEnum):
    ANY = 0
    CREATE = 1
    REPLACE = 2


class SetXattr(Op, frozen=True, tag=10):
    ino: InodeId
    name: bytes
    value: bytes
    mode: int = XattrMode.ANY


class RemoveXattr(Op, frozen=True, tag=11):
    ino: InodeId
    name: bytes


class Access(IntFlag):
    """Values of access(2)."""

    EXECUTE = 1
    WRITE = 2
    READ = 4


class Open(Op, frozen=True, tag=12):
    """Keep the inode's data while this session has it open, also when unlinked.

    Idempotent: a session has an inode open or not; the client counts its own handles.
    """

    ino: InodeId
    access: int = Access.READ


class Release(Op, frozen=True, tag=13):
    """The session no longer has the inode open; an unlinked one is purged after its last."""

    ino: InodeId


class Unnamed(Op, frozen=True, tag=14):
    """Make a regular file without a name (O_TMPFILE), opened by this session.

    Owner, group and policy as if it were created in `parent`. Gone with the session unless
    Link names it. `upload` writes big files this way, so that none is seen half written.
    """

    parent: InodeId
    mode: int


class Commit(Op, frozen=True, tag=15):
    """Publish written bytes: atomically replace what the extents cover, by them.

    `size`: the file is at least that long after (None: as the extents' ends say). With
    `append` the extents' offsets and `size` are relative to the end of the file at commit. The
    session must own the open chunks named, or they must be sealed. Sets mtime and ctime to now, or
    mtime to `mtime_ns`; clears set-id bits unless uid 0. The inode keeps the `mark` of an append.
    With `version`, only a file whose bytes are of that version is changed (else ECANCELED).
    """

    ino: InodeId
    extents: tuple[Extent, ...]
    size: int | None = None
    mtime_ns: int | None = None
    append: bool = False
    mark: AppendMark | None = None
    version: int | None = None


class PunchHole(Op, frozen=True, tag=16):
    ino: InodeId
    offset: int
    length: int


class CloneRange(Op, frozen=True, tag=17):
    """Share `length` bytes (0: to the end) of `ino` with `new_ino`; no byte moves."""

    ino: InodeId
    offset: int
    new_ino: InodeId
    new_offset: int
    length: int


class Put(Op, frozen=True, tag=18):
    """A whole small file in one step: create, content, owner and times, under its name.

    With `replace`, takes the place of an existing non-directory atomically (a new inode), else
    EEXIST. uid/gid other than the caller's need uid 0.
    """

    parent: InodeId
    name: bytes
    mode: int
    size: int
    extents: tuple[Extent, ...] = ()
    mtime_ns: int | None = None
    uid: int | None = None
    gid: int | None = None
    replace: bool = True
    policy: PolicyId = 0
    """0: the parent's."""


class SetPolicy(Op, frozen=True, tag=19):
    """New data of this file, or of new children of this directory, takes `policy`."""

    ino: InodeId
    policy: PolicyId


class Undelegate(Op, frozen=True, tag=20):
    """Give a directory's delegation back; nothing happens where the session has none."""

    ino: InodeId


class OpenNamed(Op, frozen=True, tag=21):
    """As Open, of an inode that was found by a name: ESTALE where that means another by now.

    Close-to-open in one step: between the two nobody can put another file in its place. The right
    to search `parent` is not asked for.
    """

    ino: InodeId
    parent: InodeId
    name: bytes
    access: int = Access.READ


AnyOp: TypeAlias = (
    Create
    | Mkdir
    | Mknod
    | Symlink
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttr
    | SetXattr
    | RemoveXattr
    | Open
    | Release
    | Unnamed
    | Commit
    | PunchHole
    | CloneRange
    | Put
    | SetPolicy
    | Undelegate
    | OpenNamed
)


class OpResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What became of one operation: `inode` after it (for the removed: None), or `error`."""

    inode: Inode | None = None
    error: WireError | None = None
    time_ns: int = 0
    """Where there is no inode to say it: when it happened, by the master's clock. 0: not told."""


# ------------------------------------------------------------------ client -> master


class OpenSession(Message, frozen=True):
    """Start a session; a retry with the same nonce gets the same session."""

    client: str
    """Host and program, for `admin sessions`."""
    nonce: int


class SessionOpened(Message, frozen=True):
    session: SessionId
    lease_s: float
    """Renew at least this often (any Apply renews too)."""
    cluster: str
    """The cluster's UUID."""


class RenewSession(Message, frozen=True):
    session: SessionId


class CloseSession(Message, frozen=True):
    """Drop the session: its open files are released, its open chunks sealed."""

    session: SessionId


class Apply(Message, frozen=True):
    """Change the namespace: all `ops` in order, in one atomic transaction of its own each.

    One failed op does not undo or stop the others. `sequence` goes up by one with every new
    request of the session, at most `WINDOW` in flight; a retry repeats the number and gets the
    first answer.
    """

    session: SessionId
    sequence: int
    cred: Cred
    ops: tuple[AnyOp, ...]
    sync: bool = False
    """Reply when the change is on the master's disk, as after a SyncBarrier."""


WINDOW: Final = 256
"""Changes a session may have in flight: replies are kept in a ring of this size."""

OPS_MAX: Final = 4096
"""Operations in one Apply."""


class LogPosition(msgspec.Struct, array_like=True, frozen=True):
    """How far the master's log reached when it answered a change."""

    run: int
    """Names one run of a master, from its start to its end."""
    position: int
    """Goes up with every change of a run; the next goes on where the log was found to end."""


class Applied(Message, frozen=True):
    results: tuple[OpResult, ...]
    position: LogPosition | None = None
    """For the next SyncBarrier; None from an older master."""
    synced: bool = False
    """This change and all that this run answered before it are on the master's disk."""


class Lookup(Message, frozen=True):
    cred: Cred
    parent: InodeId
    name: bytes
    """One name, b"." or b".."."""
    with_extents: bool = False
    """Also the extents of a regular file that has at most `EXTENTS_INLINE_MAX`."""


class Resolve(Message, frozen=True):
    """Walk a whole path from `start` in one call, following symlinks (the last one if asked)."""

    cred: Cred
    path: bytes
    follow: bool = True
    start: InodeId = 1


class GetInode(Message, frozen=True):
    ino: InodeId


class InodeReply(Message, frozen=True):
    inode: Inode


class LookupReply(Message, frozen=True):
    inode: Inode
    extents: tuple[Extent, ...] | None = None
    """None: not asked for, or too many."""


class ReadDir(Message, frozen=True):
    """Entries of a directory in order of name, after the name `after` (b"": from the first).

    "." and ".." are not among them. A directory that changes meanwhile: entries that stay are
    seen once, others once or not at all.
    """

    cred: Cred
    ino: InodeId
    after: bytes = b""
    limit: int = 1000
    with_extents: bool = False
    """Also the extents of regular files that have at most `EXTENTS_INLINE_MAX`, and layout."""


READDIR_MAX: Final = 4096
EXTENTS_INLINE_MAX: Final = 4


class DirEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    name: bytes
    inode: Inode
    extents: tuple[Extent, ...] | None = None
    """None: not asked for, or too many."""


class DirReply(Message, frozen=True):
    entries: tuple[DirEntry, ...]
    more: bool
    layout: Layout = Layout()


class GetXattr(Message, frozen=True):
    cred: Cred
    ino: InodeId
    name: bytes


class XattrReply(Message, frozen=True):
    value: bytes


class ListXattr(Message, frozen=True):
    ino: InodeId


class XattrNames(Message, frozen=True):
    names: tuple[bytes, ...]


class GetExtents(Message, frozen=True):
    """Extents that overlap [offset, offset + length), at most `limit`, and where they lie."""

    ino: InodeId
    offset: int = 0
    length: int = 1 << 62
    limit: int = 1000


class ExtentsReply(Message, frozen=True):
    inode: Inode
    extents: tuple[Extent, ...]
    more: bool
    layout: Layout


class LocateChunks(Message, frozen=True):
    """Where chunks lie now; unknown ones are left out of the reply."""

    chunks: tuple[ChunkId, ...]


class LayoutReply(Message, frozen=True):
    layout: Layout


class AllocateChunks(Message, frozen=True):
    """Open chunks for this session to append to, each on k + m disks (or as few as may be).

    Raises RedundancyError where the policy can never be met by the servers registered,
    NoSpaceError where no disks have room, UnavailableError where too few are up now.
    """

    session: SessionId
    sequence: int
    policy: PolicyId
    count: int = 1
    avoid: tuple[DiskId, ...] = ()
    """Disks that just failed this client."""
    near: str = ""
    """Address of the client's host, for client-local placement."""


class SealChunk(Message, frozen=True):
    """The owner is done: `length` raw bytes stand on every fragment but the `lost` ones.

    Commit what shall be kept before: a chunk sealed without live bytes is deleted at once.
    """

    session: SessionId
    sequence: int
    chunk: ChunkId
    length: int
    lost: tuple[int, ...] = ()
    """Indexes of fragments that failed."""


class FragmentReport(msgspec.Struct, array_like=True, frozen=True):
    chunk: ChunkId
    disk: DiskId
    reason: str
    """`corrupt`, `missing`, `short`, `unreachable`."""
    index: int = -1
    """Which fragment it was; below 0: not known."""


class ReportFragments(Message, frozen=True):
    """A reader found bad fragments; the master notes them for repair."""

    reports: tuple[FragmentReport, ...]


class StatFs(Message, frozen=True):
    pass


class FsStats(Message, frozen=True):
    capacity: int
    """Bytes of all disks that dfs may fill."""
    free: int
    inodes: int
    chunks: int
    live: int
    """Raw bytes that files refer to."""
    policy_expansion: float = 1.0
    """Width / k of the root's policy, to turn disk bytes into file bytes."""
    used: int = 0
    """Bytes of fragments on all disks."""
    length: int = 0
    """Raw bytes that chunks hold, live and dead."""
    redundancy: int = 0
    """Raw bytes of their fragments beyond k."""


class SyncBarrier(Message, frozen=True):
    """Reply when every change answered before it is on the master's disk.

    Raises LostChangesError where a power cut took one of those that `answered` speaks of.
    """

    answered: tuple[LogPosition, ...] = ()
    """The highest position answered by each run since the last barrier that was answered."""


class ListPolicies(Message, frozen=True):
    pass


class PoliciesReply(Message, frozen=True):
    policies: tuple[Policy, ...]


class CreatePolicy(Message, frozen=True):
    session: SessionId
    sequence: int
    policy: Policy
    """Its number is ignored; the master gives one."""


class PolicyReply(Message, frozen=True):
    policy: Policy


# ------------------------------------------------------------------ delegations


class Delegate(Message, frozen=True):
    """Ask for a directory: while it is delegated, nobody else sees or changes its entries.

    The session may then do so by itself and tell the master later, with the time it was done.
    Who else wants to see or change them makes the master recall the directory, and waits.
    """

    session: SessionId
    sequence: int
    ino: InodeId


class Delegated(Message, frozen=True):
    """On the master's disk when it is answered."""

    inode: Inode | None
    """The directory, whose entries nobody else changes from now on; None: refused."""
    now_ns: int
    """The master's clock."""
    again_s: float = 0.0
    """Where it was refused: asking is of no use before."""


class ReserveInodes(Message, frozen=True):
    """Numbers for files that this session makes under delegations, to be used in order."""

    session: SessionId
    sequence: int
    count: int


class ReservedInodes(Message, frozen=True):
    first: InodeId
    count: int


class AwaitRecalls(Message, frozen=True):
    """Reply when delegated directories of the session are wanted back, or after a while.

    A client that holds any always has one of these with the master. The connection it comes over
    is the session's: what is read over it is the session's own.
    """

    session: SessionId


class Recalls(Message, frozen=True):
    inos: tuple[InodeId, ...]
    """To be given back (Undelegate) as soon as what was done in them has been told."""
    now_ns: int
    """The master's clock."""


RESERVE_MAX: Final = 1 << 16
"""Numbers in one ReserveInodes."""
DELEGATIONS_MAX: Final = 256
"""Directories delegated to one session."""


# ------------------------------------------------------------------ administration


class DiskInfo(msgspec.Struct, array_like=True, frozen=True):
    disk: DiskId
    uuid: str
    server: ServerId
    path: str
    state: int
    """DiskState."""
    capacity: int
    used: int
    free: int
    """Bytes dfs may still write: reserve taken off."""
    fragments: int
    error: str = ""


class ServerInfo(msgspec.Struct, array_like=True, frozen=True):
    server: ServerId
    uuid: str
    address: str
    rack: str
    zone: str
    state: int
    """DiskState of the server as a whole: UP, SUSPECT or DOWN."""
    version: str
    last_heartbeat_s: float
    """Seconds ago; -1 if never since the master started."""
    disks: tuple[DiskInfo, ...]


class SessionInfo(msgspec.Struct, array_like=True, frozen=True):
    session: SessionId
    client: str
    address: str
    opened_ns: int
    renewed_s: float
    """Seconds ago."""
    open_files: int
    open_chunks: int


class ListServers(Message, frozen=True):
    pass


class ServersReply(Message, frozen=True):
    servers: tuple[ServerInfo, ...]


class ListSessions(Message, frozen=True):
    pass


class SessionsReply(Message, frozen=True):
    sessions: tuple[SessionInfo, ...]


class ListChunks(Message, frozen=True):
    """Chunks in order of id, after `after`."""

    after: ChunkId = 0
    limit: int = 1000


class ChunksReply(Message, frozen=True):
    chunks: tuple[Chunk, ...]
    more: bool
    layout: Layout


class ClusterStatus(Message, frozen=True):
    pass


class StatusReply(Message, frozen=True):
    cluster: str
    version: str
    uptime_s: float
    capacity: int
    used: int
    free: int
    inodes: int
    chunks: int
    chunks_open: int
    chunks_healthy: int
    """All fragments good, on disks that are up."""
    chunks_degraded: int
    """Fewer fragments than the policy wants, and more than k + 1 left (or all spares but none)."""
    chunks_at_risk: int
    """Exactly k fragments left and the policy wants more: one more failure loses data."""
    chunks_lost: int
    """Fewer than k fragments left."""
    live: int
    purge_queue: int
    """Chunks that wait for the deletion of their fragments."""
    servers: tuple[ServerInfo, ...]
    problems: tuple[str, ...]
    """What is wrong, one sentence each; empty when healthy."""
    length: int = 0
    """Raw bytes that chunks hold, live and dead."""
    redundancy: int = 0
    """Raw bytes of their fragments beyond k."""
    chunks_retired: int = 0
    """Chunks that no file refers to, kept for older backups of the metadata; not in `chunks`."""


# ------------------------------------------------------------------ jobs and membership


FIRST_FREE_JOB: Final = 16
"""Jobs with lower numbers are the standing ones, which never end."""


class JobState(IntEnum):
    """Life of a job. RUNNING and PAUSED go back and forth; the others are its end."""

    RUNNING = 1
    PAUSED = 2
    DONE = 3
    CANCELLED = 4
    FAILED = 5


class JobInfo(msgspec.Struct, array_like=True, frozen=True):
    """One piece of background work, as it stands."""

    job: int
    kind: str
    """`repair`, `scrub`, `rebalance`, `drain`, `compact` or `convert`."""
    state: JobState
    subject: str
    """What it is about, for people: `disk 3 (/srv/a)`; "" for the whole cluster."""
    created_ns: int
    ended_ns: int
    items_done: int
    items_total: int
    """Chunks (`convert`: files); what is known so far of it where the end is not known yet."""
    bytes_done: int
    bytes_total: int
    failures: int
    rate: float
    """Bytes a second, lately."""
    left_s: float
    """Seconds left at this rate; below zero where nobody can tell."""
    note: str
    """What it does right now, or waits for, or why it ended."""


class PlannedDisk(msgspec.Struct, array_like=True, frozen=True):
    """A disk before and after a planned job."""

    disk: DiskId
    server: ServerId
    path: str
    address: str
    capacity: int
    used: int
    used_after: int


class PlanReply(Message, frozen=True):
    """What a job would do. Nothing has been done."""

    kind: str
    subject: str
    items: int
    """Chunks concerned."""
    bytes: int
    """Bytes to be moved, as far as can be told before they are read."""
    seconds: float
    """At the bandwidth budget; below zero where there is none."""
    disks: tuple[PlannedDisk, ...]
    notes: tuple[str, ...]
    """What a person should know before starting it."""
    refusal: str = ""
    """Why it cannot be done; "" where it can."""


class StartJob(Message, frozen=True):
    """Start a job, in the master's store: it survives a restart of the master.

    A second one of the same kind and subject is not started: the reply is the first. With `plan`
    the reply says in `plan` what would be done, and nothing is started.
    """

    kind: str
    disks: tuple[DiskId, ...] = ()
    """`drain`: the disks to empty."""
    threshold: float = 0.05
    """`rebalance`: how far a disk's fill may be from the average, relative to the average."""
    bandwidth: int = 0
    """Bytes a second for this job alone; 0: the cluster's budget only."""
    ino: InodeId = 0
    """`convert`: the file or directory."""
    plan: bool = False
    policy: PolicyId = 0
    """`convert`: how the files shall be kept that have this policy."""
    path: str = ""
    """`convert`: what people call the file or directory."""


class JobReply(Message, frozen=True):
    job: JobInfo | None
    plan: PlanReply | None = None


class ListJobs(Message, frozen=True):
    """All jobs that run or are paused, and the last that ended."""

    job: int = 0
    """Only this one."""


class JobsReply(Message, frozen=True):
    jobs: tuple[JobInfo, ...]
    budget: int
    """Bytes a second that all background work together may move; 0: no bound."""


class ControlJob(Message, frozen=True):
    job: int
    action: str
    """`pause`, `resume` or `cancel`."""


class SetBudget(Message, frozen=True):
    """Bytes a second for all background work together; 0: no bound. Holds at once."""

    bandwidth: int


class SetDraining(Message, frozen=True):
    """Take disks out of placement, or back into it."""

    disks: tuple[DiskId, ...]
    draining: bool


class RemoveDisks(Message, frozen=True):
    """Forget a server (with its disks), or single disks.

    Refused (EBUSY) while one of the disks is alive and not empty, or holds a fragment that
    some chunk cannot do without.
    """

    server: ServerId = 0
    disks: tuple[DiskId, ...] = ()


# ------------------------------------------------------------------ checks, backups


class StartCheck(Message, frozen=True):
    """Check the metadata against itself and against what the disks hold, while all goes on.

    The check ends when nobody asks for it by ReadCheck for `CHECK_IDLE_S`.

    A retry with the same nonce is the same check. Raises BusyError while somebody watches another.
    """

    nonce: int
    repair: bool = False
    """Also mend what can be mended without a person."""


CHECK_IDLE_S: Final = 30.0


class CheckStarted(Message, frozen=True):
    check: int


class ReadCheck(Message, frozen=True):
    """How far a check is, and its findings past the first `after`.

    Raises FileSystemError (ENOENT) for one that is not (or no longer) known.
    """

    check: int
    after: int = 0


class Outcome(IntEnum):
    """What became of a finding."""

    FOUND = 1
    """Nothing: it was not to be mended."""
    REPAIRED = 2
    LEFT = 3
    """It needs a person."""


class Finding(msgspec.Struct, array_like=True, frozen=True, gc=False):
    what: str
    outcome: Outcome
    todo: str = ""


class CheckReply(Message, frozen=True):
    phase: str
    """What it does now, for people; "" at the end."""
    done: int
    total: int
    """Of what the phase goes through; about."""
    finished: bool
    error: str
    """Why it could not be finished, or ""."""
    inodes: int
    chunks: int
    fragments: int
    """Looked at so far."""
    found: int
    repaired: int
    left: int
    """`found` counts the others too."""
    findings: tuple[Finding, ...]
    more: bool
    notes: tuple[str, ...]
    """What is no damage, and worth knowing."""
    unchecked: tuple[str, ...]
    """What could not be looked at, and why."""


class ReadBackup(Message, frozen=True):
    """A piece of a backup of the metadata, as the payload of the reply.

    The first one, 0, with a nonce that is new begins a backup; then the pieces are asked for in
    order, and the last one that was had may be had again. One that is not read for a while is
    given up.

    Raises BusyError while too many are under way, FileSystemError for one that was given up.
    """

    nonce: int
    piece: int = 0


class BackupPiece(Message, frozen=True):
    last: bool


class ConfirmRestore(Message, frozen=True):
    """What a restored master knows of its restore; with `confirm`, a person says that it stays.

    Until then nothing is deleted on the disks, and what the backup does not know is kept there.
    """

    confirm: bool = False


class RestoreReply(Message, frozen=True):
    restored: bool
    """False: it was not restored, or that is confirmed; all else is 0 then."""
    backup_ns: int
    """When the backup was made."""
    restored_ns: int
    disks: int
    disks_heard: int
    """Those that have said what they hold."""
    fragments: int
    """On these, that the metadata do not know."""
    newer: int
    """Of chunks that were made after the backup."""
    bytes: int
    """Of content that those fragments cover."""


class ListFragments(Message, frozen=True):
    """What a disk holds of chunks past `after`, in order: a page that goes through `limit` of them.

    Each fragment is looked into: its file, header, length and index, not its records.
    """

    disk: DiskId
    after: ChunkId = 0
    limit: int = 2000


FRAGMENTS_MAX: Final = 20_000
"""Fragments in one FragmentsReply."""


# ------------------------------------------------------------------ chunk server -> master


class DiskReport(msgspec.Struct, array_like=True, frozen=True):
    uuid: str
    path: str
    capacity: int
    used: int
    free: int
    fragments: int
    failed: bool = False
    error: str = ""


class RegisterServer(Message, frozen=True):
    """First word of a chunk server, and again whenever the master does not know it."""

    uuid: str
    address: str
    rack: str
    zone: str
    version: str
    cluster: str
    """The cluster's UUID its disks belong to, or "" for fresh disks."""
    disks: tuple[DiskReport, ...]


class Registered(Message, frozen=True):
    cluster: str
    server: ServerId
    disks: tuple[DiskId, ...]
    """In the order of the request."""
    heartbeat_s: float


class Heartbeat(Message, frozen=True):
    server: ServerId
    disks: tuple[DiskReport, ...]


class HeartbeatReply(Message, frozen=True):
    known: bool
    """False: register again (the master restarted and does not know this server's address)."""
    report_disks: tuple[DiskId, ...] = ()
    """Disks whose fragments the master wants listed by ReportChunks."""
    questions: tuple[int, ...] = ()
    """Of each of these: what its pages shall say they answer."""


class HeldFragment(msgspec.Struct, array_like=True, frozen=True, gc=False):
    chunk: ChunkId
    index: int
    length: int
    """Raw bytes of the chunk that the fragment covers."""
    sealed: bool


class ReportChunks(Message, frozen=True):
    """What a disk holds, by chunk, in pages; `after` is the last chunk of the page before.

    The list was begun after the `question` it answers came (0: of an older server, that does not
    say). One that is not the last that was asked is not looked at.
    """

    server: ServerId
    disk: DiskId
    after: ChunkId
    fragments: tuple[HeldFragment, ...]
    last: bool
    question: int = 0


class FragmentsReply(Message, frozen=True):
    fragments: tuple[HeldFragment, ...]
    unusable: tuple[tuple[ChunkId, str], ...]
    """Those that are there and left out, and why."""
    upto: ChunkId
    """How far the page goes."""
    more: bool


class ReportChunksReply(Message, frozen=True):
    drop: tuple[ChunkId, ...]
    """Fragments the disk shall delete: their chunk is gone or lies elsewhere."""


# ------------------------------------------------------------------ -> chunk server


class Append(Message, frozen=True):
    """Append records to a fragment; the payload is the records' bytes (FORMAT.md), unchanged.

    The first append (`first_block` 0) creates the fragment. Idempotent by block index: records
    already stored are compared and skipped; a gap is a FragmentError that names the next index.
    Every record's checksums are verified before the reply. A reply means: in the page cache; with
    `synced`, on the disk.
    """

    disk: DiskId
    chunk: ChunkId
    index: int
    k: int
    m: int
    first_block: int
    blocks: int
    sync: bool = False
    """Reply when the fragment is on the disk up to these records, as after a SyncFragments."""
    background: bool = False
    """For chunks that are rewritten: clients go first, and a full disk's reserve may be used."""


class Appended(Message, frozen=True):
    next_block: int
    length: int
    """Raw bytes of the chunk covered by the fragment."""
    synced: bool = False
    """All that the fragment had up to the appended records is on the disk."""


class ReadRecords(Message, frozen=True):
    """The records that overlap raw bytes [offset, offset + length) of a chunk.

    The reply's payload is those records as stored. Bytes beyond the fragment's end are not an
    error: fewer records come back, possibly none.
    """

    disk: DiskId
    chunk: ChunkId
    offset: int
    length: int
    background: bool = False
    """For repair, scrub and the like: clients go first."""
    urgent: bool = False
    """With `background`: they do not go first for long."""


READ_MAX_BYTES: Final = 8 * 1024 * 1024
"""Raw bytes one ReadRecords may ask for."""


class RecordsReply(Message, frozen=True):
    records: int


class SyncFragments(Message, frozen=True):
    """fdatasync these chunks' fragments (and the directory entries they need).

    Raises FragmentError where one ends before the raw length that it had been acknowledged with: a
    power cut may have taken its end meanwhile.
    """

    disk: DiskId
    chunks: tuple[ChunkId, ...]
    lengths: tuple[int, ...] = ()
    """How far each of them has to reach; none: as far as it does."""


class SealFragment(Message, frozen=True):
    """Cut after the block that ends at raw `length`, write the index footer, sync. Idempotent."""

    disk: DiskId
    chunk: ChunkId
    length: int


class DeleteFragments(Message, frozen=True):
    """Delete; what is not there counts as deleted."""

    disk: DiskId
    chunks: tuple[ChunkId, ...]


class StatFragment(Message, frozen=True):
    disk: DiskId
    chunk: ChunkId


class FragmentStatus(Message, frozen=True):
    index: int
    next_block: int
    length: int
    stored: int
    """Bytes of the file on disk."""
    sealed: bool
    k: int = 0
    """Of its chunk, as its file says; 0 from an older server."""
    m: int = 0


class FragmentSource(msgspec.Struct, array_like=True, frozen=True):
    """Where a fragment of a chunk can be read."""

    index: int
    disk: DiskId
    address: str


class RebuildFragment(Message, frozen=True):
    """Make fragment `index` of a SEALED chunk on `disk`, from other disks, and seal it.

    The server reads the records from `sources`, in the order given (nearest first): from one that
    has the same index or, with k 1, from any; else it decodes from k of them. Every
    record's checksums are verified, a decoded block's raw checksum too, and the new fragment is
    durable when the reply comes. What the disk held of the chunk before (this fragment, another,
    an open one) is replaced only then, in one step; so the same disk may be asked to mend its own
    fragment, and be one of the sources. With `keep` another fragment of the chunk is not replaced.
    Idempotent: a whole sealed fragment of this index that is there and passes its checksums is left
    as it is. A DeleteFragments that comes meanwhile wins.

    `length` is the chunk's: the fragment ends with the block that holds its last byte.

    Raises FragmentError where too few sources can be read or are whole (its message says what
    each answered), or what is there is to be kept; NoSpaceError, DiskError: nothing has changed
    then.
    """

    disk: DiskId
    chunk: ChunkId
    index: int
    k: int
    m: int
    length: int
    sources: tuple[FragmentSource, ...]
    rate: int = 0
    """Bytes a second read from sources; 0: no bound but that clients go first."""
    keep: bool = False
    """The metadata may be older than what the disk holds."""
    urgent: bool = False
    """The chunk cannot lose another fragment: clients do not go first for long."""


class RebuiltFragment(Message, frozen=True):
    stored: int
    """Bytes of the new fragment's file."""
    read: int
    """Bytes read from sources."""
    bad: tuple[tuple[DiskId, str], ...] = ()
    """Sources that failed: the disk, and one of the reasons of `FragmentReport`."""


class VerifyFragment(Message, frozen=True):
    """Read a whole fragment and check every record, the index, and that it reaches `length`.

    Clients go first. A fragment that was never sealed counts as good when it reaches `length`.
    One that cannot be read (a bad sector) is `corrupt`; so is one whose header or index is
    damaged, though its records are good. Another fragment of the chunk in its place: `missing`.

    Raises DiskError where the whole disk has failed.
    """

    disk: DiskId
    chunk: ChunkId
    index: int
    length: int
    """Raw bytes of the chunk."""
    rate: int = 0
    """Bytes a second; 0: no bound but that clients go first."""


class FragmentVerdict(Message, frozen=True):
    reason: str
    """"": whole and good; else one of the reasons of `FragmentReport`."""
    detail: str
    read: int
    """Bytes read."""


class RewritePart(msgspec.Struct, array_like=True, frozen=True):
    """A run of live bytes of a chunk."""

    offset: int
    length: int


class RewriteSource(msgspec.Struct, array_like=True, frozen=True):
    chunk: ChunkId
    k: int
    m: int
    sources: tuple[FragmentSource, ...]
    parts: tuple[RewritePart, ...]
    """In order of offset, none empty; they do not overlap."""


class RewriteChunk(Message, frozen=True):
    """Write the live bytes of SEALED chunks, one after the other, into a new chunk, and seal it.

    The new chunk has its own (k, m) and compression: this is how chunks are compacted and
    converted. Any server may be asked; it reads and writes over the network, as a client does. All
    of the chunk is durable on at least `write_minimum` of its fragments when the reply comes. The
    master knows the new chunk before, so that no disk is told to drop it.

    The new blocks follow from the request alone (and the version of the compression), and those
    that are stored already are compared and skipped: so it may be sent again, and two of the same
    at once do no harm.

    Raises FragmentError where live bytes cannot be read (its message says what each source
    answered), UnavailableError where fewer than `write_minimum` targets are left (the same of the
    targets). What was written by then is the master's to delete, with the new chunk.
    """

    chunk: ChunkId
    k: int
    m: int
    compression: int | None
    targets: tuple[FragmentSource, ...]
    """Where its fragments go: each index and each disk once. Fewer than k + m will do."""
    contents: tuple[RewriteSource, ...]
    """The bytes of all parts together are at most those of a chunk."""
    rate: int = 0
    """Bytes a second read from sources; 0: no bound but that clients go first."""


class RewrittenChunk(Message, frozen=True):
    length: int
    """Raw bytes of the new chunk: the sum of all parts."""
    lost: tuple[int, ...]
    """Indexes of the targets' fragments that could not be written."""
    stored: int
    """Bytes of its files, all fragments together."""
    bad: tuple[tuple[ChunkId, DiskId, str], ...] = ()
    """Source fragments that failed, each with one of the reasons of `FragmentReport`."""


class ServerStatus(Message, frozen=True):
    pass


class ServerStatusReply(Message, frozen=True):
    server: ServerId
    version: str
    uptime_s: float
    disks: tuple[DiskReport, ...]


# ------------------------------------------------------------------ the method table


class Method(msgspec.Struct, frozen=True):
    number: int
    request: type[Message]
    reply: type[Message]
    idempotent: bool = True
    """A client may send it again after a lost reply without asking anyone."""


METHODS: Final[tuple[Method, ...]] = (
    # to the master: sessions and changes (retries are made safe by session and sequence)
    Method(1, OpenSession, SessionOpened),
    Method(2, RenewSession, Empty),
    Method(3, CloseSession, Empty),
    Method(4, Apply, Applied),
    Method(5, AllocateChunks, LayoutReply),
    Method(6, SealChunk, Empty),
    Method(7, ReportFragments, Empty),
    Method(8, SyncBarrier, Empty),
    Method(9, CreatePolicy, PolicyReply),
    # to the master: delegations
    Method(10, Delegate, Delegated),
    Method(11, ReserveInodes, ReservedInodes),
    Method(12, AwaitRecalls, Recalls),
    # to the master: reads
    Method(20, Lookup, LookupReply),
    Method(21, Resolve, InodeReply),
    Method(22, GetInode, InodeReply),
    Method(23, ReadDir, DirReply),
    Method(24, GetXattr, XattrReply),
    Method(25, ListXattr, XattrNames),
    Method(26, GetExtents, ExtentsReply),
    Method(27, LocateChunks, LayoutReply),
    Method(28, StatFs, FsStats),
    Method(29, ListPolicies, PoliciesReply),
    # to the master: administration
    Method(40, ListServers, ServersReply),
    Method(41, ListSessions, SessionsReply),
    Method(42, ListChunks, ChunksReply),
    Method(43, ClusterStatus, StatusReply),
    Method(44, StartJob, JobReply),
    Method(45, ListJobs, JobsReply),
    Method(46, ControlJob, JobReply),
    Method(47, SetBudget, Empty),
    Method(48, SetDraining, Empty),
    Method(49, RemoveDisks, Empty),
    Method(50, StartCheck, CheckStarted),
    Method(51, ReadCheck, CheckReply),
    Method(52, ReadBackup, BackupPiece),
    Method(53, ConfirmRestore, RestoreReply),
    # to the master: from chunk servers
    Method(60, RegisterServer, Registered),
    Method(61, Heartbeat, HeartbeatReply),
    Method(62, ReportChunks, ReportChunksReply),
    # to a chunk server
    Method(100, Append, Appended),
    Method(101, ReadRecords, RecordsReply),
    Method(102, SyncFragments, Empty),
    Method(103, SealFragment, FragmentStatus),
    Method(104, DeleteFragments, Empty),
    Method(105, StatFragment, FragmentStatus),
    Method(106, ServerStatus, ServerStatusReply),
    Method(109, ListFragments, FragmentsReply),
    Method(110, RebuildFragment, RebuiltFragment),
    Method(111, VerifyFragment, FragmentVerdict),
    Method(112, RewriteChunk, RewrittenChunk),
)

METHOD_OF: Final[dict[type[Message], Method]] = {method.request: method for method in METHODS}
METHOD_NUMBERED: Final[dict[int, Method]] = {method.number: method for method in METHODS}
