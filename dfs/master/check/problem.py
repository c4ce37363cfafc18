"""What a check finds: one sentence, and what would mend it."""

from typing import Final

import msgspec

from dfs.master.check.fixes import AnyFix

RESTORE_ALL: Final = "restore the metadata from a backup"


class Problem(msgspec.Struct, array_like=True, frozen=True):
    """Something in the metadata that cannot be."""

    text: str
    fix: AnyFix | None = None
    """None: nothing can be done about it without a person."""
    todo: str = ""
    """What that person can do."""
