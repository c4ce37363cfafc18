"""What a suite says of each of its cases, and how a program is run for it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Case:
    """One case of a suite, in one place. Names are the same wherever it ran."""

    name: str
    status: Status
    detail: str = ""
    """Why it failed or was skipped, or what it measured."""


class NotHereError(Exception):
    """A suite cannot be run on this machine: says what lacks."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended, or was ended: status 124, as timeout(1) has it."""

    status: int
    output: str
    seconds: float

    def tail(self, lines: int = 3) -> str:
        return " | ".join(self.output.strip().splitlines()[-lines:])[-400:]


def run(
    argv: Sequence[str | Path],
    directory: Path,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Ended:
    """Run a program in `directory`; one that takes too long is killed, with its children."""
    begun = time.monotonic()
    with subprocess.Popen(
        [str(word) for word in argv],
        cwd=directory,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=[] if user else None,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\nkilled after {timeout_s:g} s".encode()
            status = 124
    return Ended(status, output.decode(errors="replace"), time.monotonic() - begun)


def judged(name: str, ended: Ended) -> Case:
    """The case of a program that says with its status whether all went well."""
    if ended.status == 0:
        return Case(name, "passed", f"{ended.seconds:.1f} s")
    return Case(name, "failed", f"status {ended.status}: {ended.tail()}")
