"""Memory of payloads is used again, and never while anyone still looks at it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.wire.limits import MIB
from dfs.wire.payloads import PayloadMemory, _class_of


def test_memory_is_used_again_only_when_nobody_refers_to_it():
    memory = PayloadMemory()
    first = memory.take(MIB)
    part = first[10:20]
    identity = id(first.obj)
    second = memory.take(MIB)
    assert id(second.obj) != identity
    del first
    third = memory.take(MIB)
    assert id(third.obj) not in (identity, id(second.obj))
    del part
    assert id(memory.take(MIB).obj) == identity


def test_no_more_is_kept_than_said():
    memory = PayloadMemory(keep_bytes=4 * MIB)
    held = []
    for _ in range(10):
        held.append(memory.take(MIB))
        assert memory._kept_bytes <= 4 * MIB
    memory.take(8 * MIB)
    assert memory._kept_bytes == 0


def test_what_is_held_for_long_does_not_keep_out_what_comes_and_goes():
    memory = PayloadMemory(keep_bytes=4 * MIB)
    held = [memory.take(MIB) for _ in range(10)]
    passing = memory.take(MIB)
    identity = id(passing.obj)
    del passing
    assert id(memory.take(MIB).obj) == identity
    assert len({id(each.obj) for each in held}) == 10


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 10)), max_size=60))
def test_what_is_held_is_never_overwritten(steps: list[tuple[int, int]]):
    memory = PayloadMemory(keep_bytes=400_000)
    held: list[tuple[memoryview, int]] = []
    for number, (length, drop) in enumerate(steps):
        view = memory.take(length)
        assert len(view) == length
        mark = number % 256
        view[:] = bytes([mark]) * length
        held.append((view[length // 3 :], mark))
        del view
        if drop < len(held):
            held.pop(drop)
        for kept, expected in held:
            assert kept.tobytes() == bytes([expected]) * len(kept)
        assert 0 <= memory._kept_bytes <= 400_000


@given(st.integers(1, 1 << 40))
def test_a_size_is_rounded_up_by_a_quarter_at_most(length: int):
    size = _class_of(length)
    assert length <= size <= length * 1.25 + 1
    assert _class_of(size) == size


@pytest.mark.parametrize("length", [0, 1, 65_536])
def test_small_payloads_have_memory_of_their_own(length: int):
    memory = PayloadMemory()
    assert len(memory.take(length)) == length
    assert memory._kept_bytes == 0
