"""What of a file is in the page cache: asked without blocking, filled, emptied."""

import errno
import os
from typing import Final

_PROBE_STEP_BYTES: Final = 512 * 1024
_WARM_STEP_BYTES: Final = 128 * 1024


def is_cached(fd: int, offset: int, length: int) -> bool:
    """Whether the range is there, as far as samples tell. Does not block.

    Where the first sample is not, the kernel begins to read ahead, unless the descriptor is
    advised POSIX_FADV_RANDOM.
    """
    byte = bytearray(1)
    end = offset + length
    try:
        for position in (*range(offset, end, _PROBE_STEP_BYTES), end - 1):
            os.preadv(fd, [byte], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def read_cached(fd: int, offset: int, target: memoryview) -> bool:
    """Read the range if all of it is there; whether it is. Does not block.

    Where its beginning is not, the kernel begins to read ahead, as in `is_cached`.
    """
    try:
        return os.preadv(fd, [target], offset, os.RWF_NOWAIT) == len(target)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False


def read(fd: int, offset: int, target: memoryview) -> bool:
    """Read the range, from the disk if need be; False where the file ends before."""
    while target:
        count = os.preadv(fd, [target], offset)
        if not count:
            return False
        target = target[count:]
        offset += count
    return True


def warm(fd: int, offset: int, length: int) -> None:
    """Bring the range into the page cache, without copying it: blocks until it is there.

    All of it is read: a bad sector has to show here, where it costs one request. In the
    middle of an answer it would cost the connection.
    """
    # In small steps: the kernel cuts one long advice off at its read-ahead size.
    end = offset + length
    for position in range(offset, end, _WARM_STEP_BYTES):
        os.posix_fadvise(fd, position, _WARM_STEP_BYTES, os.POSIX_FADV_WILLNEED)
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while offset < end:
            sent = os.sendfile(nowhere, fd, offset, end - offset)
            if not sent:
                return  # cut short meanwhile: who sends it will notice
            offset += sent
    finally:
        os.close(nowhere)


def drop(fd: int, offset: int, length: int) -> None:
    """The range (length 0: to the end) is not needed there any more.

    What was written and is not on the disk yet begins to be written, and stays.
    """
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
