"""What the master answers about jobs and about disks that come and go by a person's order."""

from collections.abc import Callable, Mapping

from dfs.core.errors import FileSystemError
from dfs.master.jobs.board import JobBoard
from dfs.master.jobs.membership import DiskKeeper
from dfs.master.journal import Journal
from dfs.master.keyspace import REPAIR_JOB
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer


class JobService:
    """Handlers. What they change is on the disk before they answer."""

    def __init__(
        self,
        board: JobBoard,
        keeper: DiskKeeper,
        hurry_repair: Callable[[], None],
        journal: Journal,
    ) -> None:
        self._board = board
        self._keeper = keeper
        self._hurry_repair = hurry_repair
        self._journal = journal

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {
            m.StartJob: self.start_job,
            m.ListJobs: self.list_jobs,
            m.ControlJob: self.control_job,
            m.SetBudget: self.set_budget,
            m.SetDraining: self.set_draining,
            m.RemoveDisks: self.remove_disks,
        }

    async def start_job(self, _: Peer, request: m.StartJob, __: memoryview) -> m.JobReply:
        kind = self._board.kind(request.kind)
        if request.kind == "repair":
            # It always runs: starting it means not to wait for its next look.
            self._hurry_repair()
            return m.JobReply(self._board.info(REPAIR_JOB))
        plan, command = await kind.plan(request)
        if request.plan:
            return m.JobReply(None, plan)
        if plan.refusal:
            raise FileSystemError(plan.refusal)
        info = self._board.start(command)
        await self._journal.sync()
        return m.JobReply(info, plan)

    def list_jobs(self, _: Peer, request: m.ListJobs, __: memoryview) -> m.JobsReply:
        jobs = (self._board.info(request.job),) if request.job else self._board.infos()
        return m.JobsReply(jobs, self._board.budget)

    async def control_job(self, _: Peer, request: m.ControlJob, __: memoryview) -> m.JobReply:
        info = self._board.control(request.job, request.action)
        await self._journal.sync()
        return m.JobReply(info)

    async def set_budget(self, _: Peer, request: m.SetBudget, __: memoryview) -> m.Empty:
        self._board.set_budget(request.bandwidth)
        await self._journal.sync()
        return m.Empty()

    async def set_draining(self, _: Peer, request: m.SetDraining, __: memoryview) -> m.Empty:
        self._keeper.set_draining(request.disks, request.draining)
        await self._journal.sync()
        return m.Empty()

    async def remove_disks(self, _: Peer, request: m.RemoveDisks, __: memoryview) -> m.Empty:
        await self._keeper.remove(request.server, request.disks)
        await self._journal.sync()
        return m.Empty()
