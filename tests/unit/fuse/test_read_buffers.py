"""Reads of FUSE's threads: right bytes whatever comes between, few requests, bounded memory."""

import random
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

import dfs_fuse.fast_path
from dfs_fuse.fast_path import ReadBuffers
from dfs_fuse.handles import FileHandle

KIB = 1024
DEADLINE_S = 20.0


class File:
    """What handles are of: bytes, and an epoch that goes up with each change."""

    def __init__(self, size: int) -> None:
        self.data = random.Random(size).randbytes(size)
        self.epoch = 0
        self.fetched: list[tuple[int, int]] = []

    def handle(self, number: int = 1) -> FileHandle:
        return cast(FileHandle, SimpleNamespace(number=number, file=self))

    def fetch(self, offset: int, size: int) -> bytes:
        self.fetched.append((offset, size))
        return self.data[offset : offset + size]

    def write(self, data: bytes) -> None:
        self.epoch += 1
        self.data = data


def opened(*numbers: int) -> ReadBuffers:
    buffers = ReadBuffers()
    for number in numbers or (1,):
        buffers.open(number)
    return buffers


def wait(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S)


def test_a_file_read_in_order_takes_few_requests() -> None:
    file, buffers = File(8000 * KIB + 123), opened()
    at = 0
    while data := buffers.read(file.handle(), at, 128 * KIB, file.fetch, wait):
        assert data == file.data[at : at + 128 * KIB]
        at += len(data)
    assert at == len(file.data)
    assert len(file.fetched) < 20


def test_random_reads_fetch_no_more_than_they_ask_for() -> None:
    file, buffers = File(8000 * KIB), opened()
    rng = random.Random(1)
    for _ in range(50):
        offset = rng.randrange(1, 7900 * KIB)
        data = buffers.read(file.handle(), offset, 4 * KIB, file.fetch, wait)
        assert data == file.data[offset : offset + 4 * KIB]
    assert sum(size for _, size in file.fetched) < 50 * 100 * KIB


def test_a_changed_file_is_fetched_anew() -> None:
    file, buffers = File(1000 * KIB), opened()
    for offset in (0, 128 * KIB):
        buffers.read(file.handle(), offset, 128 * KIB, file.fetch, wait)
    file.write(b"new" * 400 * KIB)
    data = buffers.read(file.handle(), 256 * KIB, 128 * KIB, file.fetch, wait)
    assert data == file.data[256 * KIB : 384 * KIB]


def test_bytes_that_changed_while_they_came_are_not_kept() -> None:
    file, buffers = File(1000 * KIB), opened()

    def overtaken(offset: int, size: int) -> bytes:
        data = file.fetch(offset, size)
        file.write(b"new" * 400 * KIB)
        return data

    before = file.data
    assert buffers.read(file.handle(), 0, 128 * KIB, overtaken, wait) == before[: 128 * KIB]
    assert (
        buffers.read(file.handle(), 128 * KIB, 128 * KIB, file.fetch, wait)
        == file.data[128 * KIB : 256 * KIB]
    )


def test_a_fetch_that_fails_leaves_nobody_waiting() -> None:
    file, buffers = File(1000 * KIB), opened()

    def failing(offset: int, size: int) -> bytes:
        raise OSError(5, "no server answers")

    for _ in range(2):
        with pytest.raises(OSError, match="no server"):
            buffers.read(file.handle(), 0, 128 * KIB, failing, wait)
    assert buffers.read(file.handle(), 0, KIB, file.fetch, wait) == file.data[:KIB]


def test_threads_that_read_ahead_together_read_right_bytes() -> None:
    file, buffers = File(6000 * KIB), opened()
    pieces = list(range(0, 6000 * KIB, 128 * KIB))
    wrong: list[int] = []
    lock = threading.Lock()

    def fetch(offset: int, size: int) -> bytes:
        with lock:
            return file.fetch(offset, size)

    def read() -> None:
        while True:
            with lock:
                if not pieces:
                    return
                at = pieces.pop(0)
            data = buffers.read(file.handle(), at, 128 * KIB, fetch, wait)
            if data != file.data[at : at + 128 * KIB]:
                wrong.append(at)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not wrong
    assert not pieces
    assert sum(size for _, size in file.fetched) < 3 * len(file.data)


def test_who_is_interrupted_while_others_fetch_gives_up_alone() -> None:
    file, buffers = File(1000 * KIB), opened()
    fetching, may_go_on = threading.Event(), threading.Event()
    result: list[bytes] = []

    def slow(offset: int, size: int) -> bytes:
        fetching.set()
        assert may_go_on.wait(DEADLINE_S)
        return file.fetch(offset, size)

    def read() -> None:
        result.append(buffers.read(file.handle(), 0, 128 * KIB, slow, wait))

    thread = threading.Thread(target=read)
    thread.start()
    assert fetching.wait(DEADLINE_S)

    def interrupted(event: threading.Event) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        buffers.read(file.handle(), 128 * KIB, 64 * KIB, file.fetch, interrupted)
    # Elsewhere in the file nobody has to wait.
    far = buffers.read(file.handle(), 900 * KIB, KIB, file.fetch, interrupted)
    assert far == file.data[900 * KIB : 901 * KIB]
    may_go_on.set()
    thread.join(DEADLINE_S)
    assert result == [file.data[: 128 * KIB]]


def test_all_buffers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfs_fuse.fast_path, "_BUFFERS_BYTES", 3000 * KIB)
    buffers = opened(*range(50))
    file = File(2000 * KIB)
    for number in range(50):
        for offset in (0, 128 * KIB, 256 * KIB, 384 * KIB):
            buffers.read(file.handle(number), offset, 128 * KIB, file.fetch, wait)
        held = sum(buffer.held_bytes for buffer in cast(Any, buffers)._buffers.values())
        assert held <= 3000 * KIB
    for number in range(50):
        buffers.close(number)
    assert cast(Any, buffers)._held_bytes == 0
