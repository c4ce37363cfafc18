"""What the master tells of the cluster on its monitoring port: a view of the status."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from dfs.core.chunk import DiskState
from dfs.core.metrics import Metric, Sample, gauge
from dfs.wire.messages import JobInfo, JobState, StatusReply


class MasterMetrics:
    """Sources for `dfs.wire.http.serve_http`."""

    def __init__(
        self, latest: Callable[[], StatusReply], jobs: Callable[[], Sequence[JobInfo]]
    ) -> None:
        """`latest` gives the status without counting anything afresh."""
        self._latest = latest
        self._jobs = jobs

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
            "retired": status.chunks_retired,
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

        yield from self._work()

    def _work(self) -> Iterator[Metric]:
        running = [job for job in self._jobs() if job.state == JobState.RUNNING]
        labels = [{"job": str(job.job), "kind": job.kind} for job in running]

        def of(values: Iterable[float]) -> list[Sample]:
            return [Sample(value, label) for value, label in zip(values, labels, strict=True)]

        yield Metric(
            "dfs_job_left_chunks",
            "Chunks that a running job still has to do, as far as it knows.",
            of(max(0, job.items_total - job.items_done) for job in running),
        )
        yield Metric(
            "dfs_job_bytes_per_second",
            "What a running job moves or reads, lately.",
            of(job.rate for job in running),
        )
        yield Metric(
            "dfs_job_failures",
            "Attempts of a running job that failed; they are repeated.",
            of(job.failures for job in running),
        )

    def problems(self) -> Iterator[str]:
        yield from self._latest().problems
