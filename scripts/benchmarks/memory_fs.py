"""The ceiling of a FUSE driver: a bare file system in memory on it, as little as will run.

    memory_fs.py fusepy|pyfuse3 POINT

`scripts/benchmarks/mount.py` measures the same work on it and on a mount of dfs. Files hold their
bytes in one bytearray each; there are no links, no attributes that matter, and no checks.
"""

import errno
import os
import stat
import sys
import time
from typing import Any, Final

ROOT: Final = 1


class Node:
    """A file or directory."""

    def __init__(self, ino: int, mode: int) -> None:
        self.ino = ino
        self.mode = mode
        self.data = bytearray()
        self.children: dict[bytes, Node] = {}
        self.time_ns = time.time_ns()

    def write(self, offset: int, data: bytes) -> int:
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data
        return len(data)

    def cut(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


def on_fusepy(point: str) -> None:
    import fuse  # noqa: PLC0415 - loads libfuse 2

    class Memory:
        use_ns = True
        flag_nullpath_ok = 1

        def __init__(self) -> None:
            self.nodes: dict[str, Node] = {"/": Node(ROOT, stat.S_IFDIR | 0o777)}
            self.open_nodes: dict[int, Node] = {}
            self.last = ROOT

        def __call__(self, name: str, *args: Any) -> Any:
            return getattr(self, name)(*args)

        def _find(self, path: str) -> Node:
            try:
                return self.nodes[path]
            except KeyError:
                raise OSError(errno.ENOENT, path) from None

        def _make(self, path: str, mode: int) -> Node:
            self.last += 1
            node = self.nodes[path] = Node(self.last, mode)
            parent, _, name = path.rpartition("/")
            self.nodes[parent or "/"].children[name.encode("latin-1")] = node
            return node

        def _remove(self, path: str) -> None:
            self._find(path)
            del self.nodes[path]
            parent, _, name = path.rpartition("/")
            del self.nodes[parent or "/"].children[name.encode("latin-1")]

        def init(self, path: str) -> None:
            return

        def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
            node = self.open_nodes[fh] if fh is not None else self._find(path or "")
            return {
                "st_ino": node.ino,
                "st_mode": node.mode,
                "st_nlink": 1,
                "st_size": len(node.data),
                "st_blocks": len(node.data) // 512,
                "st_atime": node.time_ns,
                "st_mtime": node.time_ns,
                "st_ctime": node.time_ns,
            }

        def mkdir(self, path: str, mode: int) -> None:
            self._make(path, stat.S_IFDIR | mode)

        def create(self, path: str, mode: int) -> int:
            node = self._make(path, stat.S_IFREG | mode)
            self.open_nodes[node.ino] = node
            return node.ino

        def open(self, path: str, flags: int) -> int:
            node = self._find(path)
            self.open_nodes[node.ino] = node
            return node.ino

        def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
            return bytes(self.open_nodes[fh].data[offset : offset + size])

        def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
            return self.open_nodes[fh].write(offset, data)

        def truncate(self, path: str, size: int, fh: int | None = None) -> None:
            self._find(path).cut(size)

        def flush(self, path: str | None, fh: int) -> None:
            return

        def fsync(self, path: str | None, datasync: int, fh: int) -> None:
            return

        def release(self, path: str | None, fh: int) -> None:
            return

        def unlink(self, path: str) -> None:
            self._remove(path)

        rmdir = unlink

        def opendir(self, path: str) -> int:
            return 0

        def readdir(self, path: str, fh: int) -> Any:
            yield from (".", "..")
            for name, node in list(self._find(path).children.items()):
                yield name.decode("latin-1"), {"st_ino": node.ino, "st_mode": node.mode}, 0

        def releasedir(self, path: str | None, fh: int) -> None:
            return

    fuse.FUSE(
        Memory(),
        point,
        encoding="latin-1",
        foreground=True,
        nothreads=False,
        default_permissions=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        big_writes=True,
    )


def on_pyfuse3(point: str) -> None:
    import pyfuse3  # noqa: PLC0415 - loads libfuse 3
    import trio  # noqa: PLC0415 - only here

    class Memory(pyfuse3.Operations):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.nodes = {ROOT: Node(ROOT, stat.S_IFDIR | 0o777)}
            self.last = ROOT

        def _entry(self, node: Node) -> Any:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = node.ino
            entry.generation = 0
            entry.entry_timeout = entry.attr_timeout = 1
            entry.st_mode = node.mode
            entry.st_nlink = 1
            entry.st_size = len(node.data)
            entry.st_blocks = len(node.data) // 512
            entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.time_ns
            return entry

        def _make(self, parent: int, name: bytes, mode: int) -> Node:
            self.last += 1
            node = self.nodes[self.last] = Node(self.last, mode)
            self.nodes[parent].children[name] = node
            return node

        async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
            node = self.nodes[parent].children.get(name)
            if node is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self._entry(node)

        async def getattr(self, inode: int, ctx: Any) -> Any:
            return self._entry(self.nodes[inode])

        async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:
            if fields.update_size:
                self.nodes[inode].cut(attr.st_size)
            return self._entry(self.nodes[inode])

        async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
            return self._entry(self._make(parent, name, mode))

        async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
            node = self._make(parent, name, mode)
            return pyfuse3.FileInfo(fh=node.ino), self._entry(node)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            return pyfuse3.FileInfo(fh=inode)

        async def read(self, fh: int, off: int, size: int) -> bytes:
            return bytes(self.nodes[fh].data[off : off + size])

        async def write(self, fh: int, off: int, buf: bytes) -> int:
            return self.nodes[fh].write(off, buf)

        async def flush(self, fh: int) -> None:
            return

        async def fsync(self, fh: int, datasync: bool) -> None:
            return

        async def release(self, fh: int) -> None:
            return

        async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
            del self.nodes[parent].children[name]

        rmdir = unlink

        async def opendir(self, inode: int, ctx: Any) -> int:
            return inode

        async def readdir(self, fh: int, start_id: int, token: Any) -> None:
            children = list(self.nodes[fh].children.items())
            for number, (name, node) in enumerate(children[start_id:], start_id + 1):
                if not pyfuse3.readdir_reply(token, name, self._entry(node), number):
                    return

        async def releasedir(self, fh: int) -> None:
            return

    pyfuse3.init(Memory(), point, {"default_permissions", "fsname=memory"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    os.umask(0)
    {"fusepy": on_fusepy, "pyfuse3": on_pyfuse3}[sys.argv[1]](sys.argv[2])
