"""A cluster in one process for tests of the client: real servers, memory network, mock clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dfs.chunkserver.fragment_format import parse_name
from dfs.client import Client
from dfs.core.ids import InodeId
from dfs.core.policy import Policy, Spread
from dfs.core.redundancy import Redundancy
from tests.simulation.world import World


@asynccontextmanager
async def running(
    root: Path, *, servers: int = 4, on_unavailable: str = "wait:60s"
) -> AsyncIterator[tuple[World, Client]]:
    """A cluster that serves, and a client of it."""
    async with trio.open_nursery() as nursery:
        world = World(root, 1, nursery, servers=servers)
        await world.start()
        async with world.client("desk", on_unavailable=on_unavailable) as client:
            yield world, client
        nursery.cancel_scope.cancel()


async def directory(
    client: Client, path: str, redundancy: str, *, level: int | None = None
) -> None:
    """A directory whose files are kept as `redundancy` says."""
    name = "test-" + path.strip("/").replace("/", "-")
    policy = Policy(0, name, Redundancy.parse(redundancy), level, Spread.SERVER)
    await client.meta.create_policy(policy)
    await client.mkdir(path)
    await client.set_policy(path, name)


async def hold(client: Client, ino: InodeId) -> None:
    """Work in a directory until it is the client's own."""
    with trio.fail_after(120):
        while client.meta.delegations.directory(ino) is None:
            client.meta.delegations.note_change(ino)
            await trio.sleep(1)


def fragment_files(world: World, chunk: int) -> dict[int, Path]:
    """The files of a chunk's fragments, by index."""
    found = {}
    for server in world.servers:
        for path in (world.root / server).rglob("*"):
            name = parse_name(path.name)
            if name is not None and name.chunk == chunk:
                found[name.index] = path
    return found


async def chunks_of(client: Client, path: str) -> list[int]:
    """The chunks that hold a file's bytes, in order."""
    inode = await client.stat(path)
    reply = await client.meta.extents(inode.ino)
    return list(dict.fromkeys(extent.chunk for extent in reply.extents))
