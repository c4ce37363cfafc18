"""Namespaces for one column: network, processes and mounts of its own, which end together.

Nothing has to be torn down by hand, and nothing else can be hit: when the first process of the
enclosure ends, for whatever reason, the kernel kills all others in it, its mounts go with the
last of them, and so does its network. It ends with this program, too, even if that is killed.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.benchmarks.harness import REPOSITORY, environment
from scripts.benchmarks.peers.system import ADDRESS, Program, missing

_PROGRAMS: Final = (
    Program("unshare", "util-linux"),
    Program("setpriv", "util-linux"),
    Program("ip", "iproute2"),
)
_ENDS_S: Final = 30.0
_ARGV: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc"),
    # A shell as the first process: it waits for those whose parents have ended.
    *("sh", "-c", '"$@"; exit $?', "sh"),
)
_HIDDEN: Final = ("/run", "/var/log", "/var/lib/glusterd")
"""Some systems keep sockets, locks and logs here, wherever they are told to live."""


def obstacles() -> str:
    """Why there can be no enclosure here; "" if there can."""
    if os.geteuid() != 0:
        return "mounts, namespaces and dropped caches need root: run it as root"
    return missing(_PROGRAMS)


def run_enclosed(argv: Sequence[str], timeout_s: float) -> int:
    """Run a command in an enclosure until it ends; its exit status.

    Raises:
        TimeoutError: it took too long, and was ended.
    """
    process = subprocess.Popen(
        [*_ARGV, *argv],
        stdin=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for this program, which then ends the enclosure
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done within {timeout_s:.0f} s, and ended") from None
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill `unshare`, which takes the enclosure's first process with it; wait for that.

    The first process of a PID namespace ends when all others in it have.
    """
    if process.poll() is not None:
        return
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    watched = [os.pidfd_open(int(pid)) for pid in children]
    process.kill()
    process.wait()
    ended, _, _ = select.select(watched, [], [], _ENDS_S)
    if len(ended) < len(watched):
        print(f"peers: a process does not end: {' '.join(children)}", file=sys.stderr)
    for fd in watched:
        os.close(fd)


def furnish() -> None:
    """In a new enclosure: a network with an address, and places that hide the machine's."""
    for argv in (
        ("ip", "link", "set", "lo", "up"),
        ("ip", "address", "add", f"{ADDRESS}/24", "dev", "lo"),
    ):
        subprocess.run(argv, check=True)
    for directory in _HIDDEN:
        if Path(directory).is_dir():
            subprocess.run(("mount", "-t", "tmpfs", "tmpfs", directory), check=True)
    Path("/run/lock").mkdir(exist_ok=True)


def wait_for_room(path: Path, needed_bytes: int) -> None:
    """Raises RuntimeError where the disk below `path` has less to spare, a moment later still."""
    for _ in range(10):
        stat = os.statvfs(path)
        if stat.f_bavail * stat.f_frsize >= needed_bytes:
            return
        time.sleep(1)
    raise RuntimeError(f"{path}: less than {needed_bytes >> 30} GiB free: try a smaller --scale")
