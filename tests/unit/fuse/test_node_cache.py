"""What is believed, for how long, and what makes it forgotten."""

import time

import pytest

import dfs_fuse.node_cache
from dfs.core.inode import Inode
from dfs_fuse.node_cache import NodeCache


class Clock:
    """`time.monotonic` of the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def inode(ino: int, *, at: int = 1, size: int = 0) -> Inode:
    return Inode(
        ino,
        mode=0o100644,
        nlink=1,
        uid=0,
        gid=0,
        size=size,
        atime_ns=1,
        mtime_ns=1,
        ctime_ns=at,
        policy=1,
    )


def test_an_answer_is_believed_for_a_moment(clock: Clock) -> None:
    cache = NodeCache(1.0)
    cache.learn(inode(7))
    cache.learn_name(1, b"seven", 7)
    clock.now += 0.9
    assert cache.attributes(7) == inode(7)
    assert cache.child(1, b"seven") == 7
    assert cache.lookup(1, b"seven") == inode(7)
    clock.now += 0.2
    assert cache.attributes(7) is None
    assert cache.child(1, b"seven") is None
    assert cache.lookup(1, b"seven") is None
    assert cache.child(1, b"eight") is None


def test_without_time_nothing_is_believed(clock: Clock) -> None:
    cache = NodeCache(0)
    cache.learn(inode(7))
    cache.learn_name(1, b"seven", 7)
    assert cache.attributes(7) is None
    assert cache.child(1, b"seven") is None


def test_an_answer_that_was_overtaken_is_not_believed(clock: Clock) -> None:
    cache = NodeCache(1.0)
    cache.learn(inode(7, at=5, size=50))
    cache.learn(inode(7, at=4, size=40))
    assert cache.attributes(7) == inode(7, at=5, size=50)
    clock.now += 2
    # What nobody believes any more proves nothing.
    cache.learn(inode(7, at=4, size=40))
    assert cache.attributes(7) == inode(7, at=4, size=40)


def test_a_name_that_went_while_it_was_asked_for_is_not_believed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.node_cache, "_DIRECTORIES_MAX", 2)
    cache = NodeCache(10.0)
    asked = clock.now
    clock.now += 0.1
    cache.forget_name(1, b"gone")
    cache.learn_name(1, b"gone", 7, asked)
    assert cache.child(1, b"gone") is None
    cache.learn_name(2, b"elsewhere", 8, asked)
    assert cache.child(2, b"elsewhere") == 8
    for parent in (3, 4):
        cache.forget_name(parent, b"too many to remember")
    cache.learn_name(1, b"gone", 7, asked)
    assert cache.child(1, b"gone") is None
    clock.now += 0.1
    cache.learn_name(1, b"gone", 9, clock.now)
    assert cache.child(1, b"gone") == 9


def test_an_own_change_is_believed_no_longer_than_what_it_changed(clock: Clock) -> None:
    cache = NodeCache(1.0)
    cache.adjust(inode(7))
    assert cache.attributes(7) is None
    cache.learn(inode(7, at=1))
    clock.now += 0.6
    cache.adjust(inode(7, at=2))
    assert cache.attributes(7) == inode(7, at=2)
    clock.now += 0.6
    assert cache.attributes(7) is None


def test_what_a_name_was_is_known_when_it_is_no_longer_believed(clock: Clock) -> None:
    cache = NodeCache(1.0)
    cache.learn_name(1, b"seven", 7)
    clock.now += 5
    assert cache.child(1, b"seven") is None
    assert cache.last_child(1, b"seven") == 7
    cache.note_name(1, b"moved", 7)
    assert cache.child(1, b"moved") is None
    assert cache.last_child(1, b"moved") == 7
    cache.forget_name(1, b"seven")
    assert cache.last_child(1, b"seven") is None


def test_memory_is_bounded_and_the_newest_half_is_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.node_cache, "_GENERATION_MAX", 10)
    cache = NodeCache(1000.0)
    for number in range(100):
        cache.learn(inode(number))
        cache.learn_name(1, b"%d" % number, number)
    known = [number for number in range(100) if cache.attributes(number) is not None]
    named = [number for number in range(100) if cache.child(1, b"%d" % number) is not None]
    assert known == named == list(range(known[0], 100))
    assert 10 <= len(known) <= 22


def test_what_is_forgotten_is_not_found_in_an_older_generation(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfs_fuse.node_cache, "_GENERATION_MAX", 3)
    cache = NodeCache(1000.0)
    for at in (1, 2):
        cache.learn(inode(7, at=at))
        cache.learn_name(1, b"seven", 6 + at)
        for other in range(10 * at, 10 * at + 3):
            cache.learn(inode(other))
            cache.learn_name(1, b"%d" % other, other)
    cache.learn(inode(7, at=3))
    cache.learn_name(1, b"seven", 9)
    assert cache.attributes(7) == inode(7, at=3)
    assert cache.child(1, b"seven") == 9
    cache.forget(7)
    cache.forget_name(1, b"seven")
    assert cache.attributes(7) is None
    assert cache.child(1, b"seven") is None
