"""The health of one disk: where its blocking calls run, and what their OSErrors mean.

    ENOSPC, EDQUOT                the disk is full: NoSpaceError, it serves on
    ENOENT, EEXIST                a fragment is not as we knew it: FragmentError
    EMFILE, ENFILE, ENOMEM        the machine is short of something: BusyError
    any other, in a change        the disk has failed (EIO, EROFS, ...): DiskError; so has one
                                  where fdatasync fails, for whatever reason
    any other, in a read          DiskError; the disk has failed at the third within an hour

It has failed, too, when most of what was verified lately was damaged.

A failed disk takes no change any more, until the server is started again. It still tries to read:
what it has may be the last copy.
"""

import errno
import logging
import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, TypeVar

import trio
from outcome import Error, Outcome

from dfs.chunkserver.threads import DiskWorkers
from dfs.core.errors import BusyError, DfsError, DiskError, FragmentError, NoSpaceError
from dfs.core.ids import ChunkId

_log = logging.getLogger(__name__)

T = TypeVar("T")

READ_ERRORS_MAX: Final = 3
READ_ERRORS_WITHIN_S: Final = 3600.0
"""One bad sector now and then is mended where it is found."""
VERIFIED_KEPT: Final = 100
CORRUPT_MAX: Final = 50
"""Of the last `VERIFIED_KEPT` fragments that were verified. Single bits rot on good disks, too."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_CHANGED: Final = {errno.ENOENT, errno.EEXIST}
_SHORT_OF: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_BUG: Final = {errno.EBADF, errno.EINVAL, errno.EFAULT}


class Health:
    """`run` and `start` make it a `dfs.core.workers.Starters` for changes to the disk."""

    def __init__(self, path: str, workers: DiskWorkers) -> None:
        self.path = path
        self.workers = workers
        """The disk's threads; what runs there directly is not judged."""
        self.error = ""
        """Why the disk has failed; "" while it has not."""
        self.changed: Callable[[], None] = _nothing
        """Called when the disk fails or gets full: the master should hear of it."""
        self.answered_at = -math.inf
        """When a call last came back from the disk."""
        self._read_errors: deque[float] = deque(maxlen=READ_ERRORS_MAX)
        """When the last reads failed."""
        self._verified: OrderedDict[ChunkId, bool] = OrderedDict()
        """The last verdicts: whether a fragment was corrupt."""

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking call that changes something on the disk.

        Raises:
            DfsError: as the table above has it.
        """
        self.check()
        try:
            return await self._run(function, *args)
        except DfsError:
            raise
        except OSError as error:
            raise self._judge(error, changing=True) from error

    @property
    def free(self) -> bool:
        """See `Starters`."""
        return self.workers.free

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        """As `run`, without a task: `wake` is told the outcome."""

        def ended(outcome: "Outcome[T]") -> None:
            self.answered_at = trio.current_time()
            if isinstance(outcome, Error):
                outcome = Error(self._judged(outcome.error))
            wake(outcome)

        try:
            self.check()
        except DiskError as error:
            wake(Error(error))
        else:
            self.workers.start(ended, function, *args)

    def _judged(self, error: BaseException) -> BaseException:
        if isinstance(error, DfsError) or not isinstance(error, OSError):
            return error
        try:
            judged = self._judge(error, changing=True)
        except OSError as bug:
            return bug
        judged.__cause__ = error
        return judged

    async def run_read(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking call that reads; works on a failed disk as long as the disk does."""
        try:
            return await self._run(function, *args)
        except DfsError:
            raise
        except OSError as error:
            raise self._judge(error, changing=False) from error

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        try:
            result = await self.workers.run(function, *args)
        except Exception:  # not Cancelled: then it never began
            self.answered_at = trio.current_time()
            raise
        self.answered_at = trio.current_time()
        return result

    def judge_read(self, error: OSError) -> DfsError:
        """What an OSError of a read on the event loop means."""
        return self._judge(error, changing=False)

    def verified(self, chunk: ChunkId, *, corrupt: bool) -> None:
        """A fragment has been read as a whole, and its checksums were right or not."""
        verified = self._verified
        verified[chunk] = corrupt
        verified.move_to_end(chunk)
        if len(verified) > VERIFIED_KEPT:
            verified.popitem(last=False)
        if corrupt and (count := sum(verified.values())) >= CORRUPT_MAX:
            self.fail(f"{count} of the last {len(verified)} fragments verified are corrupt")

    def check(self) -> None:
        """Raises DiskError where the disk has failed."""
        if self.error:
            raise DiskError(
                f"disk {self.path} has failed: {self.error}",
                hint="replace it, or repair it and restart its chunk server",
            )

    def fail(self, why: str) -> None:
        """The disk takes no more changes. The first reason stays."""
        if not self.error:
            self.error = why
            _log.error(
                "disk %s has failed: %s; it takes no new data, and the master is told: "
                "replace it, or repair it and restart this server",
                self.path, why,
            )  # fmt: skip
            self.changed()

    def _judge(self, error: OSError, *, changing: bool) -> DfsError:
        number = error.errno or errno.EIO
        text = os.strerror(number)
        if number in _FULL:
            self.changed()
            return NoSpaceError(
                f"disk {self.path} is full: {text}", hint="delete files, add disks or servers"
            )
        if number in _CHANGED:
            return FragmentError(f"{error.filename or self.path}: {text}")
        if number in _SHORT_OF:
            return BusyError(f"the chunk server cannot use disk {self.path} now: {text}")
        if number in _BUG:
            raise error
        if changing:
            self.fail(text)
        else:
            errors, now = self._read_errors, trio.current_time()
            errors.append(now)
            _log.warning("disk %s: a read failed: %s", self.path, text)
            if len(errors) == READ_ERRORS_MAX and now - errors[0] < READ_ERRORS_WITHIN_S:
                self.fail(f"{text} ({READ_ERRORS_MAX} reads failed)")
        return DiskError(f"disk {self.path}: {text}", errno=number)


def passes(error: OSError) -> bool:
    """Whether it says nothing against the disk's health: full, or the machine is short."""
    return error.errno in _FULL | _SHORT_OF


def _nothing() -> None:
    """Nobody listens."""
