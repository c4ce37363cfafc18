"""Reading a backup of the metadata from the master, and making sure that it is whole."""

import random
from collections.abc import AsyncGenerator
from typing import Final

from dfs.client.master_link import MasterLink
from dfs.core.archive import ArchiveReader
from dfs.core.errors import DfsError
from dfs.wire.messages import BackupPiece, ReadBackup

PIECE_TIMEOUT_S: Final = 60.0


async def read_backup(link: MasterLink, archive: ArchiveReader) -> AsyncGenerator[memoryview, None]:
    """The bytes of a new backup, in order, as `archive` has verified them.

    Raises:
        DfsError: it cannot be made, was given up, or arrived damaged.
    """
    nonce = random.getrandbits(63)
    piece = 0
    last = False
    while not last:
        request = ReadBackup(nonce, piece)
        reply, data = await link.call_raw(request, BackupPiece, timeout_s=PIECE_TIMEOUT_S)
        archive.feed(data)
        if data:
            yield data
        last = reply.last
        piece += 1
    archive.finish()
    if archive.description is None:
        raise DfsError("the master sent a backup of nothing")
