"""What a mount needs of the machine and of its point, looked at before anything is started.

Each thing that lacks is one `DfsError` that says what to do; libfuse's own words come late, and
on standard error only.
"""

import ctypes
import ctypes.util
import errno
import importlib
import os
import shutil
import stat
from contextlib import suppress
from typing import Final, Literal

from dfs.core.errors import DfsError
from dfs_fuse.about import ASK_S, NoAnswerError, ask
from dfs_fuse.mount_table import Mount, mounted_at, shown
from dfs_fuse.options import MountOptions

_DEVICE: Final = "/dev/fuse"
_FUSE_CONF: Final = "/etc/fuse.conf"
_CAP_SYS_ADMIN: Final = 21

ChosenDriver = Literal["fusepy", "pyfuse3"]


def check(options: MountOptions) -> ChosenDriver:
    """The driver to mount with. Raises DfsError: what lacks, and what to do about it."""
    check_point(options.point)
    check_machine(options)
    return choose_driver(options.driver)


# -------------------------------------------------------------- the point


def check_point(point: str) -> None:
    """Raises DfsError where nothing can be mounted at `point`."""
    mounted = mounted_at(point)
    if mounted is not None and mounted.is_dfs:
        raise _already(mounted)
    name = shown(point)
    try:
        found = os.stat(point)
        entries = os.listdir(point) if stat.S_ISDIR(found.st_mode) else []
    except FileNotFoundError:
        raise DfsError(
            f"{name}: no such directory", errno=errno.ENOENT, hint=f"make it: mkdir -p {name}"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise DfsError(
                f"{name}: a dead mount is here ({mounted.kind if mounted else 'unknown'})",
                errno=errno.ENOTCONN,
                hint=f"clear it: umount -l {name}",
            ) from None
        raise DfsError(f"{name}: {error.strerror}", errno=error.errno) from None
    if not stat.S_ISDIR(found.st_mode):
        raise DfsError(
            f"{name}: not a directory", errno=errno.ENOTDIR, hint="mount on an empty directory"
        )
    if entries:
        raise DfsError(
            f"{name}: not empty (it holds {shown(entries[0])})",
            errno=errno.ENOTEMPTY,
            hint="what it holds would be hidden: mount on an empty directory",
        )


def _already(mounted: Mount) -> DfsError:
    """Why nothing is mounted on a dfs mount."""
    name = shown(mounted.point)
    try:
        ask(mounted.point, ASK_S)
    except NoAnswerError:
        return DfsError(
            f"{name}: already mounted ({mounted.source}), and it does not answer",
            errno=errno.EBUSY,
            hint=f"`dfs umount --force {name}` ends it",
        )
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return DfsError(
                f"{name}: the process of the mount here has gone",
                errno=errno.ENOTCONN,
                hint=f"`dfs umount {name}` clears it, then mount again",
            )
    return DfsError(
        f"{name}: already mounted ({mounted.source})",
        errno=errno.EBUSY,
        hint=f"`dfs umount {name}` first, or choose another directory",
    )


# -------------------------------------------------------------- the machine


def check_machine(options: MountOptions) -> None:
    """Raises DfsError where this process cannot mount anything, or not so."""
    _check_device()
    if os.geteuid() == 0:
        _check_capability()
    else:
        _check_user(options)


def _check_device() -> None:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise DfsError(
            f"no {_DEVICE} here",
            errno=errno.ENODEV,
            hint="`modprobe fuse` loads it; a container must be given it "
            "(docker run --device /dev/fuse --cap-add SYS_ADMIN)",
        ) from None
    except PermissionError:
        raise DfsError(
            f"no permission to use {_DEVICE}",
            errno=errno.EACCES,
            hint="mount as root, or have root run: chmod 666 /dev/fuse; a container must be "
            "given the device",
        ) from None
    except OSError as error:
        raise DfsError(
            f"{_DEVICE}: {error.strerror}",
            errno=error.errno,
            hint="the kernel has no FUSE: `modprobe fuse` as root",
        ) from None


def _check_capability() -> None:
    if not _may_mount():
        raise DfsError(
            "no permission to mount: root here lacks the capability CAP_SYS_ADMIN",
            errno=errno.EPERM,
            hint="a container must be given it (docker run --cap-add SYS_ADMIN)",
        )


def _may_mount() -> bool:
    with suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return True


def _check_user(options: MountOptions) -> None:
    if fusermount() is None:
        raise DfsError(
            "no permission to mount: that takes root, or the program fusermount3",
            errno=errno.EPERM,
            hint="on Debian and Ubuntu: apt-get install fuse3",
        )
    if not os.access(options.point, os.W_OK):
        raise DfsError(
            f"{shown(options.point)}: no permission to mount here",
            errno=errno.EACCES,
            hint="an ordinary user mounts on directories that he may write to",
        )
    if options.allow_other and not _others_allowed():
        raise DfsError(
            "no permission to mount with allow_other",
            errno=errno.EPERM,
            hint=f"root has to put a line `user_allow_other` into {_FUSE_CONF}",
        )


def fusermount() -> str | None:
    """The program that lets ordinary users mount; None where there is none."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _others_allowed() -> bool:
    with suppress(OSError), open(_FUSE_CONF, "rb") as lines:
        return any(line.strip() == b"user_allow_other" for line in lines)
    return False


# -------------------------------------------------------------- the driver


def choose_driver(wanted: str) -> ChosenDriver:
    """`auto` is pyfuse3 where it can be imported. Raises DfsError where a driver cannot run."""
    if wanted != "fusepy":
        try:
            # By name: the module belongs to its driver, and is wanted there in a moment.
            importlib.import_module("pyfuse3")
        except ImportError as error:
            if wanted == "pyfuse3":
                raise _no_pyfuse3(error) from None
        else:
            return "pyfuse3"
    if not _has_libfuse2():
        raise DfsError(
            "no libfuse 2 here, which the driver fusepy needs",
            errno=errno.ENODEV,
            hint="on Debian and Ubuntu: apt-get install libfuse2 fuse3",
        )
    return "fusepy"


def _no_pyfuse3(error: ImportError) -> DfsError:
    if isinstance(error, ModuleNotFoundError) and error.name == "pyfuse3":
        return DfsError(
            "the driver pyfuse3 is not installed",
            errno=errno.ENODEV,
            hint="apt-get install libfuse3-dev pkg-config gcc python3-dev, then "
            "pip install 'dfs[fuse3]'; or --driver fusepy",
        )
    return DfsError(
        f"the driver pyfuse3 cannot be loaded: {error}",
        errno=errno.ENODEV,
        hint="on Debian and Ubuntu: apt-get install libfuse3-3; or --driver fusepy",
    )


def _has_libfuse2() -> bool:
    """Whether fusepy will find it: it looks no further than this."""
    path = os.environ.get("FUSE_LIBRARY_PATH")
    for name in [path] if path else ["libfuse.so.2", ctypes.util.find_library("fuse")]:
        if name:
            with suppress(OSError):
                ctypes.CDLL(name)
                return True
    return False
