"""Larger files of a download: several requests in flight, bytes written where they belong."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from dfs.client import local_files
from dfs.client.answer import Slab
from dfs.client.extent_map import ExtentMap
from dfs.client.fetcher import StaleExtentError
from dfs.client.interval_map import Span
from dfs.client.open_file import READ_STEP_BYTES
from dfs.client.progress import Share
from dfs.core.buffers import Buffer
from dfs.core.errors import DfsError
from dfs.core.ids import ChunkId

if TYPE_CHECKING:
    from dfs.client.download import Download, Wanted

_FILES_AT_ONCE: Final = 2
_FETCHES_AT_ONCE: Final = 4


class BigFiles:
    """Takes files one by one; they run in the download's nursery, a few at a time."""

    def __init__(self, job: "Download", nursery: trio.Nursery) -> None:
        self.failure: Exception | None = None
        """What ended the download."""
        self._job = job
        self._nursery = nursery
        self._limit = trio.Semaphore(_FILES_AT_ONCE)
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def add(self, wanted: "Wanted", *, in_place: bool = False) -> None:
        """Take a file; waits while enough of them are under way.

        `in_place`: write to what is there (a device, a pipe) instead of making a new file.
        """
        await self._limit.acquire()
        self._running += 1
        self._nursery.start_soon(self._run, wanted, in_place)

    async def finish(self) -> None:
        """Wait for all."""
        while self._running:
            await self._idle.park()

    async def _run(self, wanted: "Wanted", in_place: bool) -> None:
        share = Share(self._job.progress, self._job.tell)
        try:
            if in_place:
                await self._into(wanted, share)
            else:
                await self._anew(wanted, share)
            self._job.done(wanted)
            share.complete(wanted.inode.size)
        except DfsError as error:
            share.undo()
            self._job.fail(wanted.remote, error)
        except OSError as error:
            share.undo()
            self._job.fail(wanted.path, error)
        except Exception as error:
            self.failure = self.failure or error
            self._nursery.cancel_scope.cancel()
        finally:
            self._running -= 1
            self._limit.release()
            self._idle.unpark_all()

    async def _anew(self, wanted: "Wanted", share: Share) -> None:
        """Write a new file, under its name when it is complete."""
        run = self._job.client.workers.run
        inode = wanted.inode
        temporary = local_files.temporary_beside(wanted.path)
        fd = await run(local_files.create, temporary)
        try:
            try:
                await run(os.ftruncate, fd, inode.size)
                await self._scatter(wanted, fd, share)
                await run(local_files.finish, fd, inode.mode, inode.atime_ns, inode.mtime_ns)
            finally:
                os.close(fd)
            await run(os.rename, temporary, wanted.path)
        except BaseException:
            local_files.remove(temporary)
            raise

    async def _scatter(self, wanted: "Wanted", fd: int, share: Share) -> None:
        """Fetch all steps, a few at a time, and write each where it belongs."""
        failure: Exception | None = None
        limit = trio.Semaphore(_FETCHES_AT_ONCE)

        async def one(step: Span[ChunkId]) -> None:
            nonlocal failure
            try:
                slabs = await self._fetch(wanted, extents, step)
                await self._job.client.workers.run(_write_step, fd, slabs)
                share.moved(step.end - step.start)
            except Exception as error:
                failure = failure or error
                nursery.cancel_scope.cancel()
            finally:
                limit.release()

        extents = ExtentMap(wanted.inode.ino, self._job.client.meta, self._job.client.resolver)
        async with trio.open_nursery() as nursery:
            try:
                async with aclosing(_steps(extents, wanted.inode.size)) as steps:
                    async for step in steps:
                        await limit.acquire()
                        nursery.start_soon(one, step)
            except Exception as error:
                failure = failure or error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _into(self, wanted: "Wanted", share: Share) -> None:
        """Write to what is there, in order."""
        run = self._job.client.workers.run
        fd = await run(os.open, wanted.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            await self._in_order(wanted, fd, share)
        finally:
            os.close(fd)

    async def _in_order(self, wanted: "Wanted", fd: int, share: Share) -> None:
        """Fetch ahead, write one step after the other; holes as zeros."""
        failure: Exception | None = None
        size = wanted.inode.size
        send, receive = trio.open_memory_channel[_Step](_FETCHES_AT_ONCE - 1)
        run = self._job.client.workers.run

        async def fetch(step: "_Step") -> None:
            try:
                step.slabs = await self._fetch(wanted, extents, step.span)
            except Exception as error:
                step.error = error
            step.done.set()

        async def plan() -> None:
            nonlocal failure
            try:
                async with send, aclosing(_steps(extents, size)) as steps:
                    async for span in steps:
                        step = _Step(span)
                        nursery.start_soon(fetch, step)
                        await send.send(step)
            except Exception as error:
                failure = failure or error

        extents = ExtentMap(wanted.inode.ino, self._job.client.meta, self._job.client.resolver)
        at = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plan)
            try:
                async for step in receive:
                    await step.done.wait()
                    if step.error is not None:
                        raise step.error
                    await run(_write_in_order, fd, at, step.slabs)
                    share.moved(step.span.end - at)
                    at = step.span.end
                if failure is None and at < size:
                    await run(_write_zeros, fd, size - at)
            except Exception as error:
                failure = failure or error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _fetch(
        self, wanted: "Wanted", extents: ExtentMap, step: Span[ChunkId]
    ) -> "list[_Placed]":
        """The bytes of a step, each with its offset in the file."""
        try:
            slabs = await self._job.client.fetcher.fetch(
                step.value, step.skip, step.end - step.start
            )
            return _place(step, slabs)
        except StaleExtentError:
            pass
        # The chunk is gone: its bytes lie elsewhere now (or others took their place).
        extents.forget()
        placed: list[_Placed] = []
        async with aclosing(_steps(extents, step.end, step.start)) as steps:
            async for again in steps:
                slabs = await self._job.client.fetcher.fetch(
                    again.value, again.skip, again.end - again.start
                )
                placed += _place(again, slabs)
        return placed


_Placed = tuple[int, Buffer]
"""Offset in the file, and bytes."""


class _Step:
    """A part of a file that is being fetched, to be written in order."""

    def __init__(self, span: Span[ChunkId]) -> None:
        self.span = span
        self.slabs: list[_Placed] = []
        self.error: Exception | None = None
        self.done = trio.Event()


async def _steps(
    extents: ExtentMap, size: int, start: int = 0
) -> AsyncGenerator[Span[ChunkId], None]:
    """The parts of a file that have bytes, in order, none larger than a request."""
    at = start
    while at < size:
        end = min(size, (at // READ_STEP_BYTES + 1) * READ_STEP_BYTES)
        while not extents.knows(at, end):
            await extents.ensure(at, end)
        for span in extents.slices(at, end):
            yield span
        at = end


def _place(step: Span[ChunkId], slabs: list[Slab]) -> list[_Placed]:
    """Where the blocks that were fetched for a step belong in the file; in order, cut to it."""
    shift = step.start - step.skip
    end = step.skip + step.end - step.start
    placed: list[_Placed] = []
    at = step.skip
    for start, data in sorted(
        (block for slab in slabs for block in slab.blocks), key=lambda block: block[0]
    ):
        stop = min(end, start + len(data))
        if stop > at:
            placed.append((at + shift, data[at - start : stop - start]))
            at = stop
    return placed


def _write_step(fd: int, placed: list[_Placed]) -> None:
    """Write where the bytes belong, what is contiguous in one call."""
    first = 0
    while first < len(placed):
        last = first + 1
        end = placed[first][0] + len(placed[first][1])
        while last < len(placed) and placed[last][0] == end:
            end += len(placed[last][1])
            last += 1
        local_files.write_at(fd, [data for _, data in placed[first:last]], placed[first][0])
        first = last


def _write_in_order(fd: int, at: int, placed: list[_Placed]) -> None:
    """Write at the stream's position, which is file offset `at`; zeros where nothing is."""
    for offset, data in placed:
        if offset > at:
            _write_zeros(fd, offset - at)
        local_files.write_all(fd, [data])
        at = offset + len(data)


def _write_zeros(fd: int, length: int) -> None:
    zeros = bytes(min(length, 1024 * 1024))
    while length:
        count = min(length, len(zeros))
        local_files.write_all(fd, [memoryview(zeros)[:count]])
        length -= count
