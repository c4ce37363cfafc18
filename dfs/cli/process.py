"""Processes by identity: a pid counts only together with the time its process started.

A pid alone may name a stranger after a crash or a reboot; with the start time and the boot it
cannot. Everything that signals a process of a dev cluster goes through here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

_STATE_FIELD = 0
_THREADS_FIELD = 17
_STARTED_FIELD = 19
"""Of what follows the command's name in /proc/PID/stat."""


class ProcessId(msgspec.Struct, frozen=True):
    """One process of this machine, for ever."""

    pid: int
    started_ticks: int
    """Clock ticks after boot."""
    boot_id: str


def boot_id() -> str:
    """Changes with every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started_ticks(pid: int) -> int | None:
    """None where there is no such process, or only its remains (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything; fields count from after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    # While other threads of it live, it still holds its files and ports.
    if fields[_STATE_FIELD] in "ZX" and int(fields[_THREADS_FIELD]) <= 1:
        return None
    return int(fields[_STARTED_FIELD])


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, or None."""
    ticks = _started_ticks(pid)
    return None if ticks is None else ProcessId(pid, ticks, boot_id())


def is_running(process: ProcessId) -> bool:
    return process.boot_id == boot_id() and _started_ticks(process.pid) == process.started_ticks


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signal this very process. False where it runs no more."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError:
        # A kernel without pidfd: the check and the signal are then two steps.
        if not is_running(process):
            return False
        os.kill(process.pid, number)
        return True
    try:
        # The descriptor holds whatever process it was opened on, so the check is no race.
        if not is_running(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def stop(processes: list[ProcessId], *, timeout_s: float) -> list[ProcessId]:
    """SIGTERM to all, then SIGKILL to those that still run after `timeout_s`.

    Returns those that had to be killed. When it returns, none runs.
    """
    running = [process for process in processes if send_signal(process, signal.SIGTERM)]
    running = _wait_gone(running, timeout_s)
    killed = [process for process in running if send_signal(process, signal.SIGKILL)]
    _wait_gone(killed, timeout_s)
    return killed


def _wait_gone(processes: list[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Those still running after `timeout_s`."""
    end = time.monotonic() + timeout_s
    pause_s = 0.01
    while processes := [process for process in processes if is_running(process)]:
        if time.monotonic() >= end:
            break
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.2)
    return processes


class Child:
    """A process started here, detached: it outlives the command that starts it."""

    def __init__(
        self, arguments: list[str], *, log: Path, directory: Path, keep: tuple[int, ...] = ()
    ) -> None:
        """Run `dfs ARGUMENTS` in `directory`, its output appended to `log`.

        `keep`: descriptors that it gets under the same numbers.
        """
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "dfs", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=_environment(),
                start_new_session=True,
                pass_fds=keep,
            )
        ticks = _started_ticks(self._popen.pid)
        # A child that is dead already left a zombie of this pid until it is waited for.
        self.identity = ProcessId(self._popen.pid, ticks or 0, boot_id())

    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def wait(self) -> int:
        """Its exit status, as soon as it has one."""
        return self._popen.wait()

    def release(self) -> None:
        """Let it go: from now on nobody here waits for it."""
        if self._popen.returncode is None:
            # Popen warns about a child nobody waited for; this one is meant to outlive us.
            self._popen.returncode = 0


def _environment() -> dict[str, str]:
    """Ours, able to import this very dfs, without settings meant for another cluster."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DFS_")}
    root = str(Path(__file__).resolve().parents[2])
    if Path(root).name not in ("site-packages", "dist-packages"):
        rest = environment.get("PYTHONPATH")
        own = f"{root}{os.pathsep}{root}/fuse"
        environment["PYTHONPATH"] = f"{own}{os.pathsep}{rest}" if rest else own
    return environment
