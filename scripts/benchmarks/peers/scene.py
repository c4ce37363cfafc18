"""What workloads get: a mounted system, how much to do, and clients that remember nothing."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.peers.processes import Processes
from scripts.benchmarks.peers.system import System

Figures = Iterator[tuple[str, float]]
"""Names of rows, with what was measured."""


@dataclass(frozen=True)
class Sizes:
    """How much is done. Figures are rates, so that a smaller one only makes them less certain."""

    stream_mib: int
    seconds: float
    """Of each part that is bounded by time: random reads, synced writes."""
    files: int
    resident_files: int
    text_mib: int
    kill_mib: int
    upload_mib: int
    upload_files: int

    @classmethod
    def at(cls, scale: float) -> "Sizes":
        """Not below what a figure needs to mean something."""

        def part(full: int, least: int) -> int:
            return max(least, round(full * scale))

        return cls(
            stream_mib=part(2048, 32),
            seconds=max(1.0, min(5.0, 5 * scale)),
            files=part(4000, 100),
            resident_files=part(100_000, 1000),
            text_mib=part(256, 8),
            kill_mib=part(1000, 48),
            upload_mib=part(1024, 32),
            upload_files=part(20_000, 200),
        )


@dataclass
class Scene:
    """One column, running."""

    system: System
    processes: Processes
    sizes: Sizes
    scratch: Path
    """On the same disk as the servers' data, for what is copied to and from them."""
    directory: Path
    """Below the mount: empty at first, and another in each round."""

    def fresh_client(self, *, cold: bool = True) -> None:
        """Mount anew; `cold` also takes from the servers what the kernel keeps for them."""
        self.system.unmount()
        if cold:
            drop_caches()
        self.system.mount()


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def forget_pages(path: Path) -> None:
    """Take a file's pages from the kernel's cache of its mount."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


Workload = Callable[[Scene], Figures]
