"""From an exception to the errno the kernel gets, and a line in the log for what nobody expects.

A program sees a number. What happened, to which chunk and disk, and what to do, is in the mount's
log; the same complaint is written once in a while only. Any thread may use it.
"""

import errno
import logging
import time
from typing import Final

_AGAIN_S: Final = 10.0
_KINDS_MAX: Final = 1000
_OUTRIGHT: Final = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ENOSPC, errno.EPROTO, errno.ENODATA, errno.EROFS}
)
"""What no program brings about by what it asks for. ENODATA: but for extended attributes."""
_AS_EIO: Final = frozenset({errno.EPROTO, errno.ETIMEDOUT})
"""Errnos of the network that mean nothing to a program which works with files."""

log = logging.getLogger(__name__)


class Complaints:
    """Owned by a driver."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def number(self, operation: str, error: Exception) -> int:
        """The errno to answer with; logs what a person may want to know."""
        if not isinstance(error, OSError) or not error.errno:
            log.error(
                "%s: %r; this is a bug in dfs, please report it", operation, error, exc_info=error
            )
            return errno.EIO
        number = error.errno
        if number == errno.ENODATA and operation not in ("getxattr", "setxattr", "removexattr"):
            number = errno.EIO
        if error.errno in _OUTRIGHT and "xattr" not in operation:
            self._say(f"{operation}: {error}")
        return errno.EIO if number in _AS_EIO else number

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if self._said.get(line, -_AGAIN_S) + _AGAIN_S > now:
            return
        if len(self._said) >= _KINDS_MAX:
            self._said = {}
        self._said[line] = now
        log.warning("%s", line)
