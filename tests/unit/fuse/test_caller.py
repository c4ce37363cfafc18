"""Whose rights a request has: those of a real process."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import dfs_fuse.caller
from dfs.wire.messages import Cred
from dfs_fuse.caller import Caller, Credentials

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give groups to others")


@contextmanager
def somebody(*groups: int) -> Iterator[Caller]:
    """A process of user 1001 with these supplementary groups."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        user=1001,
        group=1002,
        extra_groups=groups,
    ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield Caller(1001, 1002, child.pid)
        finally:
            child.kill()


@needs_root
def test_supplementary_groups_are_those_of_the_process() -> None:
    with somebody(2001, 2002, 2003) as caller:
        assert Credentials().of(caller) == Cred(1001, 1002, (2001, 2002, 2003))
    with somebody() as caller:
        assert Credentials().of(caller) == Cred(1001, 1002, ())


def test_root_needs_no_groups() -> None:
    assert Credentials().of(Caller(0, 5, os.getpid())) == Cred(0, 5, ())


@pytest.mark.parametrize("pid", [0, 1 << 30])
def test_who_cannot_be_seen_has_no_groups(pid: int) -> None:
    assert Credentials().of(Caller(1001, 1002, pid)) == Cred(1001, 1002, ())


@needs_root
def test_groups_are_believed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    credentials = Credentials()
    with somebody(2001) as caller:
        before = credentials.of(caller)
    # It has ended; its number may be another process's soon.
    assert credentials.of(caller) is before
    now += 1.1
    assert credentials.of(caller) == Cred(1001, 1002, ())


def test_many_processes_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfs_fuse.caller, "_PROCESSES_MAX", 10)
    credentials = Credentials()
    for pid in range(100):
        credentials.of(Caller(0, 0, pid))
    assert len(credentials._known) <= 10
