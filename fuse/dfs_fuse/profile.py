"""Counts and times of a mount's operations, always on: two clock readings each.

`dfs mount --profile` and SIGUSR1 show the table. Counts may be a few short where FUSE's threads
collide: that is cheaper than a lock in each operation.
"""

import time
from typing import Final

_MS: Final = 1e6


class _Operation:
    __slots__ = ("count", "errors", "slowest_ns", "total_ns")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total_ns = 0
        self.slowest_ns = 0


class Profile:
    """Owned by the vfs; the drivers call `done` for each request of the kernel."""

    def __init__(self) -> None:
        self._operations: dict[str, _Operation] = {}
        self._since = time.monotonic()

    def done(self, name: str, started_ns: int, *, failed: bool = False) -> None:
        """An operation has ended that began at `started_ns` of `time.perf_counter_ns`."""
        took = time.perf_counter_ns() - started_ns
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations.setdefault(name, _Operation())
        operation.count += 1
        operation.errors += failed
        operation.total_ns += took
        operation.slowest_ns = max(operation.slowest_ns, took)

    def count(self, name: str) -> None:
        """An operation has ended that took no time worth to be measured."""
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations.setdefault(name, _Operation())
        operation.count += 1

    def report(self) -> str:
        """A table, the operations that took longest in all first."""
        elapsed = time.monotonic() - self._since
        lines = [
            f"operations in {elapsed:.0f} s:",
            f"{'':12} {'count':>10} {'refused':>8} {'mean ms':>9} {'max ms':>9} {'total s':>9}",
        ]
        by_time = sorted(self._operations.items(), key=lambda item: -item[1].total_ns)
        for name, each in by_time:
            lines.append(
                f"{name:12} {each.count:10,} {each.errors:8,} "
                f"{each.total_ns / each.count / _MS:9.3f} {each.slowest_ns / _MS:9.1f} "
                f"{each.total_ns / 1e9:9.2f}"
            )
        return "\n".join(lines)
