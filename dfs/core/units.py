"""Sizes and durations as people write them: "512M", "50MiB", "1.5T"; "250ms", "60s", "1h30m"."""

import math
import re
from typing import Final

from dfs.core.errors import ConfigError

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(i?b|)", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_PREFIXES: Final = "KMGTPE"

_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|us|s|m|h|d|w)", re.ASCII)
_SECONDS: Final = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0,
}  # fmt: skip

SIZE_MAX: Final = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes: "4096", "512M" and "512MiB" (both of 1024), "1.5G", "10 kB" (of 1000).

    A single letter, with or without "iB", counts by 1024, as `dd` and `truncate` do; "kB", "MB",
    "GB" count by 1000. Raises ConfigError for anything else, and above 2^63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size", hint="write for example 4096, 512M or 50MiB")
    number, prefix, unit = match.groups()
    base = 1000 if prefix and unit.lower() == "b" else 1024
    factor = int(base ** _POWERS[prefix.lower()])
    size = int(number) * factor if number.isdigit() else round(float(number) * factor)
    if size > SIZE_MAX:
        raise ConfigError(f"{text!r} is too large a size", hint="the largest is 8 EiB - 1")
    return size


def format_size(size_bytes: float) -> str:
    """ "0 B", "1023 B", "1.0 KiB", "50.0 MiB": at most four digits, units of 1024."""
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if size < 1024:
        return f"{sign}{size:.0f} B"
    power = 0
    while size >= 1023.95 and power < len(_PREFIXES):
        size /= 1024
        power += 1
    return f"{sign}{size:.1f} {_PREFIXES[power - 1]}iB"


def parse_duration(text: str) -> float:
    """Seconds: "60", "60s", "250ms", "1.5h", "1h30m"; us, ms, s, m, h, d, w.

    Raises ConfigError for anything else.
    """
    compact = text.strip()
    try:
        if compact.replace(".", "", 1).isdecimal() and compact.isascii():
            return float(compact)
        total, end = 0.0, 0
        for match in _PART.finditer(compact):
            if compact[end : match.start()].strip():
                break
            total += float(match[1]) * _SECONDS[match[2]]
            end = match.end()
        if end and not compact[end:].strip() and math.isfinite(total):
            return total
    except ValueError:
        pass
    raise ConfigError(
        f"{text!r} is not a duration", hint="write for example 250ms, 60s, 5m or 1h30m"
    )


def format_duration(seconds: float) -> str:
    """ "0 s", "250 ms", "1.5 s", "2 m 05 s", "3 h 04 m", "2 d 03 h": two units at most."""
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    if left < 0.9995:
        return f"{sign}{left * 1000:.0f} ms" if left >= 0.0005 else "0 s"
    if left < 9.95:
        return f"{sign}{left:.1f} s".replace(".0 s", " s")
    whole = round(left)
    for name, unit, below, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= unit:
            return f"{sign}{whole // unit} {name} {whole % unit // part:02d} {below}"
    return f"{sign}{whole} s"
