"""Bytes on the servers' disks for a byte of text that compresses as source code does."""

import os
import time
from collections.abc import Callable
from typing import Final

from scripts.benchmarks.harness import MIB, disk_bytes
from scripts.benchmarks.peers.scene import Figures, Scene
from scripts.benchmarks.space import gather_text

_SETTLES_S: Final = 30.0


def text(scene: Scene) -> Figures:
    """It comes first: what was deleted before would be cleared away meanwhile."""
    source, target = scene.scratch / "text", scene.directory / "text"
    size = gather_text(source, scene.sizes.text_mib * MIB)
    disks = scene.system.disks
    before = _settled(lambda: sum(map(disk_bytes, disks)))
    with open(source, "rb") as data, open(target, "wb", buffering=0) as file:
        while block := data.read(MIB):
            file.write(block)
        os.fsync(file.fileno())
    after = _settled(lambda: sum(map(disk_bytes, disks)))
    yield "text", (after - before) / size
    target.unlink()


def _settled(measure: Callable[[], int]) -> int:
    """The figure once it stays the same for two seconds."""
    end = time.monotonic() + _SETTLES_S
    last, since = -1, 0.0
    while True:
        os.sync()
        now = measure()
        if abs(now - last) > MIB // 16:
            last, since = now, time.monotonic()
        if time.monotonic() > min(since + 2, end):
            return now
        time.sleep(0.5)
