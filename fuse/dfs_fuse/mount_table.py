"""The kernel's table of mounts, as this process sees it, and paths as they are named there.

Reads /proc/self/mountinfo only, so that nothing here waits for a mount which does not answer.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dfs.client.remote_paths import show
from dfs_fuse.options import SUBTYPE

_TABLE: Final = "/proc/self/mountinfo"
_KIND: Final = f"fuse.{SUBTYPE}"
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table."""

    point: str
    kind: str
    """Such as ext4 or fuse.dfs."""
    source: str
    device: str
    """MAJOR:MINOR"""

    @property
    def minor(self) -> int:
        """Of its device number: the kernel's number of a FUSE connection."""
        return int(self.device.partition(":")[2])

    @property
    def is_dfs(self) -> bool:
        return self.kind == _KIND


def mounts() -> Iterator[Mount]:
    """All of them, the later on top of the earlier."""
    with open(_TABLE, "rb") as table:
        for line in table:
            yield _parse(line)


def _parse(line: bytes) -> Mount:
    # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - KIND SOURCE SUPEROPTIONS
    first, _, second = line.partition(b" - ")
    fields = first.split()
    kind, source = second.split(b" ")[:2]
    return Mount(_plain(fields[4]), _plain(kind), _plain(source), fields[2].decode())


def _plain(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))


def mounted_at(point: str) -> Mount | None:
    """What is mounted at this very point, the topmost; None where nothing is."""
    found = None
    for mount in mounts():
        if mount.point == point:
            found = mount
    return found


def mounted_below(point: str) -> list[str]:
    """Points of other mounts inside that one."""
    return [mount.point for mount in mounts() if mount.point.startswith(f"{point}/")]


def canonical(path: str) -> str:
    """A path as the table has it. Of a mount point no question is asked: it may be dead."""
    directory, name = os.path.split(os.path.abspath(path))
    point = os.path.join(os.path.realpath(directory), name)
    return point if mounted_at(point) else os.path.realpath(point)


def shown(point: str) -> str:
    """A local path on one line, for a message."""
    return show(os.fsencode(point))
