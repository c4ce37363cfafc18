"""What is known not to pass on a mount, each with its reason: docs/posix.md tells more.

A case that is named here and passes is fine too: some of them fail now and then only.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

ANY: Final = "*"


@dataclass(frozen=True)
class Known:
    driver: str
    suite: str
    case: str
    """As fnmatch has it."""
    reason: str


KNOWN: Final = (
    Known(
        "fusepy",
        "publish",
        ANY,
        "libfuse 2 resolves the path of a file again at open, and answers ENOENT by itself",
    ),
)


def reason_for(driver: str, suite: str, case: str) -> str:
    """Why the case is known not to pass; "" where it has to."""
    for known in KNOWN:
        if fnmatchcase(driver, known.driver) and known.suite == suite:
            if fnmatchcase(case, known.case):
                return known.reason
    return ""
