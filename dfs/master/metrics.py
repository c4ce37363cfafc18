"""What the master tells of the cluster on its monitoring port: a view of the status."""

from collections.abc import Callable, Iterator

from dfs.core.chunk import DiskState
from dfs.core.metrics import Metric, Sample, gauge
from dfs.wire.messages import StatusReply


class MasterMetrics:
    """Sources for `dfs.wire.http.serve_http`."""

    def __init__(self, latest: Callable[[], StatusReply]) -> None:
        """`latest` gives the status without counting anything afresh."""
        self._latest = latest

    def metrics(self) -> Iterator[Metric]:
        status = self._latest()
        yield gauge("dfs_capacity_bytes", "Bytes of all disks that dfs may fill.", status.capacity)
        yield gauge("dfs_used_bytes", "Bytes fragments take.", status.used)
        yield gauge("dfs_free_bytes", "Bytes dfs may still write.", status.free)
        yield gauge("dfs_live_bytes", "Raw bytes that files refer to.", status.live)
        yield gauge("dfs_inodes", "Files, directories and all else with a number.", status.inodes)
        yield gauge(
            "dfs_purge_queue_chunks", "Chunks whose fragments await deletion.", status.purge_queue
        )
        yield gauge("dfs_uptime_seconds", "Since the master began.", status.uptime_s)
        chunks = {
            "open": status.chunks_open,
            "healthy": status.chunks_healthy,
            "degraded": status.chunks_degraded,
            "at_risk": status.chunks_at_risk,
            "lost": status.chunks_lost,
        }
        yield Metric(
            "dfs_chunks",
            "Chunks by health; open ones are counted in both.",
            [Sample(count, {"health": health}) for health, count in chunks.items()],
        )
        yield Metric(
            "dfs_server_up",
            "1 where the server answers.",
            [
                Sample(
                    float(server.state == DiskState.UP),
                    {"server": str(server.server), "address": server.address},
                )
                for server in status.servers
            ],
        )

    def problems(self) -> Iterator[str]:
        yield from self._latest().problems
