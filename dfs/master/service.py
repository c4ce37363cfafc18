"""What the master answers to clients: one plain function for each request.

Plain functions run at once in the loop that reads the connection; nothing here waits, but for a
sync. Changes become commands, with the time and all choices inside, and go to the journal;
reads go to the store. What chunk servers ask is in `server_service`, what people ask in `status`.
"""

import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from inspect import iscoroutine, iscoroutinefunction
from random import Random
from typing import Any, Final, TypeAlias, cast

import msgspec
from outcome import Error, Outcome, Value

from dfs.core.chunk import CHUNK_MAX_BYTES, ChunkState, FragmentState, Layout
from dfs.core.errors import DfsError, LostChangesError, refuse
from dfs.core.ids import ROOT_INODE, ChunkId, InodeId, PolicyId
from dfs.core.policy import Policy
from dfs.master import fragments, queries, runs, xattrs
from dfs.master.commands import (
    ANY_INDEX,
    AllocateChunks,
    ApplyOps,
    CloseSession,
    CreatePolicy,
    DelegateDirectory,
    FragmentMark,
    MarkFragments,
    OpenSession,
    Placement,
    ReserveInodes,
    SealChunk,
)
from dfs.master.delegations import holder
from dfs.master.journal import Journal
from dfs.master.keyspace import (
    Reader,
    chunk_key,
    decode_chunk,
    get_chunk,
    get_counters,
    get_policy,
    policies,
)
from dfs.master.leases import Leases
from dfs.master.liveness import Liveness, Totals
from dfs.master.recalls import Elsewhere, Recalls
from dfs.master.report_book import ReportBook
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Later, Peer, ReplyResult

ALLOCATE_MAX: Final = 64
"""Chunks in one AllocateChunks."""
LOCATE_MAX: Final = 16384
"""Chunks in one LocateChunks."""
ID_END: Final = 1 << 64
"""Past every number that a key can hold: requests may carry anything."""
REPORTS_MAX: Final = 1024
"""Fragments in one ReportFragments."""
REFUSED_S: Final = 5.0
"""How long a client had better not ask again for a directory that it did not get."""
TOTALS_FRESH_S: Final = 1.0
"""How long sums over all disks may be reused: `df` must not cost O(disks) each time."""


class _Applied(msgspec.Struct, array_like=True):
    """messages.Applied, with results that stay as they were stored."""

    results: msgspec.Raw
    position: m.LogPosition | None = None
    synced: bool = False


Reply: TypeAlias = m.Message | bytes | Later | Coroutine[object, object, ReplyResult]

_NO_PAYLOAD: Final = memoryview(b"")
_decode_applied: Final = msgspec.msgpack.Decoder(_Applied).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def _in_range(handler: Handler) -> Handler:
    """A request with a number that no key can hold (negative, or past 64 bits) is EINVAL."""

    def refusal(request: m.Message) -> DfsError:
        return refuse(errno.EINVAL, f"{type(request).__name__} with a number out of range")

    def answer(peer: Peer, request: m.Message, payload: memoryview) -> Any:
        try:
            result = handler(peer, request, payload)
        except OverflowError:
            raise refusal(request) from None
        return finish(request, result) if iscoroutine(result) else result

    async def finish(request: m.Message, work: Awaitable[ReplyResult]) -> ReplyResult:
        try:
            return await work
        except OverflowError:
            raise refusal(request) from None

    async def answer_later(peer: Peer, request: m.Message, payload: memoryview) -> Any:
        try:
            return await cast("Awaitable[ReplyResult]", handler(peer, request, payload))
        except OverflowError:
            raise refusal(request) from None

    return answer_later if iscoroutinefunction(handler) else answer


class ClientService:
    """Handlers for clients. Owns nothing; all it is given outlives it."""

    def __init__(
        self,
        *,
        cluster: str,
        reader: Reader,
        journal: Journal,
        liveness: Liveness,
        leases: Leases,
        recalls: Recalls,
        reports: ReportBook,
        run: int,
        random: Random,
        clock: Callable[[], float],
        now_ns: Callable[[], int],
    ) -> None:
        """`clock` only goes forward; `now_ns` is the wall clock that files are stamped with.

        `run` is the number that StartMaster gave this run.
        """
        self._cluster = cluster
        self._reader = reader
        self._journal = journal
        self._liveness = liveness
        self._leases = leases
        self._recalls = recalls
        self._reports = reports
        self._run = run
        self._random = random
        self._clock = clock
        self._now_ns = now_ns
        self._totals = Totals(0, 0, 0)
        self._totals_at = float("-inf")

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        handlers: dict[type[m.Message], Handler] = {
            m.OpenSession: self.open_session,
            m.RenewSession: self.renew_session,
            m.CloseSession: self.close_session,
            m.Apply: self.apply,
            m.AllocateChunks: self.allocate_chunks,
            m.SealChunk: self.seal_chunk,
            m.ReportFragments: self.report_fragments,
            m.SyncBarrier: self.sync_barrier,
            m.CreatePolicy: self.create_policy,
            m.Delegate: self.delegate,
            m.ReserveInodes: self.reserve_inodes,
            m.AwaitRecalls: self.await_recalls,
            m.Lookup: self.lookup,
            m.Resolve: self.resolve,
            m.GetInode: self.get_inode,
            m.ReadDir: self.read_dir,
            m.GetXattr: self.get_xattr,
            m.ListXattr: self.list_xattr,
            m.GetExtents: self.get_extents,
            m.LocateChunks: self.locate_chunks,
            m.StatFs: self.stat_fs,
            m.ListPolicies: self.list_policies,
        }
        return {request: _in_range(handler) for request, handler in handlers.items()}

    # ------------------------------------------------------------------ sessions

    def open_session(self, peer: Peer, request: m.OpenSession, _: memoryview) -> m.SessionOpened:
        record = self._journal.append(
            OpenSession(
                time_ns=self._now_ns(),
                client=request.client,
                nonce=request.nonce,
                address=peer.address,
            )
        )
        self._leases.heard(record.session)
        return m.SessionOpened(record.session, self._leases.lease_s, self._cluster)

    def renew_session(self, _: Peer, request: m.RenewSession, __: memoryview) -> m.Empty:
        self._leases.renew(request.session)
        return m.Empty()

    def close_session(self, _: Peer, request: m.CloseSession, __: memoryview) -> m.Empty:
        self._journal.append(CloseSession(time_ns=self._now_ns(), session=request.session))
        self._leases.forget(request.session)
        return m.Empty()

    # ------------------------------------------------------------------ changes

    def apply(
        self, peer: Peer, request: m.Apply, _: memoryview
    ) -> bytes | Later | Coroutine[object, object, ReplyResult]:
        last = 0
        for op in request.ops:
            for ino in (getattr(op, "parent", 0), getattr(op, "new_parent", 0)):
                if ino and ino != last:
                    self._recalls.looked(peer, ino)
                    last = ino
        if self._recalls.in_the_way(request.session, request.ops):
            return self._apply_later(request)
        return self._apply(request)

    async def _apply_later(self, request: m.Apply) -> ReplyResult:
        while wanted := self._recalls.in_the_way(request.session, request.ops):
            await self._recalls.clear(wanted)
        done = self._apply(request)
        return done if isinstance(done, bytes) else await done

    def _apply(self, request: m.Apply) -> bytes | Later:
        session = request.session
        reply = self._journal.append(
            ApplyOps(self._now_ns(), session, request.sequence, request.cred, request.ops)
        )
        self._leases.heard(session)
        self._recalls.applied(request.ops)
        # A repeat may say more than its change needs: what is there by now was answered too.
        position = m.LogPosition(self._run, self._journal.position)
        applied = _Applied(_decode_applied(reply).results, position)
        return self._synced(applied) if request.sync else _encode(applied)

    def _synced(self, applied: _Applied) -> Later:
        """The answer to a change, once that is on the disk."""
        later = Later()

        def done(outcome: "Outcome[None]") -> None:
            if isinstance(outcome, Error) and not isinstance(outcome.error, DfsError):
                later.settle(outcome)
            else:
                # Where the disk fails it is made all the same; what is wrong a barrier will say.
                synced = isinstance(outcome, Value)
                later.settle(Value(_encode(_Applied(applied.results, applied.position, synced))))

        self._journal.when_synced(done)
        return later

    def allocate_chunks(
        self, peer: Peer, request: m.AllocateChunks, _: memoryview
    ) -> m.LayoutReply:
        if not 1 <= request.count <= ALLOCATE_MAX:
            raise refuse(errno.EINVAL, f"{request.count} chunks in one request")
        policy = get_policy(self._reader, request.policy)
        if policy is None:
            raise refuse(errno.EINVAL, f"no policy has the number {request.policy}")
        placements = self._place(policy, request, peer)
        made = self._journal.append(
            AllocateChunks(
                self._now_ns(), request.session, request.sequence, policy.policy, placements
            )
        )
        self._leases.heard(request.session)
        disks = (fragment.disk for chunk in made for fragment in chunk.fragments)
        return m.LayoutReply(Layout(made, self._liveness.locations(disks)))

    def _place(
        self, policy: Policy, request: m.AllocateChunks, peer: Peer
    ) -> tuple[Placement, ...]:
        near = request.near or peer.address.rpartition(":")[0]
        placements = []
        for _ in range(request.count):
            chosen = self._liveness.choose(
                policy, random=self._random, avoid=request.avoid, near=near
            )
            self._liveness.charge(chosen.disks, CHUNK_MAX_BYTES // chosen.redundancy.k)
            k, spare = chosen.redundancy.k, chosen.redundancy.m
            placements.append(Placement(k, spare, chosen.disks))
        return tuple(placements)

    def seal_chunk(self, _: Peer, request: m.SealChunk, __: memoryview) -> m.Empty:
        self._journal.append(
            SealChunk(
                self._now_ns(),
                request.session,
                request.sequence,
                request.chunk,
                request.length,
                request.lost,
            )
        )
        self._leases.heard(request.session)
        self._reports.note_changed(request.chunk)
        return m.Empty()

    def report_fragments(self, _: Peer, request: m.ReportFragments, __: memoryview) -> m.Empty:
        if len(request.reports) > REPORTS_MAX:
            raise refuse(errno.EINVAL, f"{len(request.reports)} reports in one request")
        marks = []
        for report in request.reports:
            state = fragments.REPORTED.get(report.reason)
            if state is None:
                self._liveness.connection_broke(self._liveness.server_of(report.disk))
            elif self._believable(report, state):
                marks.append(FragmentMark(report.chunk, report.disk, state, report.index))
        if marks:
            self._journal.append(MarkFragments(time_ns=self._now_ns(), marks=tuple(marks)))
            for mark in marks:
                self._reports.note_changed(mark.chunk)
        return m.Empty()

    def _believable(self, report: m.FragmentReport, state: FragmentState) -> bool:
        """The fragment is listed as GOOD. While a chunk is OPEN, only its owner knows what is
        missing; broken checksums are broken for everyone."""
        chunk = get_chunk(self._reader, report.chunk) if 0 < report.chunk < ID_END else None
        if chunk is None:
            return False
        if chunk.state is not ChunkState.SEALED and state is not FragmentState.CORRUPT:
            return False
        fragment = chunk.on(report.disk)
        if fragment is None or report.index not in (fragment.index, ANY_INDEX):
            return False
        return fragment.state is FragmentState.GOOD

    async def sync_barrier(self, _: Peer, request: m.SyncBarrier, __: memoryview) -> m.Empty:
        await self._journal.sync()
        earlier = [each for each in request.answered if each.run != self._run]
        if not runs.all_survived(self._reader, earlier):
            raise LostChangesError(
                "the master lost changes that it had answered: its machine stopped before they "
                "were on its disk",
                hint="look at what was written or changed since the last fsync, and do it again",
            )
        return m.Empty()

    async def create_policy(
        self, _: Peer, request: m.CreatePolicy, __: memoryview
    ) -> m.PolicyReply:
        """Synced before the reply: its number must never be given twice."""
        policy = self._journal.append(
            CreatePolicy(self._now_ns(), request.session, request.sequence, request.policy)
        )
        await self._journal.sync()
        return m.PolicyReply(policy)

    # ------------------------------------------------------------------ delegations

    async def delegate(self, peer: Peer, request: m.Delegate, _: memoryview) -> m.Delegated:
        """Synced before the reply: a power cut must not make the master forget it."""
        again_s = self._recalls.again_s(peer, request.ino)
        if again_s:
            return m.Delegated(None, self._now_ns(), again_s)
        inode = self._journal.append(
            DelegateDirectory(self._now_ns(), request.session, request.sequence, request.ino)
        )
        self._leases.heard(request.session)
        if inode is None or holder(self._reader, request.ino) != request.session:
            # The second: a repeat, and it has been taken from the session since.
            return m.Delegated(None, self._now_ns(), REFUSED_S)
        self._recalls.granted(request.ino, request.session, peer)
        await self._journal.sync()
        return m.Delegated(inode, self._now_ns())

    def reserve_inodes(self, _: Peer, request: m.ReserveInodes, __: memoryview) -> m.ReservedInodes:
        first = self._journal.append(
            ReserveInodes(self._now_ns(), request.session, request.sequence, request.count)
        )
        return m.ReservedInodes(first, request.count)

    async def await_recalls(self, peer: Peer, request: m.AwaitRecalls, _: memoryview) -> m.Recalls:
        self._leases.renew(request.session)
        wanted = await self._recalls.listen(request.session, peer)
        return m.Recalls(wanted, self._now_ns())

    async def _again(
        self, ino: InodeId, handler: Handler, peer: Peer, request: m.Message
    ) -> ReplyResult:
        """Answer a request that looks into a directory of somebody else, when it is back."""
        await self._recalls.clear((ino,))
        result = handler(peer, request, _NO_PAYLOAD)
        return await result if iscoroutine(result) else cast("ReplyResult", result)

    # ------------------------------------------------------------------ reads

    def lookup(self, peer: Peer, request: m.Lookup, _: memoryview) -> Reply:
        if self._recalls.in_the_way_of(peer, request.parent):
            return self._again(request.parent, self.lookup, peer, request)
        self._recalls.looked(peer, request.parent)
        inode = queries.lookup(self._reader, request.cred, request.parent, request.name)
        if not request.with_extents:
            return m.LookupReply(inode)
        (extents,) = queries.few_extents(self._reader, [inode])
        return m.LookupReply(inode, extents)

    def resolve(self, peer: Peer, request: m.Resolve, _: memoryview) -> Reply:
        try:
            return m.InodeReply(queries.resolve(self._recalls.watched(peer), request))
        except Elsewhere as there:
            return self._again(there.ino, self.resolve, peer, request)

    def get_inode(self, _: Peer, request: m.GetInode, __: memoryview) -> m.InodeReply:
        return m.InodeReply(queries.get(self._reader, request.ino))

    def read_dir(self, peer: Peer, request: m.ReadDir, _: memoryview) -> Reply:
        if self._recalls.in_the_way_of(peer, request.ino):
            return self._again(request.ino, self.read_dir, peer, request)
        self._recalls.looked(peer, request.ino)
        page = queries.read_dir(self._reader, request)
        return page.encode(self.layout(page.chunks))

    def get_xattr(self, _: Peer, request: m.GetXattr, __: memoryview) -> m.XattrReply:
        return m.XattrReply(xattrs.get_xattr(self._reader, request.cred, request.ino, request.name))

    def list_xattr(self, _: Peer, request: m.ListXattr, __: memoryview) -> m.XattrNames:
        return m.XattrNames(xattrs.list_xattr(self._reader, request.ino))

    def get_extents(self, _: Peer, request: m.GetExtents, __: memoryview) -> m.ExtentsReply:
        page = queries.get_extents(self._reader, request)
        chunks = {extent.chunk for extent in page.extents}
        return m.ExtentsReply(page.inode, page.extents, page.more, self.layout(chunks))

    def locate_chunks(self, _: Peer, request: m.LocateChunks, __: memoryview) -> m.LayoutReply:
        if len(request.chunks) > LOCATE_MAX:
            raise refuse(errno.EINVAL, f"{len(request.chunks)} chunks in one request")
        return m.LayoutReply(self.layout(request.chunks))

    def layout(self, chunks: Iterable[ChunkId]) -> Layout:
        """These chunks, as far as they exist, and the disks that they lie on."""
        keys = [chunk_key(chunk) for chunk in chunks if 0 < chunk < ID_END]
        if not keys:
            return Layout()
        found = [decode_chunk(raw) for raw in self._reader.get_many(keys) if raw is not None]
        disks = (fragment.disk for chunk in found for fragment in chunk.fragments)
        return Layout(tuple(found), self._liveness.locations(disks))

    def stat_fs(self, _: Peer, __: m.StatFs, ___: memoryview) -> m.FsStats:
        now = self._clock()
        if now - self._totals_at >= TOTALS_FRESH_S:
            self._totals, self._totals_at = self._liveness.totals(), now
        counters = get_counters(self._reader)
        root = queries.get(self._reader, ROOT_INODE)
        return m.FsStats(
            capacity=self._totals.capacity,
            free=self._totals.free,
            inodes=counters.inodes,
            chunks=counters.chunks,
            live=counters.live,
            policy_expansion=self._expansion(root.policy),
            used=self._totals.used,
            length=counters.length,
            redundancy=counters.redundancy,
        )

    def _expansion(self, policy_id: PolicyId) -> float:
        """Bytes on disk per byte stored, as the policy would place it now."""
        policy = get_policy(self._reader, policy_id)
        if policy is None:
            return 1.0
        redundancy = policy.redundancy
        if policy.fit:
            redundancy = redundancy.fitted(self._liveness.server_count)
        return redundancy.expansion

    def list_policies(self, _: Peer, __: m.ListPolicies, ___: memoryview) -> m.PoliciesReply:
        return m.PoliciesReply(tuple(policies(self._reader)))
