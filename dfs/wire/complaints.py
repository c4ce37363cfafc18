"""Log lines about what others do wrong: at most one for each subject and interval.

Whoever can reach a port can make a server log; this keeps it from filling the disk.
"""

import logging
from collections import OrderedDict
from typing import Final

import trio

_INTERVAL_S: Final = 60.0
_SUBJECTS_MAX: Final = 1024


class Complaints:
    """Remembers what has been logged lately; owned by a server or a pool."""

    def __init__(self) -> None:
        self._logged_at: OrderedDict[str, float] = OrderedDict()

    def log(
        self,
        logger: logging.Logger,
        level: int,
        subject: str,
        line: str,
        error: BaseException | None = None,
    ) -> None:
        """Log `line`, with the traceback of `error`, unless `subject` was logged lately."""
        now = trio.current_time()
        last = self._logged_at.get(subject)
        if last is not None and now - last < _INTERVAL_S:
            logger.debug("%s", line)
            return
        self._logged_at[subject] = now
        self._logged_at.move_to_end(subject)
        if len(self._logged_at) > _SUBJECTS_MAX:
            self._logged_at.popitem(last=False)
        logger.log(level, "%s", line, exc_info=error)
