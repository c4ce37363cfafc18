"""What all chunk writers of a client share."""

from typing import Final

import trio

from dfs.client.avoidance import Avoidance
from dfs.client.meta import Meta
from dfs.client.reports import Reports
from dfs.client.resolver import Resolver
from dfs.core.workers import Workers
from dfs.wire.limits import ByteBudget
from dfs.wire.pool import Pool

IN_FLIGHT_BYTES: Final = 32 * 1024 * 1024
"""Raw bytes submitted and not acknowledged, over all writers of a client."""


class WriteContext:
    """What all chunk writers of a client share."""

    def __init__(
        self,
        *,
        meta: Meta,
        pool: Pool,
        resolver: Resolver,
        reports: Reports,
        workers: Workers,
        nursery: trio.Nursery,
        near: str,
    ) -> None:
        self.meta = meta
        self.pool = pool
        self.resolver = resolver
        self.reports = reports
        self.workers = workers
        self.nursery = nursery
        self.near = near
        self.avoidance = Avoidance()
        self.budget = ByteBudget(IN_FLIGHT_BYTES)
