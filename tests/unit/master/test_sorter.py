"""Sorting on disk gives what sorting in memory gives, and leaves nothing behind."""

import random
from pathlib import Path

import pytest

from dfs.master.check.sorter import Sorter


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 5000])
def test_records_come_out_in_order_however_many_runs_they_took(tmp_path: Path, count: int) -> None:
    chance = random.Random(count)
    records = [chance.randbytes(chance.randrange(1, 40)) for _ in range(count)]
    sorter = Sorter(tmp_path, run_records=10)
    for record in records:
        sorter.add(record)
    assert list(sorter) == sorted(records)
    assert len(sorter._records) < 10
    sorter.close()
    assert list(tmp_path.iterdir()) == []


def test_equal_records_are_all_kept(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path, run_records=2)
    for _ in range(7):
        sorter.add(b"same")
    assert list(sorter) == [b"same"] * 7
    sorter.close()
