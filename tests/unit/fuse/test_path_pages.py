"""The kernel keeps pages by path; files move between paths."""

import time

import pytest

from dfs_fuse.path_pages import PathPages


def test_pages_are_kept_while_a_path_is_the_same_file() -> None:
    pages = PathPages()
    assert not pages.opened("/a", 1, 1)
    assert pages.opened("/a", 1, 2)


def test_not_where_another_mount_has_put_another_file() -> None:
    pages = PathPages()
    pages.opened("/current", 1, 3)
    pages.opened("/next", 2, 4)
    assert not pages.opened("/current", 2, 5)
    assert pages.opened("/current", 2, 6)
    # It may have been written to by that path since.
    assert not pages.opened("/next", 2, 7)


def test_not_after_a_rename_here() -> None:
    pages = PathPages()
    pages.opened("/a", 1, 8)
    pages.opened("/b", 2, 9)
    pages.renamed("/a", "/b")
    assert not pages.opened("/b", 1, 10)
    pages.opened("/d/c", 3, 11)
    pages.renamed("/d", "/e")
    assert not pages.opened("/d/c", 3, 12)


def test_two_files_that_are_open_at_one_path_share_its_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pages = PathPages()
    pages.opened("/current", 1, 10)
    assert not pages.mixed("/current", 1)
    pages.opened("/current", 2, 11)
    now += 10
    assert pages.mixed("/current", 2)
    pages.closed(10)
    assert not pages.mixed("/current", 2)
    # What the first has left there is not the second's.
    assert not pages.opened("/current", 2, 12)
    assert pages.opened("/current", 2, 13)


def test_a_file_that_another_mount_has_replaced_is_soon_replaced_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pages = PathPages()
    for number in (1, 2):
        pages.opened("/current", number, number)
        pages.closed(number)
    assert pages.mixed("/current", 2)
    now += 10
    assert not pages.mixed("/current", 2)


def test_after_a_rename_here_pages_go_with_the_file() -> None:
    pages = PathPages()
    pages.opened("/current", 1, 10)
    pages.opened("/new", 2, 11)
    pages.renamed("/new", "/current")
    pages.opened("/current", 2, 12)
    assert not pages.mixed("/current", 2), "the first has a kernel's inode of its own"
    pages.opened("/current", 3, 13)
    assert pages.mixed("/current", 3)
    for handle in (10, 11, 12, 13):
        pages.closed(handle)
    pages.renamed("/new", "/current")
    assert not pages.mixed("/current", 3)
