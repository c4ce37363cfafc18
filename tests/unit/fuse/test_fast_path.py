"""Writes that are gathered in FUSE's threads: none is lost, none arrives twice or out of order."""

import errno
import os
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dfs_fuse.bridge import Bridge
from dfs_fuse.fast_path import WriteGatherer
from dfs_fuse.handles import FileHandle
from dfs_fuse.vfs import Vfs

DEADLINE_S = 20.0


class Disk:
    """Bridge and vfs in one: takes what is written, unless it is told to wait or to refuse."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.error: OSError | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def run(self, function: Any, *arguments: Any) -> None:
        with pytest.raises(StopIteration):
            function(*arguments).send(None)

    async def write_parts(self, handle: FileHandle, parts: deque[tuple[int, bytes]]) -> None:
        self.entered.set()
        assert self.may_go_on.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        while parts:
            self.taken.append(parts.popleft()[1])

    def gatherer(self) -> WriteGatherer:
        return WriteGatherer(cast(Bridge, self), cast(Vfs, self))


def opened() -> FileHandle:
    return cast(FileHandle, SimpleNamespace(ino=7, file=SimpleNamespace(unfinished=False)))


def test_a_write_survives_that_another_handle_is_let_go_of_meanwhile() -> None:
    disk = Disk()
    gatherer = disk.gatherer()
    first, second = opened(), opened()
    gatherer.write(first, 0, b"first")
    disk.may_go_on.clear()
    settling = threading.Thread(target=gatherer.settle, args=(7,))
    settling.start()
    assert disk.entered.wait(DEADLINE_S)
    # Both wait now for what is going over.
    writing = threading.Thread(target=gatherer.write, args=(second, 5, b"second"))
    writing.start()
    while gatherer._gathered[7].users < 2:
        threading.Event().wait(0.001)
    dropping = threading.Thread(target=gatherer.drop, args=(first,))
    dropping.start()
    dropping.join(0.1)
    disk.may_go_on.set()
    for thread in (settling, writing, dropping):
        thread.join(DEADLINE_S)
    gatherer.settle(7)
    assert disk.taken == [b"first", b"second"]
    assert not gatherer.holds(7)


def test_the_rest_of_a_write_whose_beginning_has_gone_over_goes_over_at_once() -> None:
    disk = Disk()
    gatherer = disk.gatherer()
    handle = opened()
    gatherer.write(handle, 100, b"beginning")
    assert disk.taken == []
    gatherer.settle(7)
    handle.file.unfinished = True  # type: ignore[misc]
    gatherer.write(handle, 4096, b"rest")
    assert disk.taken == [b"beginning", b"rest"]
    assert not gatherer.holds(7)


def test_what_cannot_be_written_goes_with_its_handle() -> None:
    disk = Disk()
    gatherer = disk.gatherer()
    handle = opened()
    gatherer.write(handle, 0, b"lost")
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        gatherer.settle(7)
    assert gatherer.holds(7)
    gatherer.drop(handle)
    assert not gatherer.holds(7)
    disk.error = None
    gatherer.write(opened(), 0, b"kept")
    gatherer.settle_all()
    assert disk.taken == [b"kept"]


def test_a_sync_comes_after_all_writes_and_holds_up_none_that_follow() -> None:
    disk = Disk()
    gatherer = disk.gatherer()
    handle = opened()
    syncing, synced = threading.Event(), threading.Event()
    order: list[bytes] = []

    async def sync(of: FileHandle) -> None:
        assert of is handle
        order.extend(disk.taken)
        syncing.set()
        assert synced.wait(DEADLINE_S)

    gatherer.write(handle, 0, b"one")
    gatherer.write(handle, 3, b"two")
    thread = threading.Thread(target=gatherer.settle_then, args=(handle, sync))
    thread.start()
    assert syncing.wait(DEADLINE_S)
    gatherer.write(handle, 6, b"three")
    gatherer.settle(7)
    synced.set()
    thread.join(DEADLINE_S)
    assert order == [b"one", b"two"]
    assert disk.taken == [b"one", b"two", b"three"]
    assert not gatherer.holds(7)
    # With nothing gathered, it is all there is to do.
    gatherer.settle_then(handle, sync)
    assert order == [b"one", b"two", *disk.taken]


def test_what_could_not_be_written_is_not_synced_and_is_kept() -> None:
    disk = Disk()
    gatherer = disk.gatherer()
    handle = opened()
    synced: list[FileHandle] = []

    async def sync(of: FileHandle) -> None:
        synced.append(of)

    gatherer.write(handle, 0, b"kept")
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        gatherer.settle_then(handle, sync)
    assert not synced
    disk.error = None
    gatherer.settle_then(handle, sync)
    assert disk.taken == [b"kept"]
    assert synced == [handle]
