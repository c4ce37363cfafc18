"""Sizes and durations are read as people write them, and shown so that they are read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.core.errors import ConfigError
from dfs.core.units import SIZE_MAX, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1b", 1),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("50MiB", 50 << 20),
        (" 50 MiB ", 50 << 20),
        ("1.5G", 3 << 29),
        ("10 kB", 10_000),
        ("2TB", 2 * 10**12),
        ("1K", 1024),
        ("7E", 7 << 60),
        ("9223372036854775807", SIZE_MAX),
    ],
)
def test_a_size_is_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "-1", "1X", "1 2", "1e3", "0x10", "1.2.3M", "8E", "1iB5", "inf", "nan", "٣"],
)
def test_what_is_no_size_is_refused_by_name(text: str):
    with pytest.raises(ConfigError, match="size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (50 << 20, "50.0 MiB"),
        (1 << 40, "1.0 TiB"),
        (SIZE_MAX, "8.0 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_shown(size: int, text: str):
    assert format_size(size) == text


@given(st.integers(0, SIZE_MAX - (1 << 58)))
def test_a_size_that_was_shown_is_read_as_nearly_the_same(size: int):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("60", 60),
        ("0.5", 0.5),
        ("60s", 60),
        ("250ms", 0.25),
        ("10us", 1e-5),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 2 d ", 172800),
        ("1w", 604800),
    ],
)
def test_a_duration_is_read(text: str, seconds: float):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1y", "1h30", "h1", "1m 2", "inf", "nan", "1e3", ".", "1..5s", "1 2", "٣s"],
)
def test_what_is_no_duration_is_refused_by_name(text: str):
    with pytest.raises(ConfigError, match="not a duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0 s"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (1.54, "1.5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 m 00 s"),
        (125, "2 m 05 s"),
        (11040, "3 h 04 m"),
        (183600, "2 d 03 h"),
        (-0.25, "-250 ms"),
    ],
)
def test_a_duration_is_shown(seconds: float, text: str):
    assert format_duration(seconds) == text


@given(st.floats(1, 1e8))
def test_a_duration_that_was_shown_is_read_as_nearly_the_same(seconds: float):
    shown = format_duration(seconds)
    assert parse_duration(shown) == pytest.approx(seconds, rel=0.05)
