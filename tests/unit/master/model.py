"""A plain model of a POSIX file system, and a pair of states that must agree with it.

The same commands go to a state on RocksDB (closed and opened again at will) and to one in
memory: both must hold the same bytes. Files are bytearrays in the model; their extents are
checked byte by byte, through chunks whose bytes the test made up.

`STEPS` names the random operations with the values they take, for Hypothesis and for a seeded
walk alike.
"""

import errno
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from dfs.core.chunk import ChunkState, Layout
from dfs.core.errors import from_wire
from dfs.core.ids import MASTER_SESSION, ROOT_INODE, ChunkId, InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.master import chunks, commands, invariants, keyspace, queries, xattrs
from dfs.master.commands import Command
from dfs.master.jobs.rewriter import Runs
from dfs.master.keyspace import get_chunk
from dfs.master.state import State
from dfs.master.store import MemoryStore, RocksStore
from dfs.wire import messages
from dfs.wire.messages import AnyOp, Cred, GetExtents, ReadDir

ROOT: Final = Cred(0, 0)
FILE_MAX: Final = 64

# ------------------------------------------------------------------ values to choose from


class Choice(Protocol):
    def pick(self, random: Random) -> Any: ...

    def strategy(self) -> st.SearchStrategy[Any]: ...


class Int:
    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def pick(self, random: Random) -> int:
        return random.randint(self.low, self.high)

    def strategy(self) -> st.SearchStrategy[int]:
        return st.integers(self.low, self.high)


class One:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def pick(self, random: Random) -> Any:
        return random.choice(self.values)

    def strategy(self) -> st.SearchStrategy[Any]:
        return st.sampled_from(self.values)


class Many:
    def __init__(self, each: Choice, low: int, high: int) -> None:
        self.each, self.low, self.high = each, low, high

    def pick(self, random: Random) -> list[Any]:
        return [self.each.pick(random) for _ in range(random.randint(self.low, self.high))]

    def strategy(self) -> st.SearchStrategy[list[Any]]:
        return st.lists(self.each.strategy(), min_size=self.low, max_size=self.high)


NAME: Final = One(b"a", b"b", b"c", b"\xff\xfe")
BOOL: Final = One(False, True)
AT: Final = Int(0, 1 << 16)
"""Which inode, counted over those there are."""
OFFSET: Final = Int(0, FILE_MAX)
LENGTH: Final = Int(1, 16)


class Node:
    """An inode of the model."""

    def __init__(self, ino: InodeId, mode: int) -> None:
        self.ino = ino
        self.mode = mode
        self.links = 0
        self.data = bytearray()
        self.entries: dict[bytes, Node] = {}
        self.parent: Node | None = None
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.opens: set[SessionId] = set()
        self.named = True
        """False until an unnamed file gets its first name."""

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class RefusedError(Exception):
    pass


def refuse_if(condition: object, number: int) -> None:
    if condition:
        raise RefusedError(errno.errorcode[number])


class Model:
    """What the state should hold. Operations raise RefusedError, before they change anything."""

    def __init__(self) -> None:
        self.root = Node(ROOT_INODE, stat.S_IFDIR | 0o755)
        self.root.parent = self.root
        self.nodes: dict[InodeId, Node] = {ROOT_INODE: self.root}

    def add(self, parent: Node, name: bytes, ino: InodeId, mode: int) -> Node:
        node = self.nodes[ino] = Node(ino, mode)
        node.links = 1
        node.parent = parent
        parent.entries[name] = node
        return node

    def lose(self, node: Node) -> None:
        """A link of `node` is gone."""
        node.links -= 1
        self.forget(node)

    def forget(self, node: Node) -> None:
        if node.links == 0 and not node.opens and node is not self.root:
            self.nodes.pop(node.ino, None)

    def within(self, node: Node, top: Node) -> bool:
        while node is not top:
            if node is self.root or node.parent is None:
                return False
            node = node.parent
        return True

    def rename(self, old: Node, name: bytes, new: Node, new_name: bytes, flags: int) -> None:
        refuse_if(not old.is_dir or not new.is_dir, errno.ENOTDIR)
        node = old.entries.get(name)
        refuse_if(node is None, errno.ENOENT)
        assert node is not None
        other = new.entries.get(new_name)
        refuse_if(flags == 2 and other is None, errno.ENOENT)
        refuse_if(flags == 1 and other is not None, errno.EEXIST)
        refuse_if(new is not old and node.is_dir and self.within(new, node), errno.EINVAL)
        if new is not old and other is not None and other.is_dir and self.within(old, other):
            refuse_if(True, errno.EINVAL if flags == 2 else errno.ENOTEMPTY)
        if other is node:
            return
        refuse_if(other is None and new.links == 0 and new is not self.root, errno.ENOENT)
        if flags == 2:
            assert other is not None
            old.entries[name], new.entries[new_name] = other, node
            other.parent, node.parent = old, new
            return
        if other is not None:
            refuse_if(node.is_dir and not other.is_dir, errno.ENOTDIR)
            refuse_if(not node.is_dir and other.is_dir, errno.EISDIR)
            refuse_if(other.entries, errno.ENOTEMPTY)
        del old.entries[name]
        new.entries[new_name] = node
        node.parent = new
        if other is not None:
            self.lose(other)


class Pair:
    """Two states and the model, driven in step. The caller closes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rocks = State(self._open())
        self.memory = State(MemoryStore())
        self.now = 0
        self.sequence = 0
        self.model = Model()
        self.bytes: dict[ChunkId, bytearray] = {}
        self.copies: list[commands.Repoint] = []
        """What was written anew and may be put to use."""
        self.run(commands.Format(self.tick(), "u"))
        self.begin()
        self.other = self.session, self.chunk
        self.begin()
        self.create(0, b"a", exclusive=True, opened=False)
        self.mkdir(0, b"b")

    def close(self) -> None:
        self.rocks.store.close()

    def _open(self) -> RocksStore:
        return RocksStore(self.directory / "db", cache_bytes=1 << 20)

    # ---------------------------------------------------------------- driving

    def tick(self) -> int:
        self.now += 1
        return self.now

    def run(self, command: Command[Any]) -> Any:
        one = self.memory.apply(command)
        assert self.rocks.apply(command) == one
        return one

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    def begin(self) -> None:
        """A fresh session with an open chunk is the current one."""
        record = self.run(commands.OpenSession(self.tick(), "m", self.now))
        self.session: SessionId = record.session
        self.chunk = self.new_chunk()

    def switch(self) -> None:
        """Go on in the other session."""
        self.other, (self.session, self.chunk) = (self.session, self.chunk), self.other

    def new_chunk(self) -> ChunkId:
        placement = commands.Placement(1, 1, (1, 2))
        (chunk,) = self.run(
            commands.AllocateChunks(self.tick(), self.session, self.next(), 1, (placement,))
        )
        self.bytes[chunk.chunk] = bytearray()
        number: ChunkId = chunk.chunk
        return number

    def op(self, op: AnyOp) -> Inode | None:
        """Run one operation; raises RefusedError."""
        command = commands.ApplyOps(self.tick(), self.session, self.next(), ROOT, (op,))
        reply = self.run(command)
        assert self.run(command) == reply, "a retry gets the first answer"
        (result,) = msgspec.msgpack.decode(reply, type=messages.Applied).results
        if result.error is not None:
            raise RefusedError(errno.errorcode[from_wire(result.error).errno or 0])
        inode: Inode | None = result.inode
        return inode

    def both(self, op: AnyOp, change: Callable[[], None]) -> Inode | None:
        """The model's change and the operation are refused alike, or both happen."""
        expected = actual = ""
        inode = None
        try:
            change()
        except RefusedError as refused:
            expected = str(refused)
        try:
            inode = self.op(op)
        except RefusedError as refused:
            actual = str(refused)
        assert actual == expected, op
        return inode

    def new(self, op: AnyOp, parent: Node, name: bytes, change: Callable[[], None]) -> Node | None:
        """As `both`, for an operation that makes an inode under a name."""
        inode = self.both(op, change)
        if inode is None:
            return None
        return self.model.add(parent, name, inode.ino, inode.mode)

    def node(self, at: int, kind: str = "any") -> Node:
        nodes = [
            node
            for _, node in sorted(self.model.nodes.items())
            if kind == "any" or getattr(node, f"is_{kind}")
        ]
        return nodes[at % len(nodes)]

    def file(self, at: int) -> Node | None:
        return self.node(at, "file") if any(n.is_file for n in self.model.nodes.values()) else None

    def alive(self, parent: Node) -> None:
        refuse_if(parent.links == 0 and parent is not self.model.root, errno.ENOENT)

    def free(self, parent: Node, name: bytes) -> None:
        refuse_if(name in parent.entries, errno.EEXIST)
        self.alive(parent)

    def written(self, length: int, start: int | None = None) -> tuple[ChunkId, int, bytes]:
        """Bytes of the open chunk, by default fresh ones: (chunk, chunk offset, bytes)."""
        content = self.bytes[self.chunk]
        if start is None:
            start = len(content)
        for position in range(len(content), start + length):
            content.append((self.chunk * 31 + position * 7) % 255 + 1)
        return self.chunk, start, bytes(content[start : start + length])

    # ---------------------------------------------------------------- names

    def create(self, at: int, name: bytes, exclusive: bool, opened: bool) -> None:
        parent = self.node(at, "dir")
        op = messages.Create(parent.ino, name, 0o644, exclusive, opened)
        there = parent.entries.get(name)

        def change() -> None:
            if there is None:
                self.alive(parent)
            else:
                refuse_if(exclusive, errno.EEXIST)
                refuse_if(there.is_dir, errno.EISDIR)
                refuse_if(opened and stat.S_ISLNK(there.mode), errno.ELOOP)

        inode = self.both(op, change)
        if inode is None:
            return
        node = there or self.model.add(parent, name, inode.ino, inode.mode)
        assert node.ino == inode.ino
        if opened:
            node.opens.add(self.session)

    def mkdir(self, at: int, name: bytes) -> None:
        parent = self.node(at, "dir")
        op = messages.Mkdir(parent.ino, name, 0o755)
        self.new(op, parent, name, lambda: self.free(parent, name))

    def symlink(self, at: int, name: bytes, target: bytes) -> None:
        parent = self.node(at, "dir")
        op = messages.Symlink(parent.ino, name, target)
        node = self.new(op, parent, name, lambda: self.free(parent, name))
        if node is not None:
            node.target = target

    def link(self, one: int, at: int, name: bytes, replace: bool) -> None:
        node, parent = self.node(one), self.node(at, "dir")

        def change() -> None:
            there = parent.entries.get(name)
            refuse_if(there is not None and not replace, errno.EEXIST)
            self.alive(parent)
            refuse_if(node.is_dir, errno.EPERM)
            mine = not node.named and self.session in node.opens
            refuse_if(node.links == 0 and not mine, errno.ENOENT)
            if there is node:
                return
            refuse_if(there is not None and there.is_dir, errno.EISDIR)
            parent.entries[name] = node
            node.links += 1
            node.named = True
            if there is not None:
                self.model.lose(there)

        self.both(messages.Link(node.ino, parent.ino, name, replace), change)

    def unlink(self, at: int, name: bytes) -> None:
        parent = self.node(at, "dir")

        def change() -> None:
            node = parent.entries.get(name)
            if node is None:
                raise RefusedError("ENOENT")
            refuse_if(node.is_dir, errno.EISDIR)
            self.model.lose(parent.entries.pop(name))

        self.both(messages.Unlink(parent.ino, name), change)

    def rmdir(self, at: int, name: bytes) -> None:
        parent = self.node(at, "dir")

        def change() -> None:
            node = parent.entries.get(name)
            if node is None:
                raise RefusedError("ENOENT")
            refuse_if(not node.is_dir, errno.ENOTDIR)
            refuse_if(node.entries, errno.ENOTEMPTY)
            self.model.lose(parent.entries.pop(name))

        self.both(messages.Rmdir(parent.ino, name), change)

    def rename(self, at: int, name: bytes, new_at: int, new_name: bytes, flags: int) -> None:
        old, new = self.node(at, "dir"), self.node(new_at, "dir")
        op = messages.Rename(old.ino, name, new.ino, new_name, flags)
        self.both(op, lambda: self.model.rename(old, name, new, new_name, flags))

    # ---------------------------------------------------------------- data

    def write(
        self,
        at: int,
        offset: int,
        lengths: list[int],
        gap: int,
        append: bool,
        size: int,
        aligned: bool,
    ) -> None:
        """Several extents in one commit, with gaps or overlaps, in any order.

        `aligned`: chunk offsets are file offsets, so that whatever touches can be merged.
        """
        node = self.file(at)
        if node is None:
            return
        base = len(node.data) if append else 0
        extents = []
        for length in lengths:
            place = base + offset
            chunk, start, content = self.written(length, place if aligned else None)
            extents.append(Extent(offset, length, chunk, start))
            node.data.extend(bytes(max(0, place + length - len(node.data))))
            node.data[place : place + length] = content
            offset = max(0, offset + length + gap)
        node.data.extend(bytes(max(0, base + size - len(node.data))))
        self.op(messages.Commit(node.ino, tuple(extents), size or None, None, append))

    def truncate(self, at: int, size: int) -> None:
        node = self.file(at)
        if node is None:
            return
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        self.op(messages.SetAttr(node.ino, size=size))

    def punch(self, at: int, offset: int, length: int) -> None:
        node = self.file(at)
        if node is None:
            return
        end = min(len(node.data), offset + length)
        if offset < end:
            node.data[offset:end] = bytes(end - offset)
        self.op(messages.PunchHole(node.ino, offset, length))

    def clone(self, at: int, offset: int, new_at: int, new_offset: int, length: int) -> None:
        source, target = self.file(at), self.file(new_at)
        if source is None or target is None:
            return
        # Most ranges drawn would lie past the end.
        offset %= len(source.data) + 2
        length = min(length, len(source.data) - offset + 1) if length else 0

        def change() -> None:
            count = length or max(0, len(source.data) - offset)
            refuse_if(offset + count > len(source.data), errno.EINVAL)
            if count == 0:
                return
            overlap = source is target and abs(offset - new_offset) < count
            refuse_if(overlap, errno.EINVAL)
            piece = source.data[offset : offset + count]
            target.data.extend(bytes(max(0, new_offset + count - len(target.data))))
            target.data[new_offset : new_offset + count] = piece

        op = messages.CloneRange(source.ino, offset, target.ino, new_offset, max(0, length))
        self.both(op, change)

    def put(self, at: int, name: bytes, lengths: list[int], gap: int) -> None:
        """Seals the chunk first at times: its only live bytes may be those to be replaced."""
        parent = self.node(at, "dir")
        extents, content = [], bytearray()
        for length in lengths:
            content.extend(bytes(max(0, gap)))
            chunk, start, piece = self.written(length)
            extents.append(Extent(len(content), length, chunk, start))
            content.extend(piece)
        if gap < -10 and extents and self.live():
            self.seal()
        there = parent.entries.get(name)

        def change() -> None:
            self.alive(parent)
            refuse_if(there is not None and there.is_dir, errno.EISDIR)

        op = messages.Put(parent.ino, name, 0o644, len(content), tuple(extents))
        node = self.new(op, parent, name, change)
        if node is None:
            return
        node.data = content
        if there is not None:
            self.model.lose(there)

    def live(self) -> int:
        chunk = get_chunk(self.memory.store, self.chunk)
        return 0 if chunk is None else chunk.live

    def seal(self) -> None:
        """The chunk is full; the next bytes go to a fresh one."""
        length = len(self.bytes[self.chunk])
        self.run(commands.SealChunk(self.tick(), self.session, self.next(), self.chunk, length))
        self.chunk = self.new_chunk()

    # ---------------------------------------------------------------- opens and sessions

    def unnamed(self, at: int) -> None:
        parent = self.node(at, "dir")
        inode = self.both(messages.Unnamed(parent.ino, 0o600), lambda: self.alive(parent))
        if inode is not None:
            node = self.model.nodes[inode.ino] = Node(inode.ino, inode.mode)
            node.opens.add(self.session)
            node.named = False

    def open(self, at: int) -> None:
        node = self.node(at)

        def change() -> None:
            refuse_if(stat.S_ISLNK(node.mode), errno.ELOOP)
            node.opens.add(self.session)

        self.both(messages.Open(node.ino), change)

    def release(self, at: int) -> None:
        node = self.node(at)
        self.op(messages.Release(node.ino))
        node.opens.discard(self.session)
        self.model.forget(node)

    def next_session(self, expire: bool) -> None:
        """All that the old session had open is let go, at the latest by the purge."""
        kind = commands.ExpireSession if expire else commands.CloseSession
        self.run(kind(self.tick(), self.session))
        assert invariants.check(self.memory.store) == []
        self.purge(1000)
        for node in list(self.model.nodes.values()):
            node.opens.discard(self.session)
            self.model.forget(node)
        self.begin()

    def purge(self, limit: int) -> None:
        self.run(commands.PurgeStep(self.tick(), limit))

    # ---------------------------------------------------------------- chunks written anew

    def copy(self, leave: int) -> None:
        """Copy what lives in sealed chunks, but for a part of each in `leave`, to a new one."""
        sealed = [
            chunk
            for _, value in keyspace.scan_prefix(self.memory.store, keyspace.CHUNK)
            if (chunk := keyspace.decode_chunk(value)).state is ChunkState.SEALED
        ][-4:]
        placement = commands.Placement(1, 1, (3, 4))
        target = self.run(commands.AllocateTarget(self.tick(), 1, placement)).chunk
        content = self.bytes[target] = bytearray()
        copied: list[tuple[ChunkId, tuple[tuple[int, int], ...], int]] = []
        for chunk in sealed:
            runs, base = Runs(), len(content)
            prefix = keyspace.EXTENT_BY_CHUNK + keyspace.u64(chunk.chunk)
            for key, length in keyspace.scan_prefix(self.memory.store, prefix):
                runs.add(keyspace.extent_by_chunk_place(key)[1], int.from_bytes(length, "big"))
            parts = tuple((part.offset, part.length) for part in runs.parts())
            parts = parts[: len(parts) - chunk.chunk % leave]
            for offset, size in parts:
                content += self.bytes[chunk.chunk][offset : offset + size]
            copied.append((chunk.chunk, parts, base))
        self.copies = [
            commands.Repoint(0, target, len(content), (1,) * (leave == 2), source, parts, base)
            for source, parts, base in copied
        ]

    def repoint(self, at: int, limit: int, only: int) -> None:
        """One step of putting copies to use."""
        if not self.copies:
            return
        at %= len(self.copies)
        command = replace(self.copies[at], time_ns=self.tick(), limit=limit, only=only)
        result = self.run(command)
        assert result.rows <= limit
        if only == 2:
            assert not result.rows, "no file has that policy"
        self.copies[at] = replace(command, after=result.upto)

    def abandon(self) -> None:
        if self.copies:
            self.run(commands.AbandonTarget(self.tick(), self.copies[0].target))

    def expire_retired(self, limit: int) -> None:
        due = chunks.retired(self.memory.store, limit)
        self.run(commands.ExpireRetired(self.tick(), tuple(number for _, number in due)))

    def start_master(self) -> None:
        self.run(commands.StartMaster(self.tick(), 1))
        rows = keyspace.scan_prefix(self.memory.store, keyspace.CHUNK)
        assert MASTER_SESSION not in {keyspace.decode_chunk(value).owner for _, value in rows}

    # ---------------------------------------------------------------- attributes

    def chmod(self, at: int, mode: int) -> None:
        node = self.node(at)

        def change() -> None:
            refuse_if(stat.S_ISLNK(node.mode), errno.EOPNOTSUPP)
            node.mode = stat.S_IFMT(node.mode) | mode

        self.both(messages.SetAttr(node.ino, mode=mode), change)

    def set_xattr(self, at: int, name: bytes, value: bytes, mode: int) -> None:
        node = self.node(at)

        def change() -> None:
            user = name.startswith(b"user.")
            refuse_if(user and not (node.is_dir or node.is_file), errno.EPERM)
            refuse_if(mode == 1 and name in node.xattrs, errno.EEXIST)
            refuse_if(mode == 2 and name not in node.xattrs, errno.ENODATA)
            node.xattrs[name] = value

        self.both(messages.SetXattr(node.ino, name, value, mode), change)

    def remove_xattr(self, at: int, name: bytes) -> None:
        node = self.node(at)

        def change() -> None:
            user = name.startswith(b"user.")
            refuse_if(user and not (node.is_dir or node.is_file), errno.EPERM)
            refuse_if(name not in node.xattrs, errno.ENODATA)
            del node.xattrs[name]

        self.both(messages.RemoveXattr(node.ino, name), change)

    def reopen(self) -> None:
        self.rocks.store.close()
        self.rocks = State(self._open())

    # ---------------------------------------------------------------- what must hold

    def check(self) -> None:
        rows = list(self.memory.store.scan(b"\0", b"\xff"))
        assert list(self.rocks.store.scan(b"\0", b"\xff")) == rows
        assert invariants.check(self.memory.store) == []
        self.compare()

    def compare(self) -> None:
        assert self.rocks.counters.inodes == len(self.model.nodes)
        for node in self.model.nodes.values():
            inode = queries.get(self.rocks.store, node.ino)
            assert inode.mode == node.mode
            assert inode.target == node.target
            assert self.xattrs(inode) == node.xattrs
            if node.is_dir:
                self.compare_directory(inode, node)
                continue
            assert inode.nlink == node.links
            if node.is_file:
                assert inode.size == len(node.data)
                assert self.content(inode) == node.data

    def compare_directory(self, inode: Inode, node: Node) -> None:
        removed = node.links == 0 and node is not self.model.root
        subdirectories = sum(entry.is_dir for entry in node.entries.values())
        assert inode.nlink == (0 if removed else 2 + subdirectories)
        if node.parent is not None and not removed:
            assert inode.parent == node.parent.ino
        names: dict[bytes, InodeId] = {}
        after = b""
        while True:
            page = queries.read_dir(self.rocks.store, ReadDir(ROOT, node.ino, after, 2, True))
            body = page.encode(Layout())
            reply = msgspec.msgpack.decode(body, type=messages.DirReply)
            for entry in reply.entries:
                names[entry.name] = entry.inode.ino
                if entry.extents is not None:
                    assert entry.extents == self.extents(entry.inode)
            if not reply.more:
                break
            after = reply.entries[-1].name
        assert names == {name: entry.ino for name, entry in node.entries.items()}
        assert list(names) == sorted(names)

    def extents(self, inode: Inode) -> tuple[Extent, ...]:
        if not inode.is_file:
            return ()
        return queries.get_extents(self.rocks.store, GetExtents(inode.ino)).extents

    def content(self, inode: Inode) -> bytearray:
        content = bytearray(inode.size)
        end = 0
        for extent in self.extents(inode):
            assert extent.file_offset >= end, "in order, no overlaps"
            end = extent.end
            assert end <= inode.size
            piece = self.bytes[extent.chunk][extent.chunk_offset :][: extent.length]
            assert len(piece) == extent.length
            content[extent.file_offset : end] = piece
        return content

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        store = self.rocks.store
        return {
            name: xattrs.get_xattr(store, ROOT, inode.ino, name)
            for name in xattrs.list_xattr(store, inode.ino)
        }


# ------------------------------------------------------------------ random steps

XATTR: Final = One(b"user.a", b"trusted.b")

STEPS: Final[dict[str, tuple[int, dict[str, Choice]]]] = {
    "create": (3, {"at": AT, "name": NAME, "exclusive": BOOL, "opened": BOOL}),
    "mkdir": (2, {"at": AT, "name": NAME}),
    "symlink": (1, {"at": AT, "name": NAME, "target": One(b"a", b"/b/c")}),
    "link": (2, {"one": AT, "at": AT, "name": NAME, "replace": BOOL}),
    "unlink": (3, {"at": AT, "name": NAME}),
    "rmdir": (2, {"at": AT, "name": NAME}),
    "rename": (
        4,
        {"at": AT, "name": NAME, "new_at": AT, "new_name": NAME, "flags": One(0, 0, 1, 2)},
    ),
    "write": (
        10,
        {
            "at": AT,
            "offset": OFFSET,
            "lengths": Many(LENGTH, 0, 4),
            "gap": One(-20, -7, -3, 0, 0, 0, 1, 8),
            "append": BOOL,
            "size": One(0, 0, 0, 5, 50),
            "aligned": BOOL,
        },
    ),
    "truncate": (3, {"at": AT, "size": OFFSET}),
    "punch": (2, {"at": AT, "offset": OFFSET, "length": LENGTH}),
    "clone": (
        3,
        {"at": AT, "offset": OFFSET, "new_at": AT, "new_offset": OFFSET, "length": Int(0, 32)},
    ),
    "put": (3, {"at": AT, "name": NAME, "lengths": Many(LENGTH, 0, 3), "gap": Int(-20, 3)}),
    "seal": (1, {}),
    "copy": (2, {"leave": One(1, 1, 2)}),
    "repoint": (4, {"at": AT, "limit": One(1, 3, 1000), "only": One(0, 0, 1, 2)}),
    "abandon": (1, {}),
    "expire_retired": (1, {"limit": One(1, 100)}),
    "start_master": (1, {}),
    "unnamed": (1, {"at": AT}),
    "open": (2, {"at": AT}),
    "release": (2, {"at": AT}),
    "switch": (1, {}),
    "next_session": (1, {"expire": BOOL}),
    "purge": (3, {"limit": One(1, 2, 5, 1000)}),
    "chmod": (1, {"at": AT, "mode": Int(0, 0o7777)}),
    "set_xattr": (
        1,
        {"at": AT, "name": XATTR, "value": One(b"", b"v"), "mode": One(0, 0, 1, 2)},
    ),
    "remove_xattr": (1, {"at": AT, "name": XATTR}),
    "reopen": (1, {}),
}
"""Name of a method of Pair: how often it is taken, and the values of its parameters."""
