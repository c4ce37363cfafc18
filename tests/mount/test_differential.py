"""A Hypothesis machine does the same to a directory of the mount and to a plain local one.

Results, errnos, contents and attributes must agree at each step, after a remount, as a second
mount (of the other driver) sees them when all is closed, and while a chunk server dies and comes
back. Each example has a directory of its own; the cluster and the mounts are shared by all.
"""

import ctypes
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final

import hypothesis
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.cluster import Cluster
from tests.mount.conftest import DRIVERS, Mount, Mounts, mounts_of

POLICIES: Final = {"rep2": "rep:2", "ec21": "ec:2+1"}
EXAMPLES: Final = 12
"""A second each, or two."""
LONG_EXAMPLES: Final = 500
STEPS: Final = 50
_MORTAL: Final = "cs1"
"""The one server that dies in these tests: no two fragments of a chunk are ever away."""
_USER: Final = 1001
_LOCAL: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_NOW_WITHIN_NS: Final = 30 * 10**9
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100

_libc = ctypes.CDLL(None, use_errno=True)

NAMES: Final = (b"a", b"b", b"c", b"\xff\n name")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
users = st.sampled_from((0, 0, 0, _USER))
modes = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o400, 0o2755, 0o4755, 0o6777, 0o1777, 0))
_EDGES: Final = (0, 1, 511, 4095, 4096, 4097, 65536, 131071, 131072, 131073, 262144, 400_001)
offsets = st.one_of(st.sampled_from(_EDGES), st.integers(0, 300_000))
sizes = st.one_of(st.integers(0, 9000), st.sampled_from(_EDGES))
indexes = st.integers(0, 1000)
seeds = st.integers(0, 255)
moments = st.sampled_from(
    (0, 1, 999_999_999, 1_000_000_000_123_456_789, 1_234_567_890_000_000_007, 4 * 10**18 + 1)
)
now_and_then = st.sampled_from((False, False, False, False, True))

Outcome = tuple[str, Any]


def outcome(function: Callable[..., Any], *args: Any) -> Outcome:
    """What the call gives, or the name of its error."""
    try:
        return ("gives", function(*args))
    except OSError as error:
        return ("refused", errno.errorcode[error.errno or 0])


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    if user == 0 or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(_AT_FDCWD, path, times, _AT_SYMLINK_NOFOLLOW):
        raise OSError(ctypes.get_errno(), "utimensat")


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@dataclass(frozen=True)
class Attributes:
    kind: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    """Of files and symlinks; what a directory's is, is its file system's choice."""
    mtime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> "Attributes":
        kind = stat.S_IFMT(info.st_mode)
        return cls(
            kind,
            stat.S_IMODE(info.st_mode),
            info.st_nlink,
            info.st_uid,
            info.st_gid,
            0 if kind == stat.S_IFDIR else info.st_size,
            _moment(info.st_mtime_ns),
        )


def _moment(time_ns: int) -> int:
    """A time as it is, but -1 for all those that are about now."""
    return -1 if abs(time.time_ns() - time_ns) < _NOW_WITHIN_NS else time_ns


def xattrs(path: bytes | int) -> dict[str, bytes]:
    follow = isinstance(path, int)
    return {
        name: os.getxattr(path, name, follow_symlinks=follow)
        for name in os.listxattr(path, follow_symlinks=follow)
        if name.startswith("user.")
    }


def lookup(path: bytes) -> Any:
    """All that can be seen of what is there, but for bytes."""
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        # Its size is not compared, its listing is.
        with os.scandir(path) as listing:
            more: Any = sorted((each.name, each.is_dir(follow_symlinks=False)) for each in listing)
    elif stat.S_ISLNK(info.st_mode):
        more = os.readlink(path)
    else:
        more = None
    return Attributes.of(info), more, xattrs(path)


def tree(root: bytes) -> dict[bytes, Any]:
    """Everything under `root`, with contents; hard links by the first of their names."""
    found: dict[bytes, Any] = {b".": lookup(root)}
    first: dict[int, bytes] = {}
    for directory, names, files in os.walk(root):
        for name in sorted((*names, *files)):
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, root)
            attributes, *_ = seen = lookup(path)
            data = b""
            if attributes.kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    data = file.read()
            same_as = first.setdefault(os.lstat(path).st_ino, relative)
            found[relative] = (seen, data, same_as if attributes.kind == stat.S_IFREG else None)
    return found


def assert_same(mounted: Any, local: Any) -> None:
    """Trees; says what differs and no more."""
    if mounted == local:
        return
    lines = [
        f"{path!r}:\n  mounted {_short(mounted.get(path))}\n  local   {_short(local.get(path))}"
        for path in sorted(mounted.keys() | local.keys())
        if mounted.get(path) != local.get(path)
    ]
    raise AssertionError("\n".join(lines))


def _short(seen: Any) -> str:
    if isinstance(seen, tuple) and len(seen) == 3 and isinstance(seen[1], bytes):
        return f"{seen[0]} {len(seen[1])} bytes, hash {hash(seen[1])}, first name {seen[2]!r}"
    return repr(seen)


@dataclass
class Handle:
    mounted: int
    local: int
    flags: int
    user: int


def _all_of(descriptor: int) -> tuple[Attributes, Outcome | None]:
    """What an open file shows."""
    attributes = Attributes.of(os.fstat(descriptor))
    if attributes.kind != stat.S_IFREG:
        return attributes, None
    return attributes, outcome(os.pread, descriptor, attributes.size + 1, 0)


class Environment:
    """What all examples of a driver share."""

    def __init__(self, mounts: Mounts, local: Path) -> None:
        self.cluster = mounts.cluster
        self.mounts = mounts
        self.driver = mounts.driver
        self.process, self.mount = mounts.foreground()
        other = DRIVERS[1 - DRIVERS.index(mounts.driver)]
        _, self.observer = mounts.foreground(
            "--driver", other, "-o", "attr_cache=0", name="observer"
        )
        self.local = local
        self.policy = ""
        self.numbers = count(1)

    def remount(self) -> None:
        self.process.signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.process.log_tail()
        self.process, self.mount = self.mounts.foreground()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("differential") / "cluster", servers=4) as cluster:
        for name, redundancy in POLICIES.items():
            cluster.dfs("policy", "create", name, "--redundancy", redundancy)
            cluster.dfs("mkdir", f"/{name}")
            cluster.dfs("policy", "set", f"/{name}", name)
        yield cluster


@pytest.fixture(scope="module", params=DRIVERS)
def environment(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Environment]:
    """In a directory that every user may pass through, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir=_LOCAL, prefix="dfs-test-") as directory:
        os.chmod(directory, 0o711)
        local = Path(directory, "local")
        local.mkdir()
        with mounts_of(cluster, Path(directory, "mounts"), request.param) as mounts:
            environment = Environment(mounts, local)
            yield environment
            mounts.broken = cluster.broken


class Machine(RuleBasedStateMachine):
    environment: ClassVar[Environment]

    def __init__(self) -> None:
        super().__init__()
        env = self.environment
        name = f"{next(env.numbers)}"
        self.relative = Path(env.policy, name)
        self.mounted = os.fsencode(env.mount.point / self.relative)
        self.local = os.fsencode(env.local / name)
        self.handles: list[Handle] = []
        self.failed = False
        self.remounts = 0
        self.deaths = 0
        for root in (self.mounted, self.local):
            os.mkdir(root)
            os.chmod(root, 0o777)

    # ---------------------------------------------------------------- both at once

    def both(self, user: int, function: Callable[..., Any], *args: Any) -> Outcome:
        """`function(root, *args)` in both places, by `user`; their outcome, which is the same."""
        with acting_as(user):
            mounted = outcome(function, self.mounted, *args)
            local = outcome(function, self.local, *args)
        return self.agreed(mounted, local)

    def on_path(self, user: int, function: Callable[..., Any], path: bytes, *args: Any) -> Outcome:
        return self.both(user, lambda root: function(root + b"/" + path, *args))

    def on_handle(self, index: int, function: Callable[..., Any], *args: Any) -> Outcome:
        handle = self.handles[index % len(self.handles)]
        mounted = outcome(function, handle.mounted, *args)
        local = outcome(function, handle.local, *args)
        return self.agreed(mounted, local)

    def agreed(self, mounted: Outcome, local: Outcome) -> Outcome:
        if mounted != local:
            self.failed = True
            raise AssertionError(f"mounted {mounted!r:.500}, local {local!r:.500}")
        return local

    def close_all(self) -> None:
        while self.handles:
            self.close(0)

    def check(self) -> None:
        self.compare_trees(self.environment.mount)
        for index in range(len(self.handles)):
            self.on_handle(index, _all_of)

    def compare_trees(self, mount: Mount) -> None:
        try:
            assert_same(tree(os.fsencode(mount.point / self.relative)), tree(self.local))
        except BaseException:
            self.failed = True
            raise

    @initialize(data=st.lists(st.tuples(paths, sizes), max_size=3))
    def begin(self, data: list[tuple[bytes, int]]) -> None:
        """Some files to begin with, so that not each example has to invent them."""
        for path, size in data:
            for root in (self.mounted, self.local):
                full = root + b"/" + path
                with suppress(FileExistsError, NotADirectoryError):
                    os.makedirs(os.path.dirname(full), exist_ok=True)
                    with suppress(IsADirectoryError):
                        with open(full, "wb") as file:
                            file.write(content(size, size))

    # ---------------------------------------------------------------- files

    @rule(
        path=paths,
        user=users,
        access=st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)),
        more=st.sets(st.sampled_from((os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND))),
        mode=modes,
    )
    def open(self, path: bytes, user: int, access: int, more: set[int], mode: int) -> None:
        flags = access | os.O_NONBLOCK
        for each in more:
            flags |= each
        if os.O_EXCL in more:
            flags |= os.O_CREAT
        opened: list[int] = []

        def open_it(full: bytes) -> str:
            by_path = os.path.exists(full) and not os.path.isfile(full)
            if self.environment.driver == "fusepy" and by_path:
                # libfuse 2 knows open directories, FIFOs and sockets by their path only.
                return "not a file"
            opened.append(os.open(full, flags, mode))
            return "opened"

        try:
            self.on_path(user, open_it, path)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        if opened:
            self.handles.append(Handle(opened[0], opened[1], flags, user))

    @precondition(lambda self: self.handles)
    @rule(index=indexes)
    def close(self, index: int) -> None:
        handle = self.handles.pop(index % len(self.handles))
        self.agreed(outcome(os.close, handle.mounted), outcome(os.close, handle.local))

    @precondition(lambda self: self.handles)
    @rule(index=indexes, offset=offsets, size=sizes)
    def pread(self, index: int, offset: int, size: int) -> None:
        self.on_handle(index, os.pread, size, offset)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, user=users, offset=offsets, size=sizes, seed=seeds)
    def pwrite(self, index: int, user: int, offset: int, size: int, seed: int) -> None:
        # What root writes through a file that a user opened is written with the user's rights.
        with acting_as(user or self.handles[index % len(self.handles)].user):
            self.on_handle(index, os.pwrite, content(seed, size), offset)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, size=sizes)
    def read(self, index: int, size: int) -> None:
        self.on_handle(index, os.read, size)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, size=sizes, seed=seeds)
    def write(self, index: int, size: int, seed: int) -> None:
        with acting_as(self.handles[index % len(self.handles)].user):
            self.on_handle(index, os.write, content(seed, size))

    @precondition(lambda self: self.handles)
    @rule(index=indexes, offset=st.integers(-10, 10), whence=st.sampled_from((0, 1, 2)))
    def seek(self, index: int, offset: int, whence: int) -> None:
        handle = self.handles[index % len(self.handles)]
        if stat.S_ISREG(os.fstat(handle.local).st_mode):
            self.on_handle(index, os.lseek, offset, whence)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, size=offsets)
    def ftruncate(self, index: int, size: int) -> None:
        self.on_handle(index, os.ftruncate, size)

    @rule(path=paths, user=users, size=offsets)
    def truncate(self, path: bytes, user: int, size: int) -> None:
        def truncate(full: bytes) -> None:
            before = os.stat(full).st_size
            os.truncate(full, size)
            if before == size:
                # Whether that is a change of the file is a file system's choice.
                with acting_as(0):
                    os.utime(full, ns=(0, 0))

        self.on_path(user, truncate, path)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, offset=offsets, size=st.integers(1, 200_000), keep=st.booleans())
    def fallocate(self, index: int, offset: int, size: int, keep: bool) -> None:
        def fallocate(descriptor: int) -> None:
            if _libc.fallocate(descriptor, int(keep), ctypes.c_long(offset), ctypes.c_long(size)):
                raise OSError(ctypes.get_errno(), "fallocate")

        handle = self.handles[index % len(self.handles)]
        if outcome(fallocate, handle.mounted) != ("refused", "ENOTSUP"):
            self.on_handle(index, fallocate)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, only_data=st.booleans())
    def fsync(self, index: int, only_data: bool) -> None:
        self.on_handle(index, os.fdatasync if only_data else os.fsync)

    @precondition(lambda self: self.handles)
    @rule(index=indexes)
    def fstat(self, index: int) -> None:
        self.on_handle(index, lambda descriptor: Attributes.of(os.fstat(descriptor)))

    @precondition(lambda self: self.handles)
    @rule(index=indexes, mode=modes)
    def fchmod(self, index: int, mode: int) -> None:
        self.on_handle(index, os.fchmod, mode)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, at=st.none() | moments)
    def futime(self, index: int, at: int | None) -> None:
        def utime(descriptor: int) -> None:
            if at is None:
                os.utime(descriptor)
            else:
                os.utime(descriptor, ns=(at, at))

        self.on_handle(index, utime)

    @precondition(lambda self: self.handles)
    @rule(index=indexes, offset=offsets, size=sizes, seed=seeds, flush=st.booleans())
    def map(self, index: int, offset: int, size: int, seed: int, flush: bool) -> None:
        """Read the whole of a mapping, and write some of it."""
        handle = self.handles[index % len(self.handles)]
        info = os.fstat(handle.local)
        if handle.flags & os.O_WRONLY or not stat.S_ISREG(info.st_mode) or not info.st_size:
            return
        writable = handle.flags & os.O_ACCMODE == os.O_RDWR
        start = offset % info.st_size
        data = content(seed, size)[: info.st_size - start]

        def use(descriptor: int) -> bytes:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            with mmap.mmap(descriptor, info.st_size, access=access) as mapped:
                before = mapped[:]
                if writable:
                    mapped[start : start + len(data)] = data
                    assert os.pread(descriptor, len(data), start) == data
                    if flush:
                        mapped.flush()
            return before

        self.on_handle(index, use)
        if writable:
            # When a mapping's write counts as one, POSIX leaves open.
            self.on_handle(index, os.fsync)
            self.on_handle(index, lambda descriptor: os.utime(descriptor, ns=(5, 5)))

    # ---------------------------------------------------------------- names

    @rule(path=paths, user=users)
    def look(self, path: bytes, user: int) -> None:
        self.on_path(user, lambda full: Attributes.of(os.lstat(full)), path)

    @rule(path=paths, user=users)
    def listdir(self, path: bytes, user: int) -> None:
        self.on_path(user, lambda full: sorted(os.listdir(full)), path)

    @rule(path=paths, user=users, mode=st.integers(0, 7))
    def access(self, path: bytes, user: int, mode: int) -> None:
        self.on_path(user, lambda full: os.access(full, mode, effective_ids=True), path)

    @rule(path=paths, user=users)
    def read_file(self, path: bytes, user: int) -> None:
        def read_file(full: bytes) -> bytes:
            if stat.S_ISFIFO(os.stat(full).st_mode):
                return b""
            with open(full, "rb") as file:
                return file.read()

        self.on_path(user, read_file, path)

    @rule(path=paths, user=users, mode=modes)
    def mkdir(self, path: bytes, user: int, mode: int) -> None:
        self.on_path(user, os.mkdir, path, mode)

    @rule(path=paths, user=users)
    def rmdir(self, path: bytes, user: int) -> None:
        self.on_path(user, os.rmdir, path)

    @rule(path=paths, user=users)
    def unlink(self, path: bytes, user: int) -> None:
        self.on_path(user, os.unlink, path)

    @rule(old=paths, new=paths, user=users)
    def rename(self, old: bytes, new: bytes, user: int) -> None:
        self.both(user, lambda root: os.rename(root + b"/" + old, root + b"/" + new))

    @rule(old=paths, new=paths, flags=st.sampled_from((_RENAME_NOREPLACE, _RENAME_EXCHANGE)))
    def rename_otherwise(self, old: bytes, new: bytes, flags: int) -> None:
        if self.environment.driver == "pyfuse3":
            self.both(0, lambda root: renameat2(root + b"/" + old, root + b"/" + new, flags))

    @rule(old=paths, new=paths, user=users)
    def link(self, old: bytes, new: bytes, user: int) -> None:
        def link(root: bytes) -> None:
            os.link(root + b"/" + old, root + b"/" + new, follow_symlinks=False)

        self.both(user, link)

    @rule(path=paths, user=users, to=paths | st.just(b".") | st.just(b"/no/such/thing"))
    def symlink(self, path: bytes, user: int, to: bytes) -> None:
        self.both(user, lambda root: os.symlink(to, root + b"/" + path))

    @rule(path=paths, user=users, mode=modes)
    def mkfifo(self, path: bytes, user: int, mode: int) -> None:
        self.on_path(user, os.mkfifo, path, mode)

    # ---------------------------------------------------------------- attributes

    @rule(path=paths, user=users, mode=modes)
    def chmod(self, path: bytes, user: int, mode: int) -> None:
        self.on_path(user, os.chmod, path, mode)

    @rule(
        path=paths,
        user=users,
        uid=st.sampled_from((-1, 0, _USER)),
        gid=st.sampled_from((-1, 0, _USER)),
    )
    def chown(self, path: bytes, user: int, uid: int, gid: int) -> None:
        self.on_path(user, os.lchown, path, uid, gid)

    @rule(
        path=paths,
        user=users,
        atime=st.none() | moments,
        mtime=st.none() | moments,
        now=st.booleans(),
    )
    def utime(
        self, path: bytes, user: int, atime: int | None, mtime: int | None, now: bool
    ) -> None:
        def spec(at: int | None) -> tuple[int, int]:
            if at is None:
                return (0, _UTIME_NOW if now else _UTIME_OMIT)
            return divmod(at, 10**9)

        def utime(full: bytes) -> int:
            utimensat(full, spec(atime), spec(mtime))
            return 0 if atime is None else os.lstat(full).st_atime_ns

        self.on_path(user, utime, path)

    @rule(
        path=paths,
        user=users,
        name=st.sampled_from(("user.one", "user.two")),
        value=st.binary(max_size=100),
        flags=st.sampled_from((0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, path: bytes, user: int, name: str, value: bytes, flags: int) -> None:
        self.on_path(user, os.setxattr, path, name, value, flags)

    @rule(path=paths, user=users, name=st.sampled_from(("user.one", "user.two")))
    def removexattr(self, path: bytes, user: int, name: str) -> None:
        self.on_path(user, os.removexattr, path, name)

    @rule(path=paths, user=users, name=st.sampled_from(("user.one", "user.two")))
    def getxattr(self, path: bytes, user: int, name: str) -> None:
        self.on_path(user, os.getxattr, path, name)

    # ---------------------------------------------------------------- all of it

    @rule()
    def compare_all(self) -> None:
        self.check()

    @rule()
    def compare_elsewhere(self) -> None:
        """Close-to-open: what is closed is what every other mount opens."""
        self.close_all()
        self.compare_trees(self.environment.observer)

    @precondition(lambda self: self.remounts < 1)
    @rule(really=now_and_then)
    def remount(self, really: bool) -> None:
        if really:
            self.remounts += 1
            self.close_all()
            self.environment.remount()
            self.check()

    @precondition(lambda self: self.deaths < 1)
    @rule(really=now_and_then)
    def kill_a_server(self, really: bool) -> None:
        if really:
            self.deaths += 1
            self.environment.cluster.kill(_MORTAL)

    @precondition(lambda self: not self.environment.cluster.servers[_MORTAL].alive)
    @rule()
    def restart_it(self) -> None:
        self.environment.cluster.restart(_MORTAL)

    def teardown(self) -> None:
        cluster = self.environment.cluster
        try:
            if not self.failed:
                self.check()
                self.compare_elsewhere()
                shutil.rmtree(self.mounted)
                assert not os.path.lexists(self.mounted)
        finally:
            for handle in self.handles:
                for descriptor in (handle.mounted, handle.local):
                    with suppress(OSError):
                        os.close(descriptor)
            shutil.rmtree(self.local)
            if not cluster.servers[_MORTAL].alive:
                cluster.restart(_MORTAL)


def run_machine(environment: Environment, policy: str, *, examples: int, steps: int) -> None:
    environment.policy = policy
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )
    machine = type("Machine", (Machine,), {"environment": environment})
    run_state_machine_as_test(machine, settings=settings)


@pytest.mark.time_limit(400)  # a failure is made small before it is shown
@pytest.mark.parametrize("policy", POLICIES)
def test_the_mount_does_what_a_local_directory_does(environment: Environment, policy: str) -> None:
    run_machine(environment, policy, examples=EXAMPLES, steps=STEPS)


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_the_mount_does_so_at_length(environment: Environment, policy: str) -> None:
    run_machine(environment, policy, examples=LONG_EXAMPLES, steps=2 * STEPS)
