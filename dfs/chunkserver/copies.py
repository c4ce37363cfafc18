"""Memory that the records of small answers are copied into: bounded over all connections.

A copy is out until it has been sent. Whoever does not fetch answers would else have a server hold
any number of them; a file costs no memory, however long it waits.
"""

from typing import Final

from dfs.wire.handlers import HeldPayload
from dfs.wire.payloads import PayloadMemory

MOST_BYTES: Final = 32 * 1024 * 1024
_KEPT_BYTES: Final = 8 * 1024 * 1024


class Copies:
    """Owned by a chunk server's service."""

    def __init__(self) -> None:
        self.out_bytes = 0
        """Taken, and not sent yet."""
        self._memory = PayloadMemory(_KEPT_BYTES)

    def take(self, size: int) -> tuple[memoryview, HeldPayload] | None:
        """Memory to fill, and to answer with, or to `close`; None where too much is out."""
        if self.out_bytes + size > MOST_BYTES:
            return None
        self.out_bytes += size

        def close() -> None:
            self.out_bytes -= size

        target = self._memory.take(size)
        return target, HeldPayload((target,), close)
