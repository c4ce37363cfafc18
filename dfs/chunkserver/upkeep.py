"""Answers to the master's requests for upkeep: fragments rebuilt, verified, rewritten.

Only a few run at a time, whatever is asked: each holds some memory, and clients go first.
"""

from collections.abc import Mapping
from typing import Final

import trio

from dfs.chunkserver.fragment_format import possible
from dfs.chunkserver.pace import Rate
from dfs.chunkserver.rebuild import rebuild
from dfs.chunkserver.service import ChunkService, is_chunk
from dfs.chunkserver.verify import verify
from dfs.core.chunk import CHUNK_MAX_BYTES
from dfs.core.errors import ProtocolError
from dfs.core.workers import Workers
from dfs.wire.handlers import Handler, Peer
from dfs.wire.messages import (
    FragmentSource,
    FragmentVerdict,
    Message,
    RebuildFragment,
    RebuiltFragment,
    VerifyFragment,
)
from dfs.wire.pool import Pool

AT_ONCE: Final = 8
"""Requests that are worked at; others wait."""
SOURCES_MAX: Final = 64


class Upkeep:
    """`handlers` for `dfs.wire.serve`."""

    def __init__(self, service: ChunkService, pool: Pool, workers: Workers) -> None:
        """`pool` reaches other chunk servers; `workers` compute."""
        self._service = service
        self._pool = pool
        self._workers = workers
        self._turns = trio.CapacityLimiter(AT_ONCE)

    @property
    def handlers(self) -> Mapping[type[Message], Handler]:
        return {RebuildFragment: self.rebuild, VerifyFragment: self.verify}

    async def rebuild(
        self, _: Peer, request: RebuildFragment, payload: memoryview
    ) -> RebuiltFragment:
        disk = self._service.disk(request.disk)
        _check_fragment(request.chunk, request.index, request.k, request.m)
        _check_length(request.length)
        _check_sources(request.sources, request.k, request.m)
        async with self._turns:
            return await rebuild(disk, request, self._pool, self._workers)

    async def verify(
        self, _: Peer, request: VerifyFragment, payload: memoryview
    ) -> FragmentVerdict:
        disk = self._service.disk(request.disk)
        _check_length(request.length)
        async with self._turns:
            return await verify(
                disk, request.chunk, request.index, request.length, Rate(request.rate)
            )


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
