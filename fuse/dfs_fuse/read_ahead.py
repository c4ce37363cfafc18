"""How far the kernel reads ahead of a program on a mount: more than the 128 KiB it begins with.

Each of its requests is then as large as the driver can have it, or several are under way. The
number belongs to the kernel's device of the mount; only root may set it, and the kernel itself
sets it when it has had the driver's first answer, so it is set again a moment later.
"""

import logging
from pathlib import Path
from typing import Final

import trio

from dfs_fuse.mount_table import mounted_at

READ_AHEAD_KIB: Final = {"fusepy": 512, "pyfuse3": 1024}
"""Requests are of 128 KiB and 1 MiB."""
_WAITS_S: Final = (0.1, 0.4, 1.5, 5.0)

log = logging.getLogger(__name__)


async def widen_read_ahead(point: str, kib: int) -> None:
    """See the module. Never fails: without, it is slower."""
    for wait_s in _WAITS_S:
        await trio.sleep(wait_s)
        try:
            _set(point, kib)
        except (OSError, ValueError) as error:
            log.debug("%s reads ahead as little as before: %s", point, error)
            return


def _set(point: str, kib: int) -> None:
    mount = mounted_at(point)
    if mount is not None and mount.is_dfs:
        setting = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
        if int(setting.read_text()) < kib:
            setting.write_text(str(kib))
