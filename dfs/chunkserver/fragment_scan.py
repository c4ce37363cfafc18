"""Where the records of a fragment file lie: by its footer, or by reading all of them.

Blocking reads of an open file, for `fragment_file`, which knows what to do with what they find.
"""

import contextlib
import os
from typing import Final

from dfs.chunkserver.fragment_format import (
    FILE_HEADER_BYTES,
    TAIL_BYTES,
    BlockIndex,
    FragmentHeader,
    decode_footer,
    decode_tail,
    footer_bytes,
)
from dfs.core.block import parse_record, parse_records
from dfs.core.errors import CorruptError

_SCAN_BYTES: Final = 4 * 1024 * 1024


def read_footer(fd: int, header: FragmentHeader, size: int) -> BlockIndex:
    """Raises CorruptError where a file of `size` bytes does not end with a footer of its own."""
    tail = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
    length = footer_bytes(decode_tail(tail, header, size))
    return decode_footer(os.pread(fd, length, size - length), header)


def verify(fd: int, header: FragmentHeader, index: BlockIndex) -> None:
    """Read all records. Raises CorruptError unless they are intact and as the index says."""
    first, count = 0, len(index)
    while first < count:
        start = index.start_of(first)
        last = first + 1
        while last < count and index.start_of(last + 1) - start <= _SCAN_BYTES:
            last += 1
        data = os.pread(fd, index.start_of(last) - start, start)
        records = parse_records(
            memoryview(data), chunk=header.chunk, content_index=header.content_index
        )
        if [record.header.raw_end for record in records] != list(index.raw_ends[first:last]):
            raise CorruptError("the records are not those of the index")
        first = last


def find_records(fd: int, header: FragmentHeader, size: int, *, verify_payload: bool) -> BlockIndex:
    """The index of the records from the first on, as far as their headers lead.

    With `verify_payload`, up to the last one that is whole. A damaged one between good ones
    stays: readers refuse it, and to cut there would take the good ones behind it along.
    """
    index = BlockIndex()
    good = 0
    window = memoryview(bytearray(min(_SCAN_BYTES, size)))
    start = FILE_HEADER_BYTES
    while start < size:
        got = os.preadv(fd, [window], start)
        position = 0
        with contextlib.suppress(CorruptError):  # perhaps only because the window ends
            while position < got:
                record = parse_record(
                    window[:got],
                    position,
                    chunk=header.chunk,
                    content_index=header.content_index,
                    verify_payload=False,
                )
                if not index.follows(record.header):
                    break
                index.add(record.header)
                position += record.length
                if not verify_payload or record.intact:
                    good = len(index)
        if position == 0:
            break
        start += position
    return index if good == len(index) else index.first(good)
