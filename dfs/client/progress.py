"""What long operations tell while they run, and when they are done. Plain values."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(slots=True)
class Progress:
    """How far an operation is. One object per operation, updated in place.

    The totals are None until they are known; while a tree is still being walked they may grow.
    """

    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    """Files, symlinks and directories finished, failed ones included."""
    files_total: int | None = None


ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called in the client's thread after every step; must be quick."""


class Share:
    """The bytes of one file within the whole: they can be taken back when it fails."""

    def __init__(self, progress: Progress, tell: Callable[[], None]) -> None:
        """`tell` is called after every change."""
        self._progress = progress
        self._tell = tell
        self._moved = 0

    def moved(self, count: int) -> None:
        """So many bytes are done."""
        self._moved += count
        self._progress.bytes_done += count
        self._tell()

    def complete(self, size: int) -> None:
        """All of the file is done, its holes too."""
        self.moved(size - self._moved)

    def undo(self) -> None:
        """It failed, or starts over."""
        self._progress.bytes_done -= self._moved
        self._moved = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """One path that could not be handled, and why, in one line."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(slots=True)
class Summary:
    """What `upload`, `download`, `rmtree` and `copy` did."""

    files: int = 0
    """Regular files."""
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Things left out on purpose, such as sockets; one line each."""

    @property
    def ok(self) -> bool:
        return not self.failures
