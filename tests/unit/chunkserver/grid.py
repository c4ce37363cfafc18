"""A few chunk servers with a disk each, on real sockets: what upkeep needs to be tested."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from dfs.chunkserver.disk import Disk
from dfs.chunkserver.service import ChunkService
from dfs.chunkserver.threads import DiskThreads
from dfs.chunkserver.upkeep import Upkeep
from dfs.core.redundancy import Redundancy
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.messages import (
    FragmentSource,
    Message,
    ReadRecords,
    RebuildFragment,
    RebuiltFragment,
)
from dfs.wire.pool import Pool
from dfs.wire.serve import serve
from tests.unit.chunkserver.sample import batch, encode, header
from tests.unit.chunkserver.test_disk import files, opened


class Node:
    """One chunk server. Its disk has the number of the node."""

    def __init__(self, number: int, path: Path, disk: Disk) -> None:
        self.number = number
        self.path = path
        self.disk = disk
        self.address = ""
        self.scope = trio.CancelScope()
        self.reads: list[ReadRecords] = []
        self.before_read: Callable[[ReadRecords], object] = bool
        """Called when a read comes in."""

    def stop(self) -> None:
        """Nobody reaches it any more; connections break."""
        self.scope.cancel()

    @property
    def file(self) -> Path:
        """Of chunk 7, which most tests are about."""
        return self.file_of(7)

    def file_of(self, chunk: int) -> Path:
        (file,) = [each for each in files(self.path) if each.name.startswith(f"{chunk:016x}-")]
        return file

    @property
    def incoming(self) -> list[Path]:
        return list((self.path / "incoming").iterdir())

    def source(self, index: int) -> FragmentSource:
        return FragmentSource(index, self.number, self.address)


class Grid:
    def __init__(self, nodes: list[Node], pool: Pool) -> None:
        self.nodes = nodes
        self.pool = pool

    async def store(
        self, lengths: Sequence[int], redundancy: Redundancy, chunk: int = 7, *, seal: bool = True
    ) -> list[bytes]:
        """Fragment i of a chunk on node i; what their files hold."""
        for index, node in enumerate(self.nodes[: redundancy.width]):
            of = header(chunk, index, redundancy)
            await node.disk.append(of, batch(encode(lengths, of=of)))
            if seal:
                await node.disk.seal(chunk, sum(lengths))
        return [node.file_of(chunk).read_bytes() for node in self.nodes[: redundancy.width]]

    async def lose(self, index: int, chunk: int = 7) -> None:
        await self.nodes[index].disk.delete([chunk])

    async def rebuild(
        self,
        index: int,
        redundancy: Redundancy,
        length: int,
        *,
        on: int | None = None,
        sources: Sequence[int] | None = None,
        chunk: int = 7,
        timeout_s: float = 20,
        keep: bool = False,
        urgent: bool = False,
    ) -> RebuiltFragment:
        """Fragment `index`, on node `index` or `on`, from the others (fragment i on node i)."""
        node = self.nodes[index if on is None else on]
        if sources is None:
            sources = [each for each in range(redundancy.width) if each != index]
        request = RebuildFragment(
            node.number, chunk, index, redundancy.k, redundancy.m, length,
            tuple(self.nodes[each].source(each) for each in sources), keep=keep, urgent=urgent,
        )  # fmt: skip
        return await self.pool.call(node.address, request, RebuiltFragment, timeout_s=timeout_s)


@asynccontextmanager
async def grid(path: Path, count: int, *, capacity: int | None = None) -> AsyncIterator[Grid]:
    """`capacity`: of the last node."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(1, count + 1):
            root = path / f"d{number}"
            disk = await stack.enter_async_context(
                opened(root, number=number, capacity=capacity if number == count else None)
            )
            nodes.append(Node(number, root, disk))
        pool = await stack.enter_async_context(Pool(hello=Hello("chunkserver")))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for node in nodes:
            await nursery.start(_run, node, pool)
        yield Grid(nodes, pool)
        nursery.cancel_scope.cancel()


async def _run(node: Node, pool: Pool, *, task_status: trio.TaskStatus[None]) -> None:
    service = ChunkService([node.disk])
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    node.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"

    def read(peer: Peer, request: ReadRecords, payload: memoryview) -> object:
        node.reads.append(request)
        node.before_read(request)
        return service.read(peer, request, payload)

    handlers: dict[type[Message], Handler] = {
        **service.handlers,
        **Upkeep(service, pool, DiskThreads()).handlers,
        ReadRecords: read,  # type: ignore[dict-item]
    }
    with node.scope:
        await serve(listeners, handlers, hello=Hello("chunkserver"), task_status=task_status)
