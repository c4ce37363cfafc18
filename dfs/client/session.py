"""The client's session with the master: opened on first use, renewed, replaced when it expired.

A request that changes state carries the session's id and a sequence number. A repeat with the
same number takes effect once, which is what makes it safe to retry after a lost reply. The
master remembers the last `WINDOW` replies, so no number may be sent while one that is `WINDOW`
older still waits for its answer.

A change that was given up may still be on its way, on a connection that is stalled. So that it does
not take effect after something newer, its number is used up, by a request that changes nothing,
before anything else is sent.
"""

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio

from dfs.client.master_link import CALL_TIMEOUT_S, MasterLink
from dfs.client.retry import Patience, worth_retrying
from dfs.core.errors import DfsError, SessionError, UnavailableError
from dfs.core.ids import SessionId
from dfs.wire.messages import (
    WINDOW,
    Applied,
    Apply,
    CloseSession,
    Cred,
    Empty,
    Message,
    OpenSession,
    RenewSession,
    SessionOpened,
)

R = TypeVar("R", bound=Message)
MakeRequest = Callable[[SessionId, int], Message]

_NOBODY: Final = Cred(0, 0)
_RENEWALS_PER_LEASE: Final = 3
_CLOSE_TIMEOUT_S: Final = 3.0

log = logging.getLogger(__name__)


class _Lease:
    """One session: its id, and which sequence numbers are in flight."""

    def __init__(self, opened: SessionOpened) -> None:
        self.session = opened.session
        self.lease_s = opened.lease_s
        self.cluster = opened.cluster
        self._next = 1
        self._in_flight: OrderedDict[int, None] = OrderedDict()
        self._room = trio.lowlevel.ParkingLot()
        self.in_doubt: dict[int, None] = {}
        """Numbers of changes that were given up; they count as in flight until they are used up."""

    async def take(self, deadline: float = math.inf) -> int:
        """The next number, as soon as the window has room for it. Raises UnavailableError."""
        if self._full:
            with trio.CancelScope(deadline=deadline) as scope:
                while self._full:
                    await self._room.park()
            if scope.cancelled_caught:
                raise UnavailableError("the master has not answered changes that were sent before")
        sequence = self._next
        self._next += 1
        self._in_flight[sequence] = None
        return sequence

    @property
    def _full(self) -> bool:
        """The window of numbers in flight has no room for another."""
        return bool(self._in_flight) and self._next - next(iter(self._in_flight)) >= WINDOW

    def give_back(self, sequence: int) -> None:
        """The number has its answer, or it does not matter when that comes."""
        oldest = next(iter(self._in_flight)) == sequence
        del self._in_flight[sequence]
        if oldest and self._room:
            self._room.unpark_all()


class _Opening:
    """An attempt to open a session. Who wants one while it is under way waits for the same."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: DfsError | None = None


class Session:
    """Sends changes under the current session. Owned by the client, which runs `keep`."""

    def __init__(self, link: MasterLink, client: str, rng: random.Random) -> None:
        self._link = link
        self._client = client
        self._rng = rng
        self._lease: _Lease | None = None
        self._opening: _Opening | None = None
        self._request: OpenSession | None = None
        """For the next session, again and again until it is there."""
        self._replacing = False
        """A session has expired, and none has been opened since."""
        self.closed = False
        self._opened = trio.Event()
        self.on_replaced: list[Callable[[], None]] = []
        """Called after an expired session has been replaced, to take up again what it held."""
        self.on_settled: Callable[[Applied], None] = _ignore
        """Told what the master says of a change that was given up: it was made, or none was."""

    @property
    def current_id(self) -> SessionId:
        """The session's number; 0 before the first change."""
        return self._lease.session if self._lease else 0

    async def open(self) -> None:
        """Make sure that there is a session."""
        await self._current()

    async def change(
        self,
        make: MakeRequest,
        reply_type: type[R],
        *,
        redo: bool = True,
        once: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
        patience: Patience | None = None,
        session: SessionId = 0,
    ) -> tuple[R, SessionId]:
        """Send `make(session, sequence)` until it has its one answer; also the session it got.

        `timeout_s` is for one attempt; `patience` for all of them, by default the client's. Where
        `session` is given, it is for that one only, and nothing is sent under another.

        When the session has expired, the request is made anew under the next one, unless
        `redo` is False: for requests about things that died with the session. (A request
        whose reply was lost before the session expired may so take effect twice.) With `once`,
        the first failure is reported, also one that may pass: the caller then does not know
        whether the request took effect.

        Raises:
            SessionError: the session has expired, and `redo` is False, or it is not `session`.
            DfsError: the master's refusal, or UnavailableError when it took too long.
        """
        patience = patience or self._link.patience()
        while True:
            lease = await self._current(patience)
            if session not in (0, lease.session):
                raise SessionError(f"session {session} is over")
            try:
                if lease.in_doubt:
                    await self._use_up(lease, patience, once=once)
                deadline = max(patience.deadline, trio.current_time() + CALL_TIMEOUT_S)
                sequence = await lease.take(deadline)
                in_doubt = False
                try:
                    request = make(lease.session, sequence)
                    in_doubt = isinstance(request, Apply)
                    reply = await self._repeat(
                        request, reply_type, patience, once=once, timeout_s=timeout_s
                    )
                    in_doubt = False
                    return reply, lease.session
                except DfsError as error:
                    in_doubt = in_doubt and worth_retrying(error)
                    raise
                finally:
                    if in_doubt:
                        lease.in_doubt[sequence] = None
                    else:
                        lease.give_back(sequence)
            except SessionError as error:
                await self._expired(lease, error, patience)
                if not redo:
                    raise
                await patience.pause(error)

    async def settle(self) -> None:
        """Return when no change that was given up before can take effect any more.

        Raises UnavailableError.
        """
        lease = self._lease
        if lease is not None:
            try:
                await self._use_up(lease, self._link.patience())
            except SessionError as error:
                # With the session goes what was sent under it.
                await self._expired(lease, error)

    async def _use_up(self, lease: _Lease, patience: Patience, *, once: bool = False) -> None:
        """Use up the numbers that are in doubt. Raises SessionError, UnavailableError."""
        for sequence in list(lease.in_doubt):
            request = Apply(lease.session, sequence, _NOBODY, ())
            applied = await self._repeat(request, Applied, patience, once=once)
            if sequence in lease.in_doubt:
                del lease.in_doubt[sequence]
                lease.give_back(sequence)
                self.on_settled(applied)

    async def keep(self) -> None:
        """Renew the session before its lease ends, for ever. Run this in the background."""
        while True:
            await self._opened.wait()
            lease = self._lease
            assert lease is not None
            await trio.sleep(lease.lease_s / _RENEWALS_PER_LEASE)
            if lease is not self._lease:
                continue
            try:
                await self._link.call_once(RenewSession(lease.session), Empty)
            except SessionError as error:
                with suppress(DfsError):
                    await self._expired(lease, error)
            except DfsError as error:
                # The next round, or the next change, will tell; a master that restarts keeps us.
                log.debug("could not renew session %d: %s", lease.session, error)

    async def close(self) -> None:
        """Tell the master that we are done. Never waits long, and never fails."""
        self.closed = True
        if self._lease is None:
            return
        with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            try:
                await self._link.call_once(
                    CloseSession(self._lease.session), Empty, timeout_s=_CLOSE_TIMEOUT_S
                )
            except DfsError as error:
                log.debug("session %d is left to expire: %s", self._lease.session, error)

    async def _current(self, patience: Patience | None = None) -> _Lease:
        """The session there is, or a new one, within the caller's own patience."""
        while (lease := self._lease) is None:
            patience = patience or self._link.patience()
            error = await self._open_once()
            if error is not None:
                if not worth_retrying(error):
                    raise error
                await patience.pause(error)
        return lease

    async def _open_once(self) -> DfsError | None:
        """Try once to open a session; why it could not be opened."""
        opening = self._opening
        if opening is not None:
            await opening.done.wait()
            return opening.error.again() if opening.error else None
        if self.closed:
            return SessionError("the client is closed")
        if self._request is None:
            self._request = OpenSession(self._client, self._rng.getrandbits(63))
        opening = self._opening = _Opening()
        try:
            opened = await self._link.call_once(self._request, SessionOpened)
        except DfsError as error:
            opening.error = error
            return error
        finally:
            self._opening = None
            opening.done.set()
        # No await from here on: who waited finds the session, and what it held taken up again.
        self._request = None
        self._lease = _Lease(opened)
        self._opened.set()
        if self._replacing:
            self._replacing = False
            for callback in self.on_replaced:
                callback()
        return None

    async def _expired(
        self, lease: _Lease, error: SessionError, patience: Patience | None = None
    ) -> None:
        """Give up a session that the master no longer knows, and open the next one."""
        if self._lease is not lease or self.closed:
            return
        log.info("session %d is over (%s); opening a new one", lease.session, error.message)
        self._lease = None
        self._opened = trio.Event()
        # Whoever opens the next one, now or after a failure, makes it known as a replacement.
        self._replacing = True
        await self._current(patience)

    async def _repeat(
        self,
        request: Message,
        reply_type: type[R],
        patience: Patience,
        *,
        once: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> R:
        while True:
            try:
                return await self._link.call_once(request, reply_type, timeout_s=timeout_s)
            except DfsError as error:
                if once or not worth_retrying(error):
                    raise
                await patience.pause(error)


def _ignore(_: Applied) -> None:
    """Nobody wants to be told."""
