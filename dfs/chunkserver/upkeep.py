"""Answers to the master's requests for upkeep: fragments rebuilt, verified, rewritten.

Only a few of each kind run at a time, whatever is asked: each holds some memory. A slow scrub
does not keep repair waiting.
"""

from collections.abc import Mapping
from typing import Final

import trio

from dfs.chunkserver.fragment_format import possible
from dfs.chunkserver.pace import Rate
from dfs.chunkserver.rebuild import rebuild
from dfs.chunkserver.rewrite import rewrite
from dfs.chunkserver.service import ChunkService, is_chunk
from dfs.chunkserver.verify import verify
from dfs.core.chunk import CHUNK_MAX_BYTES
from dfs.core.errors import ProtocolError
from dfs.core.policy import ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN
from dfs.core.redundancy import Redundancy
from dfs.core.workers import Workers
from dfs.wire.handlers import Handler, Peer
from dfs.wire.messages import (
    FragmentSource,
    FragmentVerdict,
    Message,
    RebuildFragment,
    RebuiltFragment,
    RewriteChunk,
    RewriteSource,
    RewrittenChunk,
    VerifyFragment,
)
from dfs.wire.pool import Pool

REBUILDS_AT_ONCE: Final = 6
VERIFICATIONS_AT_ONCE: Final = 6
REWRITES_AT_ONCE: Final = 3
SOURCES_MAX: Final = 64


class Upkeep:
    """`handlers` for `dfs.wire.serve`."""

    def __init__(self, service: ChunkService, pool: Pool, workers: Workers) -> None:
        """`pool` reaches other chunk servers; `workers` compute."""
        self._service = service
        self._pool = pool
        self._workers = workers
        self._rebuilds = trio.CapacityLimiter(REBUILDS_AT_ONCE)
        self._verifications = trio.CapacityLimiter(VERIFICATIONS_AT_ONCE)
        self._rewrites = trio.CapacityLimiter(REWRITES_AT_ONCE)

    @property
    def handlers(self) -> Mapping[type[Message], Handler]:
        return {
            RebuildFragment: self.rebuild,
            VerifyFragment: self.verify,
            RewriteChunk: self.rewrite,
        }

    async def rebuild(
        self, _: Peer, request: RebuildFragment, payload: memoryview
    ) -> RebuiltFragment:
        disk = self._service.disk(request.disk)
        _check_fragment(request.chunk, request.index, request.k, request.m)
        _check_length(request.length)
        _check_sources(request.sources, request.k, request.m)
        async with self._rebuilds:
            return await rebuild(disk, request, self._pool, self._workers)

    async def verify(
        self, _: Peer, request: VerifyFragment, payload: memoryview
    ) -> FragmentVerdict:
        disk = self._service.disk(request.disk)
        _check_length(request.length)
        async with self._verifications:
            return await verify(
                disk, request.chunk, request.index, request.length, Rate(request.rate)
            )

    async def rewrite(self, _: Peer, request: RewriteChunk, payload: memoryview) -> RewrittenChunk:
        _check_rewrite(request)
        async with self._rewrites:
            return await rewrite(request, self._pool, self._workers)


def _check_rewrite(request: RewriteChunk) -> None:
    k, m = request.k, request.m
    level = request.compression
    if level is not None and not ZSTD_LEVEL_MIN <= level <= ZSTD_LEVEL_MAX:
        raise ProtocolError(f"there is no compression level {level}")
    _check_sources(request.targets, k, m)
    for target in request.targets:
        _check_fragment(request.chunk, target.index, k, m)
    indexes = {target.index for target in request.targets}
    disks = {target.disk for target in request.targets}
    if not len(indexes) == len(disks) == len(request.targets):
        raise ProtocolError(f"chunk {request.chunk} has two fragments in one place")
    if len(request.targets) < Redundancy(k, m).write_minimum:
        raise ProtocolError(f"{len(request.targets)} targets are too few for {Redundancy(k, m)}")
    length = 0
    for content in request.contents:
        if content.chunk == request.chunk:
            raise ProtocolError(f"chunk {request.chunk} cannot be rewritten into itself")
        _check_fragment(content.chunk, 0, content.k, content.m)
        _check_sources(content.sources, content.k, content.m)
        length += _check_parts(content)
    _check_length(length)


def _check_parts(content: RewriteSource) -> int:
    """The bytes of all of them."""
    end = length = 0
    for part in content.parts:
        if part.offset < end or part.length <= 0:
            raise ProtocolError(
                f"{part.length} bytes at {part.offset} of chunk {content.chunk} are out of order"
            )
        end = part.offset + part.length
        length += part.length
    if end > CHUNK_MAX_BYTES:
        raise ProtocolError(f"chunk {content.chunk} cannot have {end} bytes")
    return length


def _check_fragment(chunk: int, index: int, k: int, m: int) -> None:
    if not possible(k, m, index) or not is_chunk(chunk):
        raise ProtocolError(f"there is no fragment {index} of {k}+{m} of chunk {chunk}")


def _check_length(length: int) -> None:
    if not 0 < length <= CHUNK_MAX_BYTES:
        raise ProtocolError(f"no sealed chunk has {length} bytes")


def _check_sources(sources: tuple[FragmentSource, ...], k: int, m: int) -> None:
    if len(sources) > SOURCES_MAX:
        raise ProtocolError(f"{len(sources)} sources; {SOURCES_MAX} are allowed")
    for source in sources:
        if not possible(k, m, source.index):
            raise ProtocolError(f"there is no fragment {source.index} of {k}+{m} to read from")
