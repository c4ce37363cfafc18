"""Reads one step ahead of what is done with what was read."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import trio

from dfs.core.errors import DfsError

T = TypeVar("T")


async def one_ahead(steps: AsyncGenerator[T, None], use: Callable[[T], Awaitable[None]]) -> None:
    """Await `use` of each step, while the next one is read; more is never in memory.

    Raises the DfsError of either as it is, in no group.
    """
    failure: DfsError | None = None
    send, receive = trio.open_memory_channel[T | DfsError](0)

    async def read() -> None:
        async with send, aclosing(steps):
            try:
                async for step in steps:
                    await send.send(step)
            except DfsError as error:
                await send.send(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with receive:
            try:
                async for step in receive:
                    if isinstance(step, DfsError):
                        raise step
                    await use(step)
            except DfsError as error:
                failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
