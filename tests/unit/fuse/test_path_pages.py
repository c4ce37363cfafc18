"""The kernel keeps pages by path; files move between paths."""

from dfs_fuse.path_pages import PathPages


def test_pages_are_kept_while_a_path_is_the_same_file() -> None:
    pages = PathPages()
    assert not pages.opened("/a", 1)
    assert pages.opened("/a", 1)


def test_not_where_another_mount_has_put_another_file() -> None:
    pages = PathPages()
    pages.opened("/current", 1)
    pages.opened("/next", 2)
    assert not pages.opened("/current", 2)
    assert pages.opened("/current", 2)
    # It may have been written to by that path since.
    assert not pages.opened("/next", 2)


def test_not_after_a_rename_here() -> None:
    pages = PathPages()
    pages.opened("/a", 1)
    pages.opened("/b", 2)
    pages.renamed("/a", "/b")
    assert not pages.opened("/b", 1)
    pages.opened("/d/c", 3)
    pages.renamed("/d", "/e")
    assert not pages.opened("/d/c", 3)
