"""What one disk holds, by chunk: read from the names of its files at start, none is opened.

A few dozen bytes of memory per fragment. Belongs to a `Disk`, on the event loop; `scan` blocks.
"""

import logging
import os
from collections.abc import Callable
from typing import Final

from dfs.chunkserver.fragment_format import (
    DIRECTORIES,
    FragmentName,
    directory_of,
    parse_name,
)
from dfs.core.ids import ChunkId

_log = logging.getLogger(__name__)

_INDEX_BITS: Final = 8


class Catalog:
    """At most one fragment for each chunk: `placement` puts no two of them on one disk."""

    def __init__(self) -> None:
        # Both packed into one number: (length + 1, or 0 while open) << 8 | index.
        self._entries: dict[ChunkId, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._entries

    def get(self, chunk: ChunkId) -> FragmentName | None:
        entry = self._entries.get(chunk)
        if entry is None:
            return None
        length = entry >> _INDEX_BITS
        return FragmentName(chunk, entry & 0xFF, length - 1 if length else None)

    def put(self, name: FragmentName) -> None:
        length = 0 if name.length is None else name.length + 1
        self._entries[name.chunk] = length << _INDEX_BITS | name.index

    def remove(self, chunk: ChunkId) -> None:
        self._entries.pop(chunk, None)

    def chunks(self) -> list[ChunkId]:
        """All chunks, in order. May run in a worker thread: the copy is one step."""
        return sorted(self._entries)


def scan(fragments: str, step: Callable[[], None]) -> tuple[Catalog, int]:
    """The fragments under a directory, and the bytes their files take. Calls `step` for each.

    Raises OSError.
    """
    catalog = Catalog()
    used = 0
    strange: list[str] = []
    for number in range(DIRECTORIES):
        directory = os.path.join(fragments, f"{number:02x}")
        try:
            with os.scandir(directory) as entries:
                # In order of inode, the order in which a disk has them: a cold start of a large
                # disk then reads instead of seeks.
                found = sorted(entries, key=lambda entry: entry.inode())
        except FileNotFoundError:
            os.mkdir(directory)
            continue
        step()
        for entry in found:
            name = parse_name(entry.name)
            if name is None or directory_of(name.chunk) != f"{number:02x}":
                strange.append(entry.path)
                continue
            known = catalog.get(name.chunk)
            if known is not None:
                strange.append(entry.path)
                if known.length is not None or name.length is None:
                    continue
            catalog.put(name)
            used += entry.stat(follow_symlinks=False).st_size
            step()
    if strange:
        _log.warning(
            "%d files do not belong under %s and are left alone, for example %s",
            len(strange), fragments, strange[0],
        )  # fmt: skip
    return catalog, used
