"""Whole programs on a mount: a database, a virtual environment, builds and a big write.

For `scripts/posix --programs`. Each is done once as it is, and once with a chunk server killed
under it (`disturbance`): it must not notice but for a pause, and what it wrote must be right.
"""

import contextlib
import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from scripts.conformance.cases import Case, Ended, NotHereError, judged, run
from scripts.conformance.disturbance import PAUSE_MAX_S, fresh, killed_after, remount
from scripts.conformance.grounds import Ground, World
from scripts.conformance.sources import sources
from tests.cluster import free_port

BIG_BYTES: Final = 1 << 30
_CHUNK: Final = 1 << 20
_SOURCE_PACKAGE: Final = "zstandard"
"""From PyPI, built from its source: some 60 C files of libzstd and its own."""


# ------------------------------------------------------------------ a big write


def big_write(here: World, ground: Ground) -> list[Case]:
    """1 GiB in writes of 1 MiB and an fsync, with a server killed in the middle."""
    directory = fresh(ground, "big")
    path = directory / "file"
    written, longest_s, begun = hashlib.blake2b(), 0.0, time.monotonic()
    with contextlib.ExitStack() as stack, open(path, "wb", buffering=0) as file:
        for number in range(BIG_BYTES // _CHUNK):
            if number == BIG_BYTES // _CHUNK * 2 // 5:
                stack.enter_context(killed_after(here, 0))
            data = os.urandom(_CHUNK)
            written.update(data)
            before = time.monotonic()
            file.write(data)
            longest_s = max(longest_s, time.monotonic() - before)
        before = time.monotonic()
        os.fsync(file.fileno())
        sync_s = time.monotonic() - before
        seconds = time.monotonic() - begun
        remount_after = path.stat().st_size == BIG_BYTES
    remount(here, ground)
    with open(path, "rb") as file:
        intact = hashlib.file_digest(file, "blake2b").digest() == written.digest()
    path.unlink()
    detail = f"longest write() {longest_s:.2f} s, fsync {sync_s:.1f} s, all {seconds:.0f} s"
    return [
        Case("no long pause", "passed" if longest_s < PAUSE_MAX_S else "failed", detail),
        Case("data intact", "passed" if intact and remount_after else "failed"),
    ]


# ------------------------------------------------------------------ pip, and a build


def pip(here: World, ground: Ground) -> list[Case]:
    """A virtual environment on the mount, with packages that are imported from there."""
    directory = fresh(ground, "pip")
    made = run([sys.executable, "-m", "venv", directory / "venv"], directory, timeout_s=600)
    cases = [judged("venv", made)]
    if made.status == 0:
        python = directory / "venv/bin/python"
        argv: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
        ]
        installed = run([*argv, "rich", "trio"], directory, timeout_s=900)
        cases.append(judged("pip install", installed))
        words: list[str | Path] = [
            python,
            "-c",
            "import rich.console, trio; trio.run(trio.sleep, 0)",
        ]
        cases.append(judged("import", run(words, directory, timeout_s=120)))
    shutil.rmtree(directory)
    return cases


def build(here: World, ground: Ground) -> list[Case]:
    """A C extension from its source: undisturbed, then with a server killed."""
    directory = fresh(ground, "build")
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    with_tools = here.work / "sdist"
    if not with_tools.exists():
        got = run([*argv, "-d", with_tools, _SOURCE_PACKAGE], here.work, timeout_s=600)
        if got.status:
            raise NotHereError(f"the source of {_SOURCE_PACKAGE} cannot be had: {got.tail()}")
    archive = next(with_tools.iterdir())
    cases = []
    for name, delay_s in (("build", None), ("build, a server killed", 10.0)):
        target, scratch = directory / f"site{delay_s}", directory / f"tmp{delay_s}"
        scratch.mkdir()
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            target,
        ]
        with killed_after(here, delay_s) if delay_s else contextlib.nullcontext():
            built = run(
                [*command, "--no-binary", ":all:", "--no-cache-dir", archive],
                directory,
                timeout_s=1800,
                env={"TMPDIR": str(scratch)},
            )
        cases.append(judged(name, built))
        words = "import zstandard as z; assert z.decompress(z.compress(b'x' * 9999)) == b'x' * 9999"
        used = (
            run([sys.executable, "-c", words], target, timeout_s=120) if not built.status else built
        )
        cases.append(judged(f"{name}: it works", used))
    shutil.rmtree(directory)
    return cases


# ------------------------------------------------------------------ PostgreSQL


class _Postgres:
    """A PostgreSQL server whose data lies on the mount; run by Debian's user for it."""

    def __init__(self, here: World, directory: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not found:
            raise NotHereError("PostgreSQL is not installed: apt-get install postgresql")
        self.bin = found[-1].parent
        try:
            self.user = pwd.getpwnam("postgres")
        except KeyError:
            raise NotHereError("there is no user postgres") from None
        self.data = directory / "data"
        self.sockets = here.work / "pg"
        self.log = here.work / "postgres.log"
        self.port = str(free_port())
        self.sockets.mkdir(exist_ok=True)
        for path in (directory, self.sockets):
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None

    def tool(self, name: str, *args: str | Path, timeout_s: float = 300) -> Ended:
        return run(
            [self.bin / name, *args],
            self.sockets,
            timeout_s=timeout_s,
            user="postgres",
            env={"PGHOST": str(self.sockets), "PGPORT": self.port, "PGDATABASE": "postgres"},
        )

    def start(self) -> float:
        """Start it, and return how long it took until it answers (with recovery)."""
        argv = [str(self.bin / "postgres"), "-D", str(self.data), "-p", self.port]
        argv += ["-k", str(self.sockets), "-c", "listen_addresses=", "-c", "checkpoint_timeout=30s"]
        begun = time.monotonic()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user.pw_uid,
                group=self.user.pw_gid,
                extra_groups=[],
                cwd=self.sockets,
            )
        while self.tool("pg_isready", "-q").status:
            if self._process.poll() is not None or time.monotonic() - begun > 120:
                raise RuntimeError(f"PostgreSQL does not answer:\n{self.log_tail()}")
            time.sleep(0.2)
        return time.monotonic() - begun

    def children(self) -> list[int]:
        assert self._process is not None
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def crash(self) -> None:
        """SIGKILL to all of its processes at once."""
        assert self._process is not None
        for pid in (self._process.pid, *self.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        time.sleep(0.5)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.crash()

    def log_tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def consistent(self, when: str) -> Case:
        """The sums that pgbench keeps equal are equal."""
        query = (
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), "
            "(SELECT sum(bbalance) FROM pgbench_branches), "
            "(SELECT sum(tbalance) FROM pgbench_tellers), "
            "(SELECT coalesce(sum(delta), 0) FROM pgbench_history), "
            "(SELECT count(*) FROM pgbench_history)"
        )
        ended = self.tool("psql", "-At", "-F,", "-c", query)
        if ended.status:
            return judged(f"sums {when}", ended)
        *sums, count = ended.output.strip().split(",")
        right = len(set(sums)) == 1
        return Case(
            f"sums agree {when}", "passed" if right else "failed", f"{count} transactions: {sums}"
        )


def postgres(here: World, ground: Ground) -> list[Case]:
    """initdb, pgbench, SIGKILL, recovery; then pgbench with a server killed; then checksums."""
    server = _Postgres(here, fresh(ground, "pg"))
    cases = []
    argv = ("-D", server.data, "--data-checksums", "-A", "trust", "-E", "UTF8")
    cases.append(judged("initdb", server.tool("initdb", *argv)))
    if cases[-1].status == "failed":
        return cases
    try:
        server.start()
        cases.append(judged("pgbench -i", server.tool("pgbench", "-i", "-q", "-s", "3")))
        cases.append(_benched("pgbench", server.tool("pgbench", "-n", "-c", "4", "-T", "15")))
        with _in_background(lambda: server.tool("pgbench", "-n", "-c", "4", "-T", "30")):
            time.sleep(5)
            server.crash()
        took_s = server.start()
        cases.append(Case("recovery after SIGKILL", "passed", f"{took_s:.1f} s"))
        cases.append(server.consistent("after recovery"))

        with killed_after(here, 5):
            bench = server.tool("pgbench", "-n", "-c", "4", "-T", "20", "-P", "1")
        cases.append(_benched("pgbench, a server killed", bench))
        cases.append(_pause(bench))
        cases.append(server.consistent("at the end"))
        server.stop()
        cases.append(judged("checksums", server.tool("pg_checksums", "--check", "-D", server.data)))
    except (OSError, RuntimeError) as error:
        cases.append(Case("PostgreSQL runs", "failed", str(error)))
    finally:
        server.stop()
    shutil.rmtree(server.data.parent)
    return cases


def _benched(name: str, ended: Ended) -> Case:
    rate = re.search(r"tps = [\d.]+", ended.output)
    failed = re.search(r"number of failed transactions: ([1-9]\d*)", ended.output)
    if ended.status or rate is None or failed:
        return Case(name, "failed", ended.tail(5))
    return Case(name, "passed", rate[0])


def _pause(ended: Ended) -> Case:
    """From what `pgbench -P 1` prints each second: the longest time with no transaction."""
    rates = re.findall(r"^progress: ([\d.]+) s, ([\d.]+) tps", ended.output, re.MULTILINE)
    idle = longest = 0
    for _, rate in rates:
        idle = idle + 1 if float(rate) == 0 else 0
        longest = max(longest, idle)
    right = bool(rates) and longest < PAUSE_MAX_S
    detail = f"at most {longest} s without a transaction"
    return Case("no long pause", "passed" if right else "failed", detail)


@contextlib.contextmanager
def _in_background(function: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield
    finally:
        thread.join()


PROGRAMS: Final[dict[str, Callable[[World, Ground], list[Case]]]] = {
    "big-write": big_write,
    "pip": pip,
    "build": build,
    "sources": sources,
    "postgres": postgres,
}
