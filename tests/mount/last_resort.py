"""Ends the mounts below a directory when the test run that made them has gone, however it went.

    python -m tests.mount.last_resort DIRECTORY

Started by `mounts_of`. A run that was killed may itself be stuck in the kernel, closing files of a
mount that does not answer: so the processes behind the mounts are killed, which frees it.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from dfs_fuse.about import process_behind
from dfs_fuse.mount_table import mounts

_POLL_S = 1.0


def main(directory: str) -> None:
    parent = os.getppid()
    while os.getppid() == parent and _lives(parent):
        time.sleep(_POLL_S)
    for mount in mounts():
        if mount.is_dfs and mount.point.startswith(f"{directory}/"):
            pid = process_behind(mount)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["umount", "-l", mount.point], check=False)


def _lives(pid: int) -> bool:
    """Whether it still has a program: one that is about to end, and stuck there, has none."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
