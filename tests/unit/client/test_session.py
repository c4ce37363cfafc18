"""The client's session while the master is away: everybody waits as long as he wants, no longer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfs.client import Client
from dfs.client.master_link import CALL_TIMEOUT_S
from dfs.client.retry import OnUnavailable, Patience
from dfs.core.errors import DfsError, SessionError, UnavailableError
from dfs.core.ids import ROOT_INODE, InodeId
from dfs.wire.messages import (
    WINDOW,
    Access,
    Applied,
    Apply,
    CloseSession,
    Cred,
    Empty,
    Message,
    Mkdir,
    OpenSession,
    SetAttr,
)
from tests.unit.client.rig import running

ROOT = Cred(0, 0)


@contextmanager
def no_new_sessions(client: Client) -> Iterator[list[Message]]:
    """The master does not answer who wants a session. What it was asked for."""
    link = client.meta.link
    call_once = link.call_once
    asked: list[Message] = []

    async def refused(request: Message, *args: Any, **more: Any) -> Any:
        if isinstance(request, OpenSession):
            asked.append(request)
            await trio.sleep(0.1)
            raise UnavailableError("the master is away")
        return await call_once(request, *args, **more)

    link.call_once = refused  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        link.call_once = call_once  # type: ignore[method-assign]


async def end_session(client: Client) -> None:
    """The master forgets the session, and the client finds that out and gets no other."""
    await client.meta.link.call_once(CloseSession(client.meta.session.current_id), Empty)
    with pytest.raises(UnavailableError):
        await client.meta.mkdir(ROOT_INODE, b"first", 0o755)
    assert not client.meta.session.current_id


async def mkdir_patiently(client: Client, name: bytes, session: int = 0) -> None:
    await client.meta.session.change(
        lambda session, sequence: Apply(session, sequence, ROOT, (Mkdir(ROOT_INODE, name, 0o755),)),
        Applied,
        patience=Patience(OnUnavailable.parse("wait"), Random(1)),
        session=session,
    )


async def test_nobody_waits_longer_for_a_session_because_another_has_more_patience(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:2s") as (_, client):
        await client.mkdir("/before")
        async with trio.open_nursery() as nursery:
            with no_new_sessions(client) as asked:
                await end_session(client)
                nursery.start_soon(mkdir_patiently, client, b"patient")
                await trio.sleep(60)
                begun = trio.current_time()
                with pytest.raises(UnavailableError, match="away"):
                    await client.meta.mkdir(ROOT_INODE, b"impatient", 0o755)
                assert 1.9 < trio.current_time() - begun < 5
                assert len(set(asked)) == 1, "a repeat opens no second session"
            await trio.sleep(5)
        assert await client.exists("/patient")
        assert not await client.exists("/impatient")


async def test_many_who_wait_for_a_session_ask_together(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:2s") as (_, client):
        failed = 0

        async def change(number: int) -> None:
            nonlocal failed
            with pytest.raises(UnavailableError):
                await client.meta.session.change(
                    lambda session, sequence: Apply(session, sequence, ROOT, ()), Applied
                )
            failed += 1

        await client.mkdir("/before")
        with no_new_sessions(client) as asked:
            await end_session(client)
            asked.clear()
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(change, number)
            assert trio.current_time() - begun < 5
            assert failed == 100
            assert len(asked) < 30
        await client.mkdir("/after")


async def test_who_opens_a_session_and_is_cancelled_leaves_it_to_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path) as (world, client):
        world.network.set_latency(1.0)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as first:
                    first.start_soon(client.meta.session.open)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(client.meta.session.open)
                    await wait_all_tasks_blocked()
                    scope.cancel()
        assert client.meta.session.current_id


async def test_a_change_for_one_session_is_not_sent_under_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:2s") as (_, client):
        await client.mkdir("/before")
        old = client.meta.session.current_id
        await mkdir_patiently(client, b"now", old)
        async with trio.open_nursery() as nursery:
            with no_new_sessions(client):
                await end_session(client)

                async def late() -> None:
                    with pytest.raises(SessionError):
                        await mkdir_patiently(client, b"late", old)

                nursery.start_soon(late)
                await trio.sleep(5)
        assert await client.exists("/now")
        assert not await client.exists("/late")


async def test_a_change_that_the_master_never_answers_holds_up_the_others_for_a_while_only(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(tmp_path, on_unavailable="wait:2s") as (_, client):
        await client.mkdir("/before")
        call_once = client.meta.link.call_once
        answers = trio.Event()

        async def stuck(request: Message, *args: Any, **more: Any) -> Any:
            if isinstance(request, Apply) and request.sequence == stuck_at:
                await answers.wait()
            return await call_once(request, *args, **more)

        stuck_at = 2
        client.meta.link.call_once = stuck  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mkdir_patiently, client, b"patient")
            await wait_all_tasks_blocked()
            for number in range(WINDOW - 1):
                await client.meta.mkdir(ROOT_INODE, b"%d" % number, 0o755)
            begun = trio.current_time()
            with pytest.raises(UnavailableError, match="not answered"):
                await client.meta.mkdir(ROOT_INODE, b"more", 0o755)
            assert trio.current_time() - begun <= CALL_TIMEOUT_S + 1
            answers.set()
        await client.mkdir("/after")


@pytest.mark.allow_logs("cannot report to the master")
@pytest.mark.parametrize("what", ["question", "open", "change", "synced change"])
async def test_who_waits_for_the_master_is_told_when_the_client_is_closed(
    tmp_path: Path, autojump_clock: MockClock, what: str
) -> None:
    """Also who would wait for ever, in a task that the client knows nothing of."""
    async with running(tmp_path) as (world, _), trio.open_nursery() as nursery:
        ended: list[DfsError] = []

        async def ask(client: Client, ino: InodeId) -> None:
            meta = client.meta
            with pytest.raises(DfsError) as caught:
                if what == "question":
                    await meta.get_inode(ino)
                elif what == "open":
                    await client.files.open(ino, int(Access.READ))
                elif what == "change":
                    await meta.set_attr(SetAttr(ino, mode=0o600))
                else:
                    await meta.do_durably(SetAttr(ino, mode=0o600))
            ended.append(caught.value)

        async with world.client("desk", on_unavailable="wait") as client:
            await client.write_file("/a", b"data")
            ino = (await client.stat("/a")).ino
            await world.crash("master")
            nursery.start_soon(ask, client, ino)
            await trio.sleep(3)
            assert not ended
        await trio.sleep(CALL_TIMEOUT_S)
        assert len(ended) == 1
        assert "closed" in str(ended[0])
