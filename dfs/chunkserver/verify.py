"""Verifies a fragment: reads all of it, and checks length, index and every record.

What was not in the page cache before is not left there: a scrub of a disk would push out what
clients use.
"""

import os
from typing import Final

from dfs.chunkserver.disk import Disk
from dfs.chunkserver.fragment import Fragment
from dfs.chunkserver.fragment_file import FragmentFile, FragmentGoneError
from dfs.chunkserver.fragment_format import (
    TAIL_BYTES,
    decode_footer,
    decode_tail,
    footer_bytes,
)
from dfs.chunkserver.pace import Rate
from dfs.chunkserver.page_cache import drop, is_cached
from dfs.core.block import parse_records
from dfs.core.errors import CorruptError, DiskError, FragmentError
from dfs.core.ids import ChunkId
from dfs.wire.messages import FragmentVerdict

STEP_BYTES: Final = 2 * 1024 * 1024
"""Of records read and checked at a time."""


async def verify(
    disk: Disk, chunk: ChunkId, index: int, length: int, rate: Rate
) -> FragmentVerdict:
    """See `VerifyFragment`.

    Raises:
        DiskError: the disk has failed as a whole.
    """
    verdict = await _verify(disk, chunk, index, length, rate)
    if verdict.reason in {"", "corrupt"}:
        disk.health.verified(chunk, corrupt=verdict.reason == "corrupt")
    return verdict


async def _verify(
    disk: Disk, chunk: ChunkId, index: int, length: int, rate: Rate
) -> FragmentVerdict:
    if disk.catalog.get(chunk) is None:
        return FragmentVerdict("missing", f"disk {disk.path} holds no fragment of it", 0)
    try:
        fragment = await disk.fragment(chunk)
    except FragmentGoneError as error:
        return FragmentVerdict("missing", error.message, 0)
    except FragmentError as error:
        return FragmentVerdict("corrupt", error.message, 0)
    except DiskError as error:
        disk.health.check()
        return FragmentVerdict("corrupt", f"it cannot be opened: {error.message}", 0)
    try:
        verdict = await _check(disk, fragment, index, length, rate)
        if verdict.reason in {"missing", "short"}:
            await disk.look_again(fragment)
        return verdict
    finally:
        fragment.unpin()


async def _check(
    disk: Disk, fragment: Fragment, index: int, length: int, rate: Rate
) -> FragmentVerdict:
    file = fragment.file
    problem = _misfit(file, index, length)
    if problem is not None:
        return FragmentVerdict(*problem, 0)
    read = 0
    fd = -1
    try:
        fd = await disk.health.run_read(_open, file.path)
        if file.sealed:
            await disk.health.run_read(_check_footer, file, fd)
        first = 0
        last = len(file.index) if file.sealed else file.index.blocks_within(length)
        while first < last:
            await disk.traffic.turn()
            first, size = await disk.health.run_read(_check_records, file, fd, first, last)
            read += size
            await rate.spend(size)
    except CorruptError as error:
        return FragmentVerdict("corrupt", error.message, read)
    except FragmentError as error:
        return FragmentVerdict("missing", error.message, read)
    except DiskError as error:
        disk.health.check()
        # A bad sector, so far: this fragment is to be made anew.
        return FragmentVerdict("corrupt", f"it cannot be read: {error.message}", read)
    finally:
        if fd >= 0:
            os.close(fd)
    return FragmentVerdict("", "", read)


def _open(path: str) -> int:
    """A descriptor of our own, without read-ahead: it would look like a client's pages later."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


def _misfit(file: FragmentFile, index: int, length: int) -> tuple[str, str] | None:
    """What is wrong with it as a whole: a reason and a sentence."""
    if file.header.index != index:
        return "missing", f"the disk holds fragment {file.header.index} of it instead"
    status = os.fstat(file.fd)
    if status.st_nlink == 0:
        return "missing", "its file was deleted"
    if status.st_size < file.index.file_end:
        return "short", f"its file has {status.st_size} bytes of {file.index.file_end}"
    if file.index.length < length:
        return "short", f"it ends at {file.index.length} of {length} bytes"
    return None


def _check_footer(file: FragmentFile, fd: int) -> None:
    """Raises CorruptError unless the footer on disk is the index in use."""
    size = os.fstat(fd).st_size
    length = footer_bytes(len(file.index))
    footer = os.pread(fd, length, size - length)
    decode_tail(footer[-TAIL_BYTES:], file.header, size)
    index = decode_footer(footer, file.header)
    if (index.raw_ends, index.file_ends) != (file.index.raw_ends, file.index.file_ends):
        raise CorruptError("its index is not that of its records")


def _check_records(file: FragmentFile, fd: int, first: int, last: int) -> tuple[int, int]:
    """Check records from block `first` on, up to `last`; the next one, and the bytes read."""
    index, header = file.index, file.header
    start = index.start_of(first)
    end = first + 1
    while end < last and index.start_of(end + 1) - start <= STEP_BYTES:
        end += 1
    size = index.start_of(end) - start
    cached = is_cached(fd, start, size)
    data = os.pread(fd, size, start)
    if not cached:
        drop(fd, start, size)
    records = parse_records(
        memoryview(data), chunk=header.chunk, content_index=header.content_index
    )
    found = [(record.header.block_index, record.header.raw_end) for record in records]
    if found != list(enumerate(index.raw_ends[first:end], first)):
        raise CorruptError(f"its records from block {first} on are not those of its index")
    return end, size
