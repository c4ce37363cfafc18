"""The state machine against a plain model of a POSIX file system, by random operations.

The same commands go to a state on RocksDB (closed and opened again in between) and to one in
memory: both must hold the same bytes. Files are bytearrays in the model; their extents are
checked byte by byte, through chunks whose bytes the test made up.
"""

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dfs.core.errors import from_wire
from dfs.core.ids import ROOT_INODE, ChunkId, InodeId, SessionId
from dfs.core.inode import Extent, Inode
from dfs.master import commands, invariants, queries, removal, sessions
from dfs.master.commands import Command
from dfs.master.keyspace import get_chunk
from dfs.master.state import State
from dfs.master.store import MemoryStore, RocksStore
from dfs.wire import messages
from dfs.wire.messages import AnyOp, Cred, GetExtents, ReadDir

ROOT = Cred(0, 0)
FILE_MAX = 64
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe"])
OFFSETS = st.integers(0, FILE_MAX)
LENGTHS = st.integers(1, 16)


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


class Refused(Exception):
    pass


def refuse_if(condition: object, number: int) -> None:
    if condition:
        raise Refused(errno.errorcode[number])


class Model:
    """What the state should hold. Operations raise Refused, before they change anything."""

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
        if node.links == 0 and not node.opens:
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


class StateAgainstModel(RuleBasedStateMachine):
    @initialize(inline=st.sampled_from([0, 1, 3, 128]))
    def start(self, inline: int) -> None:
        self.saved = removal.INLINE_ROWS, sessions.RELEASE_INLINE_ROWS
        removal.INLINE_ROWS = inline  # type: ignore[misc]  # small, so that the purge has work
        sessions.RELEASE_INLINE_ROWS = max(1, inline)  # type: ignore[misc]
        self.directory = Path(tempfile.mkdtemp(prefix="dfs-model-"))
        self.rocks = State(self._open())
        self.memory = State(MemoryStore())
        self.now = 0
        self.sequence = 0
        self.model = Model()
        self.bytes: dict[ChunkId, bytearray] = {}
        self.run(commands.Format(self.tick(), "u"))
        self.session = self.new_session()
        self.chunk = self.new_chunk()

    def teardown(self) -> None:
        if hasattr(self, "saved"):
            removal.INLINE_ROWS, sessions.RELEASE_INLINE_ROWS = self.saved  # type: ignore[misc]
            self.rocks.store.close()
            shutil.rmtree(self.directory)

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

    def new_session(self) -> SessionId:
        opened: SessionId = self.run(commands.OpenSession(self.tick(), "m", self.now)).session
        return opened

    def new_chunk(self) -> ChunkId:
        placement = commands.Placement(1, 1, (1, 2))
        (chunk,) = self.run(
            commands.AllocateChunks(self.tick(), self.session, self.next(), 1, (placement,))
        )
        self.bytes[chunk.chunk] = bytearray()
        number: ChunkId = chunk.chunk
        return number

    def op(self, op: AnyOp) -> Inode | None:
        """Run one operation; raises Refused."""
        note(repr(op))
        command = commands.ApplyOps(self.tick(), self.session, self.next(), ROOT, (op,))
        reply = self.run(command)
        assert self.run(command) == reply, "a retry gets the first answer"
        (result,) = messages.msgspec.msgpack.decode(reply, type=messages.Applied).results
        if result.error is not None:
            raise Refused(errno.errorcode[from_wire(result.error).errno or 0])
        inode: Inode | None = result.inode
        return inode

    def made(self, op: AnyOp) -> Inode:
        inode = self.op(op)
        assert inode is not None
        return inode

    def expect(self, op: AnyOp, number: int) -> None:
        with pytest.raises(Refused, match=errno.errorcode[number] + "$"):
            self.op(op)

    def both(self, op: AnyOp, change: Any) -> None:
        """The model's change and the operation are refused alike, or both happen."""
        try:
            change()
        except Refused as refused:
            with pytest.raises(Refused, match=f"^{refused}$"):
                self.op(op)
        else:
            self.op(op)

    def node(self, data: st.DataObject, *, kind: str = "any") -> Node:
        nodes = [
            node
            for _, node in sorted(self.model.nodes.items())
            if kind == "any" or getattr(node, f"is_{kind}")
        ]
        return data.draw(st.sampled_from(nodes), label=kind) if nodes else self.model.root

    def directory_node(self, data: st.DataObject) -> Node:
        return self.node(data, kind="dir")

    def written(self, length: int) -> tuple[ChunkId, int, bytes]:
        """Fresh bytes at the end of the open chunk: (chunk, chunk offset, bytes)."""
        content = self.bytes[self.chunk]
        start = len(content)
        for position in range(start, start + length):
            content.append((self.chunk * 31 + position * 7) % 255 + 1)
        return self.chunk, start, bytes(content[start:])

    # ---------------------------------------------------------------- names

    @rule(data=st.data(), name=NAMES, exclusive=st.booleans(), opened=st.booleans())
    def create(self, data: st.DataObject, name: bytes, exclusive: bool, opened: bool) -> None:
        parent = self.directory_node(data)
        op = messages.Create(parent.ino, name, 0o644, exclusive, opened)
        there = parent.entries.get(name)
        if there is not None:
            if exclusive:
                self.expect(op, errno.EEXIST)
            elif there.is_dir:
                self.expect(op, errno.EISDIR)
            elif opened and stat.S_ISLNK(there.mode):
                self.expect(op, errno.ELOOP)
            else:
                assert self.made(op).ino == there.ino
                if opened:
                    there.opens.add(self.session)
        elif parent.links == 0 and parent is not self.model.root:
            self.expect(op, errno.ENOENT)
        else:
            inode = self.made(op)
            node = self.model.add(parent, name, inode.ino, inode.mode)
            if opened:
                node.opens.add(self.session)

    @rule(data=st.data(), name=NAMES)
    def mkdir(self, data: st.DataObject, name: bytes) -> None:
        parent = self.directory_node(data)
        op = messages.Mkdir(parent.ino, name, 0o755)
        if name in parent.entries:
            self.expect(op, errno.EEXIST)
        elif parent.links == 0 and parent is not self.model.root:
            self.expect(op, errno.ENOENT)
        else:
            inode = self.made(op)
            self.model.add(parent, name, inode.ino, inode.mode)

    @rule(data=st.data(), name=NAMES, content=st.binary(min_size=1, max_size=5))
    def symlink(self, data: st.DataObject, name: bytes, content: bytes) -> None:
        parent = self.directory_node(data)
        op = messages.Symlink(parent.ino, name, content)
        if b"\0" in content:
            self.expect(op, errno.EINVAL)
        elif name in parent.entries:
            self.expect(op, errno.EEXIST)
        elif parent.links == 0 and parent is not self.model.root:
            self.expect(op, errno.ENOENT)
        else:
            inode = self.made(op)
            self.model.add(parent, name, inode.ino, inode.mode).target = content

    @rule(data=st.data(), name=NAMES, replace=st.booleans())
    def link(self, data: st.DataObject, name: bytes, replace: bool) -> None:
        node, parent = self.node(data), self.directory_node(data)

        def change() -> None:
            there = parent.entries.get(name)
            refuse_if(there is not None and not replace, errno.EEXIST)
            refuse_if(parent.links == 0 and parent is not self.model.root, errno.ENOENT)
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

    @rule(data=st.data(), name=NAMES)
    def unlink(self, data: st.DataObject, name: bytes) -> None:
        parent = self.directory_node(data)

        def change() -> None:
            node = parent.entries.get(name)
            refuse_if(node is None, errno.ENOENT)
            assert node is not None
            refuse_if(node.is_dir, errno.EISDIR)
            self.model.lose(parent.entries.pop(name))

        self.both(messages.Unlink(parent.ino, name), change)

    @rule(data=st.data(), name=NAMES)
    def rmdir(self, data: st.DataObject, name: bytes) -> None:
        parent = self.directory_node(data)

        def change() -> None:
            node = parent.entries.get(name)
            refuse_if(node is None, errno.ENOENT)
            assert node is not None
            refuse_if(not node.is_dir, errno.ENOTDIR)
            refuse_if(node.entries, errno.ENOTEMPTY)
            self.model.lose(parent.entries.pop(name))

        self.both(messages.Rmdir(parent.ino, name), change)

    @rule(data=st.data(), name=NAMES, new_name=NAMES, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, data: st.DataObject, name: bytes, new_name: bytes, flags: int) -> None:
        old, new = self.directory_node(data), self.directory_node(data)
        op = messages.Rename(old.ino, name, new.ino, new_name, flags)
        self.both(op, lambda: self.model.rename(old, name, new, new_name, flags))

    # ---------------------------------------------------------------- data

    @rule(data=st.data(), offset=OFFSETS, lengths=st.lists(LENGTHS, min_size=1, max_size=4))
    def write(self, data: st.DataObject, offset: int, lengths: list[int]) -> None:
        """Several extents in one commit, with gaps, in any order, sometimes overlapping."""
        node = self.node(data, kind="file")
        if not node.is_file:
            return
        append = data.draw(st.booleans(), label="append")
        base = len(node.data) if append else 0
        extents = []
        for length in lengths:
            chunk, start, content = self.written(length)
            extents.append(Extent(offset, length, chunk, start))
            at = base + offset
            node.data.extend(bytes(max(0, at + length - len(node.data))))
            node.data[at : at + length] = content
            offset = max(0, offset + length + data.draw(st.integers(-20, 8), label="gap"))
        size = data.draw(st.none() | OFFSETS, label="size")
        if size is not None:
            node.data.extend(bytes(max(0, base + size - len(node.data))))
        inode = self.made(messages.Commit(node.ino, tuple(extents), size, None, append))
        assert inode.size == len(node.data)

    @rule(data=st.data(), size=OFFSETS)
    def truncate(self, data: st.DataObject, size: int) -> None:
        node = self.node(data, kind="file")
        if not node.is_file:
            return
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        assert self.made(messages.SetAttr(node.ino, size=size)).size == size

    @rule(data=st.data(), offset=OFFSETS, length=LENGTHS)
    def punch(self, data: st.DataObject, offset: int, length: int) -> None:
        node = self.node(data, kind="file")
        if not node.is_file:
            return
        end = min(len(node.data), offset + length)
        if offset < end:
            node.data[offset:end] = bytes(end - offset)
        self.op(messages.PunchHole(node.ino, offset, length))

    @rule(data=st.data(), offset=OFFSETS, new_offset=OFFSETS, length=st.integers(0, 32))
    def clone(self, data: st.DataObject, offset: int, new_offset: int, length: int) -> None:
        source, target = self.node(data, kind="file"), self.node(data, kind="file")
        if not source.is_file or not target.is_file:
            return

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

        self.both(messages.CloneRange(source.ino, offset, target.ino, new_offset, length), change)

    @rule(data=st.data(), name=NAMES, lengths=st.lists(LENGTHS, max_size=3))
    def put(self, data: st.DataObject, name: bytes, lengths: list[int]) -> None:
        parent = self.directory_node(data)
        extents, content = [], bytearray()
        for length in lengths:
            content.extend(bytes(data.draw(st.integers(0, 2), label="gap")))
            chunk, start, piece = self.written(length)
            extents.append(Extent(len(content), length, chunk, start))
            content.extend(piece)
        op = messages.Put(parent.ino, name, 0o644, len(content), tuple(extents))
        there = parent.entries.get(name)
        if parent.links == 0 and parent is not self.model.root:
            self.expect(op, errno.ENOENT)
        elif there is not None and there.is_dir:
            self.expect(op, errno.EISDIR)
        else:
            inode = self.made(op)
            self.model.add(parent, name, inode.ino, inode.mode).data = content
            if there is not None:
                self.model.lose(there)

    @rule(gone=st.booleans())
    def seal(self, gone: bool) -> None:
        """The chunk is full; the next bytes go to a fresh one."""
        length = len(self.bytes[self.chunk])
        self.run(commands.SealChunk(self.tick(), self.session, self.next(), self.chunk, length))
        self.chunk = self.new_chunk()

    # ---------------------------------------------------------------- opens and sessions

    @rule(data=st.data())
    def unnamed(self, data: st.DataObject) -> None:
        parent = self.directory_node(data)
        op = messages.Unnamed(parent.ino, 0o600)
        if parent.links == 0 and parent is not self.model.root:
            self.expect(op, errno.ENOENT)
            return
        inode = self.made(op)
        node = self.model.nodes[inode.ino] = Node(inode.ino, inode.mode)
        node.opens.add(self.session)
        node.named = False

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        node = self.node(data)
        op = messages.Open(node.ino)
        if stat.S_ISLNK(node.mode):
            self.expect(op, errno.ELOOP)
        else:
            self.op(op)
            node.opens.add(self.session)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        node = self.node(data)
        self.op(messages.Release(node.ino))
        node.opens.discard(self.session)
        if node is not self.model.root:
            self.model.forget(node)

    @rule(expire=st.booleans())
    def next_session(self, expire: bool) -> None:
        """All that the old session had open is let go, at the latest by the purge."""
        kind = commands.ExpireSession if expire else commands.CloseSession
        self.run(kind(self.tick(), self.session))
        self.purge(1000)
        for node in list(self.model.nodes.values()):
            node.opens.discard(self.session)
            if node is not self.model.root:
                self.model.forget(node)
        self.session = self.new_session()
        self.chunk = self.new_chunk()

    @rule(limit=st.sampled_from([1, 2, 5, 1000]))
    def purge(self, limit: int) -> None:
        self.run(commands.PurgeStep(self.tick(), limit))

    # ---------------------------------------------------------------- attributes

    @rule(data=st.data(), mode=st.integers(0, 0o7777))
    def chmod(self, data: st.DataObject, mode: int) -> None:
        node = self.node(data)
        op = messages.SetAttr(node.ino, mode=mode)
        if stat.S_ISLNK(node.mode):
            self.expect(op, errno.EOPNOTSUPP)
        else:
            node.mode = stat.S_IFMT(node.mode) | mode
            self.op(op)

    @rule(
        data=st.data(),
        name=st.sampled_from([b"user.a", b"trusted.b"]),
        value=st.binary(max_size=4),
        mode=st.sampled_from([0, 0, 1, 2]),
    )
    def set_xattr(self, data: st.DataObject, name: bytes, value: bytes, mode: int) -> None:
        node = self.node(data)

        def change() -> None:
            user = name.startswith(b"user.")
            refuse_if(user and not (node.is_dir or node.is_file), errno.EPERM)
            refuse_if(mode == 1 and name in node.xattrs, errno.EEXIST)
            refuse_if(mode == 2 and name not in node.xattrs, errno.ENODATA)
            node.xattrs[name] = value

        self.both(messages.SetXattr(node.ino, name, value, mode), change)

    @rule(data=st.data())
    def remove_xattr(self, data: st.DataObject) -> None:
        node = self.node(data)
        if node.xattrs:
            name = data.draw(st.sampled_from(sorted(node.xattrs)), label="xattr")
            del node.xattrs[name]
            self.op(messages.RemoveXattr(node.ino, name))

    # ---------------------------------------------------------------- what must hold

    @rule()
    def reopen(self) -> None:
        self.rocks.store.close()
        self.rocks = State(self._open())

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def integrity(self) -> None:
        store = self.memory.store
        assert invariants.check(store) == []
        self.compare()

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def deterministic(self) -> None:
        one = list(self.memory.store.scan(b"\0", b"\xff"))
        assert list(self.rocks.store.scan(b"\0", b"\xff")) == one

    def compare(self) -> None:
        assert self.rocks.counters.inodes == len(self.model.nodes)
        for node in self.model.nodes.values():
            inode = queries.get(self.rocks.store, node.ino)
            assert inode.mode == node.mode
            assert inode.target == node.target
            if node.is_dir:
                self.compare_directory(inode, node)
                continue
            assert inode.nlink == node.links
            if node.is_file:
                assert inode.size == len(node.data)
                assert self.content(inode) == node.data
            assert self.xattrs(inode) == node.xattrs

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
            reply = messages.msgspec.msgpack.decode(
                page.encode(messages.Layout()), type=messages.DirReply
            )
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
            chunk = get_chunk(self.rocks.store, extent.chunk)
            assert chunk is not None
        return content

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        from dfs.master import xattrs

        return {
            name: xattrs.get_xattr(self.rocks.store, ROOT, inode.ino, name)
            for name in xattrs.list_xattr(self.rocks.store, inode.ino)
        }


def test_state_agrees_with_a_plain_model_of_a_file_system() -> None:
    asked = settings.default
    assert asked is not None
    long = asked.stateful_step_count >= 100
    examples, steps = (asked.max_examples, asked.stateful_step_count) if long else (60, 40)
    examples = int(os.environ.get("DFS_EXAMPLES", examples))
    run_state_machine_as_test(
        StateAgainstModel,
        settings=settings(
            asked,
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
        ),
    )
