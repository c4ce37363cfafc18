"""What is done to a cluster while a program runs on its mount: a chunk server killed, a new mount.

The server is started again afterwards, and all must be UP before the next program begins.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scripts.conformance.grounds import Ground, World

PAUSE_MAX_S: Final = 5.0
"""No longer may a program have to wait when a server is killed."""
_VICTIM: Final = "cs2"


@contextlib.contextmanager
def killed_after(here: World, delay_s: float) -> Iterator[None]:
    """A chunk server is killed `delay_s` after the start, and back at the end."""
    timer = threading.Timer(delay_s, here.cluster.kill, [_VICTIM])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        was_killed = not here.cluster.servers[_VICTIM].alive
        if was_killed:
            here.cluster.restart(_VICTIM)
    if not was_killed:
        raise RuntimeError(f"it ended within {delay_s:g} s, before a server could be killed")


def fresh(ground: Ground, name: str) -> Path:
    directory = ground.directory / name
    directory.mkdir()
    return directory


def remount(here: World, ground: Ground) -> None:
    """What is read from now on comes from the servers, not from a cache."""
    here.umount(ground.driver)
    here.mount(ground.driver)
