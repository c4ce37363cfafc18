"""What the kernel is told under libfuse 2, and who waits until it believes that no more."""

import time
from dataclasses import dataclass
from typing import cast

from dfs.core.inode import Inode
from dfs_fuse.kernel_beliefs import BELIEVED_S, KernelBeliefs


@dataclass(frozen=True)
class _Attributes:
    ino: int = 7
    nlink: int = 1
    size: int = 10
    is_dir: bool = False


def inode(**changes: int) -> Inode:
    """As much of one as is looked at."""
    return cast(Inode, _Attributes(**changes))  # type: ignore[arg-type]


def beliefs_of(*, enabled: bool = True) -> KernelBeliefs:
    """Of a place where the kernel has nothing at hand, so that time has to pass."""
    return KernelBeliefs(
        "/nowhere",
        encoding="latin-1",
        forget=lambda _: False,
        caller=lambda: 0,
        enabled=enabled,
    )


def waited(function: object, *args: object) -> bool:
    begun = time.monotonic()
    function(*args)  # type: ignore[operator]
    return time.monotonic() - begun > BELIEVED_S / 2


def test_a_change_by_one_name_waits_for_what_is_believed_of_another() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(nlink=2), "/a")
    assert not waited(beliefs.change(7, "/a").done)
    beliefs.told(inode(nlink=2), "/a")
    assert waited(beliefs.change(7, "/b").done)
    assert not waited(beliefs.change(7, "/b").done)
    beliefs.told(inode(nlink=2), "/a")
    assert not waited(beliefs.change(7, "/b", "/a").done)


def test_a_second_name_is_seen_by_the_first() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(), "/a")
    assert not waited(beliefs.change(7).done)
    assert waited(beliefs.change(7, links=1).done)


def test_files_with_one_name_and_directories_never_wait() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(), "/a")
    beliefs.told(cast(Inode, _Attributes(ino=8, nlink=3, is_dir=True)), "/d")
    assert not waited(beliefs.change(7, "/b").done)
    assert not waited(beliefs.change(8, "/e").done)


def test_an_open_waits_where_another_size_is_believed() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(size=10), "/a")
    assert not waited(beliefs.opened, inode(size=10), "/a")
    assert not waited(beliefs.opened, inode(size=20), "/b")
    assert waited(beliefs.opened, inode(size=20), "/a")
    # Another file is there by now, which is as long.
    beliefs.told(inode(size=10), "/a")
    assert waited(beliefs.opened, inode(ino=8, size=10), "/a")


def test_what_programs_write_here_the_kernel_knows() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(size=0), "/a")
    beliefs.drop("/a")
    assert not waited(beliefs.opened, inode(size=20), "/a")


def test_what_programs_rename_here_the_kernel_knows_by_its_new_name() -> None:
    beliefs = beliefs_of()
    beliefs.told(inode(), "/a")
    beliefs.told(inode(ino=8), "/b")
    beliefs.renamed("/a", "/b")
    assert not waited(beliefs.opened, inode(), "/b")
    assert waited(beliefs.opened, inode(size=20), "/b")
    assert not waited(beliefs.opened, inode(ino=9), "/a")


def test_nothing_waits_where_the_kernel_is_told_to_believe_nothing() -> None:
    beliefs = beliefs_of(enabled=False)
    assert beliefs.told_s == 0
    beliefs.told(inode(nlink=2, size=1), "/a")
    assert not waited(beliefs.change(7, "/b").done)
    assert not waited(beliefs.opened, inode(size=2), "/a")


def test_it_is_forgotten_after_a_while() -> None:
    beliefs = beliefs_of()
    for number in range(100):
        beliefs.told(inode(ino=number, nlink=2), "/a")
    for _ in range(2):
        time.sleep(BELIEVED_S)
        beliefs.told(inode(ino=1000, nlink=2), "/a")
    assert not beliefs._told_before.names.keys() & set(range(100))
    assert not beliefs._told.names.keys() & set(range(100))
