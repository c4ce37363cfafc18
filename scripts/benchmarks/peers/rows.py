"""The rows of the comparison, and what dfs must reach in each. Pure values."""

from dataclasses import dataclass
from typing import Final, Literal

Better = Literal["more", "less"]

COPIES_3: Final = "3 copies"
COPIES_2: Final = "2 copies"
COPIES_1: Final = "1 copy"
CODED: Final = "4+2"


@dataclass(frozen=True)
class Goal:
    """A bound for dfs: `factor` times the best of some peers in the same run, or a fixed value."""

    redundancy: str = COPIES_3
    """For the columns of dfs with this redundancy."""
    factor: float = 1.0
    among: str = ""
    """Only peers with this redundancy; "" for all."""
    without: tuple[str, ...] = ()
    """Systems that do not count here, with the reason beside the row."""
    only: tuple[str, ...] = ()
    """Nothing but these systems count; () for all."""
    fixed: float | None = None


@dataclass(frozen=True)
class Row:
    """One figure. `workload` is the step that yields it, with others of the same step."""

    name: str
    title: str
    unit: str
    workload: str
    goals: tuple[Goal, ...] = ()
    better: Better = "more"


_TEXT: Final = "bytes on disk per byte of source text"
_AHEAD: Final = (Goal(among=COPIES_3), Goal(COPIES_1, among=COPIES_1))
"""Of commands: ahead of those that store as many copies."""

ROWS: Final = (
    Row(
        "write",
        "sequential write + fsync",
        "MiB/s",
        "stream",
        (
            Goal(factor=1.3, among=COPIES_3),
            Goal(CODED, 2.0, among=CODED),
            Goal(COPIES_1, 1.0, only=("juicefs",)),
        ),
    ),
    Row(
        "read-cold",
        "sequential read, cold",
        "MiB/s",
        "stream",
        (Goal(factor=1.2), Goal(CODED, 2.0, among=CODED)),
    ),
    Row("read-warm", "sequential read, servers warm", "MiB/s", "stream", (Goal(factor=1.5),)),
    Row("random-1", "random 4 KiB reads, one reader, cold", "/s", "random", (Goal(factor=1.2),)),
    Row("random-4", "random 4 KiB reads, four readers", "/s", "random", (Goal(factor=1.2),)),
    Row("create-1", "create empty files, one process", "/s", "names", (Goal(factor=1.2),)),
    Row("create-4", "create empty files, 4 processes", "/s", "create-4", (Goal(factor=1.2),)),
    # JuiceFS answers from a cache in the client.
    Row("list", "ls -l, cold, entries", "/s", "names", (Goal(factor=1.2, without=("juicefs",)),)),
    Row("rename", "rename", "/s", "names", (Goal(factor=1.3),)),
    Row("unlink", "unlink", "/s", "names", (Goal(factor=1.3),)),
    Row("small-write", "write 4 KiB files", "/s", "small", (Goal(factor=4.0),)),
    Row("small-read", "read 4 KiB files, cold", "/s", "small", (Goal(factor=2.0),)),
    # With these two an fsync does not reach the disk.
    Row(
        "fsync",
        "4 KiB write + fsync",
        "/s",
        "fsync",
        (Goal(factor=1.5, without=("moosefs", "seaweedfs")),),
    ),
    Row(
        "cpu-servers-write",
        "servers' CPU per GiB written",
        "s",
        "stream",
        (Goal(among=COPIES_3),),
        "less",
    ),
    Row(
        "cpu-servers-read",
        "servers' CPU per GiB read",
        "s",
        "stream",
        (Goal(among=COPIES_3),),
        "less",
    ),
    Row(
        "cpu-client-write",
        "client's CPU per GiB written",
        "s",
        "stream",
        (Goal(factor=1.2),),
        "less",
    ),
    Row("cpu-client-read", "client's CPU per GiB read", "s", "stream", (Goal(factor=1.2),), "less"),
    Row(
        "resident",
        "resident bytes of the metadata server per file",
        "B",
        "resident",
        (Goal(fixed=50),),
        "less",
    ),
    Row(
        "text",
        _TEXT,
        "",
        "text",
        (Goal(among=COPIES_3, only=("seaweedfs",)), Goal(CODED, fixed=0.45)),
        "less",
    ),
    Row("kill-write", "a server killed: longest write()", "s", "kill", (Goal(fixed=1.0),), "less"),
    Row("kill-fsync", "a server killed: the final fsync", "s", "kill", (Goal(fixed=1.0),), "less"),
    Row(
        "kill-whole",
        "a server killed: redundancy is back after",
        "s",
        "kill",
        (Goal(fixed=30.0),),
        "less",
    ),
    Row("upload-big", "command: upload a 1 GiB file", "MiB/s", "commands", _AHEAD),
    Row("download-big", "command: download it, cold", "MiB/s", "commands", _AHEAD),
    Row("upload-small", "command: upload 20,000 files of 4 KiB", "/s", "commands", _AHEAD),
    Row("download-small", "command: download them, cold", "/s", "commands", _AHEAD),
)

BY_NAME: Final = {row.name: row for row in ROWS}

WORKLOADS: Final = tuple(dict.fromkeys(row.workload for row in ROWS))
"""In the order of the table; `inside` runs them in its own."""
