"""Who has which directory right now, and getting one back for others who want to look at it.

The delegations themselves are rows of the store (`delegations`); here is what goes with a run of
the master: the connection each holder listens on, what it was asked to give back, since when, and
which directories had better not be delegated again soon. Owned by the daemon; the service asks
before each request whether it would look into a directory that is another's.

A holder answers within milliseconds, or it has gone: then the directory is taken from it, and
whatever it still sends about it is refused.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

import trio

from dfs.core.ids import InodeId, SessionId
from dfs.master.commands import RevokeDelegation
from dfs.master.delegations import holder
from dfs.master.journal import Journal
from dfs.master.keyspace import DELEGATION, Reader, from_u64, get_dentry, key_id, scan_prefix
from dfs.wire import messages as m
from dfs.wire.handlers import Peer

ANSWERS_S: Final = 15.0
"""How long a holder that is connected may take to give a directory back."""
GONE_S: Final = 3.0
"""How long one may take that is not connected: it has ended, or is about to be back."""
STARTING_S: Final = 10.0
"""So long after the master's start nobody is taken for gone."""
LISTEN_S: Final = 20.0
"""An AwaitRecalls is answered at least so often."""
ALONE_S: Final = 1.0
"""A directory that somebody else looked into so lately is not delegated. A client may act upon what
it has just seen there for a moment (`_FRESH_S` of a mount) without asking again."""
COOL_FIRST_S: Final = 2.0
COOL_MOST_S: Final = 60.0
"""A directory that was recalled is not delegated for a while; longer, the more often it was."""
_LOOK_AGAIN_S: Final = 0.1
_COOLING_MAX: Final = 10_000
_LOOKS_MAX: Final = 20_000
_NEVER: Final = float("-inf")
_IN_NO_DIRECTORY: Final = frozenset(
    (m.Open, m.Release, m.Commit, m.PunchHole, m.CloneRange, m.Undelegate)
)

log = logging.getLogger(__name__)


class _Listener:
    """A session that holds directories, and the connection it listens on."""

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self.listening = 0
        """Its AwaitRecalls that are to be answered."""
        self.wanted: set[InodeId] = set()
        self.called = trio.Event()

    @property
    def connected(self) -> bool:
        if self.peer is None:
            return False
        connection = self.peer.connection
        return connection is None or not connection.closed


class _Wait:
    """For a directory that was recalled from a session."""

    def __init__(self, session: SessionId, now: float) -> None:
        self.session = session
        self.begun = now
        self.connected_at = now
        """When its holder was last seen to be connected."""
        self.waiting = 0
        """How many wait."""
        self.left_at = now
        """When the last of them gave up."""


class Recalls:
    """See the module."""

    def __init__(
        self,
        reader: Reader,
        journal: Journal,
        *,
        clock: Callable[[], float],
        now_ns: Callable[[], int],
    ) -> None:
        self._reader = reader
        self._journal = journal
        self._clock = clock
        self._now_ns = now_ns
        self._started = clock()
        self._holders: dict[InodeId, SessionId] = {
            key_id(key): from_u64(value) for key, value in scan_prefix(reader, DELEGATION)
        }
        """At least all that are delegated; whether one really is, the store says."""
        self._listeners: dict[SessionId, _Listener] = {}
        self._returned = trio.Event()
        """Set, and replaced, whenever a directory has been given back."""
        self._waits: dict[InodeId, _Wait] = {}
        """Directories that somebody waits for; whoever gives up waiting may come again."""
        self._cooling: dict[InodeId, tuple[float, float]] = {}
        """Until when, and for how long, a directory is not delegated again."""
        self._looks: dict[InodeId, tuple[Peer, float, float]] = {}
        """Who looked into a directory last, when, and when the last other did."""
        self._looks_since = clock()
        """Looks of before are forgotten."""

    # ------------------------------------------------------------------ holders

    def again_s(self, peer: Peer, ino: InodeId) -> float:
        """How long the directory is not to be delegated yet to who asks over `peer`; 0: now."""
        until, _ = self._cooling.get(ino, (_NEVER, 0.0))
        last = self._looks.get(ino)
        if last is None:
            other = self._looks_since
        else:
            other = last[2] if last[0] is peer else last[1]
        return max(0.0, max(until, other + ALONE_S) - self._clock())

    def looked(self, peer: Peer, ino: InodeId) -> None:
        """A directory's entries are being looked at or changed."""
        now = self._clock()
        last = self._looks.get(ino)
        if last is None:
            if len(self._looks) >= _LOOKS_MAX:
                self._looks.clear()
                self._looks_since = now
            self._looks[ino] = (peer, now, self._looks_since)
        else:
            self._looks[ino] = (peer, now, last[2] if last[0] is peer else last[1])

    def granted(self, ino: InodeId, session: SessionId, peer: Peer) -> None:
        """The session has been given the directory; it asked over `peer`."""
        self._holders[ino] = session
        self._listeners.setdefault(session, _Listener()).peer = peer

    def applied(self, ops: Iterable[m.Op]) -> None:
        """Operations have been applied: some may have given directories back."""
        for op in ops:
            if type(op) is m.Undelegate and op.ino in self._holders:
                self._holder(op.ino)

    async def listen(self, session: SessionId, peer: Peer) -> tuple[InodeId, ...]:
        """The directories that the session is to give back, as soon as there are any."""
        listener = self._listeners.setdefault(session, _Listener())
        listener.peer = peer
        listener.listening += 1
        try:
            with trio.move_on_after(LISTEN_S):
                while not listener.wanted:
                    await listener.called.wait()
        finally:
            listener.listening -= 1
            self._tidy(session)
        wanted = tuple(listener.wanted)
        listener.wanted.clear()
        listener.called = trio.Event()
        return wanted

    def _holder(self, ino: InodeId) -> SessionId | None:
        """Whose the directory is, by the store."""
        session = holder(self._reader, ino)
        if session is None:
            self._forget(ino)
        return session

    def _forget(self, ino: InodeId) -> None:
        self._waits.pop(ino, None)
        session = self._holders.pop(ino, None)
        if session is not None:
            self._tidy(session)
        self._returned.set()
        self._returned = trio.Event()

    def _tidy(self, session: SessionId) -> None:
        """Forget who neither holds anything nor listens."""
        listener = self._listeners.get(session)
        if listener is None or listener.listening or session in self._holders.values():
            return
        del self._listeners[session]

    # ------------------------------------------------------------------ those who want to look

    def in_the_way(self, session: SessionId, ops: Iterable[m.AnyOp]) -> list[InodeId]:
        """Directories of other sessions that the operations would look into."""
        if not self._holders:
            return []
        touched = {ino for op in ops for ino in self._touched(op)}
        return [ino for ino in touched if self._holders.get(ino, session) != session]

    def in_the_way_of(self, peer: Peer, ino: InodeId) -> bool:
        """Whether the directory is another's than the one's who asks over `peer`."""
        session = self._holders.get(ino)
        if session is None:
            return False
        listener = self._listeners.get(session)
        return listener is None or listener.peer is not peer

    def watched(self, peer: Peer) -> "Reader":
        """The store, that notes which directories are looked into. Others' raise Elsewhere."""
        return _Watched(self._reader, self, peer)

    def _touched(self, op: m.AnyOp) -> Iterator[InodeId]:
        """The directories whose entries, or own attributes, an operation reads or changes."""
        if type(op) in _IN_NO_DIRECTORY:  # an `isinstance` of so many takes 10 us
            return
        if isinstance(op, m.SetAttr | m.SetXattr | m.RemoveXattr | m.SetPolicy):
            yield op.ino
        elif isinstance(op, m.Rename):
            for parent, name in ((op.parent, op.name), (op.new_parent, op.new_name)):
                yield parent
                yield from self._child(parent, name)
        elif isinstance(op, m.Rmdir):
            yield op.parent
            yield from self._child(op.parent, op.name)
        else:
            yield cast("m.Create", op).parent  # or any other that names one directory

    def _child(self, parent: InodeId, name: bytes) -> Iterator[InodeId]:
        ino = get_dentry(self._reader, parent, name)
        if ino is not None:
            yield ino

    async def clear(self, inos: Iterable[InodeId]) -> None:
        """Return when these directories are nobody's, or no longer whose they were.

        The caller has to look again: another may have them by then.
        """
        for ino in inos:
            session = self._holder(ino)
            if session is not None:
                await self._recall(ino, session)

    def _wait_for(self, ino: InodeId, session: SessionId) -> _Wait:
        """Who gave up and comes again goes on waiting, but not from when nobody was waiting.

        The holder is asked while somebody waits; what it was told before may not have arrived.
        """
        now = self._clock()
        wait = self._waits.get(ino)
        if wait is not None and wait.session == session:
            unasked_s = 0.0 if wait.waiting else now - wait.left_at
            if unasked_s < ANSWERS_S:
                wait.begun += unasked_s
                wait.connected_at += unasked_s
                return wait
        self._cool(ino)
        wait = self._waits[ino] = _Wait(session, now)
        return wait

    async def _recall(self, ino: InodeId, session: SessionId) -> None:
        wait = self._wait_for(ino, session)
        wait.waiting += 1
        try:
            await self._returned_or_late(ino, wait)
        finally:
            wait.waiting -= 1
            wait.left_at = self._clock()
        if self._holder(ino) != session:
            return
        log.warning(
            "session %d has not given directory %d back for %.1f s: it is taken from it; what the "
            "client did there and had not yet told is lost to it",
            session,
            ino,
            self._clock() - wait.begun,
        )
        self._journal.append(RevokeDelegation(time_ns=self._now_ns(), ino=ino, session=session))
        self._holder(ino)

    async def _returned_or_late(self, ino: InodeId, wait: _Wait) -> None:
        """Return when the directory is not its holder's any more, or should not be."""
        session = wait.session
        while True:
            listener = self._listeners.setdefault(session, _Listener())
            if ino not in listener.wanted:
                # Again, too: what was answered may not have arrived.
                listener.wanted.add(ino)
                listener.called.set()
            returned = self._returned
            with trio.move_on_after(_LOOK_AGAIN_S):
                await returned.wait()
            if self._holder(ino) != session:
                return
            now = self._clock()
            if listener.connected or now < self._started + STARTING_S:
                wait.connected_at = now
            if now - wait.connected_at >= GONE_S or now - wait.begun >= ANSWERS_S:
                return

    def _cool(self, ino: InodeId) -> None:
        now = self._clock()
        until, delay = self._cooling.get(ino, (0.0, 0.0))
        if until > now:
            return
        # Quiet for long: what was, is forgotten.
        delay = min(delay * 2, COOL_MOST_S) if now < until + 4 * delay and delay else COOL_FIRST_S
        if len(self._cooling) >= _COOLING_MAX:
            self._cooling = {key: at for key, at in self._cooling.items() if at[0] > now}
        self._cooling[ino] = (now + delay, delay)


class Elsewhere(Exception):  # noqa: N818 - no failure: the reader waits and reads again
    """A directory that somebody else has was about to be looked into."""

    def __init__(self, ino: InodeId) -> None:
        super().__init__(ino)
        self.ino = ino


class _Watched:
    """A reader that stops at entries of directories which are another's."""

    def __init__(self, base: Reader, recalls: Recalls, peer: Peer) -> None:
        self._base = base
        self._recalls = recalls
        self._peer = peer
        self.get_many = base.get_many
        self.scan = base.scan

    def get(self, key: bytes) -> bytes | None:
        if key[:1] == b"d":
            ino = key_id(key)
            if self._recalls.in_the_way_of(self._peer, ino):
                raise Elsewhere(ino)
            self._recalls.looked(self._peer, ino)
        return self._base.get(key)
