"""Changes that have been made and are told to the master later: in order, in batches, in a while.

What is logged here has been answered to a program already. It is sent `FLUSH_S` later at the
latest, or as soon as somebody needs it told (`settled`); one batch at a time, so that the master
sees the changes in the order they were made. The log belongs to one session: with the session, all
that is not told is lost. What the master refuses is reported to whoever syncs next (`check`).

Owned by `Delegations`. `log` may be called from any thread; all else in trio's.
"""

import logging
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace as changed

from dfs.client.barrier import Barrier
from dfs.client.master_link import MasterLink
from dfs.client.new_file import NewFile
from dfs.client.retry import OnUnavailable, Patience
from dfs.client.session import Session
from dfs.core.block import BLOCK_BYTES
from dfs.core.errors import DfsError, SessionError, from_wire
from dfs.core.ids import InodeId
from dfs.wire import messages as m

if TYPE_CHECKING:
    from dfs.client.new_files import NewFiles
    from dfs.client.open_file import OpenFile
    from dfs.client.ticket import Ticket

FLUSH_S: Final = 0.25
"""How long a change is kept back."""
BATCH_MAX: Final = 1024
"""Changes in one request. The master serves nobody else while it works on one."""
LOG_MAX: Final = 8192
"""With so many that are not told, new changes wait."""
NEW_FILE_BYTES: Final = BLOCK_BYTES
"""Files up to this size are published together with their making."""
BATCH_NEW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of new files in one request."""
NEW_BYTES_MANY: Final = 8 * 1024 * 1024
"""With so many that are not published, a close waits."""
NEW_BYTES_MAX: Final = 32 * 1024 * 1024
"""With so many, none are taken: they are written the ordinary way."""
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_LATE_MAX: Final = 1000
_NO_LIMIT: Final = OnUnavailable.parse("wait")

log = logging.getLogger(__name__)


class Change:
    """One operation that has been made, or that somebody waits for."""

    __slots__ = ("answer", "cred", "inos", "new", "op")

    def __init__(
        self,
        op: m.AnyOp,
        cred: m.Cred,
        inos: tuple[InodeId, ...],
        answer: "_Answer | None" = None,
    ) -> None:
        self.op = op
        self.cred = cred
        self.inos = inos
        """What it is about: its file and directories."""
        self.answer = answer
        self.new: NewFile | None = None
        """The bytes of the file that it makes."""


class _Answer:
    """For who waits: what the master said, or why it did not."""

    __slots__ = ("error", "result")

    def __init__(self) -> None:
        self.result: m.OpResult | None = None
        self.error: DfsError | None = None


class WriteBehind:
    """See the module."""

    def __init__(
        self,
        link: MasterLink,
        session: Session,
        barrier: Barrier,
        on_refused: Callable[[m.AnyOp], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`on_refused`: the master has refused a change. `on_lost`: the session is over."""
        self._link = link
        self._session = session
        self._barrier = barrier
        self._on_refused = on_refused
        self._on_lost = on_lost
        self.lock = threading.Lock()
        """Of the log, and of what `Delegations` believes."""
        self._log: deque[Change] = deque()
        self._logged = 0
        self._told = 0
        self._sending = False
        """A batch is on its way, whose outcome is not known."""
        self._lost_behind = 0
        """Changes behind that batch that will not be told: they count as told when it does."""
        self._about: dict[InodeId, int] = {}
        """How far the log has to be told before the master knows all about an inode."""
        self._creates: dict[InodeId, Change] = {}
        """Files whose making has not been sent."""
        self._kick = trio.Event()
        self._progress = trio.Event()
        self._late: OrderedDict[InodeId, DfsError] = OrderedDict()
        """Inodes about which something was lost, and nobody has been told."""
        self.session_id = 0
        """Whose changes these are."""
        self.before_sending: Callable[[], None] = _nothing
        """Called before anything is sent: a last chance to change what is logged."""
        self.new_files: NewFiles | None = None
        """Who takes the bytes of new files to the disks; None: the log takes none."""
        self._new_bytes = 0
        """Of new files, not published yet."""

    # ---------------------------------------------------------------- logging (any thread)

    @property
    def full(self) -> bool:
        """So much waits that no more should be taken."""
        return self._logged - self._told >= LOG_MAX

    def log(self, op: m.AnyOp, cred: m.Cred, *inos: InodeId) -> None:
        """A change has been made that is about `inos`. Hold the lock."""
        self._append(Change(op, cred, inos))

    def _append(self, change: Change) -> None:
        op, inos = change.op, change.inos
        self._log.append(change)
        self._logged += 1
        for ino in inos:
            self._about[ino] = self._logged
        if type(op) is m.Create:
            self._creates[op.ino] = change

    def release(self, ino: InodeId, cred: m.Cred) -> bool:
        """The file is open no more. False: tell the master yourself. Hold the lock."""
        if ino not in self._about:
            return False
        create = self._creates.pop(ino, None)
        if create is not None:
            # Made and closed again: nobody needs to know that it was open.
            assert isinstance(create.op, m.Create)
            create.op = changed(create.op, open=False)
        else:
            self.log(m.Release(ino), cred, ino)
        return True

    def write_new(self, file: "OpenFile", offset: int, data: bytes, time_ns: int) -> bool:
        """Write to a file whose making is in the log. False: it is not, or not small."""
        create = self._creates.get(file.ino)
        if create is None or self.new_files is None or not self.new_files.allowed:
            return False
        with self.lock:
            if self._creates.get(file.ino) is not create or file.writer is not None:
                return False
            new = create.new
            held = 0 if new is None else len(new.data)
            end = offset + len(data)
            if offset > held or end > NEW_FILE_BYTES or self._new_bytes >= NEW_BYTES_MAX:
                return False
            if new is None:
                if file.inode.mode & _SET_ID:
                    # Publishing may clear them; what it does is the master's to say.
                    return False
                new = create.new = NewFile(file, create.cred)
            new.data[offset:end] = data
            new.time_ns = time_ns
            self._new_bytes += len(new.data) - held
            file.new = new
        return True

    def withdraw(self, new: NewFile) -> bool:
        """Have the file take over its bytes, whose writer is there. False: they are on their way.

        In trio's thread.
        """
        with self.lock:
            create = self._creates.get(new.ino)
            if create is None or create.new is not new or new.closed:
                return False
            create.new = None
            self._new_bytes -= len(new.data)
            new.file.take_over(new)
        new.end()
        return True

    def close_new(self, new: NewFile) -> bool:
        """The last handle of a new file is closed: it is given back when the bytes are published.

        False: let go of it when they are.
        """
        with self.lock:
            create = self._creates.get(new.ino)
            if create is None or create.new is not new:
                return False
            if not new.file.inode.mode & stat.S_IWUSR and new.cred.uid:
                # Only who has it open may publish.
                return False
            # Made and closed again: nobody needs to know that it was open.
            assert isinstance(create.op, m.Create)
            create.op = changed(create.op, open=False)
            new.closed = True
        return True

    @property
    def crowded(self) -> bool:
        """There are so many bytes of new files that a close should wait. From any thread."""
        return self._new_bytes >= NEW_BYTES_MANY

    def waits(self, ino: InodeId) -> bool:
        """Whether the master does not know all about the inode."""
        return ino in self._about

    # ---------------------------------------------------------------- telling

    @property
    def idle(self) -> bool:
        return self._logged == self._told

    def hurry(self) -> None:
        """Send what is logged now."""
        self._kick.set()

    async def settled(self, inos: Iterable[InodeId]) -> None:
        """Return when the master knows all about these. Raises UnavailableError after a while."""
        upto = max((self._about.get(ino, 0) for ino in inos), default=0)
        if upto > self._told:
            await self._wait(upto)

    async def all_settled(self) -> None:
        """Return when all is told that was logged before this call."""
        if self._logged > self._told:
            await self._wait(self._logged)

    async def _wait(self, upto: int) -> None:
        patience = self._link.patience()
        self.hurry()
        while self._told < upto:
            with trio.move_on_after(max(0.0, patience.deadline - trio.current_time())) as scope:
                await self._progress.wait()
            if scope.cancelled_caught and self._told < upto:
                # For its errno and words: the very thing that holds us up.
                await self._link.call(m.GetInode(1), m.InodeReply)
                raise DfsError("the master has not yet taken changes that were made before")

    async def ask(self, op: m.AnyOp, cred: m.Cred, ino: InodeId) -> m.OpResult:
        """What the master says to an operation about an inode, after what was done to it before.

        It goes along with that, and has to be one that waits for nobody. Raises DfsError where
        nothing is known about its outcome.
        """
        answer = _Answer()
        with self.lock:
            self._append(Change(op, cred, (ino,), answer))
            upto = self._logged
        await self._wait(upto)
        if answer.result is None:
            error = answer.error or SessionError("the client is closed")
            raise error.again()
        return answer.result

    @property
    def has_lost(self) -> bool:
        """Something was lost, and not everybody has been told."""
        return bool(self._late)

    def note_lost(self, ino: InodeId, error: DfsError) -> None:
        """Something that was answered is lost: for `check`."""
        self._late[ino] = error
        self._late.move_to_end(ino)
        while len(self._late) > _LATE_MAX:
            self._late.popitem(last=False)

    def check(self, ino: InodeId) -> None:
        """Raises, once, what became of changes about the inode that were answered before."""
        error = self._late.pop(ino, None)
        if error is not None:
            raise error.again()

    def check_any(self) -> None:
        """As `check`, for anything at all."""
        if self._late:
            _, error = self._late.popitem()
            self._late.clear()
            raise error.again()

    async def run(self) -> None:
        """Send what is logged, for ever."""
        while True:
            with trio.move_on_after(FLUSH_S if self.session_id else float("inf")):
                await self._kick.wait()
            self._kick = trio.Event()
            self.before_sending()
            while self._log:
                await self._send()
                self.before_sending()

    def start(self, session: int) -> None:
        """Changes are those of this session from now on; they are sent from time to time."""
        self.session_id = session
        self._kick.set()

    def _take(self) -> list[Change]:
        with self.lock:
            first = self._log[0]
            batch: list[Change] = []
            operations, size = 0, 0
            for change in self._log:
                operations += 1 if change.new is None else 2
                size += 0 if change.new is None else len(change.new.data)
                if batch and (
                    change.cred != first.cred or operations > BATCH_MAX or size > BATCH_NEW_BYTES
                ):
                    break
                batch.append(change)
            for change in batch:
                self._log.popleft()
                if type(change.op) is m.Create:
                    self._creates.pop(change.op.ino, None)
        return batch

    async def _send(self) -> None:
        batch, session_id = self._take(), self.session_id
        self._sending = True
        new = [change.new for change in batch if change.new is not None]
        tickets: list[Ticket] = []
        try:
            if new:
                assert self.new_files is not None
                tickets = await self.new_files.store(new)
            applied = await self._apply(batch, session_id)
        except DfsError as error:
            # The session is over, or the master does not take any of it.
            for change in batch:
                self._lose(change, error)
            if self.session_id == session_id:
                self.abandon(error)
        else:
            self._barrier.note(applied.position)
            results = iter(applied.results)
            for change in batch:
                self._answered(change, results)
        finally:
            for ticket in tickets:
                ticket.settle()
            self._sending = False
            behind, self._lost_behind = self._lost_behind, 0
            self._tell(len(batch) + behind, new)

    async def _apply(self, batch: list[Change], session_id: int) -> m.Applied:
        """Each making of a file is followed by the commit of its bytes, where disks have them."""
        ops: list[m.AnyOp] = []
        for change in batch:
            ops.append(change.op)
            if change.new is not None and change.new.extent is not None:
                ops.append(_commit(change.new))

        def make(session: int, sequence: int) -> m.Message:
            return m.Apply(session, sequence, batch[0].cred, tuple(ops))

        applied, _ = await self._session.change(
            make,
            m.Applied,
            redo=False,
            patience=Patience(_NO_LIMIT, self._link.rng),
            session=session_id,
        )
        return applied

    def _answered(self, change: Change, results: Iterator[m.OpResult]) -> None:
        """Take what the master says to a change from its results."""
        result, new = next(results), change.new
        stored = next(results) if new is not None and new.extent is not None else None
        if change.answer is not None:
            change.answer.result = result
        elif result.error is not None:
            self._lose(change, from_wire(result.error))
        elif new is not None:
            assert self.new_files is not None
            if stored is not None and stored.inode is not None:
                self.new_files.published(new, stored.inode)
            else:
                self.new_files.unpublished(new)

    def _tell(self, count: int, new: Iterable[NewFile] = ()) -> None:
        with self.lock:
            self._told += count
            self._new_bytes -= sum(len(each.data) for each in new)
            told = self._told
            if told == self._logged:
                self._about.clear()
            elif len(self._about) > 2 * LOG_MAX:
                self._about = {ino: at for ino, at in self._about.items() if at > told}
        self._progress.set()
        self._progress = trio.Event()

    def abandon(self, error: DfsError) -> None:
        """Nothing of what is logged will be told."""
        with self.lock:
            lost, self._log = self._log, deque()
            self._creates.clear()
            self._new_bytes -= sum(len(each.new.data) for each in lost if each.new is not None)
        self.session_id = 0
        for change in lost:
            self._lose(change, error)
        if self._sending:
            self._lost_behind += len(lost)
        else:
            self._tell(len(lost))
        self._on_lost()
        # For those who want to change what is logged to be asked once more.
        self.hurry()

    def _lose(self, change: Change, error: DfsError) -> None:
        if change.answer is not None:
            change.answer.error = error
            return
        if isinstance(change.op, m.Undelegate | m.Release):
            return
        log.warning("%s was answered and is lost: %s", _shown(change.op), error)
        for ino in change.inos:
            self.note_lost(ino, error)
        if change.new is not None:
            assert self.new_files is not None
            self.new_files.lost(change.new)
        self._on_refused(change.op)


def _commit(new: NewFile) -> m.Commit:
    assert new.extent is not None
    return m.Commit(new.ino, (new.extent,), mtime_ns=new.time_ns)


def _nothing() -> None:
    """Nobody wants to be called."""


def _shown(op: m.AnyOp) -> str:
    names = [repr(part)[1:] for part in (getattr(op, "name", b""), getattr(op, "new_name", b""))]
    said = " to ".join(name for name in names if name != "''")
    parent = getattr(op, "parent", 0)
    return f"{type(op).__name__.lower()} of {said} in directory {parent}"
