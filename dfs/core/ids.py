"""Names for the integer ids that travel everywhere, and the few that are reserved."""

from typing import Final, TypeAlias

InodeId: TypeAlias = int
"""64-bit inode number, never reused."""

ChunkId: TypeAlias = int
"""64-bit chunk number, never reused."""

ServerId: TypeAlias = int
"""Chunk server number, given by the master when the server first registers."""

DiskId: TypeAlias = int
"""Disk number, given by the master when the disk first registers."""

SessionId: TypeAlias = int
"""Client session number, never reused."""

PolicyId: TypeAlias = int
"""Storage policy number."""

ROOT_INODE: Final[InodeId] = 1
NO_INODE: Final[InodeId] = 0
DEFAULT_POLICY: Final[PolicyId] = 1
EC_POLICY: Final[PolicyId] = 2
SCRATCH_POLICY: Final[PolicyId] = 3
FIRST_FREE_POLICY: Final[PolicyId] = 16

MASTER_SESSION: Final[SessionId] = (1 << 63) - 1
"""Owner of the open chunks that the master has written anew by chunk servers. No client's."""

NAME_MAX_BYTES: Final = 255
PATH_MAX_BYTES: Final = 4096
SYMLINK_MAX_BYTES: Final = 4095
FILE_SIZE_MAX_BYTES: Final = 1 << 62
LINK_MAX: Final = (1 << 31) - 1
XATTR_NAME_MAX_BYTES: Final = 255
XATTR_VALUE_MAX_BYTES: Final = 65536
