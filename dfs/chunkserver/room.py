"""The room of one disk: what dfs has stored there, and what it may still store.

Claimed by worker threads before they write, so that concurrent writers together keep the reserve.
"""

import os
import threading
import time

import msgspec

from dfs.core.errors import NoSpaceError

_GIB = 1024**3
_FRESH_S = 0.1
"""So long the file system need not be asked again, where it had plenty."""
_PLENTY_BYTES = 256 * 1024**2
"""More than other programs take meanwhile."""
_BEYOND_MOST_BYTES = 128 * 1024**2
"""Upkeep may go so far beyond a capacity that is set: two chunks."""


class Reserve(msgspec.Struct, frozen=True):
    """Free space of the file system that client data never takes.

    Kept for what must work on a full disk: fragments that are moved or made anew (these leave a
    quarter of it), index footers, the disk's own files, other programs.
    """

    fraction: float = 0.01
    """Of the file system's size."""
    least_bytes: int = 256 * 1024**2
    most_bytes: int = 32 * _GIB

    def of(self, total_bytes: int) -> int:
        return max(self.least_bytes, min(self.most_bytes, int(total_bytes * self.fraction)))


class Room:
    """Thread-safe."""

    def __init__(self, path: str, *, capacity_bytes: int | None, reserve: Reserve) -> None:
        """`capacity_bytes`: dfs stores no more than this here, or None for what the disk has."""
        self._path = path
        self._capacity_bytes = capacity_bytes
        self._reserve = reserve
        self._lock = threading.Lock()
        self._used = 0
        self._free = 0
        self._asked_at = -_FRESH_S

    @property
    def used_bytes(self) -> int:
        """Size of all fragment files."""
        return self._used

    @property
    def free_bytes(self) -> int:
        """What dfs may still store, as of the last `refresh` or `claim`. Does not block."""
        return self._free

    def refresh(self) -> None:
        """Ask the file system. Blocks; raises OSError where it does not answer."""
        status = os.statvfs(self._path)
        with self._lock:
            self._learn(status)

    def _learn(self, status: os.statvfs_result) -> None:
        self._free = self._available(status)[0]
        self._asked_at = time.monotonic()

    def claim(self, count: int) -> None:
        """Take room for `count` bytes that are about to be written; negative gives it back.

        Raises:
            NoSpaceError: they would not leave the reserve, or exceed the capacity.
        """
        self._claim(count, upkeep=False)

    def claim_upkeep(self, count: int) -> None:
        """As `claim`, for fragments that are moved or made anew.

        These may use most of the reserve, and go a little beyond the capacity: on disks that are
        full, room is made by writing first what is still needed of chunks.
        """
        self._claim(count, upkeep=True)

    def _claim(self, count: int, *, upkeep: bool) -> None:
        if count <= 0:
            self.account(count)
            return
        if self._free >= count + _PLENTY_BYTES and time.monotonic() < self._asked_at + _FRESH_S:
            self.account(count)
            return
        status = os.statvfs(self._path)  # before the lock: a hung disk must not hold it
        with self._lock:
            self._learn(status)
            free, rule = self._available(status, upkeep=upkeep)
            if free < count:
                raise NoSpaceError(
                    f"disk {self._path} is full: {free} bytes may still be written, "
                    f"{count} are needed; {rule}",
                    hint="delete files, add disks or servers",
                )
            self._used += count
            self._free = max(0, self._free - count)

    def account(self, count: int) -> None:
        """Note that the files grew (or shrank) by `count` bytes, whatever the room."""
        with self._lock:
            self._used += count
            self._free = max(0, self._free - count)

    def _available(self, status: os.statvfs_result, *, upkeep: bool = False) -> tuple[int, str]:
        """Bytes that may still be written, and the rule that bounds them."""
        reserve = self._reserve.of(status.f_blocks * status.f_frsize)
        if upkeep:
            reserve //= 4
        free = status.f_bavail * status.f_frsize - reserve
        rule = f"a reserve of {reserve} bytes is kept on its file system"
        if status.f_files and status.f_favail == 0:
            free, rule = 0, "its file system has no inodes left"
        if self._capacity_bytes is not None:
            beyond = min(_BEYOND_MOST_BYTES, self._capacity_bytes // 4) if upkeep else 0
            if self._capacity_bytes + beyond - self._used < free:
                free = self._capacity_bytes + beyond - self._used
                rule = f"its capacity is set to {self._capacity_bytes} bytes"
        return max(0, free), rule
