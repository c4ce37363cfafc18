"""What one namespace operation runs in: the transaction, the time, the caller."""

from typing import Final

from dfs.core.ids import SessionId
from dfs.master.transaction import Transaction
from dfs.wire.messages import Cred

INLINE_ROWS_PER_COMMAND: Final = 4096
"""Rows one command frees by itself before it leaves the rest to the purge queue."""

CLONE_ROWS_PER_COMMAND: Final = 16384
"""Extents that the clones of one command copy and replace at most: about 0.2 s of the master's
time."""


class Context:
    """One for each command; `txn` is the child transaction of the operation that runs now."""

    __slots__ = ("clone_rows", "cred", "inline_rows", "now", "session", "txn")

    def __init__(self, txn: Transaction, now_ns: int, session: SessionId, cred: Cred) -> None:
        self.txn = txn
        self.now = now_ns
        self.session = session
        self.cred = cred
        self.inline_rows = INLINE_ROWS_PER_COMMAND
        """How many rows the command may still free inline."""
        self.clone_rows = CLONE_ROWS_PER_COMMAND
        """How many extents it may still clone."""
