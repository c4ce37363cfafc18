"""What is used is divided without a rest."""

from hypothesis import given
from hypothesis import strategies as st

from dfs.core.space import divide
from dfs.wire.messages import FsStats


def stats(capacity: int, used: int, free: int, live: int, length: int, redundancy: int) -> FsStats:
    return FsStats(capacity, free, 1, 1, live, 1.0, used, length, redundancy)


BYTES = st.integers(0, 1 << 60)


@given(used=BYTES, free=BYTES, beyond=BYTES, live=BYTES, dead=BYTES, redundancy=BYTES)
def test_the_parts_add_up(
    used: int, free: int, beyond: int, live: int, dead: int, redundancy: int
) -> None:
    capacity = used + free + beyond
    space = divide(stats(capacity, used, free, live, live + dead, redundancy))
    assert space.live + space.dead + space.redundancy == used
    assert space.live + space.dead + space.redundancy + space.free + space.other == capacity
    assert min(space.live, space.dead, space.redundancy) >= 0


def test_shares_are_those_of_the_raw_bytes() -> None:
    space = divide(stats(1000, 600, 400, 100, 200, 400))
    assert (space.live, space.dead, space.redundancy) == (100, 100, 400)
    assert divide(stats(1000, 50, 950, 0, 0, 0)).dead == 50
