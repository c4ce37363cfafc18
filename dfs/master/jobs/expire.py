"""Ending sessions whose lease ran out."""

import logging
from typing import Final

import trio

from dfs.master.commands import ExpireSession
from dfs.master.jobs.context import JobContext
from dfs.master.keyspace import get_session
from dfs.master.leases import Leases

log = logging.getLogger(__name__)

BATCH: Final = 16
"""Sessions ended in one go; each may release a thousand rows."""


class ExpireSessions:
    """Owned by the daemon."""

    name = "ending expired sessions"
    idle_s = 1.0

    def __init__(self, context: JobContext, leases: Leases) -> None:
        self._context = context
        self._leases = leases

    async def run_once(self) -> bool:
        expired = self._leases.expired()
        for session in expired[:BATCH]:
            record = get_session(self._context.reader, session)
            if record is not None:
                self._context.journal.append(
                    ExpireSession(time_ns=self._context.now_ns(), session=session)
                )
                log.warning(
                    "session %d of %s (%s) was silent for %.0f s: its open files and chunks are "
                    "released",
                    session,
                    record.client,
                    record.address,
                    self._leases.silent_s(session),
                )
            self._leases.forget(session)
            await trio.lowlevel.checkpoint()
        return len(expired) > BATCH
