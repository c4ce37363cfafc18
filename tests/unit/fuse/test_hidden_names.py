"""Names that libfuse 2 gives to files which are unlinked while they are open."""

import pytest

from dfs_fuse.hidden_names import HiddenNames

NAME = b".fuse_hidden0000001200000003"


def test_a_hidden_name_is_found_until_it_is_removed() -> None:
    hidden = HiddenNames()
    hidden.put(NAME, 7)
    assert hidden.find(NAME) == 7
    assert hidden.remove(NAME) == 7
    assert hidden.find(NAME) is None
    assert hidden.remove(NAME) is None


def test_only_names_that_libfuse_makes_match() -> None:
    assert HiddenNames.matches(NAME)
    assert HiddenNames.matches(b".fuse_hiddenfedcba9876543210")


@pytest.mark.parametrize(
    "name",
    [
        b".fuse_hidden",
        NAME[:-1],
        NAME + b"0",
        NAME + b"\n",
        b"x" + NAME,
        NAME.upper(),
        b".fuse_hidden00000012-0000003",
        b"",
    ],
)
def test_other_names_are_those_of_programs(name: bytes) -> None:
    assert not HiddenNames.matches(name)
