"""Writes a new chunk to the chunk servers that shall hold it, for background work.

A target that fails is left out from then on, as a client does it: the chunk goes on as long as
enough of its fragments do.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from dfs.core.block import EncodedBlock
from dfs.core.errors import DfsError, UnavailableError
from dfs.core.ids import ChunkId
from dfs.core.redundancy import Redundancy
from dfs.wire.messages import (
    Append,
    Appended,
    FragmentSource,
    FragmentStatus,
    SealFragment,
)
from dfs.wire.pool import Pool

WRITE_TIMEOUT_S: Final = 60.0


class Targets:
    """The fragments of one new chunk."""

    def __init__(
        self, pool: Pool, chunk: ChunkId, redundancy: Redundancy, targets: Sequence[FragmentSource]
    ) -> None:
        self.stored_bytes = 0
        """Size of the files, once sealed."""
        self._pool = pool
        self._chunk = chunk
        self._redundancy = redundancy
        self._targets = tuple(targets)
        self._failed: dict[int, str] = {}
        """By index of the fragment: what became of it."""

    @property
    def lost(self) -> tuple[int, ...]:
        """Indexes of the fragments that failed."""
        return tuple(sorted(self._failed))

    async def append(self, blocks: Sequence[EncodedBlock]) -> None:
        """Store consecutive blocks on all that are left.

        Raises:
            UnavailableError: too few are left.
        """

        async def send(target: FragmentSource) -> None:
            request = Append(
                target.disk, self._chunk, target.index, self._redundancy.k, self._redundancy.m,
                blocks[0].block_index, len(blocks), background=True,
            )  # fmt: skip
            payload = [part for block in blocks for part in block.fragments[target.index]]
            await self._pool.call(
                target.address, request, Appended, payload=payload, timeout_s=WRITE_TIMEOUT_S
            )

        await self._on_each(send)

    async def seal(self, length: int) -> None:
        """Make all that are left durable and final. Raises as `append`."""
        stored = 0

        async def seal(target: FragmentSource) -> None:
            nonlocal stored
            request = SealFragment(target.disk, self._chunk, length)
            status = await self._pool.call(
                target.address, request, FragmentStatus, timeout_s=WRITE_TIMEOUT_S
            )
            stored += status.stored

        await self._on_each(seal)
        self.stored_bytes = stored

    async def _on_each(self, act: Callable[[FragmentSource], Awaitable[None]]) -> None:
        async def attempt(target: FragmentSource) -> None:
            try:
                await act(target)
            except DfsError as error:
                self._failed[target.index] = (
                    f"fragment {target.index} on disk {target.disk} at {target.address}: {error}"
                )

        async with trio.open_nursery() as nursery:
            for target in self._targets:
                if target.index not in self._failed:
                    nursery.start_soon(attempt, target)
        left = len(self._targets) - len(self._failed)
        if left < self._redundancy.write_minimum:
            said = "; ".join(self._failed.values())
            raise UnavailableError(
                f"chunk {self._chunk} ({self._redundancy}) needs "
                f"{self._redundancy.write_minimum} fragments and has {left}: {said}"
            )
