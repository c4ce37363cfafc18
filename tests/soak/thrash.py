"""A cluster that is broken all the time, as its redundancy bears it, under clients that write.

    python -m tests.soak.thrash --minutes 10 --seed 7      (or: scripts/soak thrash ...)

A round is one disaster: a server killed or stopped for a while, fragment files damaged, a server
drained, removed, replaced, wiped; often with a harmless one beside it: the master killed, a
rebalance, a scrub, an upload killed in the middle. The next round begins when `dfs admin status`
calls every chunk healthy. So no chunk ever has more than one fragment away by our doing. At the
end everything must be as it was acknowledged, and nothing left over anywhere.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

import dfs.client
from dfs.client import Client
from dfs.core.chunk import Chunk, ChunkState, DiskState, FragmentState
from dfs.master import invariants
from dfs.master.keyspace import get_counters
from dfs.master.store import RocksStore
from tests import damage, oracle
from tests.cluster import Cluster, wait_until
from tests.soak.workload import FindingError, Load

SERVERS: Final = 6
DOWN_AFTER_S: Final = 4
POLICIES: Final = ("default", "ec21", "default", "ec21")
HEALTHY_WITHIN_S: Final = 60.0
SLOW_S: Final = 10.0
"""Health that takes longer is described in the log."""
QUIET_WITHIN_S: Final = 60.0
LEASE_S: Final = 90.0
LONG_MINUTES: Final = 2.0

T = TypeVar("T")


class Thrash:
    """One run. `run` is the whole of it; raises what it found."""

    def __init__(self, root: Path, seed: int, minutes: float, servers: int = SERVERS) -> None:
        self.root = root
        self.seed = seed
        self.seconds = minutes * 60
        self.rounds = 0
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        self._cluster = Cluster(root, servers=servers, down_after=f"{DOWN_AFTER_S}s")
        self._servers_made = servers
        self._tree = oracle.make_tree(root / "tree", seed=seed, files=40, odd_names=False)
        self._upload_killed_at = float("-inf")
        self._directories: list[str] = []
        """Of the clients."""
        self._said = open(root / "thrash.log", "w", encoding="utf-8")  # noqa: SIM115
        self._disasters: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self._kill_server),
            (4, self._stop_server),
            (3, self._flip_bits),
            (3, self._delete_fragments),
            (3, self._truncate_fragments),
            (3, self._drain_and_undrain),
            (1, self._add_server),
            (2, self._drain_and_remove),
            (2, self._lose_server),
            (2, self._kill_master),
            (1, self._kill_everything),
        )
        self._beside: tuple[Callable[[], None], ...] = (
            self._kill_master,
            self._rebalance,
            self._scrub,
            self._compact,
            self._compact,
            self._convert,
            self._convert,
        )
        if minutes >= LONG_MINUTES:
            # The end of the run waits for the lease of a client that was killed.
            self._beside += (self._kill_upload,)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {text}"
        print(line, flush=True)
        print(line, file=self._said, flush=True)

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        self.say(f"seed {self.seed}, {self.seconds / 60:g} minutes, in {self.root}")
        # Warnings tell what we broke; the scrub of a log is for errors.
        self._cluster.broken = True
        with self._cluster:
            self._dfs("policy", "create", "ec21", "--redundancy", "ec:2+1")
            load = Load(
                self._cluster.master_address, list(POLICIES), self.seed, self.root / "scratch"
            )
            self._directories = [writer.directory for writer in load.writers]
            load.start()
            self._began = time.monotonic()
            while time.monotonic() - self._began < self.seconds:
                self._pause(0.5, 3)
                load.check()
                self._await_health(load)
                self._round()
            self.say(f"stopping clients after {load.done} operations, {self.rounds} rounds")
            load.stop(330)
            self._at_rest(load)
            self._cluster.stop()
            self._check_store()
        self.say("all in order")
        self._said.close()

    def _round(self) -> None:
        self.rounds += 1
        weights = [weight for weight, _ in self._disasters]
        _, disaster = self._rng.choices(self._disasters, weights)[0]
        if self._rng.random() < 0.4:
            self._rng.choice(self._beside)()
        disaster()
        if self._rng.random() < 0.25:
            self._rng.choice(self._beside)()

    def _pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self._rng.uniform(least_s, most_s))

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
        dead = {
            s.disks[0].disk
            for s in self._ask(lambda c: c.meta.servers())
            if s.state != DiskState.UP and s.disks
        }
        short = [
            str(chunk)
            for chunk in self._chunks()
            if len({f.index for f in chunk.good if f.disk not in dead}) < chunk.width
        ]
        return f"{status}\n{jobs}\n" + "\n".join(short)

    def _some_server(self) -> str:
        return self._rng.choice(sorted(self._cluster.servers))

    # ------------------------------------------------------------------ disasters

    def _kill_server(self) -> None:
        name = self._some_server()
        away_s = self._rng.choice((0.2, 2.0, DOWN_AFTER_S + 1.0, DOWN_AFTER_S + 8.0))
        self.say(f"kill {name} for {away_s:g} s")
        self._cluster.kill(name)
        self._harmless_now_and_then()
        time.sleep(away_s)
        self._cluster.restart(name, wait=False)

    def _harmless_now_and_then(self) -> None:
        if self._rng.random() < 0.3:
            self._rng.choice((self._kill_master, self._rebalance))()

    def _stop_server(self) -> None:
        name = self._some_server()
        away_s = self._rng.choice((0.5, 2.0, DOWN_AFTER_S + 1.0, DOWN_AFTER_S + 8.0))
        self.say(f"SIGSTOP {name} for {away_s:g} s")
        with self._cluster.paused(name):
            self._harmless_now_and_then()
            time.sleep(away_s)

    def _damage(self, what: str, harm: Callable[[Path, random.Random], None]) -> None:
        """Harm fragments of one server, each of a chunk that has all of its own; then scrub."""
        name = self._some_server()
        whole = {
            chunk.chunk: chunk
            for chunk in self._chunks()
            if chunk.state is ChunkState.SEALED and len(chunk.good) == chunk.width
        }
        disks = self._disks()
        found = [
            fragment
            for fragment in damage.fragments(self._cluster, name)
            if fragment.path.suffix == ".sealed"
            and fragment.path.parent.name != "incoming"
            and fragment.chunk in whole
            and any(
                each.index == fragment.index and each.disk == _disk_of(disks, fragment.path)
                for each in whole[fragment.chunk].good
            )
        ]
        chosen = self._rng.sample(found, min(len(found), self._rng.choice((1, 2, 5, 100))))
        self.say(f"{what} {len(chosen)} of {len(found)} fragments of {name}")
        for fragment in chosen:
            try:
                harm(fragment.path, self._rng)
            except (FileNotFoundError, ValueError):
                continue  # deleted meanwhile
        self._harmless_now_and_then()
        self._pause(0, 3)
        self._scrub()

    def _flip_bits(self) -> None:
        self._damage("flip bits in", damage.flip_bits_everywhere)

    def _delete_fragments(self) -> None:
        self._damage("delete", damage.delete)

    def _truncate_fragments(self) -> None:
        self._damage("truncate", damage.truncate)

    def _drain(self, name: str, *more: str) -> bool:
        """False where it is refused: the others may just be back, and not be trusted yet."""
        self._cluster.wait_ready()
        address = self._cluster.servers[name].address
        done = self._cluster.dfs("admin", "drain", address, *more, check=False, timeout_s=300)
        if "no disk is left" in done.stderr:
            self.say(f"  refused: {done.stderr.strip()}")
            return False
        if done.returncode:
            raise FindingError(f"drain of {name}: {done.stderr}{done.stdout}")
        return True

    def _drain_and_undrain(self) -> None:
        name = self._some_server()
        self.say(f"drain {name}")
        if not self._drain(name):
            return
        self._harmless_now_and_then()
        self._pause(0, 6)
        self.say(f"undrain {name}")
        self._dfs("admin", "undrain", self._cluster.servers[name].address)

    def _add_server(self) -> None:
        self._servers_made += 1
        name = f"cs{self._servers_made}"
        self.say(f"add {name}")
        self._cluster.add_server(name).spawn()
        self._cluster.wait_ready()

    def _drain_and_remove(self) -> None:
        if len(self._cluster.servers) <= SERVERS:
            self._add_server()
        name = self._some_server()
        process = self._cluster.servers[name]
        self.say(f"drain {name}, then remove it")
        if not self._drain(name, "--wait"):
            return
        first = self._rng.random() < 0.5
        if first:
            process.signal(signal.SIGTERM)
            process.wait(20)
        self._dfs("admin", "remove", process.address)
        self.say(f"removed {name}" + (", which was stopped before" if first else ""))
        if not first:
            self._pause(0, 3)
            process.signal(signal.SIGTERM)
            process.wait(20)
        del self._cluster.servers[name]

    def _lose_server(self) -> None:
        """A server goes and never comes back; another takes its place."""
        if len(self._cluster.servers) <= SERVERS:
            self._add_server()
        name = self._some_server()
        self.say(f"lose {name} for good")
        self._cluster.kill(name)
        shutil.rmtree(self.root / name)
        address = self._cluster.servers.pop(name).address
        self._harmless_now_and_then()
        self._await_down(address)
        self._await_health()
        self._dfs("admin", "remove", address)
        self.say(f"removed {name}")

    def _await_down(self, address: str) -> None:
        async def states(client: Client) -> dict[str, int]:
            return {server.address: server.state for server in await client.meta.servers()}

        wait_until(
            lambda: self._ask(states).get(address) == DiskState.DOWN, 30, what=f"{address} down"
        )

    def _kill_master(self) -> None:
        away_s = self._rng.choice((0.0, 0.5, 3.0))
        self.say(f"kill the master for {away_s:g} s")
        self._cluster.kill("master")
        time.sleep(away_s)
        self._cluster.restart("master", wait=False)

    def _kill_everything(self) -> None:
        self.say("kill everything")
        self._cluster.kill_all()
        self._pause(0, 2)
        self._cluster.start_all()

    def _rebalance(self) -> None:
        self.say("rebalance")
        self._dfs("admin", "rebalance", "--threshold", "1%", "--no-wait")

    def _scrub(self) -> None:
        self.say("scrub")
        self._dfs("admin", "scrub", "--wait")

    def _compact(self) -> None:
        """Whatever holds anything of no use is written anew."""
        self.say("compact")
        self._dfs("admin", "compact", "--threshold", "1%")

    def _convert(self) -> None:
        """A client's files are kept otherwise from now on. Another round may do so again."""
        directory = self._rng.choice(self._directories)
        policy = self._rng.choice(POLICIES)
        self.say(f"convert {directory} to {policy}")
        # Files that are removed meanwhile are not found.
        self._cluster.dfs("policy", "set", "-r", directory, policy, "--convert", check=False)

    def _kill_upload(self) -> None:
        """A client dies with open chunks."""
        upload = self._cluster.spawn_dfs("upload", "-r", self._tree, f"/junk{self.rounds}")
        self._pause(0.3, 2)
        self.say("kill an upload")
        upload.kill()
        upload.communicate()
        self._upload_killed_at = time.monotonic()

    # ------------------------------------------------------------------ at rest

    def _at_rest(self, load: Load) -> None:
        """Everything is as it was acknowledged, and nothing else is there."""
        self._await_health()
        self._scrub()
        self._await_health()
        self._ask(lambda client: self._verify(client, load))
        self._forget_junk()
        self._await_no_open_chunk()
        self._await_tidy()
        self._check_fsck()
        self._ask(lambda client: self._delete_all(client, load))
        wait_until(
            lambda: not self._chunks(),
            QUIET_WITHIN_S,
            what="no chunk left",
            explain=self._situation,
        )
        self._await_tidy()
        self._check_fsck()

    async def _verify(self, client: Client, load: Load) -> None:
        for writer in load.writers:
            count = await writer.verify(client)
            self.say(f"{writer.directory}: {count} files as acknowledged")

    def _forget_junk(self) -> None:
        async def body(client: Client) -> None:
            async for entry in client.scandir("/"):
                if entry.name.startswith(b"junk"):
                    await client.rmtree(b"/" + entry.name)

        self._ask(body)

    def _await_no_open_chunk(self) -> None:
        lease_left_s = max(0.0, self._upload_killed_at + LEASE_S - time.monotonic())
        wait_until(
            lambda: all(chunk.state is not ChunkState.OPEN for chunk in self._chunks()),
            QUIET_WITHIN_S + lease_left_s,
            what="no chunk open without a client",
            explain=self._situation,
        )

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
            disk = _disk_of(disks, fragment.path)
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

    async def _delete_all(self, client: Client, load: Load) -> None:
        for writer in load.writers:
            await client.rmtree(writer.directory)

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


def _disk_of(disks: dict[Path, int], path: Path) -> int:
    """The disk that a file lies on; 0: none of these."""
    return next((disks[parent] for parent in path.parents if parent in disks), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description="See the head of tests/soak/thrash.py.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    chosen = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="dfs-thrash-"))
    thrash = Thrash(root, chosen.seed, chosen.minutes)
    try:
        thrash.run()
    except BaseException as error:
        thrash.say(f"FAILED: {error}")
        print(f"seed {chosen.seed}; logs and disks are in {root}", file=sys.stderr)
        raise
    if not chosen.keep:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
