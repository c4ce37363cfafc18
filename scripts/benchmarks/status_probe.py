"""How long a master takes to say how its cluster is: medians in ms, as JSON on stdout.

A program of its own, as `dfs admin status` is: who plays a thousand servers has no time to read.
"""

import json
import statistics
import sys
import time

import trio

import dfs.client
from dfs.core.ids import ROOT_INODE


async def probe(address: str, times: int) -> dict[str, float]:
    """Median time until the status is there; beside it, until a look at one inode is."""
    status, inode = [], []
    async with dfs.client.connect(address) as client:
        for _ in range(times):
            begun = time.perf_counter()
            await client.meta.get_inode(ROOT_INODE)
            between = time.perf_counter()
            await client.meta.status()
            inode.append(between - begun)
            status.append(time.perf_counter() - between)
            await trio.sleep(0.1)
    return {
        "inode": 1000 * statistics.median(inode),
        "status": 1000 * statistics.median(status),
    }


if __name__ == "__main__":
    print(json.dumps(trio.run(probe, sys.argv[1], int(sys.argv[2]))))
