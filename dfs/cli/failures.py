"""How failures reach the user: one line each on stderr, and an exit status."""

import errno
import sys
from collections.abc import Iterator
from typing import Final

from dfs.cli.names import show
from dfs.core.errors import ConfigError, DfsError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
BROKEN_PIPE: Final = 141
"""As the shell reports a program that SIGPIPE ended."""

_OF_WRITING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class StoppedError(Exception):
    """A signal asked this command to stop, and it has stopped cleanly."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def say(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    if sys.stderr is not None:
        print(f"dfs: {show(message)}", file=sys.stderr)


def describe(error: BaseException) -> str:
    """What went wrong, for a person, on one line."""
    if isinstance(error, DfsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        names = [show(name) for name in (error.filename, error.filename2) if name is not None]
        if not names and error.errno in _OF_WRITING:
            # Only what `print` meets has no name; files and streams tell theirs.
            names = ["standard output"]
        return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror
    return f"{type(error).__name__}: {error}"


class Failures:
    """Counts what failed while the rest of a command goes on, and says each on its line."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: OSError | str) -> None:
        self.count += 1
        say(error if isinstance(error, str) else describe(error))

    @property
    def status(self) -> int:
        return FAILED if self.count else DONE


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested exception groups; `error` itself where it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def status_of(error: BaseException) -> int:
    return USAGE if isinstance(error, ConfigError) else FAILED
