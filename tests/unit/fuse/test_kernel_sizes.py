"""An append is never taken for a page of a mapping, a page hardly ever for an append."""

import pytest

from dfs_fuse import kernel_sizes
from dfs_fuse.kernel_sizes import CALM_S, KernelSizes

INO = 7


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(kernel_sizes, "monotonic", lambda: self.now)

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def append(sizes: KernelSizes, offset: int, length: int) -> None:
    assert not sizes.is_page(INO, offset)
    sizes.writing(INO)
    sizes.wrote(INO, offset + length, append=True)


def test_pages_begin_before_the_end_and_appends_at_it(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 5000)
    assert sizes.opened(INO)
    assert sizes.is_page(INO, 4096)
    append(sizes, 5000, 3192)
    assert sizes.is_page(INO, 4096)
    append(sizes, 8192, 4096)
    assert sizes.is_page(INO, 8192)


def test_nothing_is_a_page_before_the_kernel_is_told_anything(clock: Clock) -> None:
    sizes = KernelSizes()
    assert not sizes.opened(INO)
    assert not sizes.is_page(INO, 0)
    sizes.told(INO, 4097)
    assert sizes.is_page(INO, 4096)


@pytest.mark.parametrize("told", ["during", "after"])
def test_a_size_that_crosses_an_append_is_not_relied_on(clock: Clock, told: str) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    clock.sleep(10)
    sizes.writing(INO)
    if told == "during":
        clock.sleep(10)
        sizes.told(INO, 50_000)
    sizes.wrote(INO, 8192, append=True)
    if told == "after":
        sizes.told(INO, 50_000)
    append(sizes, 8192, 4096)
    clock.sleep(CALM_S)
    sizes.told(INO, 60_000)
    assert sizes.is_page(INO, 57_344)


@pytest.mark.parametrize("believed", [4096, 8192], ids=["the least", "the last"])
def test_an_append_that_has_begun_before_the_kernel_was_told_is_none_of_a_page(
    clock: Clock, believed: int
) -> None:
    """It stands where the kernel believed the end to be; another mount has written there since."""
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    sizes.told(INO, 8192)
    clock.sleep(10)
    sizes.told(INO, 50_000)
    append(sizes, believed, 4096)
    append(sizes, believed + 4096, 4096)


def test_what_does_not_begin_as_pages_do_is_an_append(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 500)
    clock.sleep(CALM_S)
    sizes.told(INO, 50_000)
    clock.sleep(CALM_S)
    assert not sizes.is_page(INO, 500)


def test_pages_of_a_file_that_has_grown_are_pages(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    clock.sleep(CALM_S)
    sizes.told(INO, 50_000)
    assert [sizes.is_page(INO, offset) for offset in (0, 8192, 49_152)] == [True] * 3
    assert not sizes.is_page(INO, 4096), "an append may be on its way"
    clock.sleep(CALM_S)
    assert sizes.is_page(INO, 4096)


def test_an_answer_that_took_long_is_not_relied_on(clock: Clock) -> None:
    """The kernel ignores it, where a write has ended since it asked."""
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    clock.sleep(10)
    asked = clock.now
    append(sizes, 4096, 4096)
    clock.sleep(10)
    sizes.told(INO, 50_000, asked)
    clock.sleep(10)
    append(sizes, 8192, 4096)


def test_of_two_sizes_that_cross_each_other_the_smaller_counts(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    sizes.told(INO, 50_000)
    append(sizes, 4096, 100)


def test_what_the_kernel_itself_makes_of_a_file_counts_at_once(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 50_000)
    sizes.changed(INO, 0)
    append(sizes, 0, 100)
    sizes.changed(INO, 8192)
    assert sizes.is_page(INO, 4096)
    append(sizes, 8192, 100)


def test_a_read_that_comes_to_the_end_makes_it_shorter_and_never_longer(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 8192)
    sizes.ended(INO, 9000)
    assert not sizes.is_page(INO, 8192)
    sizes.ended(INO, 4096)
    append(sizes, 4096, 100)


def test_a_write_that_failed_has_made_it_no_longer(clock: Clock) -> None:
    sizes = KernelSizes()
    sizes.told(INO, 4096)
    sizes.writing(INO)
    sizes.wrote(INO, None, append=True)
    append(sizes, 4096, 100)


def test_it_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_sizes, "_FILES_MAX", 3)
    sizes = KernelSizes()
    for ino in range(1, 6):
        sizes.told(ino, 8192)
    assert [ino for ino in range(1, 6) if sizes.is_page(ino, 0)] == [3, 4, 5]


def test_what_the_kernel_was_told_of_a_version_is_known_until_anything_else_may_be_believed() -> (
    None
):
    sizes = KernelSizes()
    assert not sizes.knows(1, 10, 5)
    sizes.told(1, 10, version=5)
    assert sizes.knows(1, 10, 5)
    assert not sizes.knows(1, 10, 6)
    assert not sizes.knows(1, 11, 5)
    # Two answers that crossed: the kernel may have kept either.
    sizes.told(1, 20, version=6)
    assert not sizes.knows(1, 20, 6)
    sizes.changed(1, 20)
    assert sizes.knows(1, 20, 6)
    sizes.writing(1)
    assert not sizes.knows(1, 20, 6)
    sizes.wrote(1, 30, append=False)
    assert not sizes.knows(1, 20, 6)
    sizes.told(2, 10, version=5)
    sizes.ended(2, 4)
    assert not sizes.knows(2, 10, 5)
