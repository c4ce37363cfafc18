"""The metadata as of one moment, read by a process of its own while the master goes on.

A snapshot is a checkpoint of the store in a directory next to it: hard links, made in some
milliseconds. The process that reads it takes no time from the master's, and dies with its task.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

import dfs
from dfs.core.errors import DfsError
from dfs.core.workers import Workers
from dfs.master.store import Store

_ROOT: Final = Path(dfs.__file__).parent.parent


class Reading:
    """A process that reads a snapshot."""

    def __init__(self, process: trio.Process, output: trio.abc.ReceiveStream) -> None:
        self.output = output
        """What it writes to its standard output."""
        self._process = process

    async def check(self) -> None:
        """Wait for its end. Raises DfsError where it did not do what it was to do."""
        status = await self._process.wait()
        if status:
            raise DfsError(
                f"the process that reads the metadata ended with status {status}",
                hint="see the master's log",
            )


class Snapshots:
    """Takes snapshots of `store`, each gone with its use."""

    def __init__(self, directory: Path | None, store: Store, workers: Workers) -> None:
        """`directory` is this object's own, on the store's file system; None: none are taken."""
        self._directory = directory
        self._store = store
        self._workers = workers
        self._taken = 0
        if directory is not None:
            # What an earlier master left behind when it was killed.
            shutil.rmtree(directory, ignore_errors=True)

    @asynccontextmanager
    async def read_by(self, module: str) -> AsyncIterator[Reading]:
        """Run `python -m MODULE CHECKPOINT` on a fresh snapshot.

        Raises:
            NoSpaceError, DfsError: no snapshot can be taken, or no process started.
        """
        if self._directory is None:
            raise DfsError("this master keeps its metadata in memory only")
        self._taken += 1
        place = self._directory / str(self._taken)
        try:
            await self._workers.run(self._take, place)
            async with _process(module, place / "metadata") as reading:
                yield reading
        finally:
            with trio.CancelScope(shield=True):
                await self._workers.run(_remove, place)

    def _take(self, place: Path) -> None:
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise DfsError(
                f"cannot take a snapshot of the metadata in {place}: {error.strerror}",
                errno=error.errno,
                hint="look at the disk of the master's data",
            ) from error
        self._store.checkpoint(place / "metadata")


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def _process(module: str, checkpoint: Path) -> AsyncIterator[Reading]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", module, str(checkpoint)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    except OSError as error:
        raise DfsError(
            f"the process that reads the metadata cannot be started: {error.strerror}",
            errno=error.errno,
            hint="look at the master's machine: its memory, processes and open files",
        ) from error
    assert process.stdout is not None
    try:
        yield Reading(process, process.stdout)
    finally:
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()
            if process.returncode is None:
                process.kill()
            await process.wait()
