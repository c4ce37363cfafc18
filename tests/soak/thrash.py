"""A cluster that is broken all the time, as its redundancy bears it, under clients that write.

    python -m tests.soak.thrash --minutes 10 --seed 7      (or: scripts/soak thrash ...)

A round is one disaster: a server killed or stopped for a while, cut off from the master, the
clients, the other servers or all of them; a disk full, or hanging; fragment files damaged, also of
chunks that are being written; a server drained, removed, replaced, wiped. Often there is a harmless
one beside it: the master killed, a rebalance, a scrub, an upload killed in the middle. The next
round begins when `dfs admin status` calls every chunk healthy. So no chunk ever has more than one
fragment away by our doing. At the end everything must be as it was acknowledged, and nothing left
over anywhere.
"""

import argparse
import contextlib
import errno
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dfs.client import Client
from dfs.core.chunk import ChunkState, DiskState
from tests import damage, oracle
from tests.cluster import wait_until
from tests.sick_disk import is_possible
from tests.soak.patient import DOWN_AFTER_S, QUIET_WITHIN_S, SICK_SERVER, Patient, disk_of
from tests.soak.workload import FindingError, Load

SERVERS: Final = 7
POLICIES: Final = ("default", "ec21", "default", "ec42")
LEASE_S: Final = 90.0
LONG_MINUTES: Final = 2.0


class Thrash(Patient):
    """One run. `run` is the whole of it; raises what it found."""

    def __init__(self, root: Path, seed: int, minutes: float, servers: int = SERVERS) -> None:
        super().__init__(root, seed, servers)
        self.seed = seed
        self.seconds = minutes * 60
        self.rounds = 0
        self._hurt: set[int] = set()
        """Chunks that were harmed while they were OPEN: no scrub may have seen them."""
        self._tree = oracle.make_tree(root / "tree", seed=seed, files=40, odd_names=False)
        self._upload_killed_at = float("-inf")
        self._directories: list[str] = []
        """Of the clients."""
        self._disasters: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self._kill_server),
            (4, self._stop_server),
            (5, self._cut_off),
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
        if is_possible():
            self._disasters += ((2, self._fill_disk), (3, self._hang_disk))
        if minutes >= LONG_MINUTES:
            # The end of the run waits for the lease of a client that was killed, and losing a
            # server for the sessions of those who write what was harmed.
            self._beside += (self._kill_upload,)
            self._disasters += ((2, self._damage_open),)

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        self.say(f"seed {self.seed}, {self.seconds / 60:g} minutes, in {self.root}")
        with self._running():
            self._dfs("policy", "create", "ec21", "--redundancy", "ec:2+1")
            self._dfs("policy", "create", "ec42", "--redundancy", "ec:4+2")
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

    def _some_server(self, *, may_go: bool = False) -> str:
        """`may_go`: one that need not stay."""
        names = sorted(self._cluster.servers)
        return self._rng.choice([n for n in names if not (may_go and n == SICK_SERVER)])

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

    def _cut_off(self) -> None:
        """A part of the network goes, for one server."""
        name = self._some_server()
        away_s = self._rng.choice((0.5, 3.0, DOWN_AFTER_S + 1.0, DOWN_AFTER_S + 8.0))
        inward, outward = self._inward[name], self._outward[name]
        whom = self._rng.choice(("master", "client", "chunkserver", "everybody"))
        self.say(f"cut {name} off from {whom} for {away_s:g} s")
        self._links.cut(inward, *(() if whom == "everybody" else (whom,)))
        if whom in ("master", "everybody"):
            self._links.cut(outward)
        self._harmless_now_and_then()
        time.sleep(away_s)
        self._links.heal(inward)
        self._links.heal(outward)

    def _fill_disk(self) -> None:
        assert self._sick is not None
        full_s = self._rng.choice((1.0, 6.0, 12.0))
        self.say(f"a disk of {SICK_SERVER} is full for {full_s:g} s")
        with self._sick.sick(errno.ENOSPC):
            self._harmless_now_and_then()
            time.sleep(full_s)

    def _hang_disk(self) -> None:
        assert self._sick is not None
        hang_s = self._rng.choice((1.0, 6.0, 12.0))
        self.say(f"a disk of {SICK_SERVER} hangs for {hang_s:g} s")
        self._sick.hang()
        try:
            self._harmless_now_and_then()
            time.sleep(hang_s)
        finally:
            self._sick.wake()

    def _damage_open(self) -> None:
        """Harm fragments of chunks that are being written: one of each."""
        name = self._some_server()
        opened = {c.chunk for c in self._chunks() if c.state is ChunkState.OPEN} - self._hurt
        found = [f for f in damage.fragments(self._cluster, name) if f.chunk in opened]
        harms = (damage.flip_bits_everywhere, damage.delete, damage.truncate)
        for fragment in found:
            harm = self._rng.choice(harms)
            self.say(f"{harm.__name__} of open chunk {fragment.chunk} on {name}")
            with contextlib.suppress(FileNotFoundError, ValueError):
                harm(fragment.path, self._rng)
            self._hurt.add(fragment.chunk)

    def _mend_hurt(self) -> None:
        """Have what was harmed while it was OPEN found, once it is sealed, and made anew."""
        if not self._hurt:
            return
        wait_until(
            lambda: all(
                chunk.state is not ChunkState.OPEN
                for chunk in self._chunks()
                if chunk.chunk in self._hurt
            ),
            LEASE_S + QUIET_WITHIN_S,
            what="harmed chunks are sealed",
            explain=self._situation,
        )
        self._scrub()
        self._await_health()
        self._hurt.clear()

    def _damage(self, what: str, harm: Callable[[Path, random.Random], None]) -> None:
        """Harm fragments of one server, each of a chunk that has all of its own; then scrub."""
        name = self._some_server()
        whole = {
            chunk.chunk: chunk
            for chunk in self._chunks()
            if chunk.state is ChunkState.SEALED
            and len(chunk.good) == chunk.width
            and chunk.chunk not in self._hurt
        }
        disks = self._disks()
        found = [
            fragment
            for fragment in damage.fragments(self._cluster, name)
            if fragment.path.suffix == ".sealed"
            and fragment.path.parent.name != "incoming"
            and fragment.chunk in whole
            and any(
                each.index == fragment.index and each.disk == disk_of(disks, fragment.path)
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
        name = self._make_server()
        self.say(f"add {name}")
        self._cluster.servers[name].spawn()
        self._cluster.wait_ready()

    def _drain_and_remove(self) -> None:
        if len(self._cluster.servers) <= SERVERS:
            self._add_server()
        name = self._some_server(may_go=True)
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
        self._mend_hurt()
        if len(self._cluster.servers) <= SERVERS:
            self._add_server()
        name = self._some_server(may_go=True)
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
        self._mend_hurt()
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

    async def _delete_all(self, client: Client, load: Load) -> None:
        for writer in load.writers:
            await client.rmtree(writer.directory)


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
