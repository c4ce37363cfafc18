"""A whole master over the simulated network: sessions, servers, reports, background work."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dfs.core.chunk import Chunk, ChunkState, DiskState, FragmentState
from dfs.core.errors import (
    BusyError,
    DfsError,
    FileSystemError,
    NoSpaceError,
    ProtocolError,
    RedundancyError,
    SessionError,
    UnavailableError,
)
from dfs.core.ids import EC_POLICY, SCRATCH_POLICY
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy
from dfs.wire import messages as m
from dfs.wire.hello import Hello
from dfs.wire.pool import Pool
from tests.unit.master.grid import LEASE_S, MASTER, ROOT_CRED, Grid, grid

UNREACHABLE = r"is suspect|is down|answers nothing|deletes nothing|was silent for"


async def until(condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 200) -> float:
    """Wait for a condition; how long it took."""
    begun = trio.current_time()
    with trio.fail_after(timeout_s):
        while not await condition():
            await trio.sleep(0.1)
    return trio.current_time() - begun


def states(chunk: Chunk | None) -> list[str]:
    assert chunk is not None
    return [fragment.state.name for fragment in chunk.fragments]


# ------------------------------------------------------------------ sessions


async def test_a_retried_open_gets_the_same_session(autojump_clock: MockClock) -> None:
    async with grid(servers=0) as g:
        request = m.OpenSession("me", 77)
        one = await g.call(request, m.SessionOpened)
        assert await g.call(request, m.SessionOpened) == one
        assert one.cluster == g.master.cluster
        assert (await g.session()).id != one.session


async def test_a_retried_change_takes_effect_once(autojump_clock: MockClock) -> None:
    async with grid(servers=0) as g:
        session = await g.session()
        request = m.Apply(session.id, 1, ROOT_CRED, (m.Create(1, b"a", 0o644),))
        one = await g.call(request, m.Applied)
        assert await g.call(request, m.Applied) == one
        assert one.results[0].error is None


@pytest.mark.allow_logs("flushing the metadata log")
async def test_a_change_that_is_to_be_synced_says_whether_it_is(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise DfsError("the disk is broken")

    async with grid(servers=0) as g:
        session = await g.session()
        synced: list[int] = []
        sync = g.store.sync

        def note() -> None:
            sync()
            synced.append(g.store.position)

        monkeypatch.setattr(g.store, "sync", note)
        request = m.Apply(session.id, 1, ROOT_CRED, (m.Create(1, b"a", 0o644),), sync=True)
        applied = await g.call(request, m.Applied)
        assert applied.synced
        assert applied.position is not None
        assert applied.position.position <= synced[-1]
        # The change is made, and may be asked for again: only of the disk nothing is known.
        monkeypatch.setattr(g.store, "sync", fail)
        request = m.Apply(session.id, 2, ROOT_CRED, (m.Create(1, b"b", 0o644),), sync=True)
        applied = await g.call(request, m.Applied)
        assert applied.results[0].error is None
        assert not applied.synced
        with pytest.raises(DfsError, match="the disk is broken"):
            await g.call(m.SyncBarrier(), m.Empty)
        monkeypatch.setattr(g.store, "sync", sync)
        assert (await g.call(request, m.Applied)).synced


@pytest.mark.allow_logs(UNREACHABLE)
async def test_a_session_lives_as_long_as_it_is_renewed(autojump_clock: MockClock) -> None:
    async with grid(servers=0) as g:
        renewed, changing, silent = await g.session(), await g.session(), await g.session()
        for turn in range(6):
            await trio.sleep(LEASE_S / 3)
            await g.call(m.RenewSession(renewed.id), m.Empty)
            await changing.create(b"%d" % turn)
        with pytest.raises(SessionError, match="expired"):
            await silent.create(b"x")
        with pytest.raises(SessionError, match="expired"):
            await g.call(m.RenewSession(silent.id), m.Empty)
        listed = (await g.call(m.ListSessions(), m.SessionsReply)).sessions
        assert [info.session for info in listed] == [renewed.id, changing.id]


async def test_a_master_that_restarts_gives_everyone_a_whole_lease(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=0) as g:
        session = await g.session()
        await trio.sleep(LEASE_S * 0.9)
        await g.stop_master()
        await trio.sleep(LEASE_S)
        await g.start_master()
        await trio.sleep(LEASE_S * 0.9)
        await session.create(b"a")


async def test_a_closed_session_lets_go_of_what_it_held(autojump_clock: MockClock) -> None:
    async with grid() as g:
        session = await g.session()
        file = await session.create(b"a")
        await session.apply(m.Open(file.ino), m.Unlink(1, b"a"))
        (info,) = (await g.call(m.ListSessions(), m.SessionsReply)).sessions
        assert (info.open_files, info.open_chunks) == (1, 0)
        await g.call(m.CloseSession(session.id), m.Empty)
        await g.call(m.CloseSession(session.id), m.Empty)
        with pytest.raises(FileSystemError) as caught:
            await g.call(m.GetInode(file.ino), m.InodeReply)
        assert caught.value.errno == errno.ENOENT
        assert (await g.call(m.ListSessions(), m.SessionsReply)).sessions == ()


async def test_ids_are_not_given_twice_even_if_the_last_second_of_the_log_was_lost(
    autojump_clock: MockClock,
) -> None:
    async with grid() as g:
        before = dict(g.store.scan(b"\0", b"\xff"))
        session = await g.session()
        (chunk,) = await session.allocate()
        file = await session.create(b"a")
        await g.stop_master()
        now = dict(g.store.scan(b"\0", b"\xff"))
        g.store.write({**dict.fromkeys(now), **before})
        await g.start_master()
        again = await g.session()
        assert again.id > session.id
        assert (await again.create(b"a")).ino > file.ino
        await until(lambda: all_up(g))
        assert (await again.allocate())[0].chunk > chunk.chunk


async def all_up(g: Grid) -> bool:
    return all(server.state == DiskState.UP for server in (await g.status()).servers)


# ------------------------------------------------------------------ servers


async def test_servers_register_and_are_listed(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        listed = (await g.call(m.ListServers(), m.ServersReply)).servers
        assert [(s.server, s.address, s.state) for s in listed] == [
            (n, f"host{n}:9421", DiskState.UP) for n in (1, 2, 3)
        ]
        assert [disk.path for server in listed for disk in server.disks] == ["/data"] * 3
        stats = await g.call(m.StatFs(), m.FsStats)
        assert (stats.capacity, stats.policy_expansion) == (300 << 30, 3.0)
        status = await g.status()
        assert status.problems == ()
        assert status.free == 150 << 30


@pytest.mark.allow_logs(UNREACHABLE)
async def test_a_killed_server_is_suspect_in_two_seconds_and_a_hung_one_in_five(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:

        async def suspect(number: int) -> bool:
            return (await g.status()).servers[number - 1].state == DiskState.SUSPECT

        await g.kill_server(g.servers[0])
        assert await until(lambda: suspect(1)) < 2
        g.network.hang(g.servers[1].host)
        assert await until(lambda: suspect(2)) < 5
        problems = (await g.status()).problems
        assert [text.split(" for ")[0] for text in problems] == [
            "server 1 at host1:9421 has not answered",
            "server 2 at host2:9421 has not answered",
        ]
        assert all("60 s without it, its data is made anew" in text for text in problems)
        g.network.heal()
        await g.start_server(g.servers[0])
        await until(lambda: all_up(g))
        assert (await g.status()).problems == ()


async def test_a_restarted_master_takes_servers_back_without_registration(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:
        await g.stop_master()
        await trio.sleep(5)
        await g.start_master()
        assert {server.state for server in (await g.status()).servers} == {DiskState.SUSPECT}
        assert await until(lambda: all_up(g)) < 8
        # What a report found just before the master went may not have been noted.
        await trio.sleep(2)
        assert [stand_in.reports for stand_in in g.servers] == [2, 2, 2]


@pytest.mark.allow_logs(UNREACHABLE)
async def test_a_server_that_was_down_for_long_reports_its_chunks_again(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:
        g.network.partition("master", "host1")
        await trio.sleep(70)
        assert (await g.status()).servers[0].state == DiskState.DOWN
        g.network.heal()

        async def reported() -> bool:
            return g.servers[0].reports == 2

        await until(reported)
        assert await all_up(g)


async def test_disks_of_another_cluster_are_refused(autojump_clock: MockClock) -> None:
    async with grid(servers=0) as g:
        request = m.RegisterServer("u", "h:1", "", "", "0.1", "another", ())
        with pytest.raises(ProtocolError, match="belong to cluster another"):
            await g.call(request, m.Registered)


async def test_a_copied_identity_is_refused_while_the_first_one_runs(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=2) as g:
        copied = m.DiskReport("disk-1", "/copy", 1 << 40, 0, 1 << 40, 0)
        server = m.RegisterServer("server-1", "evil:1", "", "", "0.1", "", (copied,))
        with pytest.raises(BusyError, match="runs at host1:9421 already"):
            await g.call(server, m.Registered)
        disk = m.RegisterServer("new", "evil:1", "", "", "0.1", "", (copied,))
        with pytest.raises(BusyError, match="served by server 1 already"):
            await g.call(disk, m.Registered)


async def test_a_server_listening_everywhere_is_reached_where_it_calls_from(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=0) as g:
        request = m.RegisterServer("u", "0.0.0.0:9421", "", "", "0.1", "", ())
        await g.call(request, m.Registered)
        (listed,) = (await g.call(m.ListServers(), m.ServersReply)).servers
        assert listed.address == "client:9421"


# ------------------------------------------------------------------ chunks


async def test_chunks_are_allocated_on_distinct_servers_and_located(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=4) as g:
        session = await g.session()
        made = await session.allocate(count=5)
        assert len({chunk.chunk for chunk in made}) == 5
        for chunk in made:
            assert len({fragment.disk for fragment in chunk.fragments}) == 3
        ids = tuple(chunk.chunk for chunk in made)
        reply = await g.call(m.LocateChunks((*ids, 99, -5, 1 << 63)), m.LayoutReply)
        assert reply.layout.chunks == made
        listed = await g.call(m.ListChunks(limit=3), m.ChunksReply)
        assert (listed.chunks, listed.more) == (made[:3], True)
        rest = await g.call(m.ListChunks(after=listed.chunks[-1].chunk), m.ChunksReply)
        assert (rest.chunks, rest.more) == (made[3:], False)


async def test_what_cannot_be_placed_says_why(autojump_clock: MockClock) -> None:
    async with grid(servers=4) as g:
        session = await g.session()
        with pytest.raises(RedundancyError, match="needs 6 servers, 4 are registered"):
            await session.allocate(EC_POLICY)
        with pytest.raises(FileSystemError, match="no policy has the number 99"):
            await session.allocate(99)
        for stand_in in g.servers:
            stand_in.free = 0
        await trio.sleep(1.5)
        with pytest.raises(NoSpaceError, match="no space: policy 'scratch'"):
            await session.allocate(SCRATCH_POLICY)
        assert all("is full" in text for text in (await g.status()).problems)


@pytest.mark.allow_logs(UNREACHABLE)
async def test_too_few_servers_up_is_a_matter_of_waiting(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        for stand_in in g.servers[:2]:
            await g.kill_server(stand_in)
        await trio.sleep(3)
        with pytest.raises(UnavailableError, match="1 of 3 can take data") as caught:
            await session.allocate()
        assert caught.value.retry
        await g.start_server(g.servers[0])
        (chunk,) = await session.allocate()
        assert len(chunk.fragments) == 2


async def test_a_clients_own_host_gets_the_first_fragment(autojump_clock: MockClock) -> None:
    async with grid(servers=5) as g:
        session = await g.session()
        made = await session.allocate(count=5, near="host4")
        assert {chunk.fragments[0].disk for chunk in made} == {g.servers[3].disk}


async def test_policies_are_made_and_used(autojump_clock: MockClock) -> None:
    async with grid(servers=4) as g:
        session = await g.session()
        wanted = Policy(0, "pair", Redundancy(1, 1), None)
        made = await g.call(m.CreatePolicy(session.id, session.next(), wanted), m.PolicyReply)
        (chunk,) = await session.allocate(made.policy.policy)
        assert (chunk.k, chunk.m, len(chunk.fragments)) == (1, 1, 2)
        names = {p.name for p in (await g.call(m.ListPolicies(), m.PoliciesReply)).policies}
        assert names == {"default", "ec", "scratch", "pair"}


async def test_removed_data_is_deleted_from_the_disks(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        chunk = await session.write(b"a")
        await session.seal(chunk)
        await session.apply(m.Unlink(1, b"a"))
        assert (await g.status()).purge_queue == 1

        async def gone() -> bool:
            return await g.chunk(chunk.chunk) is None

        await until(gone)
        assert all(not stand_in.held for stand_in in g.servers)
        status = await g.status()
        assert (status.chunks, status.live, status.purge_queue) == (0, 0, 0)


@pytest.mark.allow_logs("flushing", "deleting fragments", "No space")
async def test_fragments_are_deleted_only_once_their_end_is_on_the_masters_disk(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut that took the removal back would leave a file without its bytes."""
    async with grid(servers=3) as g:
        session = await g.session()
        chunk = await session.write(b"a")
        await session.seal(chunk)

        def fail() -> None:
            raise NoSpaceError("No space for the log")

        with monkeypatch.context() as patch:
            patch.setattr(g.store, "sync", fail)
            await session.apply(m.Unlink(1, b"a"))
            await trio.sleep(30)
            assert all(chunk.chunk in stand_in.held for stand_in in g.servers)

        async def gone() -> bool:
            return await g.chunk(chunk.chunk) is None

        await until(gone)


@pytest.mark.allow_logs(UNREACHABLE)
async def test_a_disk_that_is_away_deletes_when_it_returns(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        chunk = await session.write(b"a")
        await session.seal(chunk)
        away = g.servers[1]
        await g.kill_server(away)
        await trio.sleep(3)
        await session.apply(m.Unlink(1, b"a"))
        await trio.sleep(100)
        left = await g.chunk(chunk.chunk)
        assert left is not None
        assert [fragment.disk for fragment in left.fragments] == [away.disk]
        assert list(away.held) == [chunk.chunk]
        await g.start_server(away)

        async def gone() -> bool:
            return await g.chunk(chunk.chunk) is None

        await until(gone)
        assert away.held == {}


async def test_a_chunk_its_session_left_open_is_sealed_where_the_shortest_fragment_ends(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        chunk = await session.write(b"a", 1000)
        lengths = (1400, 900, 1200)
        for fragment, length in zip(chunk.fragments, lengths, strict=True):
            held = m.HeldFragment(chunk.chunk, fragment.index, length, False)
            g.on_disk(fragment.disk).held[chunk.chunk] = held
        await g.call(m.CloseSession(session.id), m.Empty)

        async def sealed() -> bool:
            found = await g.chunk(chunk.chunk)
            return found is not None and found.state is ChunkState.SEALED

        await until(sealed)
        found = await g.chunk(chunk.chunk)
        assert found is not None
        assert found.length == 1200
        assert states(found) == ["GOOD", "LOST", "GOOD"]
        ends = [g.on_disk(f.disk).held[chunk.chunk] for f in found.fragments]
        assert [(held.length, held.sealed) for held in ends] == [
            (1200, True),
            (900, False),
            (1200, True),
        ]


@pytest.mark.allow_logs(UNREACHABLE)
async def test_an_abandoned_chunk_waits_for_suspects_but_not_for_the_dead(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        chunk = await session.write(b"a", 1000)
        await g.kill_server(g.on_disk(chunk.fragments[2].disk))
        await trio.sleep(2)
        await g.call(m.CloseSession(session.id), m.Empty)
        await trio.sleep(30)
        waiting = await g.chunk(chunk.chunk)
        assert waiting is not None
        assert (waiting.state, waiting.owner) == (ChunkState.OPEN, 0)
        await trio.sleep(60)
        sealed = await g.chunk(chunk.chunk)
        assert sealed is not None
        assert sealed.state is ChunkState.SEALED
        assert states(sealed) == ["GOOD", "GOOD", "LOST"]
        # It had it all: back again, its fragment counts again, and gets its seal.
        late = g.on_disk(chunk.fragments[2].disk)
        await g.start_server(late)

        async def adopted() -> bool:
            return states(await g.chunk(chunk.chunk)) == ["GOOD", "GOOD", "GOOD"]

        await until(adopted)
        assert (await g.status()).chunks_healthy == 1

        async def is_sealed() -> bool:
            return late.held[chunk.chunk].sealed

        await until(is_sealed)


async def test_an_abandoned_chunk_without_data_goes(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        (chunk,) = await session.allocate()
        g.store_fragments(chunk, 500)
        await g.call(m.CloseSession(session.id), m.Empty)

        async def gone() -> bool:
            return await g.chunk(chunk.chunk) is None

        await until(gone)
        assert all(not stand_in.held for stand_in in g.servers)


async def test_readers_reports_are_believed_where_they_can_be_true(
    autojump_clock: MockClock,
) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        sealed, opened = await session.write(b"a"), await session.write(b"b")
        await session.seal(sealed)
        disks = [fragment.disk for fragment in sealed.fragments]
        reports = (
            m.FragmentReport(sealed.chunk, disks[0], "corrupt"),
            m.FragmentReport(sealed.chunk, disks[1], "missing", 1),
            m.FragmentReport(sealed.chunk, disks[2], "unreachable"),
            m.FragmentReport(sealed.chunk, disks[2], "corrupt", 1),
            m.FragmentReport(sealed.chunk, 99, "corrupt"),
            m.FragmentReport(99, disks[0], "corrupt"),
            m.FragmentReport(-1, disks[0], "corrupt"),
            m.FragmentReport(opened.chunk, opened.fragments[0].disk, "short"),
        )
        await g.call(m.ReportFragments(reports), m.Empty)
        assert states(await g.chunk(sealed.chunk)) == ["CORRUPT", "LOST", "GOOD"]
        assert states(await g.chunk(opened.chunk)) == ["GOOD", "GOOD", "GOOD"]
        status = await g.status()
        assert (status.chunks_healthy, status.chunks_at_risk) == (1, 1)
        assert any("would be lost" in text for text in status.problems)


async def test_the_chunk_report_sorts_out_what_a_disk_holds(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        kept, lost, cut, gone = [await session.write(name) for name in (b"a", b"b", b"c", b"d")]
        for chunk in (kept, lost, cut, gone):
            await session.seal(chunk)
        await session.apply(m.Unlink(1, b"d"))

        async def purged() -> bool:
            return await g.chunk(gone.chunk) is None

        await until(purged)
        victim = g.servers[0]
        scope = victim.scope
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        del victim.held[lost.chunk]
        victim.held[cut.chunk] = m.HeldFragment(cut.chunk, victim.held[cut.chunk].index, 999, True)
        victim.held[gone.chunk] = m.HeldFragment(gone.chunk, 0, 1000, True)
        await g.start_server(victim)
        assert victim.dropped == [gone.chunk]
        for chunk, wanted in ((kept, FragmentState.GOOD), (lost, FragmentState.LOST)):
            found = await g.chunk(chunk.chunk)
            assert found is not None
            assert {f.state for f in found.fragments if f.disk == victim.disk} == {wanted}
        status = await g.status()
        assert (status.chunks_healthy, status.chunks_degraded) == (1, 2)


async def test_a_failed_disk_owes_no_report(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sealed is remembered while a disk owes one; this one would owe it for ever."""
    asked = 0

    async def cannot(*_: object) -> None:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()

    async with grid(servers=3) as g:
        victim = g.servers[0]
        monkeypatch.setattr(victim, "_report_chunks", cannot)
        victim.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        g.nursery.start_soon(victim.run)
        await trio.sleep(150)
        assert asked == 3, "it is asked again while it works"
        victim.failed = True
        await trio.sleep(500)
        assert asked == 3


# ------------------------------------------------------------------ what must not break it


async def test_nonsense_is_refused_and_the_master_lives_on(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        huge, below = 1 << 63, -1
        nonsense: list[tuple[m.Message, type[m.Message]]] = [
            (m.GetInode(below), m.InodeReply),
            (m.GetInode(huge), m.InodeReply),
            (m.Lookup(ROOT_CRED, below, b"x"), m.LookupReply),
            (m.Lookup(ROOT_CRED, 1, b"a/b"), m.LookupReply),
            (m.Resolve(ROOT_CRED, b"/\0"), m.InodeReply),
            (m.ReadDir(ROOT_CRED, 1, limit=0), m.DirReply),
            (m.GetExtents(below), m.ExtentsReply),
            (m.GetExtents(1, below), m.ExtentsReply),
            (m.GetXattr(ROOT_CRED, below, b"user.x"), m.XattrReply),
            (m.ListXattr(below), m.XattrNames),
            (m.RenewSession(below), m.Empty),
            (m.CloseSession(below), m.Empty),
            (m.Apply(below, 1, ROOT_CRED, ()), m.Applied),
            (m.Apply(session.id, below, ROOT_CRED, ()), m.Applied),
            (m.AllocateChunks(session.id, 900, below), m.LayoutReply),
            (m.AllocateChunks(session.id, 901, 1, 0), m.LayoutReply),
            (m.AllocateChunks(session.id, 902, 1, 1000), m.LayoutReply),
            (m.AllocateChunks(huge, 903, 1), m.LayoutReply),
            (m.SealChunk(session.id, 904, below, 5), m.Empty),
            (m.SealChunk(below, 905, 1, 5), m.Empty),
            (m.CreatePolicy(session.id, 906, Policy(0, "x", Redundancy(0, 99), 3)), m.PolicyReply),
            (m.ReportChunks(below, below, below, (), True), m.ReportChunksReply),
            (m.ReportChunks(1, g.servers[0].disk, below, (), True), m.ReportChunksReply),
            (m.ReportChunks(0, below, 0, (), True), m.ReportChunksReply),
            (m.ReportChunks(0, huge, 0, (), True), m.ReportChunksReply),
        ]
        for request, reply in nonsense:
            with pytest.raises(DfsError) as caught:
                await g.call(request, reply)
            assert "failed inside" not in str(caught.value), request
        assert not (await g.call(m.Heartbeat(below, ()), m.HeartbeatReply)).known
        assert (await g.call(m.ListChunks(huge, below), m.ChunksReply)).chunks == ()
        await session.create(b"still-here")


@pytest.mark.allow_logs("belongs to cluster")
async def test_a_client_of_another_cluster_is_turned_away(autojump_clock: MockClock) -> None:
    async with grid(servers=0) as g:
        pool = Pool(hello=Hello("client", cluster="no"), connector=g.network.connector("client"))
        async with pool:
            with pytest.raises(ProtocolError, match="belongs to cluster"):
                await pool.call(MASTER, m.StatFs(), m.FsStats, timeout_s=5)


async def test_many_chunks_are_purged_while_clients_are_served(autojump_clock: MockClock) -> None:
    async with grid(servers=3) as g:
        session = await g.session()
        for turn in range(10):
            made = await session.allocate(count=64)
            for chunk in made:
                g.store_fragments(chunk, 100)
            del turn
        await g.call(m.CloseSession(session.id), m.Empty)
        other = await g.session()
        slowest = 0.0
        while (await g.status()).chunks:
            begun = trio.current_time()
            await other.apply(m.Mkdir(1, b"d", 0o755), m.Rmdir(1, b"d"))
            slowest = max(slowest, trio.current_time() - begun)
            await trio.sleep(0.05)
        assert all(not stand_in.held for stand_in in g.servers)
        assert slowest < 0.5
