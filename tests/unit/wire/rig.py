"""A server and its clients on a memory network, for the tests of this folder."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

import trio

from dfs.core.inode import Inode
from dfs.wire.connection import Connection
from dfs.wire.dial import connect
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.memory import MemoryNetwork
from dfs.wire.messages import GetInode, InodeReply, Message
from dfs.wire.serve import serve

ADDRESS = "server:1"


def inode(number: int) -> Inode:
    return Inode(number, 0o100644, 1, 0, 0, 0, 0, 0, 0, 1)


def get_inode(peer: Peer, request: GetInode, payload: memoryview) -> InodeReply:
    return InodeReply(inode(request.ino))


class Rig:
    """One server at ADDRESS, and a nursery for the clients' connections."""

    def __init__(self, network: MemoryNetwork, nursery: trio.Nursery, limits: Limits) -> None:
        self.network = network
        self.nursery = nursery
        self.limits = limits
        self.server = trio.CancelScope()

    async def start(self, handlers: Mapping[type[Message], Handler], hello: Hello) -> None:
        listener = self.network.listen(ADDRESS)
        self.server = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with self.server:
                await serve(
                    listener, handlers, hello=hello, limits=self.limits, task_status=task_status
                )

        await self.nursery.start(run)

    async def connect(
        self,
        hello: Hello | None = None,
        *,
        handlers: Mapping[type[Message], Handler] | None = None,
        limits: Limits | None = None,
        timeout_s: float = 10,
        host: str = "client",
    ) -> Connection:
        return await connect(
            ADDRESS,
            nursery=self.nursery,
            hello=hello or Hello("client"),
            timeout_s=timeout_s,
            handlers=handlers,
            limits=limits or self.limits,
            connector=self.network.connector(host),
        )


@asynccontextmanager
async def served(
    handlers: Mapping[type[Message], Handler] | None = None,
    *,
    hello: Hello | None = None,
    limits: Limits | None = None,
    seed: int = 1,
) -> AsyncIterator[Rig]:
    """A running server; all is stopped at the end."""
    async with trio.open_nursery() as nursery:
        rig = Rig(MemoryNetwork(Random(seed)), nursery, limits or Limits())
        await rig.start(
            {GetInode: get_inode} if handlers is None else handlers, hello or Hello("master")
        )
        yield rig
        nursery.cancel_scope.cancel()
