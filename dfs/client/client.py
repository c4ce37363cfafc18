"""`connect` and `Client`: a cluster as Python sees it.

async with dfs.client.connect("127.0.0.1:9420") as client:
    await client.mkdir("/photos", exist_ok=True)
    async with await client.open("/photos/a.jpg", "w") as file:
        await file.write(data)
    print((await client.stat("/photos/a.jpg")).size)
    summary = await client.upload(["/home/me/Pictures"], "/photos", recursive=True)
"""

import errno
import math
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from dfs.client import remote_paths
from dfs.client.admin import Admin
from dfs.client.big_upload import ReadStream
from dfs.client.block_cache import BlockCache
from dfs.client.chunk_writers import ChunkWriters
from dfs.client.download import download
from dfs.client.fetcher import Fetcher
from dfs.client.files import File
from dfs.client.master_link import MasterLink
from dfs.client.meta import Meta
from dfs.client.open_file import OpenFile
from dfs.client.open_files import OpenFiles
from dfs.client.path_operations import PathOperations
from dfs.client.progress import ProgressCallback, Summary
from dfs.client.reader import Reader
from dfs.client.remote_paths import AnyPath, about, encode, show, split
from dfs.client.removal import rmtree
from dfs.client.reports import Reports
from dfs.client.resolver import Place, Resolver
from dfs.client.retry import OnUnavailable
from dfs.client.session import Session
from dfs.client.upload import upload, upload_stream
from dfs.client.workers import ThreadWorkers
from dfs.client.write_context import WriteContext
from dfs.core.errors import ConfigError, FileSystemError, refuse
from dfs.core.inode import Inode
from dfs.core.workers import Workers
from dfs.wire.hello import Hello
from dfs.wire.messages import Access, Cred, SetAttr
from dfs.wire.pool import Backoff, Pool
from dfs.wire.transport import Connector, connect_tcp

CACHE_BYTES: Final = 256 * 1024 * 1024
_CLOSE_CANCELLED_S: Final = 3.0
_SYMLINKS_MAX: Final = 40
_MODES: Final = {
    # readable, writable, append, create, exclusive, truncate
    "r": (True, False, False, False, False, False),
    "r+": (True, True, False, False, False, False),
    "w": (False, True, False, True, False, True),
    "w+": (True, True, False, True, False, True),
    "x": (False, True, False, True, True, False),
    "x+": (True, True, False, True, True, False),
    "a": (False, True, True, True, False, False),
    "a+": (True, True, True, True, False, False),
}


class Client(PathOperations):
    """A session with a cluster. Get one from `connect`; usable from many tasks of one thread.

    Attributes:
        meta: inode-level calls to the master.
        files: open files by inode, for layers that do not work with paths.
        admin: jobs, and disks that come and go, for those who run the cluster.
    """

    def __init__(
        self,
        *,
        meta: Meta,
        pool: Pool,
        place: Place,
        workers: Workers,
        nursery: trio.Nursery,
        cache_bytes: int,
        near: str,
    ) -> None:
        self.meta = meta
        self.admin = Admin(meta.link)
        self.workers = workers
        self.nursery = nursery
        self.resolver = Resolver(meta, place)
        self.reports = Reports(meta, nursery)
        self.cache = BlockCache(cache_bytes)
        self.fetcher = Fetcher(meta, pool, self.resolver, workers, self.reports, nursery)
        self.reader = Reader(self.fetcher, self.cache, nursery)
        self.writers = ChunkWriters(
            WriteContext(
                meta=meta,
                pool=pool,
                resolver=self.resolver,
                reports=self.reports,
                workers=workers,
                nursery=nursery,
                near=near,
            )
        )
        self.files = OpenFiles(meta, self.reader, self.resolver, self.writers, nursery)

    # ---------------------------------------------------------------- files

    async def open(self, path: AnyPath, flags: str = "r", *, mode: int = 0o644) -> File:
        """Open a file: "r", "r+", "w", "w+", "x", "x+", "a" or "a+", as the built-in `open`.

        `mode` are the permission bits of a new file. Always binary, never buffered by line.
        """
        raw = encode(path)
        try:
            readable, writable, append, create, exclusive, truncate = _MODES[flags.replace("b", "")]
        except KeyError:
            raise refuse(errno.EINVAL, f"{show(raw)}: open mode {flags!r}") from None
        access = Access.READ * readable | Access.WRITE * writable
        with about(raw):
            if create:
                file = await self._create(raw, mode, exclusive, access)
            else:
                file = await self._open(raw, access)
            handle = File(
                self.files, file, show(raw), readable=readable, writable=writable, append=append
            )
            if truncate and (file.size or file.dirty):
                try:
                    await file.set_attr(SetAttr(file.ino, size=0))
                except BaseException:
                    await handle.close()
                    raise
        return handle

    async def _open(self, path: bytes, access: int) -> OpenFile:
        inode = await self.meta.resolve(path)
        if inode.is_dir:
            raise refuse(errno.EISDIR, show(path))
        return await self.files.open(inode.ino, access)

    async def _create(self, path: bytes, mode: int, exclusive: bool, access: int) -> OpenFile:
        for _ in range(_SYMLINKS_MAX):
            parent, name = await self._parent(path)
            releases = self.files.releases
            try:
                inode = await self.meta.create(
                    parent.ino, name, mode, exclusive=exclusive, open=True, access=access
                )
            except FileSystemError as error:
                if error.errno != errno.ELOOP or exclusive:
                    raise
                # A symlink has the name: go where it points, be anything there or not.
                link = await self.meta.lookup(parent.ino, name)
                path = remote_paths.join(split(path)[0], link.target)
                if link.target.startswith(b"/"):
                    path = link.target
            else:
                return await self.files.adopt_or_open(inode, access, releases)
        raise refuse(errno.ELOOP, show(path))

    async def read_file(self, path: AnyPath) -> bytes:
        """All bytes of a file."""
        async with await self.open(path, "r") as file:
            return await file.read()

    async def write_file(self, path: AnyPath, data: bytes, *, mode: int = 0o644) -> None:
        """Make the content of a file `data`, creating it with `mode` if it is not there."""
        async with await self.open(path, "w", mode=mode) as file:
            await file.write(data)

    async def truncate(self, path: AnyPath, size: int) -> Inode:
        """Cut or extend a file, also one that this client has open."""
        raw = encode(path)
        with about(raw):
            inode = await self.meta.resolve(raw)
            change = SetAttr(inode.ino, size=size)
            opened = self.files.get(inode.ino)
            if opened is not None:
                return await opened.set_attr(change)
            return await self.meta.set_attr(change)

    async def set_policy(self, path: AnyPath, policy: str) -> Inode:
        """New data of a file, or of new files below a directory, is kept as `policy` says.

        Raises:
            DfsError: (EINVAL) there is no policy of that name; the hint lists them.
        """
        wanted = await self.writers.named(policy)
        inode = await self.stat(path)
        with about(encode(path)):
            return await self.meta.set_policy(inode.ino, wanted.policy)

    async def sync(self) -> None:
        """Return when everything this client has written, and changed, is on disks."""
        # What is told late may bring bytes along.
        await self.meta.delegations.log.all_settled()
        await self.files.new_files.settled()
        await self.writers.sync()
        await self.meta.sync()

    # ---------------------------------------------------------------- trees

    async def upload(
        self,
        local: Sequence[str | bytes | Path],
        remote: AnyPath,
        *,
        recursive: bool = False,
        policy: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Summary:
        """Copy local files (and with `recursive` directories) into the cluster. See `upload.py`."""
        return await upload(
            self, local, remote, recursive=recursive, policy=policy, progress=progress
        )

    async def upload_stream(
        self,
        read: ReadStream,
        remote: AnyPath,
        *,
        policy: str | None = None,
        mode: int = 0o644,
        progress: ProgressCallback | None = None,
    ) -> Summary:
        """Store what `await read()` gives until b"" as a file, seen only when complete."""
        return await upload_stream(self, read, remote, policy=policy, mode=mode, progress=progress)

    async def download(
        self,
        remote: Sequence[AnyPath],
        local: str | bytes | Path,
        *,
        recursive: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Summary:
        """Copy files (and with `recursive` directories) out of the cluster. See `download.py`."""
        return await download(self, remote, local, recursive=recursive, progress=progress)

    async def rmtree(self, path: AnyPath, *, progress: ProgressCallback | None = None) -> Summary:
        """Remove a directory and all that is in it. See `removal.py`."""
        return await rmtree(self.meta, encode(path), progress=progress)

    # ---------------------------------------------------------------- the end

    async def _shut_down(self) -> None:
        """Publish what is left, seal what is open, end the session."""
        try:
            await self.files.flush()
            await self.meta.delegations.log.all_settled()
        finally:
            await self.writers.close()
            await self.reports.flush()
        self.meta.delegations.log.check_any()


@asynccontextmanager
async def connect(
    address: str,
    *,
    cred: Cred | None = None,
    on_unavailable: str = "wait:60s",
    cache_bytes: int = CACHE_BYTES,
    rack: str = "",
    zone: str = "",
    name: str = "",
    token: bytes = b"",
    connector: Connector = connect_tcp,
    workers: Workers | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Client]:
    """A client of the cluster whose master is at `address` (`HOST:PORT`, several by commas).

    Contacts nobody by itself. Leaving the context publishes what is left in open files, seals
    the client's chunks and ends its session; leaving it by an exception skips what is not done.

    Args:
        cred: whose permissions count; default: those of this process.
        on_unavailable: `error`, `wait:TIME` or `wait`: how long an operation goes on while
            the master or data is unavailable.
        cache_bytes: memory for blocks that were read.
        rack, zone: where this machine is, to read from near.
        name: what `dfs admin sessions` shows; default: host and program.
        connector, workers, rng: for simulations.

    Raises:
        ConfigError: `on_unavailable` is no such choice, or `address` is empty.
    """
    patience = OnUnavailable.parse(on_unavailable)
    addresses = tuple(part.strip() for part in address.split(",") if part.strip())
    if not addresses:
        raise ConfigError("no master address given", hint="write HOST:PORT")
    rng = rng or random.Random()

    def make_pool() -> Pool:
        return Pool(
            hello=Hello("client", token=token),
            connector=connector,
            random=rng,
            backoff=Backoff(first_s=0.05, most_s=1.0),
        )

    failure: Exception | None = None
    async with make_pool() as pool, trio.open_nursery() as nursery:
        link = MasterLink(pool, addresses, patience, rng)
        session = Session(link, name or _default_name(), rng)
        meta = Meta(link, session, cred or _own_cred(), nursery)
        near = _own_address(addresses[0]) if connector is connect_tcp else ""
        client = Client(
            meta=meta,
            pool=pool,
            place=_own_place(near, rack, zone),
            workers=workers or ThreadWorkers(),
            nursery=nursery,
            cache_bytes=cache_bytes,
            near=near,
        )
        nursery.start_soon(session.keep)
        nursery.start_soon(client.writers.write_back)
        try:
            yield client
            await client._shut_down()
        except Exception as error:
            # Kept out of the nursery, which would wrap it in a group.
            failure = error
        finally:
            cancelled = trio.current_effective_deadline() == -math.inf
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + _CLOSE_CANCELLED_S
                if cancelled:
                    # The pool's connections are gone too.
                    async with make_pool() as link.pool:
                        await session.close()
                else:
                    await session.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _own_cred() -> Cred:
    return Cred(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def _default_name() -> str:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return f"{socket.gethostname()} {program} {os.getpid()}"


def _own_address(master: str) -> str:
    """The address of this machine on the way to the master; "" if there is none. Sends nothing."""
    host, _, port = master.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""


def _own_place(near: str, rack: str, zone: str) -> Place:
    own = {socket.gethostname(), *Place().hosts}
    if near:
        own.add(near)
    return Place(frozenset(own), rack, zone)
