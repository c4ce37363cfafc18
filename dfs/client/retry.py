"""How long to go on while the cluster cannot answer: the `on_unavailable` option, and back-off.

Pure but for the clock (trio's, so simulations can use `MockClock`) and the randomness given.
Used by every loop that repeats a request; the loops decide what is worth repeating.
"""

import math
import random
from dataclasses import dataclass
from typing import Final

import trio

from dfs.core.errors import ConfigError, DfsError
from dfs.core.units import parse_duration

BACK_OFF_FIRST_S: Final = 0.02
BACK_OFF_MAX_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class OnUnavailable:
    """What to do while data or the master is unavailable.

    `wait_s` is how long one operation goes on trying: 0 reports the first failure (`error`),
    infinity tries for ever (`wait`).
    """

    wait_s: float = 60.0

    @classmethod
    def parse(cls, text: str) -> "OnUnavailable":
        """`error`, `wait:TIME` (such as `wait:60s`) or `wait`.

        Raises:
            ConfigError: with a sentence that says what is allowed.
        """
        if text == "error":
            return cls(0.0)
        if text == "wait":
            return cls(math.inf)
        if text.startswith("wait:"):
            try:
                return cls(parse_duration(text.removeprefix("wait:")))
            except ConfigError as error:
                raise ConfigError(f"on_unavailable={text}: {error}") from None
        raise ConfigError(
            f"on_unavailable={text}: no such choice",
            hint="write error, wait:TIME (such as wait:60s) or wait",
        )


def worth_retrying(error: BaseException) -> bool:
    """Whether the same request may succeed later, unchanged."""
    return isinstance(error, DfsError) and error.retry


class Patience:
    """One operation's waiting budget. Make one when the operation starts."""

    __slots__ = ("_delay_s", "_rng", "attempts", "deadline")

    def __init__(self, on_unavailable: OnUnavailable, rng: random.Random) -> None:
        self.deadline = trio.current_time() + on_unavailable.wait_s
        self.attempts = 0
        """Pauses made so far."""
        self._delay_s = BACK_OFF_FIRST_S
        self._rng = rng

    async def pause(self, error: DfsError) -> None:
        """Sleep before the next attempt, longer each time; raise `error` when time is up."""
        remaining = self.deadline - trio.current_time()
        if remaining <= 0:
            raise error
        self.attempts += 1
        delay = min(self._delay_s * self._rng.uniform(0.75, 1.25), remaining)
        self._delay_s = min(self._delay_s * 2, BACK_OFF_MAX_S)
        await trio.sleep(delay)
