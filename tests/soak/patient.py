"""The cluster that a thrasher breaks: servers with links of their own, a sick disk, and questions.

What `_check_...` and `_await_...` find not to be as it has to be, they raise.
"""

import contextlib
import random
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

import dfs.client
from dfs.client import Client
from dfs.core.chunk import Chunk, DiskState, FragmentState
from dfs.master import invariants
from dfs.master.keyspace import get_counters
from dfs.master.liveness import DEAD
from dfs.master.store import RocksStore
from tests import damage
from tests.cluster import Cluster, wait_until
from tests.sick_disk import SickDisk, is_possible
from tests.soak.links import Links
from tests.soak.workload import FindingError, Load

DOWN_AFTER_S: Final = 4
SICK_SERVER: Final = "cs3"
"""It has a disk that falls ill, and stays in the cluster."""
HEALTHY_WITHIN_S: Final = 60.0
SLOW_S: Final = 10.0
"""Health that takes longer is described in the log."""
QUIET_WITHIN_S: Final = 60.0

T = TypeVar("T")


class Patient:
    """A cluster whose servers have links of their own; one has a disk that falls ill."""

    def __init__(self, root: Path, seed: int, servers: int) -> None:
        self.root = root
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        self._cluster = Cluster(root, servers=0, down_after=f"{DOWN_AFTER_S}s")
        # Warnings tell what we broke; the scrub of a log is for errors.
        self._cluster.broken = True
        self._cluster.allow_logs("disk .* has not answered", "disk .* has failed")
        self._links = Links()
        self._inward: dict[str, str] = {}
        self._outward: dict[str, str] = {}
        """The links of each server: by which others reach it, and it reaches the master."""
        self._first_servers = servers
        self._servers_made = 0
        self._sick: SickDisk | None = None
        self._said = open(root / "thrash.log", "w", encoding="utf-8")  # noqa: SIM115

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {text}"
        print(line, flush=True)
        print(line, file=self._said, flush=True)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Links, disks and servers, until it is left."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._links)
            for _ in range(self._first_servers):
                self._make_server()
            if is_possible():
                path = self.root / SICK_SERVER / "sick"
                self._sick = stack.enter_context(SickDisk(path, self.root / "aside"))
                self._cluster.servers[SICK_SERVER].argv += ["--disk", str(path)]
            stack.enter_context(self._cluster)
            yield

    def _make_server(self) -> str:
        """One more, not started yet: the master's link, its own, and a disk or two."""
        self._servers_made += 1
        name = f"cs{self._servers_made}"
        process = self._cluster.add_server(name, disks=1 + (self._servers_made % 3 == 1))
        self._inward[name] = self._links.add(process.address)
        self._outward[name] = self._links.add(self._cluster.master_address)
        process.argv[process.argv.index("--master") + 1] = self._outward[name]
        process.argv += ["--advertise", self._inward[name]]
        process.address = self._inward[name]
        return name

    # ------------------------------------------------------------------ asking

    def _dfs(self, *args: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        return self._cluster.dfs(
            *args, timeout_s=timeout_s, env={"DFS_ON_UNAVAILABLE": "wait:120s"}
        )

    def _ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        async def body() -> T:
            address = self._cluster.master_address
            async with dfs.client.connect(address, on_unavailable="wait:120s") as client:
                return await question(client)

        return trio.run(body)

    def _chunks(self) -> list[Chunk]:
        async def body(client: Client) -> list[Chunk]:
            found: list[Chunk] = []
            more = True
            while more:
                reply = await client.meta.chunks(found[-1].chunk if found else 0)
                found += reply.chunks
                more = reply.more
            return found

        return self._ask(body)

    def _is_healthy(self) -> bool:
        async def body(client: Client) -> bool:
            status = await client.meta.status()
            up = {server.address for server in status.servers if server.state == DiskState.UP}
            wanted = {server.address for server in self._cluster.servers.values()}
            held = status.chunks_degraded + status.chunks_at_risk + status.chunks_lost
            return up >= wanted and not held

        return self._ask(body)

    def _await_health(self, load: Load | None = None) -> None:
        end = time.monotonic() + HEALTHY_WITHIN_S
        began = time.monotonic()
        told = False
        while not self._is_healthy():
            if load is not None:
                load.check()
            if time.monotonic() > end:
                raise FindingError(
                    f"not healthy after {HEALTHY_WITHIN_S:g} s:\n{self._situation()}"
                )
            if time.monotonic() - began > SLOW_S and not told:
                told = True
                print(self._situation(), file=self._said, flush=True)
            time.sleep(0.3)
        if (took := time.monotonic() - began) > SLOW_S:
            self.say(f"  healthy after {took:.0f} s")

    def _situation(self) -> str:
        status = self._cluster.dfs("admin", "status", check=False).stdout
        jobs = self._cluster.dfs("admin", "jobs", "list", check=False).stdout
        servers = self._ask(lambda c: c.meta.servers())
        disks = [disk for server in servers for disk in server.disks]
        dead = {d.disk for d in disks if d.state in (DiskState.SUSPECT, *DEAD)}
        short = [
            str(chunk)
            for chunk in self._chunks()
            if len({f.index for f in chunk.good if f.disk not in dead}) < chunk.width
        ]
        return f"{status}\n{jobs}\n" + "\n".join(short)

    def _scrub(self) -> None:
        self.say("scrub")
        self._dfs("admin", "scrub", "--wait")

    # ------------------------------------------------------------------ nothing left over

    def _disks(self) -> dict[Path, int]:
        """Disks by directory."""
        servers: Any = self._ask(lambda client: client.meta.servers())
        return {Path(disk.path): disk.disk for server in servers for disk in server.disks}

    def _leftovers(self) -> list[str]:
        """What the disks hold and the master does not list, and the other way round."""
        disks = self._disks()
        held = {}
        strays = []
        for fragment in damage.fragments(self._cluster):
            disk = disk_of(disks, fragment.path)
            if fragment.path.suffix != ".sealed" or fragment.path.parent.name == "incoming":
                strays.append(str(fragment.path))
            held[disk, fragment.chunk, fragment.index] = fragment.path
        listed = {
            (fragment.disk, chunk.chunk, fragment.index)
            for chunk in self._chunks()
            for fragment in chunk.fragments
            if fragment.state is FragmentState.GOOD
        }
        lines = [f"on disk, not listed: {held[key]}" for key in held.keys() - listed]
        lines += [f"listed, not on disk: {key}" for key in listed - held.keys()]
        return sorted((*strays, *lines))

    def _await_tidy(self) -> None:
        wait_until(
            lambda: not self._leftovers(),
            QUIET_WITHIN_S,
            what="disks hold what the master lists",
            explain=lambda: "\n".join(self._leftovers()) + "\n" + self._situation(),
        )

        async def counted(client: Client) -> int:
            return sum(d.fragments for s in await client.meta.servers() for d in s.disks)

        wait_until(
            lambda: self._ask(counted) == len(damage.fragments(self._cluster)),
            15,
            what="servers count the fragments that they hold",
            explain=self._situation,
        )

    def _check_fsck(self) -> None:
        found = self._cluster.json("admin", "fsck")
        if not found["sound"] or found["found"]:
            raise FindingError(f"fsck: {found}")
        self.say(f"fsck: {found['chunks']} chunks, {found['fragments']} fragments, sound")

    def _check_store(self) -> None:
        """The master's tables after its end: whole, and without leftovers."""
        path = next((self.root / "master").rglob("CURRENT")).parent
        store = RocksStore(path)
        try:
            wrong = invariants.check(store)
            counters = get_counters(store)
        finally:
            store.close()
        if wrong:
            raise FindingError("the master's tables: " + "\n".join(wrong))
        names = [*("chunks", "chunks_open", "chunks_doomed", "chunks_retired")]
        names += ["live", "wanting", "stale", "purging"]
        if any(getattr(counters, name) for name in names):
            raise FindingError(f"nothing is left, but {counters}")


def disk_of(disks: dict[Path, int], path: Path) -> int:
    """The disk that a file lies on; 0: none of these."""
    return next((disks[parent] for parent in path.parents if parent in disks), 0)
