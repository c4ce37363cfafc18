"""Which disks are asked for a report, and what their lists are too old to judge."""

import pytest

from dfs.master import report_book
from dfs.master.report_book import ASK_AGAIN_S, AT_ONCE, ReportBook


def test_disks_are_asked_once_and_again_when_they_stay_silent() -> None:
    book = ReportBook()
    book.want([1, 2])
    assert book.to_ask([1, 3], 0.0, 50) == (1,)
    book.want([1])
    assert book.to_ask([1, 2], 1.0, 70) == (2,)
    assert book.horizon(1, 30.0) == 50
    assert book.to_ask([1, 2], 1.0 + ASK_AGAIN_S, 90) == (2,)
    assert book.horizon(2, 70.0) == 70
    assert book.listed(2)
    assert book.to_ask([2], 500.0, 90) == ()


def test_a_disk_that_is_wanted_while_it_lists_is_asked_once_more() -> None:
    """The wish may be for what has happened since."""
    book = ReportBook()
    book.want([1])
    assert book.to_ask([1], 0.0, 50) == (1,)
    first = book.question(1)
    book.want([1], not_before=30.0)
    assert book.to_ask([1], 1.0, 50) == ()
    assert book.listed(1)
    assert book.to_ask([1], 29.0, 50) == ()
    assert book.to_ask([1], 30.0, 50) == (1,)
    assert book.question(1) not in (0, first)
    assert book.listed(1)
    assert book.to_ask([1], 500.0, 50) == ()


def test_a_disk_that_went_away_is_asked_another_question_when_it_returns() -> None:
    book = ReportBook(77)
    book.want([1, 2])
    assert book.to_ask([1, 2], 0.0, 50) == (1, 2)
    one, two = book.question(1), book.question(2)
    assert {one, two} == {77, 78}
    assert book.to_ask([1, 2], ASK_AGAIN_S, 60) == (1, 2)
    assert book.question(1) == one
    book.gone(1)
    assert book.question(1) == 0
    book.want([1])
    book.to_ask([1], 100.0, 70)
    assert book.question(1) == 79


def test_a_disk_is_not_asked_before_its_time() -> None:
    book = ReportBook()
    book.want([1], not_before=10.0)
    assert book.to_ask([1], 9.9, 50) == ()
    assert book.to_ask([1], 10.0, 50) == (1,)


def test_a_list_that_was_not_asked_for_is_evidence_against_nothing() -> None:
    """It may be of before the master began; the disk is still to be asked."""
    book = ReportBook()
    book.want([1])
    assert book.horizon(1, 0.0) == 0
    assert not book.listed(1)
    assert book.to_ask([1], 1.0, 50) == (1,)


def test_a_disk_that_went_away_is_not_asked() -> None:
    book = ReportBook()
    book.want([1, 2])
    assert book.to_ask([1], 0.0, 50) == (1,)
    book.gone(1)
    book.gone(2)
    assert book.to_ask([1, 2], 500.0, 50) == ()
    assert book.horizon(1, 500.0) == 0


def test_a_few_disks_are_asked_at_a_time_and_the_rest_in_turn() -> None:
    book = ReportBook()
    disks = range(1, 3 * AT_ONCE)
    book.want(disks)
    first = book.to_ask(disks, 0.0, 50)
    assert len(first) == AT_ONCE
    assert book.to_ask(disks, 1.0, 50) == ()
    assert book.listed(first[0])
    assert len(book.to_ask(disks, 2.0, 50)) == 1


def test_disks_that_never_answer_do_not_keep_others_from_their_turn() -> None:
    book = ReportBook()
    book.want(range(1, AT_ONCE + 1))
    assert len(book.to_ask(range(1, AT_ONCE + 1), 0.0, 50)) == AT_ONCE
    book.want([100])
    assert book.to_ask([100], 1.0, 50) == ()
    assert book.to_ask([100], ASK_AGAIN_S, 50) == (100,)


def test_chunks_changed_while_a_list_is_under_way_are_spared() -> None:
    book = ReportBook()
    book.note_changed(1)
    book.want([1, 2])
    book.note_changed(2)
    assert book.to_ask([1], 0.0, 50) == (1,)
    book.note_changed(3)
    assert book.to_ask([2], 0.0, 50) == (2,)
    book.note_changed(4)
    assert set(book.spared) == {3, 4}
    book.listed(1)
    assert set(book.spared) == {4}
    book.note_changed(5)
    book.listed(2)
    assert set(book.spared) == set()
    book.note_changed(6)
    assert set(book.spared) == set()


def test_what_changes_twice_is_spared_for_the_younger_list_too() -> None:
    book = ReportBook()
    book.want([1, 2])
    book.to_ask([1], 0.0, 50)
    book.note_changed(3)
    book.to_ask([2], 0.0, 50)
    book.note_changed(3)
    book.listed(1)
    assert set(book.spared) == {3}


def test_memory_of_changes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that takes too long counts as never asked for, and is asked for anew."""
    monkeypatch.setattr(report_book, "CHANGED_MAX", 10)
    book = ReportBook()
    book.want([1, 2])
    book.to_ask([1], 0.0, 50)
    for chunk in range(9):
        book.note_changed(chunk)
    book.to_ask([2], 0.0, 50)
    for chunk in range(9, 12):
        book.note_changed(chunk)
    assert set(book.spared) == {9, 10, 11}
    assert book.horizon(1, 1.0) == 0
    assert book.horizon(2, 1.0) == 50
    assert book.to_ask([1], 1.0, 60) == (1,)
