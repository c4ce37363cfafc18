"""Who keeps a mount point busy, so that `dfs umount` can say it.

Looks at links in /proc only, and at nothing of the mount itself. Of other users' processes an
ordinary user sees nothing.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from dfs_fuse.mount_table import mounted_below, shown

_SHOWN_MAX: Final = 4
_HOLDS: Final = {"cwd": "works in", "root": "has as its root", "exe": "is run from"}


def describe(point: str) -> str:
    """Such as "bash (pid 12) works in /mnt/a, vim (pid 13) has /mnt/b open"."""
    found = [f"{shown(each)} is mounted inside" for each in mounted_below(point)]
    found += _processes(point)
    if not found:
        return "somebody uses it whom this user cannot see"
    more = len(found) - _SHOWN_MAX
    return ", ".join(found[:_SHOWN_MAX]) + (f", and {more} more" if more > 0 else "")


def _processes(point: str) -> Iterator[str]:
    for directory in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        use = _use(directory, point)
        if use is not None:
            name = "a process"
            with suppress(OSError):
                name = (directory / "comm").read_text(errors="replace").strip()
            yield f"{shown(name)} (pid {directory.name}) {use}"


def _use(process: Path, point: str) -> str | None:
    """What a process does with the mount; None where it does nothing, or cannot be seen."""
    for link, verb in _HOLDS.items():
        if target := _inside(process / link, point):
            return f"{verb} {target}"
    with suppress(OSError):
        for descriptor in os.listdir(process / "fd"):
            if target := _inside(process / "fd" / descriptor, point):
                return f"has {target} open"
    with suppress(OSError), open(process / "maps", "rb") as maps:
        inside = os.fsencode(point) + b"/"
        for line in maps:
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) > 5 and fields[5].startswith(inside):
                return f"has {shown(os.fsdecode(fields[5]))} mapped"
    return None


def _inside(link: Path, point: str) -> str | None:
    """Where a link of /proc leads, if that is inside the mount."""
    try:
        target = os.readlink(link)
    except OSError:
        return None
    return shown(target) if target == point or target.startswith(f"{point}/") else None
