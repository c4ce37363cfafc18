"""What a disk really holds: each fragment is looked into, for a check that the master makes.

A chunk report goes by the names that were read at start. Here each sealed file is opened, and its
header, length and index are verified; its records are not (that is for `verify`). Called by the
service; yields to clients.
"""

from bisect import bisect_right
from itertools import islice
from typing import Final
from uuid import UUID

from dfs.chunkserver.disk import Disk
from dfs.chunkserver.fragment_file import FragmentFile, FragmentGoneError
from dfs.chunkserver.fragment_format import FragmentName
from dfs.core.errors import FragmentError
from dfs.core.ids import ChunkId
from dfs.wire.messages import FRAGMENTS_MAX, FragmentsReply

STEP_FILES: Final = 50
"""Files opened in one turn."""


async def list_fragments(disk: Disk, after: ChunkId, limit: int) -> FragmentsReply:
    """A page of the fragments of chunks past `after`."""
    chunks = await disk.health.run_read(disk.catalog.chunks)
    start = bisect_right(chunks, after)
    page = chunks[start : start + max(1, min(limit, FRAGMENTS_MAX))]
    names = iter([name for chunk in page if (name := disk.catalog.get(chunk)) is not None])
    cluster = UUID(disk.identity.cluster)
    unusable: dict[ChunkId, str] = {}
    while step := list(islice(names, STEP_FILES)):
        await disk.traffic.turn()
        unusable |= await disk.health.run_read(_look_into, disk, step, cluster)
    held = await disk.held([chunk for chunk in page if chunk not in unusable])
    return FragmentsReply(
        fragments=tuple(held),
        unusable=tuple(each for each in unusable.items() if each[1]),
        upto=page[-1] if page else after,
        more=start + len(page) < len(chunks),
    )


def _look_into(disk: Disk, names: list[FragmentName], cluster: UUID) -> dict[ChunkId, str]:
    """Sealed fragments that cannot be used, and why; "": their file is gone."""
    found = {}
    for name in names:
        if name.length is None:
            continue  # being written: `held` knows how far it goes
        try:
            FragmentFile.open(disk.directory_of(name.chunk), name, cluster).close()
        except FragmentGoneError:
            found[name.chunk] = ""
        except FragmentError as error:
            found[name.chunk] = error.message
    return found
