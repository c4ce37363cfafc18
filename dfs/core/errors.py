"""One error hierarchy: every refusal has a POSIX errno, a sentence, and where it helps a hint.

`DfsError` is an `OSError`, so it can leave through the Python API and the mount as it is. The
subclasses say whose fault it is; `from_wire` and `to_wire` are the one place where errors
cross the network.
"""

import errno
import os
from typing import ClassVar, Final, Self

import msgspec


class WireError(msgspec.Struct, array_like=True, frozen=True):
    """An error as it travels. `code` names the subclass; `errno` is Linux's number."""

    code: int
    errno: int
    message: str
    hint: str = ""
    retry: bool = False
    """The same request may succeed later (or elsewhere) unchanged."""


class DfsError(OSError):
    """Base of all. `str()` is one line: what happened, to what, and what to do.

    Attributes:
        message: what happened, to what.
        hint: what to do next, or "".
        retry: whether the same request may succeed later unchanged.
    """

    code: ClassVar[int] = 0
    default_errno: ClassVar[int] = errno.EIO
    default_retry: ClassVar[bool] = False

    def __init__(
        self, message: str, *, errno: int | None = None, hint: str = "", retry: bool | None = None
    ) -> None:
        number = self.default_errno if errno is None else errno
        super().__init__(number, message)
        self.message = message
        self.hint = hint
        self.retry = self.default_retry if retry is None else retry

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __repr__(self) -> str:
        name = os_errno_name(self.errno or 0)
        return f"{type(self).__name__}({name}, {str(self)!r})"

    def again(self) -> Self:
        """The same error for one more of those who are told: none is raised in several tasks."""
        return type(self)(self.message, errno=self.errno, hint=self.hint, retry=self.retry)

    def to_wire(self) -> WireError:
        return WireError(self.code, self.errno or errno.EIO, self.message, self.hint, self.retry)


class FileSystemError(DfsError):
    """The request is refused as POSIX says (ENOENT, EEXIST, EACCES, ...): the caller's matter."""

    code = 1
    default_errno = errno.EINVAL


class UnavailableError(DfsError):
    """Nobody can answer right now: a server is down, a connection broke. Worth a retry."""

    code = 2
    default_errno = errno.EIO
    default_retry = True


class DeadlineError(UnavailableError):
    """No answer within the time the caller gave."""

    code = 3
    default_errno = errno.ETIMEDOUT


class ProtocolError(DfsError):
    """The other side does not speak our protocol, or broke its rules."""

    code = 4
    default_errno = errno.EPROTO


class CorruptError(DfsError):
    """Bytes do not match their checksum."""

    code = 5
    default_errno = errno.EIO


class NoSpaceError(DfsError):
    """No room: says which rule and which disks refused."""

    code = 6
    default_errno = errno.ENOSPC


class RedundancyError(DfsError):
    """The cluster cannot hold data as the policy asks: says what is needed and present."""

    code = 7
    default_errno = errno.ENOSPC


class SessionError(DfsError):
    """The client's session has expired or is unknown; its open chunks are lost to it."""

    code = 8
    default_errno = errno.ESTALE


class FragmentError(DfsError):
    """A disk does not hold the fragment as asked: missing, shorter, sealed, or out of order."""

    code = 9
    default_errno = errno.ENODATA


class DiskError(DfsError):
    """A disk of a chunk server failed, is read-only or unknown there."""

    code = 10
    default_errno = errno.EIO


class BusyError(DfsError):
    """The server has as much in flight as it allows; retry shortly."""

    code = 11
    default_errno = errno.EBUSY
    default_retry = True


class ConfigError(DfsError):
    """A setting or argument is wrong; exit status 2."""

    code = 12
    default_errno = errno.EINVAL


class LostChangesError(DfsError):
    """The master answered changes, and lost them in a power cut before they were on its disk."""

    code = 13
    default_errno = errno.EIO


_BY_CODE: Final[dict[int, type[DfsError]]] = {
    kind.code: kind
    for kind in (
        DfsError,
        FileSystemError,
        UnavailableError,
        DeadlineError,
        ProtocolError,
        CorruptError,
        NoSpaceError,
        RedundancyError,
        SessionError,
        FragmentError,
        DiskError,
        BusyError,
        ConfigError,
        LostChangesError,
    )
}


def from_wire(error: WireError) -> DfsError:
    """The exception another machine raised. An unknown code (a newer peer) is a plain DfsError."""
    kind = _BY_CODE.get(error.code, DfsError)
    return kind(error.message, errno=error.errno, hint=error.hint, retry=error.retry)


def refuse(number: int, what: str) -> FileSystemError:
    """`refuse(ENOENT, "/a/b")` -> "/a/b: No such file or directory"."""
    return FileSystemError(f"{what}: {os.strerror(number)}", errno=number)


def os_errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
