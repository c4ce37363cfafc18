"""The master as the client sees it: one method for each request and operation, by inode number.

Changes go through `apply`. Whatever many tasks ask for at the same time travels together in one
Apply request, which is what makes small operations fast. Reads are single requests. Everything
is repeated while the master cannot answer, as `on_unavailable` says; a change takes effect once.

    inode = await meta.create(ROOT_INODE, b"name", 0o644)
    await meta.apply(Unlink(ROOT_INODE, b"a"), Unlink(ROOT_INODE, b"b"))
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

import trio

from dfs.client.barrier import SYNC_TIMEOUT_S, Barrier
from dfs.client.delegations import Delegations
from dfs.client.master_link import CALL_TIMEOUT_S, MasterLink
from dfs.client.session import Session
from dfs.core.chunk import Layout
from dfs.core.errors import DfsError, SessionError, from_wire
from dfs.core.ids import ROOT_INODE, ChunkId, DiskId, InodeId, PolicyId
from dfs.core.inode import Inode
from dfs.core.policy import Policy
from dfs.wire import messages as m

R = TypeVar("R", bound=m.Message)

_FRAME_OPS_MAX: Final = 1024
"""Operations in one Apply. The master serves nobody else while it works on one."""
_FRAME_COST_MAX: Final = 256 * 1024
"""Rough bytes in one Apply."""
_FRAMES_IN_FLIGHT: Final = 16


class _Waiting:
    """A caller of `apply`: what it asks for, and how to wake it."""

    __slots__ = ("cost", "cred", "error", "ops", "results", "sync", "synced", "task")

    def __init__(self, ops: tuple[m.AnyOp, ...], cred: m.Cred, sync: bool) -> None:
        self.ops = ops
        self.cred = cred
        self.sync = sync
        """Answer when it is on the master's disk."""
        self.synced = False
        """It is."""
        self.cost = sum(map(_cost, ops))
        self.task: trio.lowlevel.Task | None = None
        self.results: list[m.OpResult] | None = None
        self.error: DfsError | None = None

    async def wait(self) -> list[m.OpResult]:
        if self.results is None and self.error is None:
            self.task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self.error is not None:
            raise self.error
        assert self.results is not None
        return self.results

    def succeed(self, results: list[m.OpResult], synced: bool) -> None:
        self.results = results
        self.synced = synced
        self._wake()

    def fail(self, error: DfsError) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None


class Meta:
    """Inode-level calls. `cred` of a call defaults to the client's own.

    All methods raise FileSystemError with the errno POSIX asks for when the master refuses,
    UnavailableError when nobody answers in time.
    """

    def __init__(
        self, link: MasterLink, session: Session, cred: m.Cred, nursery: trio.Nursery
    ) -> None:
        self.cred = cred
        self.session = session
        self.link = link
        self.barrier = Barrier(link)
        session.on_settled = lambda applied: self.barrier.note(applied.position)
        self.delegations = Delegations(link, session, self.barrier, nursery)
        self._nursery = nursery
        self._queue: deque[_Waiting] = deque()
        self._frames = 0
        self._flushing = False

    # ---------------------------------------------------------------- changes

    async def apply(self, *ops: m.AnyOp, cred: m.Cred | None = None) -> list[m.OpResult]:
        """Apply `ops` in order, each in a transaction of its own; a result for each.

        One that is refused has its error in its result and does not stop the others. Cancelling
        the caller does not undo or stop what has been asked for.

        Raises:
            DfsError: nothing is known about the outcome of any of them.
        """
        if not ops:
            return []
        # Larger than a frame: in slices, which are in the order of `ops`.
        if len(ops) > _FRAME_OPS_MAX:
            results: list[m.OpResult] = []
            for start in range(0, len(ops), _FRAME_OPS_MAX):
                results += await self.apply(*ops[start : start + _FRAME_OPS_MAX], cred=cred)
            return results
        return (await self._answer(ops, cred, sync=False))[0]

    async def _answer(
        self, ops: tuple[m.AnyOp, ...], cred: m.Cred | None, *, sync: bool, here: bool = False
    ) -> tuple[list[m.OpResult], bool]:
        """The results of a frame's worth of operations, and whether they are on the disk.

        `here`: see `_ask_here`.
        """
        delegations = self.delegations
        if not delegations.active:
            waiting = await self._asked(ops, cred, sync=sync, here=here)
            return await waiting.wait(), waiting.synced
        op = ops[0]
        if type(op) is m.Commit and len(ops) == 1 and not sync and delegations.log.waits(op.ino):
            # A file that was just made: its bytes are published along with it.
            return [await delegations.log.ask(op, cred or self.cred, op.ino)], False
        within = await delegations.enter(ops)
        try:
            waiting = await self._asked(ops, cred, sync=sync, here=here)
            results = await waiting.wait()
        except BaseException:
            delegations.unknown(within, ops)
            raise
        delegations.left(within, ops, results)
        return results, waiting.synced

    async def _asked(
        self, ops: tuple[m.AnyOp, ...], cred: m.Cred | None, *, sync: bool, here: bool
    ) -> _Waiting:
        """They are on their way, and may have been answered."""
        if here and not self._queue and not self._frames:
            return await self._ask_here(ops, cred)
        waiting = self._ask(ops, cred, sync=sync)
        if sync:
            await self._flush_here()
        return waiting

    async def _ask_here(self, ops: tuple[m.AnyOp, ...], cred: m.Cred | None) -> _Waiting:
        """Send them alone, by the task that waits for them: no other has to be woken, twice.

        For what may as well not take effect where its caller is cancelled, while nobody else asks
        for anything.
        """
        waiting = _Waiting(ops, cred or self.cred, False)
        self._frames += 1
        try:
            await self._send([waiting])
        finally:
            self._frames -= 1
            if self._queue and not self._flushing:
                self._start_flush()
        return waiting

    def _ask(self, ops: tuple[m.AnyOp, ...], cred: m.Cred | None, *, sync: bool) -> _Waiting:
        waiting = _Waiting(ops, cred or self.cred, sync)
        self._queue.append(waiting)
        if not sync and not self._flushing and self._frames < _FRAMES_IN_FLIGHT:
            self._start_flush()
        return waiting

    async def _flush_here(self) -> None:
        """As what `_start_flush` starts, by a task that waits for an answer anyway."""
        if not self._flushing and self._frames < _FRAMES_IN_FLIGHT:
            self._flushing = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            await self._flush()

    async def do(self, op: m.AnyOp, *, cred: m.Cred | None = None) -> Inode | None:
        """Apply one operation; the inode after it. Raises what the master refused it with."""
        return unwrap((await self.apply(op, cred=cred))[0])

    async def do_durably(
        self, op: m.AnyOp, *, cred: m.Cred | None = None
    ) -> tuple[Inode | None, bool]:
        """As `do`, answered when the change is on the master's disk; whether it is.

        Where it is not, a barrier brings it there, or says why not. It must not be cancelled but
        by the end of the client: it may send what others ask for.
        """
        results, synced = await self._answer((op,), cred, sync=True)
        return unwrap(results[0]), synced

    async def _do_inode(self, op: m.AnyOp, cred: m.Cred | None) -> Inode:
        inode = await self.do(op, cred=cred)
        assert inode is not None
        return inode

    def _start_flush(self) -> None:
        try:
            self._nursery.start_soon(self._flush)
        except RuntimeError:
            while self._queue:
                self._queue.popleft().fail(_closed())
        else:
            self._flushing = True

    async def _flush(self) -> None:
        """Send what is queued by now: all of this scheduler tick, up to a frame's worth."""
        batch = self._take_frame()
        # What does not fit, has other credentials or need not be synced, is for the next frame.
        self._flushing = False
        self._frames += 1
        if self._queue and self._frames < _FRAMES_IN_FLIGHT:
            self._start_flush()
        try:
            await self._send(batch)
        except DfsError as error:
            for waiting in batch:
                waiting.fail(error.again())
        except BaseException:
            for waiting in batch:
                waiting.fail(_closed())
            raise
        finally:
            self._frames -= 1
            if self._queue and not self._flushing:
                self._start_flush()

    def _take_frame(self) -> list[_Waiting]:
        queue = self._queue
        first = queue.popleft()
        batch = [first]
        ops, cost = len(first.ops), first.cost
        while queue and queue[0].cred == first.cred and queue[0].sync == first.sync:
            ops += len(queue[0].ops)
            cost += queue[0].cost
            if ops > _FRAME_OPS_MAX or cost > _FRAME_COST_MAX:
                break
            batch.append(queue.popleft())
        return batch

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        ops = (
            batch[0].ops
            if len(batch) == 1
            else tuple(op for waiting in batch for op in waiting.ops)
        )
        cred, sync = batch[0].cred, batch[0].sync
        redo = not any(map(_dies_with_session, ops))

        def make(session: int, sequence: int) -> m.Message:
            return m.Apply(session, sequence, cred, ops, sync)

        try:
            timeout_s = SYNC_TIMEOUT_S if sync else CALL_TIMEOUT_S
            applied, _ = await self.session.change(make, m.Applied, redo=redo, timeout_s=timeout_s)
        except SessionError as error:
            if redo or len(batch) == 1:
                raise
            # Give each its own frame now: those that may be redone will be.
            async with trio.open_nursery() as nursery:
                for waiting in batch:
                    nursery.start_soon(self._send_alone, waiting, error)
            return
        self.barrier.note(applied.position, synced=applied.synced)
        results = list(applied.results)
        start = 0
        for waiting in batch:
            end = start + len(waiting.ops)
            waiting.succeed(results[start:end], applied.synced)
            start = end

    async def _send_alone(self, waiting: _Waiting, error: SessionError) -> None:
        try:
            if any(map(_dies_with_session, waiting.ops)):
                raise error.again()
            await self._send([waiting])
        except DfsError as failure:
            waiting.fail(failure)

    async def create(
        self,
        parent: InodeId,
        name: bytes,
        mode: int,
        *,
        exclusive: bool = True,
        open: bool = False,
        access: int = m.Access.READ | m.Access.WRITE,
        cred: m.Cred | None = None,
    ) -> Inode:
        """A new regular file, or with `exclusive` False the one that is there."""
        return await self._do_inode(
            m.Create(parent, name, mode, exclusive, open, int(access)), cred
        )

    async def mkdir(
        self, parent: InodeId, name: bytes, mode: int, *, cred: m.Cred | None = None
    ) -> Inode:
        return await self._do_inode(m.Mkdir(parent, name, mode), cred)

    async def mknod(
        self,
        parent: InodeId,
        name: bytes,
        mode: int,
        rdev: int = 0,
        *,
        cred: m.Cred | None = None,
    ) -> Inode:
        return await self._do_inode(m.Mknod(parent, name, mode, rdev), cred)

    async def symlink(
        self, parent: InodeId, name: bytes, target: bytes, *, cred: m.Cred | None = None
    ) -> Inode:
        return await self._do_inode(m.Symlink(parent, name, target), cred)

    async def hard_link(
        self,
        ino: InodeId,
        parent: InodeId,
        name: bytes,
        *,
        replace: bool = False,
        cred: m.Cred | None = None,
    ) -> Inode:
        return await self._do_inode(m.Link(ino, parent, name, replace), cred)

    async def unlink(self, parent: InodeId, name: bytes, *, cred: m.Cred | None = None) -> int:
        """When it happened, by the master's clock in ns; 0 from an older master."""
        return await self._take_away(m.Unlink(parent, name), cred)

    async def rmdir(self, parent: InodeId, name: bytes, *, cred: m.Cred | None = None) -> int:
        """As `unlink`, of an empty directory."""
        return await self._take_away(m.Rmdir(parent, name), cred)

    async def _take_away(self, op: m.Unlink | m.Rmdir, cred: m.Cred | None) -> int:
        result = (await self.apply(op, cred=cred))[0]
        inode = unwrap(result)
        return result.time_ns if inode is None else inode.ctime_ns

    async def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        flags: int = 0,
        *,
        cred: m.Cred | None = None,
    ) -> None:
        await self.do(m.Rename(parent, name, new_parent, new_name, flags), cred=cred)

    async def set_attr(self, change: m.SetAttr, *, cred: m.Cred | None = None) -> Inode:
        return await self._do_inode(change, cred)

    async def set_xattr(
        self,
        ino: InodeId,
        name: bytes,
        value: bytes,
        mode: m.XattrMode = m.XattrMode.ANY,
        *,
        cred: m.Cred | None = None,
    ) -> None:
        await self.do(m.SetXattr(ino, name, value, int(mode)), cred=cred)

    async def remove_xattr(self, ino: InodeId, name: bytes, *, cred: m.Cred | None = None) -> None:
        await self.do(m.RemoveXattr(ino, name), cred=cred)

    async def open(
        self,
        ino: InodeId,
        access: int = m.Access.READ,
        *,
        place: tuple[InodeId, bytes] | None = None,
        cred: m.Cred | None = None,
    ) -> Inode:
        """Keep the inode for this session, also when it is unlinked. See `OpenFiles`.

        `place`: the directory and name by which it was found; ESTALE where that is another's now.
        """
        op = m.Open(ino, int(access)) if place is None else m.OpenNamed(ino, *place, int(access))
        results, _ = await self._answer((op,), cred, sync=False, here=True)
        inode = unwrap(results[0])
        assert inode is not None
        return inode

    async def release(self, *inos: InodeId) -> None:
        """The session no longer has these open."""
        ops = [m.Release(ino) for ino in inos if not self.delegations.release(ino, self.cred)]
        await self.apply(*ops)

    async def set_policy(
        self, ino: InodeId, policy: PolicyId, *, cred: m.Cred | None = None
    ) -> Inode:
        return await self._do_inode(m.SetPolicy(ino, policy), cred)

    async def clone_range(
        self,
        ino: InodeId,
        offset: int,
        new_ino: InodeId,
        new_offset: int,
        length: int,
        *,
        cred: m.Cred | None = None,
    ) -> Inode:
        """Share bytes with another file; `length` 0 means to the end. No byte moves."""
        op = m.CloneRange(ino, offset, new_ino, new_offset, length)
        return await self._do_inode(op, cred)

    async def punch_hole(
        self, ino: InodeId, offset: int, length: int, *, cred: m.Cred | None = None
    ) -> Inode:
        return await self._do_inode(m.PunchHole(ino, offset, length), cred)

    async def allocate_chunks(
        self,
        policy: PolicyId,
        *,
        count: int = 1,
        avoid: tuple[DiskId, ...] = (),
        near: str = "",
        once: bool = False,
    ) -> Layout:
        """Open chunks for this client to append to; their `owner` is the session.

        With `once`, without waiting for disks (or the master) that are not there now.
        """
        reply, _ = await self.session.change(
            lambda session, sequence: m.AllocateChunks(
                session, sequence, policy, count, avoid, near
            ),
            m.LayoutReply,
            once=once,
        )
        return reply.layout

    async def seal_chunk(self, chunk: ChunkId, length: int, lost: tuple[int, ...] = ()) -> None:
        """Raises SessionError when the session that owned it is gone: the master seals it."""
        await self.session.change(
            lambda session, sequence: m.SealChunk(session, sequence, chunk, length, lost),
            m.Empty,
            redo=False,
        )

    async def create_policy(self, policy: Policy) -> Policy:
        """Its number is ignored; the master gives one."""
        reply, _ = await self.session.change(
            lambda session, sequence: m.CreatePolicy(session, sequence, policy), m.PolicyReply
        )
        return reply.policy

    # ---------------------------------------------------------------- reads

    async def lookup(self, parent: InodeId, name: bytes, *, cred: m.Cred | None = None) -> Inode:
        return (await self.look(parent, name, cred=cred)).inode

    async def look(
        self,
        parent: InodeId,
        name: bytes,
        *,
        with_extents: bool = False,
        cred: m.Cred | None = None,
    ) -> m.LookupReply:
        """As `lookup`, and where the bytes of a small file are, for who is about to read it."""
        await self._settled(parent)
        request = m.Lookup(cred or self.cred, parent, name, with_extents)
        return await self.link.call(request, m.LookupReply)

    async def resolve(
        self,
        path: bytes,
        *,
        follow: bool = True,
        start: InodeId = ROOT_INODE,
        cred: m.Cred | None = None,
    ) -> Inode:
        """Walk a whole path in one request, following symlinks (the last one if `follow`)."""
        await self.delegations.log.all_settled()
        request = m.Resolve(cred or self.cred, path, follow, start)
        return (await self.link.call(request, m.InodeReply)).inode

    async def _settled(self, ino: InodeId) -> None:
        """Before something is asked about an inode: the master knows all that was done to it."""
        if not self.delegations.log.idle:
            await self.delegations.log.settled((ino,))

    async def get_inode(self, ino: InodeId) -> Inode:
        await self._settled(ino)
        return (await self.link.call(m.GetInode(ino), m.InodeReply)).inode

    async def readdir(
        self,
        ino: InodeId,
        *,
        after: bytes = b"",
        limit: int = 1000,
        with_extents: bool = False,
        cred: m.Cred | None = None,
    ) -> m.DirReply:
        """One page of a directory. `more` says to ask again, after the last name."""
        await self._settled(ino)
        request = m.ReadDir(cred or self.cred, ino, after, limit, with_extents)
        return await self.link.call(request, m.DirReply)

    async def get_xattr(self, ino: InodeId, name: bytes, *, cred: m.Cred | None = None) -> bytes:
        await self._settled(ino)
        request = m.GetXattr(cred or self.cred, ino, name)
        return (await self.link.call(request, m.XattrReply)).value

    async def list_xattr(self, ino: InodeId) -> tuple[bytes, ...]:
        await self._settled(ino)
        return (await self.link.call(m.ListXattr(ino), m.XattrNames)).names

    async def extents(
        self, ino: InodeId, offset: int = 0, length: int = 1 << 62, *, limit: int = 1000
    ) -> m.ExtentsReply:
        await self._settled(ino)
        return await self.link.call(m.GetExtents(ino, offset, length, limit), m.ExtentsReply)

    async def locate(self, chunks: Sequence[ChunkId]) -> Layout:
        """Where chunks lie now. Unknown ones are left out."""
        return (await self.link.call(m.LocateChunks(tuple(chunks)), m.LayoutReply)).layout

    async def report_fragments(self, reports: Sequence[m.FragmentReport]) -> None:
        await self.link.call(m.ReportFragments(tuple(reports)), m.Empty)

    async def statfs(self) -> m.FsStats:
        return await self.link.call(m.StatFs(), m.FsStats)

    async def sync(self) -> None:
        """Return when every change answered before this call is on the master's disk.

        Raises LostChangesError where some were lost before, and nobody was told. Files have their
        own way: see `OpenFile.sync`.
        """
        await self.delegations.log.all_settled()
        await self.barrier.wait()
        self.delegations.log.check_any()

    async def policies(self) -> tuple[Policy, ...]:
        return (await self.link.call(m.ListPolicies(), m.PoliciesReply)).policies

    # ---------------------------------------------------------------- administration

    async def servers(self) -> tuple[m.ServerInfo, ...]:
        return (await self.link.call(m.ListServers(), m.ServersReply)).servers

    async def sessions(self) -> tuple[m.SessionInfo, ...]:
        return (await self.link.call(m.ListSessions(), m.SessionsReply)).sessions

    async def chunks(self, after: ChunkId = 0, limit: int = 1000) -> m.ChunksReply:
        """One page of all chunks. `more` says to ask again, after the last."""
        return await self.link.call(m.ListChunks(after, limit), m.ChunksReply)

    async def status(self) -> m.StatusReply:
        return await self.link.call(m.ClusterStatus(), m.StatusReply)


def unwrap(result: m.OpResult) -> Inode | None:
    """The inode of a result. Raises its error."""
    if result.error is not None:
        raise from_wire(result.error)
    return result.inode


def _closed() -> DfsError:
    return SessionError("the client is closed")


def _dies_with_session(op: m.AnyOp) -> bool:
    """Whether the operation names chunks that may have been the old session's.

    Its caller has the bytes, and writes them again.
    """
    return isinstance(op, m.Commit | m.Put) and bool(op.extents)


def _cost(op: m.AnyOp) -> int:
    """Rough bytes of an operation on the wire, and in its reply."""
    if isinstance(op, m.Commit | m.Put):
        return 200 + 24 * len(op.extents)
    if isinstance(op, m.SetXattr):
        return 200 + len(op.value)
    return 200
