"""Stamps of the kernel that mean "now", and those that do not."""

import time

from dfs_fuse.kernel_clock import CLOCK_REALTIME_COARSE, TICK_NS, means_now

NOW_NS = 1_795_626_605_616_699_957


def test_the_last_tick_and_the_one_before_mean_now():
    assert means_now(NOW_NS, NOW_NS)
    assert means_now(NOW_NS - TICK_NS, NOW_NS)
    assert means_now(NOW_NS - TICK_NS - 1_000, NOW_NS)


def test_a_time_that_a_program_says_is_taken_as_it_is():
    assert not means_now(NOW_NS - 1, NOW_NS)
    assert not means_now(NOW_NS + 1, NOW_NS)
    assert not means_now(NOW_NS - TICK_NS // 2, NOW_NS)
    assert not means_now(NOW_NS - 2 * TICK_NS, NOW_NS)
    assert not means_now(0, NOW_NS)


def test_what_the_coarse_clock_says_means_now():
    assert any(means_now(time.clock_gettime_ns(CLOCK_REALTIME_COARSE)) for _ in range(10))
