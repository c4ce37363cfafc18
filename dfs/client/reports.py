"""Tells the master of bad fragments that readers found: in the background, each once in a while."""

import logging
from collections import OrderedDict
from typing import Final

import trio

from dfs.client.meta import Meta
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId, DiskId
from dfs.wire.messages import FragmentReport

_AGAIN_AFTER_S: Final = 60.0
_AWAY_AGAIN_AFTER_S: Final = 5.0
_REMEMBERED_MAX: Final = 10_000
_GATHER_S: Final = 0.05
_REPORTS_MAX: Final = 200
"""In one request."""

log = logging.getLogger(__name__)


class Reports:
    """Owned by the client. `add` never waits."""

    def __init__(self, meta: Meta, nursery: trio.Nursery) -> None:
        self._meta = meta
        self._nursery = nursery
        self._sent: OrderedDict[tuple[ChunkId, DiskId, str], float] = OrderedDict()
        self._waiting: list[FragmentReport] = []
        self._sending = False

    def add(self, chunk: ChunkId, disk: DiskId, reason: str, index: int = -1) -> None:
        """`reason` is one of those of `FragmentReport`; `index`: of the fragment, if it matters."""
        # A server that is away is one piece of news, whatever chunk was wanted of it.
        away = reason == "unreachable"
        key = (0 if away else chunk, disk, reason)
        now = trio.current_time()
        last = self._sent.get(key)
        if last is not None and now - last < (_AWAY_AGAIN_AFTER_S if away else _AGAIN_AFTER_S):
            return
        log.info("chunk %d on disk %d is %s: telling the master", chunk, disk, reason)
        self._sent[key] = now
        self._sent.move_to_end(key)
        while len(self._sent) > _REMEMBERED_MAX:
            self._sent.popitem(last=False)
        self._waiting.append(FragmentReport(chunk, disk, reason, index))
        if not self._sending:
            self._sending = True
            self._nursery.start_soon(self._send)

    async def _send(self) -> None:
        try:
            await trio.sleep(_GATHER_S)
            await self.flush()
        finally:
            self._sending = False

    async def flush(self) -> None:
        """Send what is waiting, now. Never fails: what is not heard is found again."""
        while self._waiting:
            reports, self._waiting = self._waiting[:_REPORTS_MAX], self._waiting[_REPORTS_MAX:]
            try:
                await self._meta.report_fragments(reports)
            except DfsError as error:
                log.debug("%d fragment reports were not heard: %s", len(reports), error)
