"""Processes of the enclosure: started with a role, and what all of them use.

An enclosure has a PID namespace, so all that /proc shows belongs to this column: a process is
the benchmark's, a client's, or else a server's, wherever that one was forked from.
"""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from scripts.benchmarks.harness import environment, memory_bytes

_TICKS: Final = os.sysconf("SC_CLK_TCK")
Side = Literal["client", "server"]


def wait_until(happened: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(0.05)


def wait_for_port(address: str, port: int, timeout_s: float = 60) -> None:
    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((address, port)) == 0

    wait_until(answers, timeout_s, f"something listens at {address}:{port}")


@dataclass
class Processes:
    """What this column has running. Logs go to `logs`, a file for each role."""

    logs: Path
    _started: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, role: str, argv: list[str], **env: str) -> "subprocess.Popen[bytes]":
        """Roles that begin with `client` are clients, all others servers."""
        with open(self.logs / f"{role}.log", "ab") as log:
            started = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**env),
                start_new_session=True,
            )
        self._started[role] = started
        return started

    def pid(self, role: str) -> int:
        return self._started[role].pid

    def told(self, role: str) -> str:
        """The end of its log."""
        return (self.logs / f"{role}.log").read_text(errors="replace").strip()[-400:]

    def finish(self, role: str, timeout_s: float) -> None:
        """Wait until it has ended by itself; end it where it does not."""
        process = self._started.pop(role)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_seconds(self) -> dict[Side, float]:
        used: dict[Side, float] = {"client": 0.0, "server": 0.0}
        parents = {each.pid: each.parent for each in _all()}
        for each in _all():
            side = self._side(each.pid, parents)
            if side is not None:
                used[side] += each.own_seconds
        return used

    def _side(self, pid: int, parents: dict[int, int]) -> Side | None:
        """None for the benchmark itself, its workers, and the first process."""
        roles = {process.pid: role for role, process in self._started.items()}
        if pid in (1, os.getpid()):
            return None
        while pid > 1:
            if pid in roles:
                return "client" if roles[pid].startswith("client") else "server"
            if pid == os.getpid():
                return None
            pid = parents.get(pid, 1)
        return "server"


def resident_bytes(pids: list[int]) -> int:
    return sum(memory_bytes(pid, "VmRSS") for pid in pids)


@dataclass(frozen=True)
class Load:
    """How busy the machine was up to a moment, with everything, and with this column alone."""

    at: float
    machine_seconds: float
    own_seconds: float

    @classmethod
    def now(cls) -> "Load":
        fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        idle = fields[3] + fields[4]
        own = sum(each.own_seconds + each.reaped_seconds for each in _all())
        return cls(time.monotonic(), (sum(fields) - idle) / _TICKS, own)

    def others_since(self, before: "Load") -> float:
        """Processors that something else kept busy meanwhile."""
        machine = self.machine_seconds - before.machine_seconds
        own = self.own_seconds - before.own_seconds
        return max(0.0, machine - own) / max(self.at - before.at, 0.01)


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    own_seconds: float
    reaped_seconds: float


def _all() -> Iterator[_Process]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            own = (int(stat[11]) + int(stat[12])) / _TICKS
            yield _Process(int(entry), int(stat[1]), own, (int(stat[13]) + int(stat[14])) / _TICKS)
