"""A backup in the making, in a process of its own: a checkpoint in, an archive out.

    python -m dfs.master.backup.process CHECKPOINT

The archive goes to its standard output; without its last block it counts as cut short. Ends with
status 0 only when all of it is written.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

from dfs import __version__
from dfs.core.archive import ArchiveWriter, Description
from dfs.core.errors import DfsError
from dfs.master.keyspace import META_CLUSTER, META_SCHEMA, REPLY, from_u64
from dfs.master.store import RocksStore

CACHE_BYTES: Final = 16 * 1024 * 1024
NICE: Final = 10

log = logging.getLogger(__name__)


def archive_checkpoint(path: Path, created_ns: int, out: BinaryIO) -> None:
    """Write all rows, but remembered replies: no session outlives a restore."""
    store = RocksStore(path, cache_bytes=CACHE_BYTES, read_only=True)
    try:
        description = Description(
            cluster=(store.get(META_CLUSTER) or b"").decode(),
            created_ns=created_ns,
            dfs=__version__,
            schema=from_u64(store.get(META_SCHEMA) or b""),
            position=store.position,
            rows=store.approximate_rows(),
        )
        archive = ArchiveWriter(out.write, description)
        for start, end in ((b"\0", REPLY), (bytes((REPLY[0] + 1,)), b"\xff")):
            for key, value in store.scan(start, end):
                archive.add(key, value)
        archive.finish()
        out.flush()
    finally:
        store.close()


def main() -> None:
    os.nice(NICE)
    path = Path(sys.argv[1])
    try:
        archive_checkpoint(path, time.time_ns(), sys.stdout.buffer)
    except BrokenPipeError:
        os._exit(1)
    except DfsError as error:
        sys.exit(f"dfs: the backup failed: {error}")
    except Exception:
        # Whatever the store throws where its files cannot be read.
        log.exception("the backup of %s failed", path)
        sys.exit(1)


if __name__ == "__main__":
    main()
