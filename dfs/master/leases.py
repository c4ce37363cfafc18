"""How long sessions may stay silent: in memory, by an injected clock.

A session lives while its client renews it; every change it makes renews it too. A master that has
just started gives every session it finds in the store a whole lease, because it cannot know
when they were last heard; and neither does one that was itself held up blame them for the time
it did not listen. Owned by the service; `jobs.expire` ends the sessions that ran out.
"""

from collections.abc import Callable, Iterable
from typing import Final

from dfs.core.errors import SessionError
from dfs.core.ids import SessionId

STALL_S: Final = 5.0
"""So long between two looks at the leases, and the master itself was held up."""


class Leases:
    """When each session was last heard."""

    def __init__(self, lease_s: float, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that only go forward."""
        self.lease_s = lease_s
        self._clock = clock
        self._renewed: dict[SessionId, float] = {}
        self._looked = clock()

    def __repr__(self) -> str:
        return f"<Leases of {self.lease_s:g} s, {len(self._renewed)} sessions>"

    def grant(self, sessions: Iterable[SessionId]) -> None:
        """A whole lease from now on."""
        now = self._clock()
        self._renewed.update((session, now) for session in sessions)

    def heard(self, session: SessionId) -> None:
        """A session that is known to exist was heard."""
        self._renewed[session] = self._clock()

    def renew(self, session: SessionId) -> None:
        """Raises SessionError for a session that is over."""
        if session not in self._renewed:
            raise SessionError(
                f"session {session} is unknown or has expired", hint="open a new session"
            )
        self._renewed[session] = self._clock()

    def forget(self, session: SessionId) -> None:
        self._renewed.pop(session, None)

    def silent_s(self, session: SessionId) -> float:
        """Seconds since the session was heard."""
        now = self._clock()
        return now - self._renewed.get(session, now)

    def expired(self) -> list[SessionId]:
        """Sessions whose lease ran out, the longest silent first. Call it every second or so."""
        now = self._clock()
        stall_s = now - self._looked
        self._looked = now
        if stall_s > STALL_S:
            for session, heard in self._renewed.items():
                self._renewed[session] = min(now, heard + stall_s)
        edge = now - self.lease_s
        late = [(heard, session) for session, heard in self._renewed.items() if heard < edge]
        return [session for _, session in sorted(late)]
