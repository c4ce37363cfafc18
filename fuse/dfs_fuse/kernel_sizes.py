"""How long the kernel certainly believes files to be: tells appends from pages of a mapping.

Through a handle that was opened with O_APPEND the kernel also writes back pages that were changed
in a mapping of it, and pyfuse3 does not say which is which. But a program's append comes at the
size that the kernel believes, or behind it, and a page begins before it, at a page's boundary.
That size is what the kernel was told last, unless it did not listen: it ignores attributes that
crossed a write, or other attributes. So what is kept here is the least that it may believe; and an
append may be on its way from before it was told. Nothing is taken for a page that could be an
append, whose bytes would overwrite those of another mount.
"""

import math
import mmap
from collections import OrderedDict
from time import monotonic
from typing import Final

from dfs.core.ids import InodeId

CALM_S: Final = 0.5
"""When so long nothing was told of a file or written to it, the kernel listens to what is asked."""
_FILES_MAX: Final = 10_000


class _Size:
    __slots__ = ("before", "busy", "least", "most", "until", "version", "writes")

    def __init__(self, size: int) -> None:
        self.least = self.most = size
        """The kernel believes nothing less; it may believe up to this."""
        self.before = (size, size)
        """These two when it was last told in calm, where an append may have begun"""
        self.until = -math.inf
        """that arrives up to this moment."""
        self.busy = -math.inf
        """When something was told or written last."""
        self.writes = 0
        """Under way."""
        self.version = -1
        """Of the inode whose attributes the kernel was told last."""

    def certain(self, size: int) -> None:
        """The kernel believes this, whatever it did before."""
        self.least = self.most = size
        self.until = -math.inf


class KernelSizes:
    """Owned by a driver, which tells it of what it tells the kernel."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[InodeId, _Size] = OrderedDict()

    def told(
        self, ino: InodeId, size: int, asked: float | None = None, *, version: int = -1
    ) -> None:
        """The kernel is told attributes that it asked for then, or now; it may not listen."""
        now = monotonic()
        known = self._sizes.get(ino)
        if known is None:
            known = self._put(ino, size)
        elif not known.writes and (now if asked is None else asked) - known.busy >= CALM_S:
            known.before = (known.least, known.most)
            known.until = now + CALM_S
            known.least = known.most = size
        else:
            known.least = min(known.least, size)
            known.most = max(known.most, size)
        known.busy = now
        known.version = version
        self._sizes.move_to_end(ino)

    def knows(self, ino: InodeId, size: int, version: int) -> bool:
        """Whether the kernel was told of this version, and believes no other size."""
        known = self._sizes.get(ino)
        return (
            known is not None
            and known.version == version
            and not known.writes
            and known.least == known.most == size
        )

    def ended(self, ino: InodeId, size: int) -> None:
        """A read came to the end there, upon which the kernel makes the file no longer."""
        known = self._sizes.get(ino)
        if known is not None:
            known.least = min(known.least, size)

    def changed(self, ino: InodeId, size: int) -> None:
        """The kernel itself has asked to make it so long."""
        known = self._sizes.get(ino) or self._put(ino, size)
        known.certain(size)
        known.busy = monotonic()

    def opened(self, ino: InodeId) -> bool:
        """Whether it is known what the kernel believes; if not, have it ask before it maps."""
        if ino in self._sizes:
            return True
        self._put(ino, 0)
        return False

    def writing(self, ino: InodeId) -> None:
        """A write has begun; `wrote` follows."""
        known = self._sizes.get(ino) or self._put(ino, 0)
        known.writes += 1

    def wrote(self, ino: InodeId, end: int | None, *, append: bool) -> None:
        """It has ended, at `end` (None: it failed)."""
        known = self._sizes.get(ino) or self._put(ino, 0)
        known.writes = max(0, known.writes - 1)
        known.busy = monotonic()
        if end is not None and append:
            # Attributes that came in the middle of it were ignored.
            known.certain(end)
        elif end is not None:
            known.least = max(known.least, end)
            known.most = max(known.most, end)

    def is_page(self, ino: InodeId, offset: int) -> bool:
        """Whether what is written at `offset` through a handle to append is a mapping's page."""
        known = self._sizes.get(ino)
        if known is None or offset >= known.least or offset % mmap.PAGESIZE:
            return False
        return monotonic() >= known.until or not known.before[0] <= offset <= known.before[1]

    def _put(self, ino: InodeId, size: int) -> _Size:
        known = self._sizes[ino] = _Size(size)
        if len(self._sizes) > _FILES_MAX:
            self._sizes.popitem(last=False)
        return known
