"""Storage policies: how the bytes of a file are kept. Inherited down directories at create."""

import re
from enum import IntEnum
from typing import Final

import msgspec

from dfs.core.ids import DEFAULT_POLICY, EC_POLICY, SCRATCH_POLICY, PolicyId
from dfs.core.redundancy import Redundancy

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_ZSTD = re.compile(r"zstd:(-?\d{1,2})", re.ASCII)
ZSTD_LEVEL_MIN: Final = -7
ZSTD_LEVEL_MAX: Final = 19


class Spread(IntEnum):
    """The failure domain that no two fragments of a chunk share while there are enough of them.

    DISK is the only one that lets two fragments lie on one server. RACK and ZONE place as
    evenly as they can over the racks or zones there are, always on distinct servers.
    """

    DISK = 1
    SERVER = 2
    RACK = 3
    ZONE = 4


class Policy(msgspec.Struct, array_like=True, frozen=True):
    policy: PolicyId
    name: str
    redundancy: Redundancy
    compression: int | None
    """zstd level, or None to store raw."""
    spread: Spread = Spread.SERVER
    fit: bool = False
    """Take fewer copies where the cluster has fewer servers, instead of refusing."""


BUILT_IN: Final[tuple[Policy, ...]] = (
    Policy(DEFAULT_POLICY, "default", Redundancy(1, 2), 3, fit=True),
    Policy(EC_POLICY, "ec", Redundancy(4, 2), 3),
    Policy(SCRATCH_POLICY, "scratch", Redundancy(1, 0), 3),
)


def parse_name(text: str) -> str:
    """Raises ValueError where `text` cannot name a policy."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} cannot name a policy: use a lower-case letter, then up to 31 lower-case "
            "letters, digits, '-' or '_'"
        )
    return text


def parse_compression(text: str) -> int | None:
    """`zstd:LEVEL` or `none`. Raises ValueError."""
    if text == "none":
        return None
    if match := _ZSTD.fullmatch(text):
        level = int(match[1])
        if ZSTD_LEVEL_MIN <= level <= ZSTD_LEVEL_MAX and level != 0:
            return level
    raise ValueError(
        f"{text!r} is no compression: write none or zstd:LEVEL with a level of 1 to "
        f"{ZSTD_LEVEL_MAX} (or {ZSTD_LEVEL_MIN} to -1 for speed)"
    )


def format_compression(level: int | None) -> str:
    return "none" if level is None else f"zstd:{level}"
