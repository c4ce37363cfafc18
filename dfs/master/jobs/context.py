"""What background jobs work with: the state, the servers, and the way to both."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dfs.master.claims import Claims
from dfs.master.journal import Journal
from dfs.master.keyspace import Reader
from dfs.master.liveness import Liveness
from dfs.master.report_book import ReportBook
from dfs.wire.pool import Pool


@dataclass(frozen=True)
class JobContext:
    journal: Journal
    """Changes the state."""
    reader: Reader
    """Reads it."""
    liveness: Liveness
    pool: Pool
    """Calls chunk servers."""
    now_ns: Callable[[], int]
    """Wall clock, for commands."""
    claims: Claims
    """What is under way with single chunks."""
    reports: ReportBook
    """Told of fragments that are new on a disk."""
    random: Random
