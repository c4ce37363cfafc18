"""Who asks: the credentials of the process behind a request, as the master wants them.

The kernel says uid, gid and process; supplementary groups are read from /proc and believed for a
moment. Root needs no groups: it passes every check.
"""

import time
from dataclasses import dataclass
from typing import Final

from dfs.wire.messages import Cred

_BELIEVED_S: Final = 1.0
_PROCESSES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """A process that asks for something. `pid` 0: the kernel itself, or another namespace."""

    uid: int
    gid: int
    pid: int = 0


class Credentials:
    """From callers to `Cred`. May be used from any thread."""

    def __init__(self) -> None:
        self._known: dict[Caller, tuple[float, Cred]] = {}

    def of(self, caller: Caller) -> Cred:
        """The caller's credentials now, or a moment ago."""
        now = time.monotonic()
        found = self._known.get(caller)
        if found is not None and found[0] > now:
            return found[1]
        groups = () if caller.uid == 0 else _groups(caller.pid)
        cred = Cred(caller.uid, caller.gid, groups)
        if len(self._known) >= _PROCESSES_MAX:
            self._known = {}
        self._known[caller] = (now + _BELIEVED_S, cred)
        return cred


def _groups(pid: int) -> tuple[int, ...]:
    """Supplementary groups of a process; none where it cannot be seen, or has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(map(int, line.split()[1:]))
    except OSError:
        pass
    return ()
