"""Walks every table and checks every invariant that `keyspace` states. Changes nothing.

Used by the tests after every step, and by `dfs admin fsck` on a checkpoint. It needs little
memory, however big the store, and must see one that does not change meanwhile.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from dfs.master.check.chunks import check_chunks
from dfs.master.check.delegations import check_delegations
from dfs.master.check.indexes import check_counters, check_indexes, check_sessions
from dfs.master.check.inodes import check_inodes
from dfs.master.check.problem import Problem
from dfs.master.check.sorter import RUN_RECORDS
from dfs.master.check.tree import check_directories, gather_names
from dfs.master.check.walk import Walk
from dfs.master.keyspace import Reader


def check(reader: Reader) -> list[str]:
    """What is wrong, one sentence each; empty when all is well."""
    return [problem.text for problem in problems(reader)]


def problems(
    reader: Reader,
    *,
    scratch: Path | None = None,
    tick: Callable[[int], None] | None = None,
    run_records: int = RUN_RECORDS,
) -> Iterator[Problem]:
    """`scratch`: a directory for what does not fit into memory. `tick` hears of rows done."""
    with Walk(reader, scratch=scratch, tick=tick, run_records=run_records) as walk:
        yield from walk_through(walk)


def walk_through(walk: Walk) -> Iterator[Problem]:
    """All parts of a check, in order: each gathers what later ones need."""
    for check_part in (
        gather_names,
        check_inodes,
        check_directories,
        check_sessions,
        check_delegations,
        check_chunks,
        check_indexes,
        check_counters,
    ):
        yield from check_part(walk)
