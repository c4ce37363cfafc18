"""A real cluster for a test: one master and N chunk servers, each a process, on loopback.

    with Cluster(tmp_path, servers=6) as cluster:
        cluster.dfs("upload", "-r", tree, "/tree")
        cluster.kill("cs2")
        cluster.dfs("download", "-r", "/tree", back)

Everything lies under the directory given. The fixture signals only processes that it started
itself, and those die with the test run, however it ends. When the cluster is left, every
process must stop cleanly on SIGTERM, and no log may hold a traceback or an error (nor a
warning, where the test broke nothing).
"""

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import trio

import dfs.client
from dfs.core.chunk import DiskState
from dfs.core.errors import DfsError

REPOSITORY: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)
_ports_given: set[int] = set()
_RUN: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_RUNS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PORTS: Final = range(15000 + _RUN, 32000, _RUNS)
"""Outside the range of outgoing connections; tests that run side by side have each their own."""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(**more: str) -> dict[str, str]:
    """The test run's environment without its dfs settings, with `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DFS_")}
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'fuse'}"
    return {**kept, "PYTHONPATH": path, "NO_COLOR": "1", **more}


def free_port() -> int:
    """A port nobody uses or was given: it stays free."""
    for _ in range(200):
        port = random.SystemRandom().choice(_PORTS)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _ports_given.add(port)
            return port
    raise RuntimeError("no free port found")


def wait_until(
    predicate: Callable[[], object],
    timeout_s: float = 20.0,
    *,
    what: str = "condition",
    explain: Callable[[], str] = str,
) -> None:
    """Poll until `predicate()` is true. Raises AssertionError after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout_s:g} s {explain()}")
        time.sleep(0.05)


class Process:
    """One server: its command line, its log, and the process while it runs."""

    def __init__(self, name: str, argv: list[str], log: Path, address: str) -> None:
        self.name = name
        self.argv = argv
        self.log = log
        self.address = address
        self._popen: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            # A child dies with the thread that made it (PR_SET_PDEATHSIG).
            raise RuntimeError("start servers from the main thread")
        assert not self.alive, f"{self.name} runs already"
        with open(self.log, "ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "dfs", *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                cwd=self.log.parent,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (only calls prctl)
            )

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        assert self.alive, f"{self.name} does not run:\n{self.log_tail()}"
        return self._popen.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        assert self._popen is not None
        return self._popen.wait(timeout_s)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait(STOP_TIMEOUT_S)

    def log_tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def memory_bytes(self) -> int:
        """Resident memory at its highest so far (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        assert match
        return int(match[1]) * 1024


class Cluster:
    """See the module. A server has `disks` directories; dfs fills `capacity` of each at most."""

    def __init__(
        self,
        root: Path,
        *,
        servers: int = 4,
        disks: int = 1,
        capacity: str | None = None,
        down_after: str = "60s",
        keep_retired: str = "5s",
    ) -> None:
        self.root = root
        self.master_address = f"127.0.0.1:{free_port()}"
        self.broken = False
        """The test broke something: warnings in logs are no surprise."""
        self._allowed: list[str] = []
        logs = root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.master = Process(
            "master",
            [
                *("master", "--data", str(root / "master"), "--listen", self.master_address),
                *("--down-after", down_after),
                *("--keep-retired", keep_retired),
            ],
            logs / "master.log",
            self.master_address,
        )
        self.servers: dict[str, Process] = {}
        for number in range(1, servers + 1):
            self.add_server(f"cs{number}", disks=disks, capacity=capacity)

    def add_server(self, name: str, *, disks: int = 1, capacity: str | None = None) -> Process:
        """One more chunk server; not started yet."""
        address = f"127.0.0.1:{free_port()}"
        argv = ["chunkserver", "--master", self.master_address, "--listen", address]
        for number in range(1, disks + 1):
            argv += ["--disk", str(self.root / name / f"disk{number}")]
        if capacity is not None:
            argv += ["--capacity", capacity]
        self.servers[name] = Process(name, argv, self.root / "logs" / f"{name}.log", address)
        return self.servers[name]

    @property
    def processes(self) -> dict[str, Process]:
        return {"master": self.master, **self.servers}

    # -------------------------------------------------------------- life

    def __enter__(self) -> Self:
        try:
            self.start_all()
        except BaseException:
            self._kill_what_runs()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._kill_what_runs()
            return
        self.stop()

    def start_all(self) -> None:
        """Start what does not run, and wait until all serve."""
        for process in self.processes.values():
            if not process.alive:
                process.spawn()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the master counts every running chunk server as up."""
        expected = sum(server.alive for server in self.servers.values())

        def ready() -> bool:
            for process in self.processes.values():
                if process is self.master or process.alive:
                    _ = process.pid  # raises with its log where it died
            return self.servers_up() >= expected

        what = f"{expected} chunk servers up"
        wait_until(ready, timeout_s, what=what, explain=self.master.log_tail)

    def servers_up(self) -> int:
        """How many chunk servers the master counts as up; 0 while it does not answer."""
        try:
            return trio.run(self._ask_servers_up)
        except DfsError:
            return 0

    async def _ask_servers_up(self) -> int:
        async with dfs.client.connect(self.master_address, on_unavailable="error") as client:
            with trio.fail_after(10):
                servers = await client.meta.servers()
        return sum(server.state == DiskState.UP for server in servers)

    def stop(self) -> None:
        """Stop all with SIGTERM, as an operator would, and read their logs."""
        running = [process for process in self.processes.values() if process.alive]
        for process in running:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        bad = []
        for process in running:
            try:
                status = process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                bad.append(f"{process.name} did not stop:\n{process.log_tail()}")
                process.kill()
            else:
                if status != 0:
                    bad.append(f"{process.name} ended with status {status}:\n{process.log_tail()}")
        bad += self.unexpected_log_lines()
        assert not bad, "\n".join(bad[:20])

    def _kill_what_runs(self) -> None:
        for process in self.processes.values():
            if process.alive:
                process.kill()

    def allow_logs(self, *patterns: str) -> None:
        """Log lines that match (re.search) are expected, also errors."""
        self._allowed += patterns

    def unexpected_log_lines(self) -> list[str]:
        """Tracebacks and errors in the logs; warnings too, unless the test broke something."""
        levels = "ERROR|CRITICAL" if self.broken else "WARNING|ERROR|CRITICAL"
        suspicious = re.compile(rf"Traceback|\b({levels})\b", re.IGNORECASE)
        found = []
        for process in self.processes.values():
            if not process.log.exists():
                continue
            for line in process.log.read_text(errors="replace").splitlines():
                if suspicious.search(line) and not any(re.search(p, line) for p in self._allowed):
                    found.append(f"{process.name}: {line}")
        return found

    # -------------------------------------------------------------- breaking and mending

    def kill(self, *names: str) -> None:
        """SIGKILL."""
        self.broken = True
        for name in names:
            self.processes[name].kill()

    def kill_all(self) -> None:
        """SIGKILL everything at once, as a power cut would end it (but for the page cache)."""
        self.broken = True
        running = [process for process in self.processes.values() if process.alive]
        for process in running:
            process.signal(signal.SIGKILL)
        for process in running:
            process.wait(STOP_TIMEOUT_S)

    def restart(self, *names: str, wait: bool = True) -> None:
        """Start what was killed again, on the same port and data."""
        for name in names:
            self.processes[name].spawn()
        if wait:
            self.wait_ready()

    def pause(self, name: str) -> None:
        """SIGSTOP: alive, its connections open, and silent."""
        self.broken = True
        self.processes[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.processes[name].signal(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        self.pause(name)
        try:
            yield
        finally:
            self.resume(name)

    # -------------------------------------------------------------- the command line

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "dfs", *map(str, args)]

    def dfs(
        self,
        *args: str | Path,
        check: bool = True,
        timeout_s: float = 120.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `dfs ARGS` against this cluster. With `check`, a failure fails the test."""
        done = subprocess.run(
            self.command(*args),
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=environment(**{"DFS_MASTER": self.master_address, **(env or {})}),
        )
        result = subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="surrogateescape"),
            done.stderr.decode(errors="surrogateescape"),
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"dfs {' '.join(map(str, args))}: status {result.returncode}\n"
                f"{result.stdout[-2000:]}{result.stderr[-4000:]}"
            )
        return result

    def json(self, *args: str | Path) -> Any:
        """The document that `dfs ARGS --json` prints, whatever its exit status."""
        return json.loads(self.dfs(*args, "--json", check=False).stdout)

    def spawn_dfs(self, *args: str | Path) -> subprocess.Popen[bytes]:
        """`dfs ARGS` in the background; its output is captured."""
        return subprocess.Popen(
            self.command(*args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(DFS_MASTER=self.master_address),
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (only calls prctl)
        )
