"""Where blocking calls (disk, compression) run.

Behind one interface, so that a simulation can run them inline.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from outcome import Outcome

T = TypeVar("T")


class Workers(Protocol):
    """Runs blocking functions off the event loop.

    `run` is cancellable only before the function starts: a started one always finishes, and
    its result is delivered, so callers may hand it locks and buffers.
    """

    async def run(self, function: Callable[..., T], *args: object) -> T: ...


class Starters(Workers, Protocol):
    """Workers that need no task to wait in."""

    @property
    def free(self) -> bool:
        """Whether a function that is started now begins at once."""

    def start(
        self, wake: Callable[[Outcome[T]], None], function: Callable[..., T], *args: object
    ) -> None:
        """Have a blocking function run; `wake` is told its outcome on the event loop, perhaps
        before this returns. It must not raise."""
