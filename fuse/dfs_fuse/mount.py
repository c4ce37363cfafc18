"""A mount from start to end: a client, the file system on it, and a driver, in the foreground.

`run` blocks in the main thread until the mount has been unmounted, or a signal asked for that;
then everything that was written is flushed. Called by the command line only.

- pyfuse3: all of it on trio, in the main thread.
- fusepy: libfuse's loop in the main thread, which gets the signals; trio in a second one.

SIGTERM, SIGINT and SIGHUP unmount. While what was written is being flushed, one of them is only
noted in the log (it may come from whoever has just unmounted), a second ends the process at once.
SIGUSR1 writes the profile to the log.
"""

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

import dfs
from dfs.client import Client, connect
from dfs.client.chunk_writers import HELD_TOTAL_BYTES
from dfs.client.remote_paths import show
from dfs.core import allocator, collector
from dfs.core.errors import DfsError, FileSystemError
from dfs.core.ids import InodeId
from dfs_fuse.about import About, own_pid_namespace
from dfs_fuse.bridge import Bridge
from dfs_fuse.mount_table import shown
from dfs_fuse.options import ON_UNAVAILABLE, MountOptions
from dfs_fuse.preconditions import ChosenDriver, check
from dfs_fuse.read_ahead import READ_AHEAD_KIB, widen_read_ahead
from dfs_fuse.vfs import Vfs

_STOP: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PROFILE: Final = signal.SIGUSR1

log = logging.getLogger(__name__)


def run(options: MountOptions, master: str, ready: Callable[[], None]) -> None:
    """Mount the cluster of `master`; call `ready` when the kernel has taken it; return at the end.

    Raises:
        DfsError: it cannot be mounted: says what lacks. Or: not all that was written is kept.
        KeyboardInterrupt: a signal came before it was mounted.
    """
    driver = check(options)
    mounted = False

    def is_ready() -> None:
        nonlocal mounted
        mounted = True
        log.info("mounted %s at %s (%s)", options.fsname, shown(options.point), driver)
        allocator.keep_buffers()
        collector.tune()
        ready()

    os.umask(0)  # programs have applied their own
    logging.getLogger("pyfuse3").addFilter(_is_worth_a_line)
    try:
        if driver == "pyfuse3":
            trio.run(_OnTrio(options, master, is_ready).main)
        else:
            _Beside(options, master, is_ready).main()
    except BaseException:
        if mounted:
            log.error(
                "the mount at %s has failed; what it had not yet stored is lost", options.point
            )
        raise
    log.info("unmounted %s; all that was written is stored", shown(options.point))


# ---------------------------------------------------------------- what both ways share


@asynccontextmanager
async def _client(options: MountOptions, master: str) -> AsyncIterator[tuple[Client, InodeId]]:
    """A client, and the inode to be mounted. Leaving it flushes what was written."""
    async with connect(
        master,
        on_unavailable=options.on_unavailable or ON_UNAVAILABLE,
        cache_bytes=max(0, options.cache_bytes - HELD_TOTAL_BYTES),
        name=f"{socket.gethostname()} mount {shown(options.point)} {os.getpid()}",
    ) as client:
        if options.on_unavailable is None:
            await client.meta.link.first_contact()
        yield client, await _find_root(client, options.root)


async def _find_root(client: Client, path: bytes) -> InodeId:
    try:
        inode = await client.meta.resolve(path)
    except FileSystemError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        raise DfsError(
            f"--root {show(path)}: no such directory in the cluster",
            errno=error.errno,
            hint="`dfs mkdir -p` makes it",
        ) from None
    if not inode.is_dir:
        raise DfsError(f"--root {show(path)}: not a directory", errno=errno.ENOTDIR)
    return inode.ino


def _file_system(
    client: Client,
    nursery: trio.Nursery,
    root: InodeId,
    options: MountOptions,
    driver: ChosenDriver,
) -> Vfs:
    vfs = Vfs(
        client,
        nursery,
        root=root,
        read_only=options.read_only,
        attr_cache_s=options.attr_cache_s,
        by_path=driver == "fusepy",
    )
    nursery.start_soon(widen_read_ahead, options.point, READ_AHEAD_KIB[driver])
    if not options.read_only and not options.sync_names:
        client.meta.delegations.start()
    vfs.about = msgspec.json.encode(
        About(
            pid=os.getpid(),
            pid_namespace=own_pid_namespace(),
            master=",".join(client.meta.link.addresses),
            root=show(options.root),
            driver=driver,
            log=options.log_file or "",
            version=dfs.__version__,
        )
    )
    return vfs


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not: that the kernel no longer wants an answer (interrupted, or unmounted by now)."""
    return not record.getMessage().endswith(os.strerror(errno.ENOENT))


def _report(vfs: Vfs) -> None:
    log.info("%s", vfs.profile.report())


class _Impatience:
    """Counts the signals that come while what was written is being flushed."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, number: int, *_: object) -> None:
        """One came. The second ends the process."""
        if not self._warned:
            self._warned = True
            log.warning("still storing what was written; one more signal ends that, and loses it")
            return
        log.error("stopped by a signal: what was not yet stored is lost")
        logging.shutdown()
        os._exit(128 + number)


# ---------------------------------------------------------------- pyfuse3: all on trio


class _OnTrio:
    """Everything in the main thread. `_scope` is what a signal cancels now; None: too late."""

    def __init__(self, options: MountOptions, master: str, ready: Callable[[], None]) -> None:
        self._options = options
        self._master = master
        self._ready = ready
        self._scope: trio.CancelScope | None = trio.CancelScope()
        self._vfs: Vfs | None = None

    async def main(self) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._heed_signals)
            try:
                assert self._scope is not None
                with self._scope as starting:
                    await self._mount()
                if starting.cancelled_caught:
                    raise KeyboardInterrupt
            except Exception as error:
                failure = error  # out of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _mount(self) -> None:
        # Loads libfuse, which the other driver's machines need not have.
        from dfs_fuse import pyfuse3_driver  # noqa: PLC0415

        options = self._options
        async with _client(options, self._master) as (client, root):
            async with trio.open_nursery() as nursery:
                self._vfs = _file_system(client, nursery, root, options, "pyfuse3")
                with trio.CancelScope() as self._scope:
                    await pyfuse3_driver.serve(self._vfs, options, self._ready)
                self._scope = None
                nursery.cancel_scope.cancel()
            if options.profile:
                _report(self._vfs)

    async def _heed_signals(self, task_status: trio.TaskStatus[None]) -> None:
        impatience = _Impatience()
        with trio.open_signal_receiver(*_STOP, _PROFILE) as numbers:
            task_status.started()
            async for number in numbers:
                if number == _PROFILE:
                    if self._vfs is not None:
                        _report(self._vfs)
                elif self._scope is None or self._scope.cancel_called:
                    impatience(number)
                else:
                    self._scope.cancel()


# ---------------------------------------------------------------- fusepy: trio beside it


class _Beside:
    """libfuse in the main thread, trio with the client in another.

    The main thread is inside libfuse most of the time, where no Python handler of a signal runs.
    SIGTERM and its kin libfuse heeds itself; SIGUSR1 reaches trio by a socket that the
    interpreter writes to at once.
    """

    def __init__(self, options: MountOptions, master: str, ready: Callable[[], None]) -> None:
        self._options = options
        self._master = master
        self._ready = ready
        self._started: Future[tuple[Bridge, Vfs]] = Future()
        self._failure: BaseException | None = None
        self._unmounted = False
        self._scope = trio.CancelScope()
        """Around everything, to give up before it is mounted."""
        self._end: trio.Event
        self._token: trio.lowlevel.TrioToken | None = None

    # ------------------------------------------------------------ in the main thread

    def main(self) -> None:
        from dfs_fuse import fusepy_driver  # noqa: PLC0415 - only where it is wanted

        lost: DfsError | None = None
        for number in _STOP:
            signal.signal(number, signal.default_int_handler)
        woken, waker = socket.socketpair()
        with woken, waker:
            for end in (woken, waker):
                end.setblocking(False)
            thread = threading.Thread(target=self._in_thread, args=(woken,), name="trio")
            thread.start()
            try:
                bridge, vfs = self._started.result()
                self._hand_signals_over(waker)
                try:
                    fusepy_driver.serve(bridge, vfs, self._options, self._ready)
                except RuntimeError as error:
                    raise self._not_mounted() from error
                except DfsError as error:
                    lost = error  # the rest is stored all the same
                finally:
                    self._unmounted = True
                    impatience = _Impatience()
                    for number in _STOP:
                        signal.signal(number, impatience)
                self._in_trio(self._end.set)
            except BaseException:
                self._in_trio(self._scope.cancel)
                raise
            finally:
                thread.join()
                signal.set_wakeup_fd(-1)
        if self._failure is not None:
            raise self._failure
        if lost is not None:
            raise lost

    def _hand_signals_over(self, waker: socket.socket) -> None:
        for number in _STOP:
            # libfuse takes those only that nobody else heeds.
            signal.signal(number, signal.SIG_DFL)
        signal.signal(_PROFILE, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def _not_mounted(self) -> DfsError:
        where = shown(self._options.log_file) if self._options.log_file else "standard error"
        return DfsError(
            f"{shown(self._options.point)}: libfuse could not mount here",
            hint=f"its own words are in {where}",
        )

    def _in_trio(self, function: Callable[[], object]) -> None:
        """Have it called in trio's thread, if that still runs."""
        if self._token is not None:
            try:
                self._token.run_sync_soon(function)
            except trio.RunFinishedError:
                return

    # ------------------------------------------------------------ in trio's thread

    def _in_thread(self, woken: socket.socket) -> None:
        try:
            trio.run(self._beside, woken)
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            self._failure = error
        else:
            if not self._started.done():
                self._started.set_exception(KeyboardInterrupt())
        if not self._unmounted:
            # libfuse's loop would go on with nobody behind it: this is how it is told.
            os.kill(os.getpid(), signal.SIGTERM)

    async def _beside(self, woken: socket.socket) -> None:
        self._end = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        options = self._options
        with self._scope:
            async with _client(options, self._master) as (client, root):
                async with trio.open_nursery() as nursery:
                    vfs = _file_system(client, nursery, root, options, "fusepy")
                    bridge = Bridge(nursery)
                    nursery.start_soon(_heed_profile_signal, woken, vfs)
                    self._started.set_result((bridge, vfs))
                    await self._end.wait()
                    bridge.close()
                    nursery.cancel_scope.cancel()
                if options.profile:
                    _report(vfs)


async def _heed_profile_signal(woken: socket.socket, vfs: Vfs) -> None:
    while True:
        await trio.lowlevel.wait_readable(woken)
        # A byte for each signal: its number.
        if _PROFILE in woken.recv(4096):
            _report(vfs)
