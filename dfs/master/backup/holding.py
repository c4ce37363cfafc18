"""A restored master that waits for a person: what it keeps, what it says, and how that ends.

The rules are in `hold`; this is their shell: it counts what chunk reports bring to light, and
answers `dfs admin confirm-restore`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dfs.core.ids import ChunkId, DiskId
from dfs.core.units import format_size
from dfs.master.backup import hold
from dfs.master.commands import ConfirmRestore, RaiseNextChunk
from dfs.master.journal import Journal
from dfs.master.keyspace import Reader, get_counters
from dfs.master.liveness import Liveness
from dfs.master.report_book import ReportBook
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer

CONFIRM: Final = "dfs admin confirm-restore"


class _Kept:
    """What one disk holds and the metadata do not know."""

    __slots__ = ("bytes", "fragments", "newer")

    def __init__(self) -> None:
        self.fragments = self.newer = self.bytes = 0


class Holding:
    """Told of chunk reports by `ServerService`; asked by those who show how the cluster is."""

    def __init__(
        self,
        reader: Reader,
        journal: Journal,
        liveness: Liveness,
        reports: ReportBook,
        now_ns: Callable[[], int],
    ) -> None:
        self._reader = reader
        self._journal = journal
        self._liveness = liveness
        self._reports = reports
        self._now_ns = now_ns
        self._kept: dict[DiskId, _Kept] = {}

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {m.ConfirmRestore: self.confirm}

    # ------------------------------------------------------------------ chunk reports

    def note(self, report: m.ReportChunks) -> None:
        """A page of a report has come: no new chunk may get the number of one that is there."""
        if not hold.is_held(self._reader):
            return
        if not report.after:
            self._kept[report.disk] = _Kept()
        newest = max((fragment.chunk for fragment in report.fragments), default=0)
        if newest >= get_counters(self._reader).next_chunk:
            self._journal.append(RaiseNextChunk(self._now_ns(), newest + 1))

    def let_go(self, report: m.ReportChunks, useless: Sequence[ChunkId]) -> Sequence[ChunkId]:
        """Those of the fragments that no metadata speak of which the disk may delete now."""
        record = hold.restored(self._reader)
        if record is None:
            return useless
        kept = self._kept.setdefault(report.disk, _Kept())
        lengths = {fragment.chunk: fragment.length for fragment in report.fragments}
        for chunk in useless:
            kept.fragments += 1
            kept.newer += chunk >= record.next_chunk
            kept.bytes += lengths.get(chunk, 0)
        return ()

    # ------------------------------------------------------------------ people

    def notices(self) -> list[str]:
        """For who asks how the cluster is."""
        record = hold.restored(self._reader)
        if record is None:
            return []
        kept = self._sum()
        return [
            f"the metadata were restored from a backup of {_date(record.backup_ns)}: what was "
            "written after it is not there, and nothing is deleted on the disks until "
            f"`{CONFIRM}`",
            f"{len(self._kept)} of {self._disks()} disks have said what they hold: "
            f"{kept.fragments} fragments ({format_size(kept.bytes)} of content) that the backup "
            f"does not know, {kept.newer} of them newer; they are kept",
        ]

    def confirm(self, _: Peer, request: m.ConfirmRestore, __: memoryview) -> m.RestoreReply:
        record = hold.restored(self._reader)
        if record is None:
            return m.RestoreReply(False, 0, 0, 0, 0, 0, 0, 0)
        kept = self._sum()
        reply = m.RestoreReply(
            True,
            record.backup_ns,
            record.restored_ns,
            self._disks(),
            len(self._kept),
            kept.fragments,
            kept.newer,
            kept.bytes,
        )
        if request.confirm:
            self._journal.append(ConfirmRestore(self._now_ns()))
            # Their next reports let go of what was kept.
            self._reports.want(self._kept)
            self._kept = {}
        return reply

    def _disks(self) -> int:
        return sum(len(server.disks) for server in self._liveness.server_infos())

    def _sum(self) -> _Kept:
        total = _Kept()
        for kept in self._kept.values():
            total.fragments += kept.fragments
            total.newer += kept.newer
            total.bytes += kept.bytes
        return total


def _date(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ns / 1e9))
