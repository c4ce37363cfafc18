"""A map from ranges of integers to values, where a later range takes the place of an earlier one.

Each span knows how far into its value it starts (`skip`), so cutting one keeps its parts right.
Neighbours that continue each other are joined. Used for a file's extents (value: chunk, skip:
offset in it) and for written bytes that are not committed yet (value: piece).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Span(NamedTuple, Generic[T]):
    """[start, end) is `value` from its byte `skip` on."""

    start: int
    end: int
    value: T
    skip: int

    def cut(self, start: int, end: int) -> "Span[T]":
        """The part of it within [start, end), which must overlap it."""
        first = max(self.start, start)
        return Span(first, min(self.end, end), self.value, self.skip + first - self.start)


class IntervalMap(Generic[T]):
    """See the module. Finding is O(log n), changing O(n) with a small constant."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._spans: list[Span[T]] = []

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Span[T]]:
        return iter(self._spans)

    @property
    def end(self) -> int:
        """Where the last span ends; 0 when empty."""
        return self._spans[-1].end if self._spans else 0

    def set(self, start: int, end: int, value: T, skip: int = 0) -> None:
        """Let [start, end) be `value` from its byte `skip` on."""
        if start >= end:
            return
        at = self.clear(start, end)
        new = Span(start, end, value, skip)
        if at and _continues(self._spans[at - 1], new):
            at -= 1
            before = self._spans.pop(at)
            del self._starts[at]
            new = Span(before.start, end, before.value, before.skip)
        if at < len(self._spans) and _continues(new, self._spans[at]):
            after = self._spans.pop(at)
            del self._starts[at]
            new = Span(new.start, after.end, new.value, new.skip)
        self._spans.insert(at, new)
        self._starts.insert(at, new.start)

    def clear(self, start: int, end: int) -> int:
        """Let nothing be in [start, end); where a span of it would be inserted."""
        first = self._first_after(start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return first
        kept: list[Span[T]] = []
        head, tail = self._spans[first], self._spans[last - 1]
        if head.start < start:
            kept.append(head.cut(head.start, start))
        place = first + len(kept)
        if tail.end > end:
            kept.append(tail.cut(end, tail.end))
        self._spans[first:last] = kept
        self._starts[first:last] = [span.start for span in kept]
        return place

    def remove(self, unwanted: Callable[[T], bool]) -> None:
        """Drop all spans of the values that are `unwanted`."""
        self._spans = [span for span in self._spans if not unwanted(span.value)]
        self._starts = [span.start for span in self._spans]

    def slices(self, start: int, end: int) -> list[Span[T]]:
        """What is in [start, end), in order, cut to it."""
        if start >= end:
            return []
        first = self._first_after(start)
        last = bisect_left(self._starts, end)
        found = self._spans[first:last]
        if found:
            found[0] = found[0].cut(start, end)
            found[-1] = found[-1].cut(start, end)
        return found

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges of [start, end) where nothing is, in order."""
        gaps = []
        at = start
        for span in self.slices(start, end):
            if span.start > at:
                gaps.append((at, span.start))
            at = span.end
        if at < end:
            gaps.append((at, end))
        return gaps

    def wipe(self) -> None:
        """Let nothing be anywhere."""
        self._spans = []
        self._starts = []

    def _first_after(self, position: int) -> int:
        """Index of the first span that ends after `position`."""
        index = bisect_right(self._starts, position)
        return index - 1 if index and self._spans[index - 1].end > position else index


def _continues(one: Span[T], other: Span[T]) -> bool:
    return (
        one.end == other.start
        and one.value == other.value
        and one.skip + one.end - one.start == other.skip
    )
