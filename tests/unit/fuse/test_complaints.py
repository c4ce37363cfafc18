"""What number a program gets, and what is written into the log for people."""

import errno
import logging
import time

import pytest

from dfs.core.errors import CorruptError, DfsError, UnavailableError, refuse
from dfs_fuse.complaints import Complaints


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EINTR, errno.ESTALE]
)
def test_what_a_program_brings_about_is_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture, number: int
) -> None:
    assert Complaints().number("lookup", refuse(number, "name")) == number
    assert warnings(caplog) == []


@pytest.mark.allow_logs("read: ")
@pytest.mark.parametrize("error", [UnavailableError("chunk 5 is away"), CorruptError("chunk 5 is")])
def test_what_is_wrong_in_the_cluster_is_eio_and_the_reason_in_the_log(
    caplog: pytest.LogCaptureFixture, error: DfsError
) -> None:
    assert Complaints().number("read", error) == errno.EIO
    (line,) = warnings(caplog)
    assert line.startswith("read: ")
    assert "chunk 5" in line


@pytest.mark.allow_logs("write: ")
def test_a_full_cluster_stays_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert Complaints().number("write", refuse(errno.ENOSPC, "all disks")) == errno.ENOSPC
    assert len(warnings(caplog)) == 1


def test_an_attribute_that_is_not_there_is_nothing_to_complain_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for operation in ("getxattr", "setxattr", "removexattr"):
        assert Complaints().number(operation, refuse(errno.ENODATA, "user.x")) == errno.ENODATA
    assert warnings(caplog) == []


@pytest.mark.allow_logs("read: ")
def test_data_that_is_not_there_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    assert Complaints().number("read", refuse(errno.ENODATA, "chunk 5")) == errno.EIO
    assert len(warnings(caplog)) == 1


@pytest.mark.allow_logs("bug in dfs")
@pytest.mark.parametrize("error", [KeyError("x"), OSError("without a number"), RuntimeError()])
def test_what_nobody_thought_of_is_eio_and_a_bug(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    assert Complaints().number("rename", error) == errno.EIO
    (line,) = warnings(caplog)
    assert "bug in dfs" in line
    assert caplog.records[-1].exc_info is not None


@pytest.mark.allow_logs("read: ")
def test_the_same_is_said_once_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    complaints = Complaints()
    for _ in range(50):
        complaints.number("read", UnavailableError("chunk 5 is away"))
        complaints.number("read", UnavailableError("chunk 6 is away"))
    assert len(warnings(caplog)) == 2
    now += 60
    complaints.number("read", UnavailableError("chunk 5 is away"))
    assert len(warnings(caplog)) == 3


@pytest.mark.allow_logs("read: ")
def test_many_kinds_of_complaints_take_little_memory() -> None:
    complaints = Complaints()
    for number in range(5000):
        complaints.number("read", UnavailableError(f"chunk {number} is away"))
    assert len(complaints._said) <= 1000
