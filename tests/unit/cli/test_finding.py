import stat

import pytest

from dfs.cli.attributes import parse_time
from dfs.cli.finding import age_test, size_test
from dfs.cli.locating import health
from dfs.cli.owners import parse_owner
from dfs.cli.walking import Node
from dfs.core.chunk import Chunk, ChunkState, DiskLocation, DiskState, Fragment, FragmentState
from dfs.core.errors import ConfigError
from dfs.core.inode import Inode

NOW_S = 1_700_000_000.0


def node(size: int = 0, age_s: float = 0.0) -> Node:
    mtime_ns = int((NOW_S - age_s) * 1e9)
    inode = Inode(2, stat.S_IFREG | 0o644, 1, 0, 0, size, mtime_ns, mtime_ns, mtime_ns, 1)
    return Node(b"/x", inode, 1)


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("+10M", (10 << 20) + 1, 10 << 20), ("-1K", 1023, 1024), ("512", 512, 513),
        ("1.5k", 1536, 1535), ("+2GiB", 3 << 30, 2 << 30), ("100c", 100, 101), ("+1MB", 2 << 20, 1),
    ],
)  # fmt: skip
def test_sizes(text: str, matching: int, other: int) -> None:
    assert size_test(text)(node(matching))
    assert not size_test(text)(node(other))


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("-7", 6.9 * 86400, 7.1 * 86400), ("+7", 7.1 * 86400, 6.9 * 86400),
        ("1", 1.5 * 86400, 2.5 * 86400), ("-12h", 3600, 13 * 3600), ("+30m", 1801, 1799),
        ("+2w", 15 * 86400, 13 * 86400), ("-10s", 9, 11),
    ],
)  # fmt: skip
def test_ages(text: str, matching: float, other: float) -> None:
    assert age_test(text, NOW_S)(node(age_s=matching))
    assert not age_test(text, NOW_S)(node(age_s=other))


@pytest.mark.parametrize("text", ["", "x", "+", "10X", "--3"])
def test_bad_sizes_and_ages_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--size"):
        size_test(text)
    with pytest.raises(ConfigError, match="--mtime"):
        age_test(text, NOW_S)


def test_owners_are_names_or_numbers() -> None:
    assert parse_owner("root") == (0, None)
    assert parse_owner("root:root") == (0, 0)
    assert parse_owner("root:") == (0, 0)
    assert parse_owner("12345:54321") == (12345, 54321)
    assert parse_owner(":54321") == (None, 54321)
    for wrong in (
        "",
        ":",
        "no-such-user-here",
        "0:no-such-group",
        "-1",
        "99999999999",
        "54321987:",
    ):
        with pytest.raises(ConfigError):
            parse_owner(wrong)


def test_times_are_parsed() -> None:
    assert parse_time("@1700000000.5") == 1_700_000_000_500_000_000
    assert parse_time("2024-05-01T12:30:00.000007+00:00") == 1_714_566_600_000_007_000
    for wrong in ("", "yesterday", "@x", "2024-13-01"):
        with pytest.raises(ConfigError, match="--date"):
            parse_time(wrong)


def test_health_counts_what_can_be_read() -> None:
    states = [
        DiskState.UP,
        DiskState.SUSPECT,
        DiskState.DOWN,
        DiskState.FAILED,
        DiskState.FULL,
        DiskState.DRAINING,
    ]
    disks = {
        number: DiskLocation(number, number, "", "", "", state)
        for number, state in enumerate(states, 1)
    }

    def chunk(k: int, m: int, *on: int) -> Chunk:
        fragments = tuple(Fragment(index, disk) for index, disk in enumerate(on))
        return Chunk(1, ChunkState.SEALED, k, m, 1, 0, 1, 1, fragments)

    assert health(chunk(1, 2, 1, 6, 5), disks) == "healthy"
    assert health(chunk(1, 2, 1, 2, 5), disks) == "degraded"
    assert health(chunk(1, 2, 1, 4, 3), disks) == "at risk"
    assert health(chunk(1, 2, 99, 4, 3), disks) == "lost"
    assert health(chunk(1, 0, 1), disks) == "healthy"
    assert health(chunk(2, 1, 1, 5, 3), disks) == "at risk"
    assert health(chunk(2, 1, 1, 4, 3), disks) == "lost"
    bad = Chunk(1, ChunkState.SEALED, 1, 0, 1, 0, 1, 1, (Fragment(0, 1, FragmentState.LOST),))
    assert health(bad, disks) == "lost"
