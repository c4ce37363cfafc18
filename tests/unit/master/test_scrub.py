"""How much a scrub does at a time."""

from dfs.master.jobs.scrub import AT_ONCE, ROUND_S, at_once_for


def test_a_round_of_a_big_cluster_ends_in_two_weeks() -> None:
    """If a chunk takes some seconds, as clients go first."""
    assert at_once_for(1000, 1) == 1
    assert at_once_for(1000, AT_ONCE) == AT_ONCE
    assert 10_000_000 * 4 / at_once_for(10_000_000, 1) < ROUND_S
    assert at_once_for(10**12, 1) < 1000
