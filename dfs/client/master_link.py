"""Requests to the master, whichever of its addresses answers, repeated while it cannot.

Knows nothing of sessions: requests that change state come with their session and sequence
number inside, so that repeating them is safe.
"""

import random
from typing import Final, TypeVar

import trio

from dfs.client.retry import OnUnavailable, Patience, worth_retrying
from dfs.core.errors import DfsError
from dfs.wire.messages import Message
from dfs.wire.pool import Pool

R = TypeVar("R", bound=Message)

CALL_TIMEOUT_S: Final = 10.0
"""How long one attempt may take."""


class MasterLink:
    """`call` sends a request to the master. Addresses are tried in turn after a failure."""

    def __init__(
        self,
        pool: Pool,
        addresses: tuple[str, ...],
        on_unavailable: OnUnavailable,
        rng: random.Random,
    ) -> None:
        self.pool = pool
        """What the requests go over."""
        self._addresses = addresses
        self._current = 0
        self._on_unavailable = on_unavailable
        self.rng = rng

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def patience(self) -> Patience:
        """A waiting budget for an operation that starts now."""
        return Patience(self._on_unavailable, self.rng)

    async def call_once(
        self, request: Message, reply_type: type[R], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> R:
        """One attempt. Raises DfsError; UnavailableError when nobody answered."""
        current = self._current
        try:
            return await self.pool.call(
                self._addresses[current], request, reply_type, timeout_s=timeout_s
            )
        except DfsError as error:
            if worth_retrying(error) and self._current == current:
                self._current = (current + 1) % len(self._addresses)
            raise

    async def call(
        self, request: Message, reply_type: type[R], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> R:
        """Repeat until there is an answer, or `on_unavailable` says that it took too long."""
        start = trio.current_time()
        try:
            return await self.call_once(request, reply_type, timeout_s=timeout_s)
        except DfsError as error:
            if not worth_retrying(error):
                raise
            failure = error
        patience = self.patience()
        patience.deadline += start - trio.current_time()
        while True:
            await patience.pause(failure)
            try:
                return await self.call_once(request, reply_type, timeout_s=timeout_s)
            except DfsError as error:
                if not worth_retrying(error):
                    raise
                failure = error
