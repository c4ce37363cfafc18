"""Orders of those who run the cluster: jobs, their budget, disks that come and go."""

from collections.abc import Sequence
from typing import Final

from dfs.client.master_link import MasterLink
from dfs.core.ids import DiskId, InodeId, PolicyId, ServerId
from dfs.wire import messages as m

PLAN_TIMEOUT_S: Final = 3600.0
"""Some plans go through all chunks, or through a tree. A master that is gone is noticed before."""


class Admin:
    """`client.admin`. Every call raises DfsError with what was wrong and what to do."""

    def __init__(self, link: MasterLink) -> None:
        self._link = link

    async def plan(self, kind: str, **wanted: object) -> m.PlanReply:
        """What a job would do, without doing it. `wanted`: fields of `messages.StartJob`."""
        request = m.StartJob(kind, plan=True, **wanted)  # type: ignore[arg-type]
        reply = await self._link.call(request, m.JobReply, timeout_s=PLAN_TIMEOUT_S)
        assert reply.plan is not None
        return reply.plan

    async def start(
        self,
        kind: str,
        *,
        disks: Sequence[DiskId] = (),
        threshold: float = 0.05,
        bandwidth: int = 0,
        ino: InodeId = 0,
        policy: PolicyId = 0,
        path: str = "",
    ) -> m.JobInfo:
        """Start a job, or join the one of this kind and subject that runs already."""
        request = m.StartJob(
            kind, tuple(disks), threshold, bandwidth, ino, policy=policy, path=path
        )
        reply = await self._link.call(request, m.JobReply)
        assert reply.job is not None
        return reply.job

    async def jobs(self) -> m.JobsReply:
        return await self._link.call(m.ListJobs(), m.JobsReply)

    async def job(self, number: int) -> m.JobInfo:
        return (await self._link.call(m.ListJobs(number), m.JobsReply)).jobs[0]

    async def control(self, number: int, action: str) -> m.JobInfo:
        """`pause`, `resume` or `cancel` a job."""
        reply = await self._link.call(m.ControlJob(number, action), m.JobReply)
        assert reply.job is not None
        return reply.job

    async def set_budget(self, bandwidth: int) -> None:
        """Bytes a second for all background work together; 0: no bound."""
        await self._link.call(m.SetBudget(bandwidth), m.Empty)

    async def set_draining(self, disks: Sequence[DiskId], draining: bool) -> None:
        """Take disks out of placement, or back into it (which ends a drain)."""
        await self._link.call(m.SetDraining(tuple(disks), draining), m.Empty)

    async def remove(self, server: ServerId = 0, disks: Sequence[DiskId] = ()) -> None:
        """Forget a server with its disks, or single disks."""
        await self._link.call(m.RemoveDisks(server, tuple(disks)), m.Empty)
