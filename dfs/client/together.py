"""Run several tasks at once and fail as one: with the first error itself, not a group of one."""

from collections.abc import Awaitable, Callable, Iterable

import trio


async def together(
    tasks: Iterable[Callable[[], Awaitable[None]]], *, at_once: int | None = None
) -> None:
    """Run `tasks` to their ends, at most `at_once` at a time. The first error cancels the rest."""
    failure: Exception | None = None
    limit = trio.CapacityLimiter(at_once) if at_once is not None else None

    async def run(task: Callable[[], Awaitable[None]]) -> None:
        nonlocal failure
        try:
            if limit is None:
                await task()
            else:
                async with limit:
                    await task()
        except Exception as error:
            if failure is None:
                failure = error
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(run, task)
    if failure is not None:
        raise failure
