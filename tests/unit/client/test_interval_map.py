from hypothesis import given
from hypothesis import strategies as st

from dfs.client.interval_map import IntervalMap, Span

positions = st.integers(0, 60)
changes = st.lists(
    st.tuples(st.booleans(), positions, st.integers(1, 20), st.integers(0, 3)), max_size=30
)


@given(changes, positions, positions)
def test_agrees_with_a_plain_array(
    steps: list[tuple[bool, int, int, int]], start: int, end: int
) -> None:
    spans: IntervalMap[int] = IntervalMap()
    model: list[tuple[int, int] | None] = [None] * 100
    for sets, at, length, value in steps:
        if sets:
            spans.set(at, at + length, value, 7 * value)
            for position in range(at, at + length):
                model[position] = (value, 7 * value + position - at)
        else:
            spans.clear(at, at + length)
            model[at : at + length] = [None] * length
    found: list[tuple[int, int] | None] = [None] * 100
    for span in spans.slices(start, end):
        assert start <= span.start < span.end <= end
        for position in range(span.start, span.end):
            found[position] = (span.value, span.skip + position - span.start)
    wanted = [each if start <= at < end else None for at, each in enumerate(model)]
    assert found == wanted
    gaps = [at for low, high in spans.gaps(start, end) for at in range(low, high)]
    assert gaps == [at for at in range(start, max(start, end)) if model[at] is None]
    assert spans.end == max((at + 1 for at, each in enumerate(model) if each), default=0)


def test_parts_that_continue_each_other_are_joined() -> None:
    spans: IntervalMap[str] = IntervalMap()
    spans.set(0, 4, "a")
    spans.set(8, 12, "a", 8)
    spans.set(4, 8, "a", 4)
    assert list(spans) == [Span(0, 12, "a", 0)]
    spans.set(12, 14, "a", 0)
    assert len(spans) == 2


def test_values_can_be_removed() -> None:
    spans: IntervalMap[str] = IntervalMap()
    spans.set(0, 10, "a")
    spans.set(3, 5, "b")
    spans.remove(lambda value: value == "a")
    assert list(spans) == [Span(3, 5, "b", 0)]
    spans.wipe()
    assert not list(spans)
    assert spans.end == 0
