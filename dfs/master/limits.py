"""Numbers that come from outside, and the limits they must keep."""

import errno
from typing import Final

from dfs.core.errors import refuse
from dfs.core.ids import FILE_SIZE_MAX_BYTES

ID_MAX: Final = (1 << 32) - 2
"""Greatest uid and gid; the one after it means "leave it" in chown(2)."""

TIME_MIN_NS: Final = -(1 << 63)
TIME_MAX_NS: Final = (1 << 63) - 1


def check_id(number: int) -> int:
    """A uid or gid. Raises EINVAL."""
    if not 0 <= number <= ID_MAX:
        raise refuse(errno.EINVAL, f"owner {number}")
    return number


def check_time(time_ns: int | None) -> None:
    """A time stamp, if there is one. Raises EINVAL."""
    if time_ns is not None and not TIME_MIN_NS <= time_ns <= TIME_MAX_NS:
        raise refuse(errno.EINVAL, f"time {time_ns} ns")


def check_size(size: int) -> int:
    """A file size. Raises EINVAL, EFBIG."""
    if size < 0:
        raise refuse(errno.EINVAL, f"size {size}")
    if size > FILE_SIZE_MAX_BYTES:
        raise refuse(errno.EFBIG, f"size {size}")
    return size
