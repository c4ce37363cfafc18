"""Names and directories: every entry is possible, every directory counts right and is reached."""

from collections.abc import Iterator
from typing import Final

from dfs.core.ids import NAME_MAX_BYTES, ROOT_INODE, InodeId
from dfs.master import keyspace as keys
from dfs.master.check.fixes import AdjustInode, Rescue
from dfs.master.check.problem import RESTORE_ALL, Problem
from dfs.master.check.walk import END, Walk, sorted_rows
from dfs.master.keyspace import from_u64, key_id, scan_prefix, u64

REACHED_MAX: Final = 1_000_000
"""Directories remembered as reached from the root, at most."""
SEARCHED_MAX: Final = 1_000_000
"""Entries of a directory looked through for one of them, at most."""


def gather_names(walk: Walk) -> Iterator[Problem]:
    """Go through all dentries, for `check_inodes` to meet them by the inode they name."""
    parent: InodeId = 0
    entries = 0
    add = walk.names.add
    for key, value in walk.rows(keys.DENTRY):
        if key_id(key) != parent:
            _note_entries(walk, parent, entries)
            parent, entries = key_id(key), 0
        entries += 1
        name = keys.dentry_name(key)
        if len(value) != 8:
            yield Problem(f"entry {name!r} of {parent} cannot be read", todo=RESTORE_ALL)
            continue
        add(b"\0" + value + key[1:])
        if (
            not 1 <= len(name) <= NAME_MAX_BYTES
            or name in (b".", b"..")
            or b"/" in name
            or b"\0" in name
        ):
            yield Problem(
                f"entry {name!r} of {parent} has a name that cannot be",
                todo="nothing can name it; move the other entries of its directory elsewhere",
            )
    _note_entries(walk, parent, entries)


def _note_entries(walk: Walk, parent: InodeId, entries: int) -> None:
    if entries:
        walk.entries.add(b"\0" + u64(parent) + u64(entries))


def note_directory(
    walk: Walk, ino: InodeId, nlink: int, *, is_named: bool, is_empty: bool, is_open: bool
) -> None:
    counted = nlink.to_bytes(8, "big", signed=True)
    walk.directories.add(b"\0" + u64(ino) + counted + bytes((is_named, is_empty and is_open)))


def note_subdirectory(walk: Walk, parent: InodeId, ino: InodeId) -> None:
    walk.subdirectories.add(b"\0" + u64(parent) + u64(ino))


def check_directories(walk: Walk) -> Iterator[Problem]:
    """After `check_inodes`: links of directories, and whether the root leads to them."""
    subdirectories = sorted_rows(walk.subdirectories)
    directories = sorted_rows(walk.directories)
    reached = {ROOT_INODE}
    while (ino := min(directories.id, subdirectories.id)) < END:
        below = sum(1 for _ in subdirectories.of(ino))
        for record, _ in directories.of(ino):
            nlink = int.from_bytes(record[9:17], "big", signed=True)
            is_named, may_be_removed = record[17], record[18]
            if not is_named:
                if nlink or not may_be_removed:
                    yield Problem(
                        f"directory {ino} has no name: it has nlink {nlink}, not 0, or entries, "
                        "or is not open",
                        Rescue(ino, 2 + below - nlink),
                    )
                continue
            if nlink != 2 + below:
                yield Problem(
                    f"inode {ino} has nlink {nlink}, not {2 + below}",
                    AdjustInode(ino, nlink=2 + below - nlink),
                )
            yield from _unreachable(walk, ino, reached)


def _unreachable(walk: Walk, ino: InodeId, reached: set[InodeId]) -> Iterator[Problem]:
    """Directories that hold each other in a circle have names, and are still not in the tree."""
    way: dict[InodeId, None] = {}
    at = ino
    while at not in reached and at not in way:
        way[at] = None
        at = _holder(walk, at)
        if not at:
            # What is above has no name or no record: that is told of where it is met.
            break
    if at in way:
        circle = list(way)[list(way).index(at) :]
        first = min(circle)
        parent = _holder(walk, first)
        name = _name_of(walk, parent, first)
        yield Problem(
            f"directory {first} cannot be reached from the root",
            None if name is None else Rescue(first, 0, parent, name),
        )
    if len(reached) + len(way) > REACHED_MAX:
        reached.clear()
        reached.add(ROOT_INODE)
    reached.update(way)


def _holder(walk: Walk, ino: InodeId) -> InodeId:
    """The directory that a directory's name is in; 0 if that cannot be told."""
    if ino in walk.misplaced:
        return walk.misplaced[ino][0]
    inode = walk.inode(ino)
    return 0 if inode is None else inode.parent


def _name_of(walk: Walk, parent: InodeId, ino: InodeId) -> bytes | None:
    if ino in walk.misplaced:
        return walk.misplaced[ino][1]
    rows = scan_prefix(walk.reader, keys.DENTRY + u64(parent))
    for (key, value), _ in zip(rows, range(SEARCHED_MAX), strict=False):
        if from_u64(value) == ino:
            return keys.dentry_name(key)
    return None
