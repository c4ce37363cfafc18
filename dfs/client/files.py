"""`File`: a handle on an open file, with a position, as the Python API gives it out."""

import errno
from types import TracebackType
from typing import Final, Self

import trio

from dfs.client.open_file import OpenFile, Part
from dfs.client.open_files import OpenFiles
from dfs.core.buffers import Buffer
from dfs.core.errors import refuse
from dfs.core.inode import Inode
from dfs.wire.messages import SetAttr

_AHEAD_FIRST_BYTES: Final = 512 * 1024
_AHEAD_MAX_BYTES: Final = 16 * 1024 * 1024
_STREAM_BYTES: Final = 32 * 1024 * 1024
_READ_ALL_STEP_BYTES: Final = 16 * 1024 * 1024


class ReadAhead:
    """Decides what to fetch before it is asked for: more, the longer reads follow each other."""

    def __init__(self) -> None:
        self._begin = 0
        self._next = 0
        self._window = 0
        self._fetched = 0

    def after(self, offset: int, end: int) -> tuple[int, int, bool] | None:
        """[offset, end) has been asked for: what to prefetch, if anything, and whether for once.

        A long stream does not come back to what it has read, and would drive everything else out
        of the cache; of a mount's, the kernel keeps the pages.
        """
        if offset != self._next:
            self._begin = offset
            self._window = 0
            self._fetched = end
            self._next = end
            return None
        self._next = end
        self._window = min(max(_AHEAD_FIRST_BYTES, self._window * 2), _AHEAD_MAX_BYTES)
        target = end + self._window
        start = max(self._fetched, end)
        if target - start < self._window // 2:
            return None
        self._fetched = target
        return start, target, end - self._begin >= _STREAM_BYTES


class File:
    """An open file. Use it with `async with`, or call `close`.

    Reads see what this client has written; other clients see it after `flush`, `fsync` or
    `close`. Methods raise FileSystemError when the handle does not allow what is asked,
    UnavailableError and NoSpaceError when the cluster cannot do it now; written bytes are then
    kept, and the next `flush` tries again. Tasks that share a handle read and write one after the
    other, each from where the last one has moved the position to.
    """

    def __init__(
        self,
        files: OpenFiles,
        file: OpenFile,
        path: str,
        *,
        readable: bool,
        writable: bool,
        append: bool,
    ) -> None:
        self.path = path
        self._files = files
        self._file = file
        self._readable = readable
        self._writable = writable
        self._append = append
        self._position = 0
        self._moving = trio.Lock()
        """Held while what is done at the position moves it."""
        self._closed = False
        self._ahead = ReadAhead()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<dfs.client.File {self.path!r} inode {self._file.ino} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def size(self) -> int:
        """Bytes, with what this client has written (but for appends not flushed yet)."""
        return self._file.size

    @property
    def inode(self) -> Inode:
        """The inode as this client last heard of it."""
        return self._file.inode

    # ---------------------------------------------------------------- reading

    async def read(self, length: int = -1) -> bytes:
        """Up to `length` bytes from the position on, all there are if negative; b"" at the end."""
        async with self._moving:
            if length >= 0:
                data = await self.pread(length, self._position)
                self._position += len(data)
                return data
            parts = []
            while data := await self.pread(_READ_ALL_STEP_BYTES, self._position):
                self._position += len(data)
                parts.append(data)
            return b"".join(parts)

    async def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        parts = await self.pread_parts(length, offset)
        if len(parts) == 1:
            return bytes(parts[0])
        return b"".join(parts)

    async def pread_parts(self, length: int, offset: int) -> list[Part]:
        """As `pread`, without joining: buffers that follow each other, not to be changed."""
        self._check(self._readable)
        if length < 0 or offset < 0:
            raise refuse(errno.EINVAL, f"read of {length} bytes at {offset}")
        ahead = self._ahead.after(offset, offset + length)
        parts = await self._file.read(offset, length)
        if ahead is not None:
            self._file.prefetch(*ahead)
        return parts

    # ---------------------------------------------------------------- writing

    async def write(self, data: Buffer) -> int:
        """Write at the position (opened with "a": at the end of the file); how many bytes."""
        if self._append:
            self._check(self._writable)
            await self._file.append(bytes(data))
        else:
            async with self._moving:
                await self.pwrite(data, self._position)
                self._position += len(data)
        return len(data)

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """Write at `offset`, past the end too (what lies between reads as zeros)."""
        self._check(self._writable)
        if offset < 0:
            raise refuse(errno.EINVAL, f"write at {offset}")
        # `bytes` never change, so they need not be copied.
        await self._file.write(offset, data if isinstance(data, bytes) else bytes(data))
        return len(data)

    async def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file to `size` (default: the position); the new size."""
        self._check(self._writable)
        wanted = self._position if size is None else size
        await self._file.set_attr(SetAttr(self._file.ino, size=wanted))
        return wanted

    async def flush(self) -> None:
        """Publish what was written, for other clients to see. Survives the death of this client."""
        self._check(True)
        await self._file.flush()

    async def fsync(self) -> None:
        """As `flush`, and return when all of it is on the disks."""
        self._check(True)
        await self._file.sync()

    # ---------------------------------------------------------------- position and end

    def tell(self) -> int:
        return self._position

    async def seek(self, offset: int, whence: int = 0) -> int:
        """As `io.IOBase.seek`: from the start (0), the position (1) or the end (2)."""
        self._check(True)
        if whence not in (0, 1, 2):
            raise refuse(errno.EINVAL, f"{self.path} (seek by {whence})")
        async with self._moving:
            base = (0, self._position, self._file.size)[whence]
            if base + offset < 0:
                raise refuse(errno.EINVAL, f"{self.path} (seek to {base + offset})")
            self._position = base + offset
            return self._position

    async def close(self) -> None:
        """Publish what was written, and let go of the file. May be repeated.

        Raises:
            DfsError: it could not be published, and is lost.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        await self._files.close(self._file)

    def _check(self, allowed: bool) -> None:
        if self._closed:
            raise refuse(errno.EBADF, f"{self.path} (closed)")
        if not allowed:
            raise refuse(errno.EBADF, f"{self.path} (not opened for this)")
