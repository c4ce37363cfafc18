"""Requests to the master, whichever of its addresses answers, repeated while it cannot.

Knows nothing of sessions: requests that change state come with their session and sequence
number inside, so that repeating them is safe.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from dfs.client.retry import OnUnavailable, Patience, worth_retrying
from dfs.core.errors import DfsError, UnavailableError
from dfs.core.ids import ROOT_INODE
from dfs.wire.messages import GetInode, InodeReply, Message
from dfs.wire.pool import Pool

R = TypeVar("R", bound=Message)
T = TypeVar("T")

FIRST_CONTACT_S: Final = 5.0
"""How long `first_contact` looks for a master that does not answer at all."""
_FIRST_CONTACT_AGAIN_S: Final = 0.2
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

    async def first_contact(self) -> None:
        """Return as soon as a master answers, whatever it says.

        For who has not been told how long to wait: where nobody is, that shall show soon. Later
        waits are longer, by `on_unavailable`.

        Raises:
            DfsError: nobody answered within FIRST_CONTACT_S.
        """
        deadline = trio.current_time() + FIRST_CONTACT_S
        while True:
            try:
                await self.call_once(GetInode(ROOT_INODE), InodeReply, timeout_s=FIRST_CONTACT_S)
            except UnavailableError as error:
                if trio.current_time() >= deadline:
                    raise DfsError(
                        f"no master answers at {','.join(self._addresses)}: {error.message}",
                        hint=error.hint or "check the address, and that the master runs",
                    ) from error
                await trio.sleep(_FIRST_CONTACT_AGAIN_S)
            except DfsError:
                # Somebody answers; what is wrong with the answer, the caller finds out itself.
                return
            else:
                return

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
            self._turn_away(current, error)
            raise

    async def _raw_once(
        self, request: Message, reply_type: type[R], *, timeout_s: float
    ) -> tuple[R, memoryview]:
        current = self._current
        try:
            return await self.pool.call_raw(
                self._addresses[current], request, reply_type, timeout_s=timeout_s
            )
        except DfsError as error:
            self._turn_away(current, error)
            raise

    def _turn_away(self, current: int, error: DfsError) -> None:
        if worth_retrying(error) and self._current == current:
            self._current = (current + 1) % len(self._addresses)

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
        return await self._repeat(
            lambda: self.call_once(request, reply_type, timeout_s=timeout_s), start, failure
        )

    async def call_raw(
        self, request: Message, reply_type: type[R], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> tuple[R, memoryview]:
        """As `call`, and the reply's raw payload."""
        start = trio.current_time()
        try:
            return await self._raw_once(request, reply_type, timeout_s=timeout_s)
        except DfsError as error:
            if not worth_retrying(error):
                raise
            failure = error
        return await self._repeat(
            lambda: self._raw_once(request, reply_type, timeout_s=timeout_s), start, failure
        )

    async def _repeat(
        self, attempt: Callable[[], Awaitable[T]], start: float, failure: DfsError
    ) -> T:
        patience = self.patience()
        patience.deadline += start - trio.current_time()
        while True:
            await patience.pause(failure)
            try:
                return await attempt()
            except DfsError as error:
                if not worth_retrying(error):
                    raise
                failure = error
