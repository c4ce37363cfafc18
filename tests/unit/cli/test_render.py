import pytest

from dfs.cli import render


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0"), (1, "1"), (1023, "1023"), (1024, "1.0K"), (1025, "1.1K"), (10 * 1024 - 1, "10K"),
        (10 * 1024, "10K"), (1024 * 1024 - 1, "1.0M"), (3 * 1024**3, "3.0G"), (1 << 60, "1.0E"),
        (1 << 70, "1024E"),
    ],
)  # fmt: skip
def test_sizes_are_rounded_up_as_ls_does(size: int, shown: str) -> None:
    assert render.human(size) == shown


def test_durations_are_rough() -> None:
    assert render.duration(0.26) == "0.3s"
    assert render.duration(59.7) == "60s"
    assert render.duration(600) == "10m"
    assert render.duration(3 * 3600 + 20 * 60) == "3h 20m"
    assert render.duration(5 * 86400 + 4 * 3600) == "5d 4h"


def test_percent_is_rounded_up() -> None:
    assert render.percent(1, 1000) == "1%"
    assert render.percent(0, 1000) == "0%"
    assert render.percent(1, 0) == "-"


def test_tables_align_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table(("Name", "N"), [["日本", "5"], ["abc", "12"]], numbers=frozenset({"N"}))
    assert capsys.readouterr().out == "Name   N\n日本   5\nabc   12\n"


def test_columns_are_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_columns(["a", "b"], ["", "1;34"])
    assert capsys.readouterr().out == "a\nb\n"


def test_times_have_nanoseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".000000007 " in render.time_ns(1_700_000_000_000_000_007)
    assert render.time_ns(-1).startswith(("1969-12-31", "1970-01-01"))
    assert ".999999999 " in render.time_ns(-1)
