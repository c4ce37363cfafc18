"""Directories that this client has to itself: how they come, what they go through, how they go.

The master delegates a directory to a client that changes it again and again while nobody else looks
(`note_change`). From then on the client answers by itself what is asked about it, and changes it
without asking (`own_directories`); the master is told later (`write_behind`). As soon as anybody
else wants to look, the master recalls the directory: all is told, and it is given back.

What cannot be decided here goes to the master as ever, after what was done before; `enter` and
`left` follow such changes. Owned by Meta, used in trio's thread.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from dfs.client.barrier import Barrier
from dfs.client.master_link import MasterLink
from dfs.client.own_directories import Held, OwnDirectories
from dfs.client.session import Session
from dfs.client.write_behind import WriteBehind
from dfs.core.errors import DfsError, SessionError
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.core.inode import Inode, InodeFlag
from dfs.wire import messages as m

CHANGES_BEFORE: Final = 3
"""So many changes in a row in a directory, and it is asked for."""
ENTRIES_MAX: Final = 50_000
"""Directories with more are not asked for: all their names are kept in memory."""
NAMES_MAX: Final = 200_000
"""A directory that has grown to more is given back."""
HELD_MAX: Final = 64
IDLE_S: Final = 30.0
"""A directory in which nothing was changed for so long is given back."""
_RESERVE: Final = 8192
_RESERVE_BELOW: Final = 4096
_LISTEN_TIMEOUT_S: Final = 40.0
_AGAIN_S: Final = 0.2
_COUNTED_MAX: Final = 1000
_PAGE: Final = 4096
_STEP_NS: Final = 1_000_000_000
"""So far apart, a clock was set."""
_DRIFT_NS: Final = 5_000_000
_LOOK_AFTER_S: Final = 0.5
_NOBODY: Final = m.Cred(0, 0)
_OPENED: Final = int(InodeFlag.OPENED)

log = logging.getLogger(__name__)


class Delegations(OwnDirectories):
    """See the module. Does nothing before `start`."""

    def __init__(
        self, link: MasterLink, session: Session, barrier: Barrier, nursery: trio.Nursery
    ) -> None:
        self._link = link
        self._session = session
        self._nursery = nursery
        super().__init__(WriteBehind(link, session, barrier, self._refused, self._lost))
        self._asking: dict[InodeId, Held] = {}
        self._counted: dict[InodeId, int] = {}
        """How often each directory was changed lately."""
        self._not_before: dict[InodeId, float] = {}
        self._names_asked: dict[_Entry, int] = {}
        """Names, and how many callers have the master change them."""
        self._contested: set[_Entry] = set()
        """Of them, those that several had at a time: which answer was the last is not known."""
        self._enabled = False
        self._listening = trio.Event()
        self._listen_scope = trio.CancelScope()
        self.on_returned: Callable[[Inode], None] = _ignore
        """Told of each directory, as it is when it is given back."""
        self.on_shared: Callable[[set[InodeId]], None] = _ignore
        """Told of files that others may have seen, and changed, from now on."""
        session.on_replaced.append(self._session_replaced)

    def start(self) -> None:
        """Ask for directories from now on."""
        if not self._enabled:
            self._enabled = True
            for task in (self.log.run, self._listen, self._look_after):
                self._nursery.start_soon(task)

    @property
    def active(self) -> bool:
        """Whether directories are asked for, and operations have to `enter`."""
        return self._enabled

    # ---------------------------------------------------------------- what goes to the master

    async def enter(self, ops: Sequence[m.AnyOp]) -> list[InodeId]:
        """Return when these operations may be sent: what was done before is told.

        The answer goes to `left` or `unknown`, with what this returns.
        """
        while (closing := self._closing(ops)) is not None:
            await closing.wait()
        # No await up to where they are counted.
        within = [ino for op in ops for ino in _inos(op)]
        with self._lock:
            for ino in within:
                self._with_master[ino] = self._with_master.get(ino, 0) + 1
        for entry in _entries(ops):
            callers = self._names_asked.get(entry, 0)
            self._names_asked[entry] = callers + 1
            if callers:
                self._contested.add(entry)
        try:
            moving = [op for op in ops if isinstance(op, m.Rmdir | m.Rename)]
            for op in moving:
                self._give_back_children(op)
            if moving:
                # What is in a directory that goes matters too.
                await self.log.all_settled()
            else:
                await self.log.settled(within)
        except BaseException:
            self._leave(within, ops)
            raise
        return within

    def _closing(self, ops: Sequence[m.AnyOp]) -> trio.Event | None:
        """What operations on a directory wait for that is held in a moment."""
        for op in ops if self._asking else ():
            for ino in _inos(op):
                asking = self._asking.get(ino)
                if asking is not None and asking.closing is not None:
                    return asking.closing
        return None

    def _leave(self, within: Sequence[InodeId], ops: Sequence[m.AnyOp]) -> None:
        for entry in _entries(ops):
            callers = self._names_asked.pop(entry) - 1
            if callers:
                self._names_asked[entry] = callers
            else:
                self._contested.discard(entry)
        with self._lock:
            for ino in within:
                left = self._with_master.pop(ino) - 1
                if left:
                    self._with_master[ino] = left
        for ino in within if self._asking else ():
            if ino in self._asking:
                self._asking[ino].changed.set()

    def _give_back_children(self, op: m.Rmdir | m.Rename) -> None:
        """A directory that is to be removed or moved is not held any longer."""
        places = [(op.parent, op.name)]
        if isinstance(op, m.Rename):
            places.append((op.new_parent, op.new_name))
        for parent, name in places:
            held = self._held.get(parent)
            ino = None if held is None else held.names.get(name)
            if ino is not None:
                self.give_back(ino)

    def left(
        self,
        within: Sequence[InodeId],
        ops: Sequence[m.AnyOp],
        results: Sequence[m.OpResult],
    ) -> None:
        """The master has answered what was entered."""
        for op, result in zip(ops, results, strict=True):
            if result.error is None:
                self._follow(op, result)
        for entry in self._contested.intersection(_entries(ops)) if self._contested else ():
            self.give_back(entry[0])
        self._leave(within, ops)

    def unknown(self, within: Sequence[InodeId], ops: Sequence[m.AnyOp]) -> None:
        """Nobody knows what became of what was entered: nor of what is in the directories."""
        for ino in set(within):
            self.give_back(ino)
        self._leave(within, ops)

    def _follow(self, op: m.AnyOp, result: m.OpResult) -> None:
        inode = result.inode
        if isinstance(op, m.Rename):
            self._follow_rename(op, inode)
        elif isinstance(op, m.Unlink | m.Rmdir):
            at = result.time_ns if inode is None else inode.ctime_ns
            self._gone(op.parent, op.name, at)
        elif isinstance(op, m.Create | m.Mkdir | m.Mknod | m.Symlink | m.Link | m.Put):
            if inode is not None:
                self._came(op.parent, op.name, inode)
            if isinstance(op, m.Link):
                self._exposed({op.ino})
        elif inode is not None and inode.ino in self._held:
            self._held[inode.ino].inode = inode

    def _follow_rename(self, op: m.Rename, inode: Inode | None) -> None:
        links = inode is not None and inode.nlink > 1 and not inode.is_dir
        if inode is None or links or op.flags & m.RenameFlag.EXCHANGE:
            # What came the other way is not told, nor that both names were one file's, which
            # leaves them as they are.
            self.give_back(op.parent)
            self.give_back(op.new_parent)
            return
        self._gone(op.parent, op.name, inode.ctime_ns)
        self._came(op.new_parent, op.new_name, inode)
        if op.parent != op.new_parent:
            self._exposed({inode.ino})
        if inode.ino in self._held:
            self._held[inode.ino].inode = inode

    def _came(self, parent: InodeId, name: bytes, inode: Inode) -> None:
        asking = self._asking.get(parent)
        if asking is not None:
            asking.seen[name] = (inode.ino, inode.is_dir)
        with self._lock:
            held = self._held.get(parent)
            if held is not None:
                held.came(name, inode)

    def _gone(self, parent: InodeId, name: bytes, time_ns: int) -> None:
        asking = self._asking.get(parent)
        if asking is not None:
            asking.seen[name] = None
        with self._lock:
            held = self._held.get(parent)
            if held is not None:
                held.gone(name, time_ns)

    def _exposed(self, inos: set[InodeId]) -> None:
        """Others may get at these files by another way."""
        for held in self._held.values():
            held.made -= inos
        self.on_shared(inos)

    # ---------------------------------------------------------------- asking for directories

    def note_change(self, parent: InodeId) -> None:
        """The master has just changed the directory for this client."""
        if not self._enabled or parent == ROOT_INODE or parent in self._held:
            return
        count = self._counted.get(parent, 0) + 1
        if len(self._counted) >= _COUNTED_MAX:
            self._counted.clear()
        self._counted[parent] = count
        if count < CHANGES_BEFORE or parent in self._asking:
            return
        if self._not_before.get(parent, 0.0) > trio.current_time():
            return
        self._asking[parent] = Held()
        self._nursery.start_soon(self._ask, parent)

    async def _ask(self, ino: InodeId) -> None:
        asking = self._asking[ino]
        try:
            if len(self._held) >= HELD_MAX:
                self.give_back(min(self._held, key=lambda each: self._held[each].used))
            await self._reserve()
            self._listening.set()
            reply, session = await self._session.change(
                lambda session, sequence: m.Delegate(session, sequence, ino), m.Delegated
            )
            self._note_clock(reply.now_ns)
            if reply.inode is None:
                self._put_off(ino, reply.again_s)
                return
            if session != self._session.current_id:
                # It is over by now, and with it what it was given.
                return
            self.log.start(session)
            if not await self._load(ino, asking, reply.inode.size):
                asking.recalled = True
            with self._lock:
                if asking.recalled or self.log.session_id != session:
                    self._put_off(ino, IDLE_S)
                    self.log.log(m.Undelegate(ino), _NOBODY, ino)
                else:
                    self._held[ino] = asking
            log.debug("directory %d is this client's: %d names", ino, len(asking.names))
        except DfsError as error:
            log.debug("directory %d was not delegated: %s", ino, error)
            self._put_off(ino, IDLE_S)
            if self.log.session_id:
                with self._lock:
                    self.log.log(m.Undelegate(ino), _NOBODY, ino)
        finally:
            del self._asking[ino]
            self._counted.pop(ino, None)
            if asking.closing is not None:
                asking.closing.set()
                asking.closing = None
            self.log.hurry()

    async def _load(self, ino: InodeId, held: Held, size: int) -> bool:
        """Have all names and the attributes of a directory. False: it has too many."""
        more, after = size <= ENTRIES_MAX, b""
        if not more:
            return False
        while more:
            request = m.ReadDir(_NOBODY, ino, after, _PAGE)
            page = await self._link.call(request, m.DirReply)
            for entry in page.entries:
                held.names[entry.name] = entry.inode.ino
                if entry.inode.is_dir:
                    held.directories.add(entry.inode.ino)
            more = page.more
            after = page.entries[-1].name if page.entries else b""
        # What this client does there from now on waits; what is under way ends.
        held.closing = trio.Event()
        while ino in self._with_master:
            held.changed = trio.Event()
            await held.changed.wait()
        held.close()
        held.inode = (await self._link.call(m.GetInode(ino), m.InodeReply)).inode
        return held.inode.size == len(held.names)

    def _put_off(self, ino: InodeId, seconds: float) -> None:
        now = trio.current_time()
        if len(self._not_before) >= _COUNTED_MAX:
            self._not_before = {key: at for key, at in self._not_before.items() if at > now}
        self._not_before[ino] = now + seconds

    async def _reserve(self) -> None:
        """Have enough numbers at hand."""
        if sum(map(len, self._numbers)) >= _RESERVE_BELOW:
            return
        reply, session = await self._session.change(
            lambda session, sequence: m.ReserveInodes(session, sequence, _RESERVE),
            m.ReservedInodes,
        )
        # Another session may not use them.
        if session == self._session.current_id:
            with self._lock:
                self._numbers.append(range(reply.first, reply.first + reply.count))

    def _note_clock(self, now_ns: int) -> None:
        ahead_ns = now_ns - time.time_ns()
        if abs(ahead_ns - self._ahead_ns) > _STEP_NS:
            self._ahead_ns = ahead_ns
        else:
            # The answer that took least is closest to the truth; clocks drift a little.
            self._ahead_ns = max(ahead_ns, self._ahead_ns - _DRIFT_NS)

    # ---------------------------------------------------------------- giving them back

    def give_back(self, ino: InodeId) -> None:
        """Tell all that was done in a directory, and have it no longer."""
        asking = self._asking.get(ino)
        if asking is not None:
            asking.recalled = True
        with self._lock:
            held = self._held.pop(ino, None)
            if held is not None:
                self.log.log(m.Undelegate(ino), _NOBODY, ino)
        if held is not None:
            self.log.hurry()
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        assert held.inode is not None
        self.on_returned(held.inode)
        self.on_shared(held.made)

    def give_all_back(self) -> None:
        for ino in [*self._asking, *self._held]:
            self.give_back(ino)

    async def _listen(self) -> None:
        """Give back what others want, for ever."""
        while True:
            await self._listening.wait()
            if not self._held and not self._asking:
                self._listening = trio.Event()
                continue
            request = m.AwaitRecalls(self._session.current_id)
            reply = None
            with trio.CancelScope() as self._listen_scope:
                try:
                    reply = await self._link.call_once(
                        request, m.Recalls, timeout_s=_LISTEN_TIMEOUT_S
                    )
                except DfsError as error:
                    log.debug("not listening for recalls: %s", error)
                    await trio.sleep(_AGAIN_S)
            if reply is None:
                continue
            self._note_clock(reply.now_ns)
            for ino in reply.inos:
                self._put_off(ino, _AGAIN_S)
                if ino in self._held or ino in self._asking:
                    self.give_back(ino)
                elif self.log.session_id:
                    # It was given back, and the master has not heard of it.
                    with self._lock:
                        self.log.log(m.Undelegate(ino), _NOBODY, ino)
                    self.log.hurry()

    async def _look_after(self) -> None:
        """Keep numbers at hand; give back what is not used. For ever."""
        while True:
            await trio.sleep(_LOOK_AFTER_S)
            long_ago = time.monotonic() - IDLE_S
            for ino, held in list(self._held.items()):
                if held.used < long_ago or len(held.names) > NAMES_MAX:
                    self._put_off(ino, IDLE_S)
                    self.give_back(ino)
            if self._held:
                try:
                    await self._reserve()
                except DfsError as error:
                    log.debug("no inode numbers reserved: %s", error)

    # ---------------------------------------------------------------- losing them

    def _refused(self, op: m.AnyOp) -> None:
        """The master does not have it as it is here."""
        for ino in _inos(op):
            with self._lock:
                held = self._held.get(ino)
            if held is not None:
                self.give_back(ino)

    def _session_replaced(self) -> None:
        # Nobody calls the old one any more.
        self._listen_scope.cancel()
        with self._lock:
            # Also where nothing is held yet: the next session may not use them.
            self._numbers.clear()
        if self.log.session_id:
            self.log.abandon(SessionError("the session that made it is over"))

    def _lost(self) -> None:
        """All directories are others' by now."""
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
            self._numbers.clear()
        for asking in self._asking.values():
            asking.recalled = True
        for each in held:
            self._let_go(each)


def _ignore(_: object) -> None:
    """Nobody wants to be told."""


def _inos(op: m.AnyOp) -> Iterator[InodeId]:
    """The inodes that an operation names."""
    for field in _FIELDS[type(op)]:
        yield getattr(op, field)


def _entries(ops: Sequence[m.AnyOp]) -> set["_Entry"]:
    """The names that operations may change."""
    return {
        (getattr(op, parent), getattr(op, name)) for op in ops for parent, name in _NAMES[type(op)]
    }


_Entry = tuple[InodeId, bytes]
# OpenNamed only looks at its name.
_NAMES: Final[dict[type[m.Op], tuple[tuple[str, str], ...]]] = {
    kind: tuple(
        pair
        for pair in (("parent", "name"), ("new_parent", "new_name"))
        if set(pair) <= set(kind.__struct_fields__) and kind is not m.OpenNamed
    )
    for kind in m.Op.__subclasses__()
}
_FIELDS: Final[dict[type[m.Op], tuple[str, ...]]] = {
    kind: tuple(
        field
        for field in ("ino", "parent", "new_parent", "new_ino")
        if field in kind.__struct_fields__ and (field != "ino" or kind is not m.Create)
    )
    for kind in m.Op.__subclasses__()
}
