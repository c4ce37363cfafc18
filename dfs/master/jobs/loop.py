"""The one shape of background work: `run_once` does a bounded piece, `run_forever` repeats it.

A job yields to clients: after a piece that took t seconds it sleeps for t, so that it takes at
most half of the master's time, and less where clients keep the loop busy. An error is one line
in the log and a pause that doubles; it never ends the job or the master.
"""

import logging
from typing import Final, Protocol

import trio

from dfs.core.errors import DfsError

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MOST_S: Final = 30.0


class Job(Protocol):
    """A kind of background work."""

    @property
    def name(self) -> str:
        """For the log: `purging files`."""

    @property
    def idle_s(self) -> float:
        """How long to sleep when there is nothing to do."""

    async def run_once(self) -> bool:
        """Do a bounded piece of the work. True: there is more to do now."""


async def run_forever(job: Job) -> None:
    """Run a job until cancelled."""
    backoff_s = 0.0
    while True:
        began = trio.current_time()
        try:
            more = await job.run_once()
        except DfsError as error:
            backoff_s = _longer(backoff_s)
            log.warning("%s: %s; trying again in %.1f s", job.name, error, backoff_s)
        except Exception:
            backoff_s = _longer(backoff_s)
            log.exception("%s failed; trying again in %.1f s", job.name, backoff_s)
        else:
            backoff_s = 0.0
            if more:
                await trio.sleep(trio.current_time() - began)
                continue
        await trio.sleep(backoff_s or job.idle_s)


def _longer(backoff_s: float) -> float:
    return min(BACKOFF_MOST_S, max(BACKOFF_FIRST_S, backoff_s * 2))
