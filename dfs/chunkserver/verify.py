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
from dfs.core.block import parse_records
from dfs.core.errors import CorruptError, DiskError, FragmentError
from dfs.core.ids import ChunkId
from dfs.wire.messages import FragmentVerdict

STEP_BYTES: Final = 2 * 1024 * 1024
"""Of records read and checked at a time."""


async def verify(disk: Disk, chunk: ChunkId, index: int, length: int) -> FragmentVerdict:
    """See `VerifyFragment`.

    Raises:
        DiskError: the disk has failed as a whole.
    """
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
        verdict = await _check(disk, fragment, index, length)
        if verdict.reason in {"missing", "short"}:
            await disk.look_again(fragment)
        return verdict
    finally:
        fragment.unpin()


async def _check(disk: Disk, fragment: Fragment, index: int, length: int) -> FragmentVerdict:
    file = fragment.file
    read = 0
    try:
        problem = _misfit(file, index, length)
        if problem is None:
            if file.sealed:
                await disk.health.run_read(_check_footer, file)
            first = 0
            last = len(file.index) if file.sealed else file.index.blocks_within(length)
            while first < last:
                first, size = await disk.health.run_read(_check_records, file, first, last)
                read += size
            problem = "", ""
    except CorruptError as error:
        problem = "corrupt", error.message
    except DiskError as error:
        disk.health.check()
        # A bad sector, so far: this fragment is to be made anew.
        problem = "corrupt", f"it cannot be read: {error.message}"
    return FragmentVerdict(*problem, read)


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


def _check_footer(file: FragmentFile) -> None:
    """Raises CorruptError unless the footer on disk is the index in use."""
    size = os.fstat(file.fd).st_size
    length = footer_bytes(len(file.index))
    footer = os.pread(file.fd, length, size - length)
    decode_tail(footer[-TAIL_BYTES:], file.header, size)
    index = decode_footer(footer, file.header)
    if (index.raw_ends, index.file_ends) != (file.index.raw_ends, file.index.file_ends):
        raise CorruptError("its index is not that of its records")


def _check_records(file: FragmentFile, first: int, last: int) -> tuple[int, int]:
    """Check records from block `first` on, up to `last`; the next one, and the bytes read."""
    index, header = file.index, file.header
    start = index.start_of(first)
    end = first + 1
    while end < last and index.start_of(end + 1) - start <= STEP_BYTES:
        end += 1
    size = index.start_of(end) - start
    cached = file.is_cached(start, size)
    data = os.pread(file.fd, size, start)
    if not cached:
        os.posix_fadvise(file.fd, start, size, os.POSIX_FADV_DONTNEED)
    records = parse_records(
        memoryview(data), chunk=header.chunk, content_index=header.content_index
    )
    found = [(record.header.block_index, record.header.raw_end) for record in records]
    if found != list(enumerate(index.raw_ends[first:end], first)):
        raise CorruptError(f"its records from block {first} on are not those of its index")
    return end, size
