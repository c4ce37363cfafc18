"""A check in a process of its own, so that it takes nothing from the master but a processor.

    python -m dfs.master.check.process CHECKPOINT

It reads a checkpoint and writes messages to its standard output: `Counted` now and then, a
`Found` for each problem, and at last `Finished` or `Broke`. It ends when nobody reads them.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from dfs.core.chunk import FragmentState
from dfs.core.errors import DfsError
from dfs.master import invariants
from dfs.master.check.problem import Problem
from dfs.master.check.walk import Walk
from dfs.master.keyspace import get_counters
from dfs.master.pipes import write_message
from dfs.master.store import RocksStore

CACHE_BYTES: Final = 64 * 1024 * 1024
NICE: Final = 10
TOLD_MAX: Final = 20_000
"""Problems told one by one; further ones are counted, and found again after these are mended."""
COUNT_EVERY_S: Final = 0.2


log = logging.getLogger(__name__)


class Counted(msgspec.Struct, array_like=True, frozen=True, tag=1):
    rows: int
    of: int
    """Rows there are to read, about."""


class Found(msgspec.Struct, array_like=True, frozen=True, tag=2):
    problem: Problem


class Finished(msgspec.Struct, array_like=True, frozen=True, tag=3):
    untold: int
    inodes: int
    chunks: int
    lost: int
    corrupt: int
    """Fragments that are noted as such."""


class Broke(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The check could not be made."""

    reason: str


Said = Counted | Found | Finished | Broke


def check_checkpoint(path: Path, out: BinaryIO) -> None:
    """Check the checkpoint in `path`, telling `out`. Temporary files go next to it."""
    store = RocksStore(path, cache_bytes=CACHE_BYTES, read_only=True)
    try:
        counters = get_counters(store)
        # Inodes and dentries are gone through twice, in effect.
        of = store.approximate_rows() + counters.inodes
        rows = 0
        next_s = 0.0

        def tick(more: int) -> None:
            nonlocal rows, next_s
            rows += more
            if (now := time.monotonic()) >= next_s:
                next_s = now + COUNT_EVERY_S
                write_message(out, Counted(min(rows, of), of))

        told = untold = 0
        with Walk(store, scratch=path.parent, tick=tick) as walk:
            for problem in invariants.walk_through(walk):
                if told < TOLD_MAX:
                    told += 1
                    write_message(out, Found(problem))
                else:
                    untold += 1
            seen = walk.seen
        finished = Finished(
            untold,
            seen["inodes"],
            seen["chunks"],
            seen[FragmentState.LOST.name],
            seen[FragmentState.CORRUPT.name],
        )
        write_message(out, finished)
    finally:
        store.close()


def main() -> None:
    os.nice(NICE)
    out = sys.stdout.buffer
    try:
        check_checkpoint(Path(sys.argv[1]), out)
    except DfsError as error:
        write_message(out, Broke(str(error)))
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        # Whatever the store throws where its files cannot be read.
        log.exception("the check of %s broke", sys.argv[1])
        write_message(out, Broke(f"the metadata cannot be read: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
