"""A master's state without a master: sessions, operations and chunks in one line each."""

import errno
from collections.abc import Sequence
from typing import Final

import msgspec
import pytest

from dfs.core.errors import DfsError, from_wire
from dfs.core.ids import ROOT_INODE, ChunkId, InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.master import commands, invariants, queries
from dfs.master.keyspace import get_chunk
from dfs.master.state import State
from dfs.master.store import MemoryStore, Store
from dfs.wire.messages import (
    AnyOp,
    Applied,
    Commit,
    Create,
    Cred,
    GetExtents,
    Mkdir,
    OpResult,
    ReadDir,
    Resolve,
)

ROOT: Final = Cred(0, 0)
ANN: Final = Cred(1000, 1000, (1000, 50))
BOB: Final = Cred(2000, 2000)
"""Neither root, nor Ann, nor in one of her groups."""
TEAM: Final = 50
"""A group that Ann is in."""

_decode = msgspec.msgpack.Decoder(Applied).decode


class Rig:
    """One state with a session; the clock moves on by a second with every command."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = MemoryStore() if store is None else store
        self.state = State(self.store)
        self.now = 1_700_000_000_000_000_000
        self.sequence = 0
        if not self.state.formatted:
            self.state.apply(commands.Format(self.tick(), "11111111-2222"))
        self.session = self.open_session()

    def tick(self) -> int:
        self.now += 1_000_000_000
        return self.now

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def open_session(self) -> SessionId:
        nonce = self.tick()
        return self.state.apply(commands.OpenSession(nonce, "test", nonce)).session

    def close_session(self, session: SessionId | None = None) -> None:
        self.state.apply(commands.CloseSession(self.tick(), session or self.session))

    # ---------------------------------------------------------------- operations

    def apply(
        self, *ops: AnyOp, cred: Cred = ROOT, session: SessionId | None = None
    ) -> tuple[OpResult, ...]:
        command = commands.ApplyOps(
            self.tick(), session or self.session, self.next_sequence(), cred, ops
        )
        return _decode(self.state.apply(command)).results

    def do(self, op: AnyOp, cred: Cred = ROOT, session: SessionId | None = None) -> Inode | None:
        """The inode after one operation. Raises what it was refused with."""
        (result,) = self.apply(op, cred=cred, session=session)
        if result.error is not None:
            raise from_wire(result.error)
        return result.inode

    def made(self, op: AnyOp, cred: Cred = ROOT, session: SessionId | None = None) -> Inode:
        inode = self.do(op, cred, session)
        assert inode is not None
        return inode

    def refuses(
        self, number: int, op: AnyOp, cred: Cred = ROOT, session: SessionId | None = None
    ) -> None:
        """The operation fails with this errno, and changes nothing."""
        before = self.rows()
        with pytest.raises(DfsError) as caught:
            self.do(op, cred, session)
        assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
        after = self.rows()
        changed = {
            key[:1] for key in before.keys() | after.keys() if before.get(key) != after.get(key)
        }
        assert changed <= {b"r"}

    def rows(self) -> dict[bytes, bytes]:
        return dict(self.store.scan(b"\0", b"\xff"))

    # ---------------------------------------------------------------- short cuts

    def mkdir(
        self, name: bytes, mode: int = 0o777, cred: Cred = ROOT, parent: InodeId = ROOT_INODE
    ) -> InodeId:
        return self.made(Mkdir(parent, name, mode), cred).ino

    def create(
        self, name: bytes, mode: int = 0o666, cred: Cred = ROOT, parent: InodeId = ROOT_INODE
    ) -> InodeId:
        return self.made(Create(parent, name, mode), cred).ino

    def inode(self, ino: InodeId) -> Inode:
        return queries.get(self.store, ino)

    def exists(self, ino: InodeId) -> bool:
        try:
            queries.get(self.store, ino)
        except DfsError:
            return False
        return True

    def resolve(self, path: bytes, cred: Cred = ROOT, *, follow: bool = True) -> Inode:
        return queries.resolve(self.store, Resolve(cred, path, follow))

    def names(self, ino: InodeId = ROOT_INODE) -> list[bytes]:
        page = queries.read_dir(self.store, ReadDir(ROOT, ino, limit=4096))
        return [name for name, _, _ in page.entries]

    # ---------------------------------------------------------------- data

    def chunk(self, session: SessionId | None = None) -> ChunkId:
        (chunk,) = self.state.apply(
            commands.AllocateChunks(
                self.tick(),
                session or self.session,
                self.next_sequence(),
                1,
                (commands.Placement(1, 2, (1, 2, 3)),),
            )
        )
        return chunk.chunk

    def seal(self, chunk: ChunkId, length: int) -> None:
        self.state.apply(
            commands.SealChunk(self.tick(), self.session, self.next_sequence(), chunk, length)
        )

    def live(self, chunk: ChunkId) -> int:
        record = get_chunk(self.store, chunk)
        return -1 if record is None else record.live

    def commit(
        self, ino: InodeId, *extents: tuple[int, int, ChunkId, int], cred: Cred = ROOT
    ) -> Inode:
        return self.made(Commit(ino, tuple(Extent(*extent) for extent in extents)), cred)

    def extents(self, ino: InodeId) -> Sequence[tuple[int, int, ChunkId, int]]:
        page = queries.get_extents(self.store, GetExtents(ino, limit=queries.EXTENTS_MAX))
        return [(e.file_offset, e.length, e.chunk, e.chunk_offset) for e in page.extents]

    def purge(self, limit: int = 1000) -> int:
        """Run the purge to its end; how many steps it took."""
        steps = 1
        while self.state.apply(commands.PurgeStep(self.tick(), limit)).more:
            steps += 1
        return steps

    def check(self) -> None:
        assert invariants.check(self.store) == []
