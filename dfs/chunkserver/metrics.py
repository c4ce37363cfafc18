"""What a chunk server tells of itself on its monitoring port."""

from collections.abc import Iterator

import trio

from dfs.chunkserver.service import ChunkService
from dfs.core.metrics import Metric, Sample, gauge


class ChunkServerMetrics:
    """Sources for `dfs.wire.http.serve_http`."""

    def __init__(self, service: ChunkService) -> None:
        self._service = service
        self._started_at = trio.current_time()

    def metrics(self) -> Iterator[Metric]:
        reports = [(disk.report(), {"disk": disk.path}) for disk in self._service.disks]
        for name, what, values in (
            ("capacity_bytes", "Bytes dfs may fill.", [r.capacity for r, _ in reports]),
            ("used_bytes", "Bytes fragments take.", [r.used for r, _ in reports]),
            ("free_bytes", "Bytes dfs may still write.", [r.free for r, _ in reports]),
            ("fragments", "Fragments held.", [r.fragments for r, _ in reports]),
            ("failed", "1 where the disk has failed.", [r.failed for r, _ in reports]),
        ):
            samples = [
                Sample(float(value), labels)
                for value, (_, labels) in zip(values, reports, strict=True)
            ]
            yield Metric(f"dfs_disk_{name}", what, samples)
        yield gauge(
            "dfs_uptime_seconds", "Since the server began.", trio.current_time() - self._started_at
        )

    def problems(self) -> Iterator[str]:
        for disk in self._service.disks:
            report = disk.report()
            if report.failed:
                yield f"disk {disk.path} has failed: {report.error}"
