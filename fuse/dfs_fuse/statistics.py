"""What stat(2) and statvfs(2) count in: blocks of an inode, room of the cluster."""

from dataclasses import dataclass
from typing import Final

from dfs.core.inode import Inode
from dfs.wire.messages import FsStats

BLOCK_BYTES: Final = 128 * 1024
"""st_blksize and f_bsize: what is stored and read as one."""
NAME_MAX_BYTES: Final = 255
_STAT_BLOCK_BYTES: Final = 512
_INODES_MAX: Final = 1 << 40
"""There is no table of inodes that could fill up; programs want a number."""


@dataclass(frozen=True, slots=True)
class FileCounts:
    blocks: int
    free_blocks: int
    files: int
    free_files: int


def blocks(inode: Inode) -> int:
    """st_blocks: what extents cover; of what is no file, as if its size were stored."""
    covered = inode.allocated if inode.is_file else 0
    return -(-covered // _STAT_BLOCK_BYTES)


def file_counts(stats: FsStats) -> FileCounts:
    """Room as files see it: disk bytes divided by what redundancy makes of a byte."""
    expansion = max(stats.policy_expansion, 1.0)
    return FileCounts(
        blocks=int(stats.capacity / expansion) // BLOCK_BYTES,
        free_blocks=int(stats.free / expansion) // BLOCK_BYTES,
        files=_INODES_MAX,
        free_files=_INODES_MAX - stats.inodes,
    )


def attributes(inode: Inode) -> dict[str, int]:
    """Those of an inode by their names in struct stat, times in nanoseconds."""
    return {
        "st_ino": inode.ino,
        "st_mode": inode.mode,
        "st_nlink": inode.nlink,
        "st_uid": inode.uid,
        "st_gid": inode.gid,
        "st_rdev": inode.rdev,
        "st_size": inode.size,
        "st_blksize": BLOCK_BYTES,
        "st_blocks": blocks(inode),
        "st_atime": inode.atime_ns,
        "st_mtime": inode.mtime_ns,
        "st_ctime": inode.ctime_ns,
    }
