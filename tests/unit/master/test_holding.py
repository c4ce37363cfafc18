"""A restored master among chunk servers that know more than it does."""

import trio

from dfs.core.chunk import ChunkState
from dfs.master import commands
from dfs.master import keyspace as keys
from dfs.wire import messages as m
from tests.unit.master.grid import START_NS, Grid, Session, grid


async def forget(g: Grid, rows: dict[bytes, bytes], *, skip_ids: int = 1 << 20) -> None:
    """The master's store becomes what it was, as a restore leaves it, and its master starts."""
    await g.stop_master()
    g.store.write({key: rows.get(key) for key in {*rows, *rows_of(g)}})
    state = g.master.journal._state
    state.apply(commands.CompleteRestore(START_NS, START_NS, skip_ids, g.random.getrandbits(60), 0))
    for session in [keys.key_id(key) for key, _ in keys.scan_prefix(g.store, keys.SESSION)]:
        state.apply(commands.CloseSession(START_NS, session))
    before = [server.reports for server in g.servers]
    await g.start_master()
    while [server.reports for server in g.servers] == before:
        await trio.sleep(0.5)
    await trio.sleep(3)


def rows_of(g: Grid) -> dict[bytes, bytes]:
    return dict(g.store.scan(b"\0", b"\xff"))


async def written(session: Session, name: bytes) -> int:
    chunk = await session.write(name)
    await session.seal(chunk)
    return chunk.chunk


async def test_fragments_newer_than_the_backup_are_kept_until_a_person_confirms(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        old = await written(session, b"old")
        backup = rows_of(g)
        new = await written(session, b"new")
        await forget(g, backup)
        await trio.sleep(30)
        assert all(server.held.keys() == {old, new} for server in g.servers)
        status = await g.status()
        assert "restored from a backup" in status.problems[0]
        assert "3 fragments" in status.problems[1]
        assert "3 of them newer" in status.problems[1]

        asked = await g.call(m.ConfirmRestore(), m.RestoreReply)
        assert (asked.restored, asked.disks_heard, asked.fragments, asked.newer) == (True, 3, 3, 3)
        await trio.sleep(10)
        assert all(new in server.held for server in g.servers)

        await g.call(m.ConfirmRestore(confirm=True), m.RestoreReply)
        await trio.sleep(10)
        assert all(server.held.keys() == {old} for server in g.servers)
        assert (await g.status()).problems == ()
        assert not (await g.call(m.ConfirmRestore(), m.RestoreReply)).restored


async def test_nothing_is_deleted_or_sealed_while_a_restore_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        old = await written(session, b"old")
        started = await session.write(b"open")
        (empty,) = await session.allocate()
        backup = rows_of(g)
        g.store_fragments(empty, 500)  # what is committed of it, the backup does not know
        await forget(g, backup)
        session = await g.session()
        await session.apply(m.Unlink(1, b"old"))
        await trio.sleep(60)
        for server in g.servers:
            assert server.held.keys() == {old, started.chunk, empty.chunk}
            assert not server.held[started.chunk].sealed
        await g.call(m.ConfirmRestore(confirm=True), m.RestoreReply)
        await trio.sleep(20)
        for server in g.servers:
            assert server.held.keys() == {started.chunk}
            assert server.held[started.chunk].sealed
        sealed = await g.chunk(started.chunk)
        assert sealed is not None
        assert sealed.state is ChunkState.SEALED


async def test_new_chunks_get_numbers_past_all_that_disks_hold(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Even where the clock said nothing of the time that has passed since the backup."""
    async with grid(servers=3) as g:
        session = await g.session()
        await written(session, b"old")
        backup = rows_of(g)
        far = 40 << 20
        g.servers[1].held[far] = m.HeldFragment(far, 0, 10, True)
        g.servers[2].held[1 << 63] = m.HeldFragment(1 << 63, 0, 10, True)  # nobody made that
        await forget(g, backup, skip_ids=0)
        (chunk,) = await (await g.session()).allocate()
        assert far < chunk.chunk < far + 100
        assert far in g.servers[1].held
