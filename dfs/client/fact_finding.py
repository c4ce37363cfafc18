"""Gathers what `diagnosis` judges: asks the master, and every chunk server that has a part.

Changes nothing but for a chunk that it asks for, and lets go of at once, to see whether new data
could be written; and what it finds wrong with fragments it reports, as any reader does.
"""

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from dfs.client.diagnosis import (
    Answer,
    ChunkFacts,
    Facts,
    FragmentFacts,
    PathFault,
    Range,
    WritingFacts,
)
from dfs.client.remote_paths import join
from dfs.client.resolver import Source
from dfs.client.together import together
from dfs.core.block import BLOCK_BYTES
from dfs.core.chunk import Chunk, DiskLocation, Fragment, Layout
from dfs.core.errors import DfsError, DiskError, FileSystemError, FragmentError, UnavailableError
from dfs.core.ids import DiskId
from dfs.core.inode import Extent, Inode
from dfs.core.policy import Policy
from dfs.wire.messages import (
    READ_MAX_BYTES,
    Access,
    DiskInfo,
    FragmentStatus,
    ServerInfo,
    StatFragment,
)

if TYPE_CHECKING:
    from dfs.client.client import Client

ASK_TIMEOUT_S: Final = 3.0
"""How long a chunk server may take to say what it has of a fragment."""
_CHUNKS_AT_ONCE: Final = 16
_VERIFIED_AT_ONCE: Final = 2


async def read_map(client: "Client", inode: Inode) -> tuple[Inode, list[Extent], Layout]:
    """All extents of a file, and where their chunks lie."""
    extents: list[Extent] = []
    chunks: dict[int, Chunk] = {}
    disks: dict[int, DiskLocation] = {}
    offset, more = 0, True
    while more:
        page = await client.meta.extents(inode.ino, offset, limit=1000)
        extents += page.extents
        chunks.update({each.chunk: each for each in page.layout.chunks})
        disks.update({each.disk: each for each in page.layout.disks})
        more = page.more and bool(page.extents)
        offset = page.extents[-1].end if page.extents else offset
        inode = page.inode
    return inode, extents, Layout(tuple(chunks.values()), tuple(disks.values()))


async def examine(client: "Client", path: bytes, *, verify: bool = False) -> Facts:
    """The facts about what `path` names; with `verify` all its bytes are read from every fragment.

    Raises DfsError where the master does not answer.
    """
    try:
        inode = await client.meta.resolve(path)
    except FileSystemError as error:
        return Facts(path, fault=await _find_fault(client, path, error))
    may_not_read = await _may_not(client, inode, Access.READ)
    may_not_write = "" if inode.is_dir else await _may_not(client, inode, Access.WRITE)
    policy = (await client.writers.policies()).get(inode.policy)
    writing = await _try_writing(client, inode, policy) if inode.is_dir or inode.is_file else None
    extents: list[Extent] = []
    layout = Layout()
    if inode.is_file:
        inode, extents, layout = await read_map(client, inode)
    known = {chunk.chunk for chunk in layout.chunks}
    chunks = await _ask_for_chunks(client, extents, layout, verify)
    return Facts(
        path,
        inode,
        may_not_read=may_not_read,
        may_not_write=may_not_write,
        extents=tuple(extents),
        chunks=chunks,
        gone=tuple(sorted({each.chunk for each in extents} - known)),
        policy=policy,
        writing=writing,
        verified=verify,
    )


# ------------------------------------------------------------------ the master


async def _find_fault(client: "Client", path: bytes, error: FileSystemError) -> PathFault:
    """Walk the path name by name, to see which one it is."""
    at, directory = b"/", await client.meta.get_inode(1)
    for name in path.split(b"/"):
        if not name:
            continue
        below = join(at, name)
        try:
            inode = await client.meta.resolve(below)
        except FileSystemError as failure:
            target = None
            with suppress(FileSystemError):
                entry = await client.meta.resolve(below, follow=False)
                target = entry.target if entry.is_symlink else None
            return PathFault(failure.errno or errno.EIO, below, at, directory, target)
        at, directory = below, inode
    return PathFault(error.errno or errno.EIO, path, at, directory)


async def _may_not(client: "Client", inode: Inode, access: Access) -> str:
    """How the master refuses to open it so, or ""."""
    if not inode.is_file:
        return ""
    already = client.files.get(inode.ino) is not None
    try:
        await client.meta.open(inode.ino, access)
    except FileSystemError as error:
        return error.message
    if not already:
        await client.meta.release(inode.ino)
    return ""


async def _try_writing(client: "Client", inode: Inode, policy: Policy | None) -> WritingFacts:
    """Ask for a chunk as a writer would: what the master answers is what a writer meets."""
    try:
        layout = await client.meta.allocate_chunks(inode.policy, once=True)
    except DfsError as error:
        return WritingFacts(refused=error.message, hint=error.hint)
    (chunk,) = layout.chunks
    with suppress(DfsError):  # then it goes with the session
        await client.meta.seal_chunk(chunk.chunk, 0)
    return WritingFacts(got=len(chunk.fragments), wanted=chunk.k + chunk.m)


# ------------------------------------------------------------------ the chunk servers


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What the master says of servers and disks."""

    locations: Mapping[DiskId, DiskLocation]
    disks: Mapping[DiskId, tuple[ServerInfo, DiskInfo]]


async def _ask_for_chunks(
    client: "Client", extents: Sequence[Extent], layout: Layout, verify: bool
) -> tuple[ChunkFacts, ...]:
    if not layout.chunks:
        return ()
    servers = await client.meta.servers()
    cluster = _Cluster(
        {each.disk: each for each in layout.disks},
        {disk.disk: (server, disk) for server in servers for disk in server.disks},
    )
    needs: dict[int, list[Range]] = {}
    for extent in extents:
        whole = (extent.chunk_offset, extent.chunk_offset + extent.length)
        needs.setdefault(extent.chunk, []).append(whole)
    silent: dict[str, str] = {}
    found: dict[int, ChunkFacts] = {}

    async def ask(chunk: Chunk) -> None:
        wanted = _merged(needs[chunk.chunk])
        fragments = []
        for fragment in chunk.fragments:
            asked = _Fragment(client, cluster, chunk, fragment, wanted, silent)
            fragments.append(await asked.examine(verify))
        found[chunk.chunk] = ChunkFacts(chunk, wanted, tuple(fragments))

    await together(
        [partial(ask, chunk) for chunk in layout.chunks],
        at_once=_VERIFIED_AT_ONCE if verify else _CHUNKS_AT_ONCE,
    )
    return tuple(found[chunk.chunk] for chunk in layout.chunks)


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    """In order, and as few as may be."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


class _Fragment:
    """One fragment that is asked for."""

    def __init__(
        self,
        client: "Client",
        cluster: _Cluster,
        chunk: Chunk,
        fragment: Fragment,
        needs: tuple[Range, ...],
        silent: dict[str, str],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._chunk = chunk
        self._fragment = fragment
        self._needs = needs
        self._silent = silent
        """Servers that did not answer before, and why: nobody waits for one twice."""

    async def examine(self, verify: bool) -> FragmentFacts:
        location = self._cluster.locations.get(self._fragment.disk)
        if location is None:
            return self._facts(Answer.NO_DISK)
        if location.address in self._silent:
            return self._facts(Answer.SILENT, self._silent[location.address])
        try:
            status = await self._client.meta.link.pool.call(
                location.address,
                StatFragment(self._fragment.disk, self._chunk.chunk),
                FragmentStatus,
                timeout_s=ASK_TIMEOUT_S,
            )
            damaged, said = await self._verify(location, status.length) if verify else ((), "")
        except UnavailableError as error:
            self._silent[location.address] = error.message
            return self._facts(Answer.SILENT, error.message)
        except FragmentError as error:
            self._client.reports.add(
                self._chunk.chunk, self._fragment.disk, "missing", self._fragment.index
            )
            return self._facts(Answer.LACKS, error.message)
        except DfsError as error:
            answer = Answer.DISK_FAILED if isinstance(error, DiskError) else Answer.LACKS
            return self._facts(answer, error.message)
        return self._facts(
            Answer.HOLDS, said, length=status.length, damaged=damaged, verified=verify
        )

    def _facts(
        self,
        answer: Answer,
        said: str = "",
        *,
        length: int = 0,
        damaged: tuple[Range, ...] = (),
        verified: bool = False,
    ) -> FragmentFacts:
        disk = self._fragment.disk
        server, info = self._cluster.disks.get(disk, (None, None))
        return FragmentFacts(
            self._fragment,
            answer,
            said,
            length,
            damaged,
            verified,
            location=self._cluster.locations.get(disk),
            disk_path=info.path if info else "",
            heard_s=server.last_heartbeat_s if server else -1.0,
        )

    async def _verify(self, location: DiskLocation, length: int) -> tuple[tuple[Range, ...], str]:
        """Read what the file needs of its `length` bytes: what of that is not good, and why."""
        source = Source(self._fragment, location)
        damaged: list[Range] = []
        said = ""
        for low, high in self._needs:
            at, end = low, min(high, length)
            while at < end:
                begun, stop = at, min(end, at + READ_MAX_BYTES)
                answer = await self._client.fetcher.ask(self._chunk, source, at, stop)
                if answer.problem is not None:
                    said = said or answer.problem.message
                for record in sorted(answer.records, key=lambda each: each.header.raw_offset):
                    header = record.header
                    if header.raw_offset > at:
                        damaged.append((at, min(header.raw_offset, end)))
                    at = max(at, header.raw_end)
                if at < stop and (answer.problem is not None or at == begun):
                    # Where the next record begins is not known: at the latest a block further.
                    skipped = min(end, at + BLOCK_BYTES)
                    damaged.append((at, skipped))
                    at = skipped
        return _merged(damaged), said
