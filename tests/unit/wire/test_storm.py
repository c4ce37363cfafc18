"""Many calls over a network that fails all the time: each gets its own answer or a typed error,
and when all is over nothing is left behind."""

from random import Random

import pytest
import trio
import trio.testing

from dfs.core.errors import DfsError, FileSystemError, UnavailableError, refuse
from dfs.wire.handlers import Handler, Peer
from dfs.wire.hello import Hello
from dfs.wire.limits import Limits
from dfs.wire.messages import (
    Append,
    Appended,
    GetInode,
    InodeReply,
    Message,
    ReadRecords,
    RecordsReply,
    StatFragment,
)
from dfs.wire.pool import Backoff, Pool
from dfs.wire.side import Side, make_side
from tests.unit.wire.rig import ADDRESS, get_inode, served

LIMITS = Limits(requests=8, calls=16, queued_bytes=200_000, held_bytes=300_000)


def content(chunk: int, length: int) -> bytes:
    return Random(chunk).randbytes(length)


class Storm:
    """Handlers that take their time, callers that lose patience, a network that breaks."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.running = 0
        self.outcomes: dict[str, int] = {}

    # handlers

    async def append(self, peer: Peer, request: Append, payload: memoryview) -> Appended:
        self.running += 1
        try:
            assert payload == content(request.chunk, len(payload))
            await trio.sleep(self.random.expovariate(10))
            assert payload == content(request.chunk, len(payload))
            return Appended(request.first_block, len(payload))
        finally:
            self.running -= 1

    def read(
        self, peer: Peer, request: ReadRecords, payload: memoryview
    ) -> tuple[RecordsReply, list[bytes]]:
        return RecordsReply(request.chunk), [content(request.chunk, request.length)]

    async def refuse(self, peer: Peer, request: StatFragment, payload: memoryview) -> Message:
        await trio.sleep(self.random.expovariate(10))
        raise refuse(2, f"chunk {request.chunk}")

    # callers

    async def call(self, pool: Pool, number: int) -> None:
        kind = self.random.randrange(4)
        timeout_s = self.random.choice([0.05, 0.5, 5, 50])
        length = self.random.choice([10, 20_000, 100_000])
        if kind == 0:
            reply = await pool.call(ADDRESS, GetInode(number), InodeReply, timeout_s=timeout_s)
            assert reply.inode.ino == number
        elif kind == 1:
            appended = await pool.call(
                ADDRESS,
                Append(1, number, 0, 1, 0, number, 1),
                Appended,
                payload=[content(number, length)],
                timeout_s=timeout_s,
            )
            assert appended == Appended(number, length)
        elif kind == 2:
            records, payload = await pool.call_raw(
                ADDRESS, ReadRecords(1, number, 0, length), RecordsReply, timeout_s=timeout_s
            )
            assert records.records == number
            assert payload == content(number, length)
        else:
            from dfs.wire.messages import FragmentStatus

            with pytest.raises((FileSystemError, UnavailableError)) as caught:
                await pool.call(
                    ADDRESS, StatFragment(1, number), FragmentStatus, timeout_s=timeout_s
                )
            if isinstance(caught.value, FileSystemError):
                assert f"chunk {number}:" in caught.value.message
            raise caught.value

    async def caller(self, pool: Pool, first: int) -> None:
        for number in range(first, first + 30):
            outcome = "cancelled"
            with trio.move_on_after(self.random.choice([0.01, 1, 100])):
                try:
                    await self.call(pool, number)
                    outcome = "answered"
                except DfsError as error:
                    outcome = type(error).__name__
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            await trio.sleep(self.random.expovariate(5))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 100))]
)
async def test_every_call_gets_its_own_answer_or_a_typed_error(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
):
    storm = Storm(seed)
    sides: list[Side] = []

    def remember(*arguments: object) -> Side:
        sides.append(make_side(*arguments))  # type: ignore[arg-type]
        return sides[-1]

    monkeypatch.setattr("dfs.wire.serve.make_side", remember)
    handlers: dict[type[Message], Handler] = {
        GetInode: get_inode,
        Append: storm.append,
        ReadRecords: storm.read,
        StatFragment: storm.refuse,
    }
    async with served(handlers, limits=LIMITS, seed=seed) as rig:
        rig.network.set_latency(0, 0.05)

        async def weather() -> None:
            while True:
                await trio.sleep(storm.random.expovariate(0.5))
                fault = storm.random.randrange(4)
                if fault == 0:
                    rig.network.drop_one()
                elif fault == 1:
                    rig.network.drop()
                else:
                    if fault == 2:
                        rig.network.hang("server")
                    else:
                        rig.network.partition("client", "server")
                    await trio.sleep(storm.random.expovariate(0.2))
                    rig.network.heal()

        async with Pool(
            hello=Hello("client"),
            connector=rig.network.connector("client"),
            random=storm.random,
            width=2,
            limits=LIMITS,
            backoff=Backoff(first_s=0.1, most_s=2),
        ) as pool:
            async with trio.open_nursery() as bad:
                bad.start_soon(weather)
                async with trio.open_nursery() as nursery:
                    for task in range(20):
                        nursery.start_soon(storm.caller, pool, 1 + 1000 * task)
                bad.cancel_scope.cancel()
            rig.network.heal()
            await trio.sleep(60)
            reply = await pool.call(ADDRESS, GetInode(1), InodeReply, timeout_s=60, patient=True)
            assert reply.inode.ino == 1
            lanes = [lane for place in pool._places.values() for lane in place.lanes]
            # A lane that the last fault broke has no connection until it is needed.
            assert not any(lane.connection.load for lane in lanes if lane.connection)
        assert sum(storm.outcomes.values()) == 20 * 30
        assert storm.outcomes["answered"] > 20
        assert {"cancelled", "DeadlineError", "FileSystemError"} <= storm.outcomes.keys()
        await trio.sleep(60)
        assert storm.running == 0
        assert sides[0].budget.used_bytes == 0
