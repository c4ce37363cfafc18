"""A server is killed while a client writes: what the writer notices, and when all is whole."""

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Final

from scripts.benchmarks.harness import MIB
from scripts.benchmarks.peers.scene import Figures, Scene

_WHOLE_LIMIT_S: Final = 180.0


def kill(scene: Scene) -> Figures:
    """It comes last: the system is one server short afterwards."""
    victims = scene.system.victims()
    if not victims:
        return
    path = scene.directory / "killed"
    pool = [random.Random(seed).randbytes(MIB) for seed in range(16)]
    written = hashlib.sha256()
    longest = killed_at = 0.0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        for number in range(scene.sizes.kill_mib):
            if number == scene.sizes.kill_mib // 3:
                # The one that got data last: it is sure to be in use.
                victim = max(victims, key=lambda pid: _newest(victims[pid]))
                os.kill(victim, signal.SIGKILL)
                killed_at = time.perf_counter()
            block = b"%016d" % number + pool[number % len(pool)][16:]
            written.update(block)
            begun = time.perf_counter()
            while block:
                block = block[os.write(fd, block) :]
            if killed_at:
                longest = max(longest, time.perf_counter() - begun)
        yield "kill-write", longest
        begun = time.perf_counter()
        os.fsync(fd)
        yield "kill-fsync", time.perf_counter() - begun
    finally:
        os.close(fd)
    while (whole := scene.system.is_whole()) is False:
        if time.perf_counter() > killed_at + _WHOLE_LIMIT_S:
            raise TimeoutError(f"not whole again {_WHOLE_LIMIT_S:.0f} s after the kill")
        time.sleep(0.5)
    if whole:
        yield "kill-whole", time.perf_counter() - killed_at
    scene.fresh_client()
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != written.digest():
            raise RuntimeError("what is read is not what was written")


def _newest(directory: Path) -> float:
    times = [0.0]
    for path in directory.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue  # it has just gone
    return max(times)
