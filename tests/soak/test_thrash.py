"""A short run of the thrasher; `scripts/soak thrash --minutes 60` makes long ones."""

from pathlib import Path

import pytest

from tests.soak.thrash import Thrash


@pytest.mark.time_limit(600)
def test_a_cluster_that_is_broken_all_the_time_loses_nothing_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    Thrash(tmp_path / "cluster", seed=1, minutes=0.35).run()
