"""The contract of a file system that is measured: what it needs, its columns, how it comes up."""

import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Final

from scripts.benchmarks.harness import environment
from scripts.benchmarks.peers.processes import Processes, wait_until

ADDRESS: Final = "10.78.0.1"
"""Of the servers, in the enclosure: some of them refuse 127.0.0.1."""

_UNMOUNT_S: Final = 60.0
_SETTLES_S: Final = 0.5
"""A client has more to do at its start than to answer; that is not what is measured."""


class NotInstalledError(Exception):
    """A program is missing; the message says which, and what brings it."""


@dataclass(frozen=True)
class Column:
    """One system with one redundancy, and for dfs one driver: a column of the table."""

    name: str
    title: str
    redundancy: str
    commands_only: bool = False
    """Only its commands are measured: it is a way to copy to and from a system, and no mount."""
    judged: bool = True
    """Of dfs: whether it has to reach the goals."""


@dataclass(frozen=True)
class Program:
    """An executable that a system needs, and the package that brings it."""

    name: str
    package: str
    from_pypi: bool = False

    def find(self) -> str | None:
        beside_python = str(Path(sys.executable).parent)
        return shutil.which(self.name) or shutil.which(self.name, path=beside_python)

    def path(self) -> str:
        if (found := self.find()) is None:
            raise NotInstalledError(f"{self.name} is not installed: {self.how()}")
        return found

    def version(self) -> str:
        """Of the package that is installed; "" where that is not known."""
        if self.from_pypi:
            try:
                return metadata.version(self.package)
            except metadata.PackageNotFoundError:
                return ""
        argv = ("dpkg-query", "--show", "--showformat=${Version}", self.package)
        try:
            return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            return ""

    def how(self) -> str:
        if self.from_pypi:
            return f"{sys.executable} -m pip install {self.package}"
        return f"apt-get install {self.package}"


def missing(programs: Sequence[Program]) -> str:
    """What has to be installed, as one sentence; "" for nothing."""
    lacking = [program for program in programs if program.find() is None]
    hows = []
    for from_pypi in (False, True):
        of_kind = [program for program in lacking if program.from_pypi is from_pypi]
        if of_kind:
            packages = dict.fromkeys(program.package for program in of_kind)
            first = of_kind[0].how().removesuffix(of_kind[0].package)
            hows.append(first + " ".join(packages))
    if not hows:
        return ""
    return f"no {', '.join(program.name for program in lacking)} here: {'; '.join(hows)}"


class System(ABC):
    """One system, for one column. Its methods run in an enclosure, as root.

    Everything it makes lies in `work`; every process it starts is in the enclosure, so that it
    stops nothing: who ends the enclosure does.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    programs: ClassVar[tuple[Program, ...]] = ()

    def __init__(self, work: Path, column: Column, processes: Processes) -> None:
        self.work = work
        self.column = column
        self.processes = processes
        self.point = work / "mount"
        self.point.mkdir()

    # -------------------------------------------------------------- its life

    @abstractmethod
    def start(self) -> None:
        """Bring the servers up; return when they serve."""

    def mount(self) -> None:
        """Mount it on `point`, by a new client that has nothing in memory."""
        argv = self.client()
        before = self.processes.start("client", argv)
        wait_until(
            lambda: self.point.is_mount() or before.poll() is not None,
            60,
            f"{argv[0]} mounts {self.point}",
        )
        if not self.point.is_mount():
            raise RuntimeError(f"{argv[0]} ended without a mount: {self.processes.told('client')}")
        self.point.stat()
        time.sleep(_SETTLES_S)

    @abstractmethod
    def client(self) -> list[str]:
        """The command that serves the mount, in the foreground."""

    def unmount(self) -> None:
        wait_until(self._try_unmount, _UNMOUNT_S, f"{self.point} is unmounted")
        self.processes.finish("client", _UNMOUNT_S)

    def _try_unmount(self) -> bool:
        if self.point.is_mount():
            subprocess.run(["umount", str(self.point)], check=False, stderr=subprocess.DEVNULL)
        return not self.point.is_mount()

    # -------------------------------------------------------------- what is asked of it

    @property
    def directory(self) -> Path:
        """Where to work, below the mount: what is made in it has the column's redundancy."""
        return self.point

    @property
    @abstractmethod
    def disks(self) -> list[Path]:
        """The directories of the servers' data."""

    def metadata_pids(self) -> list[int]:
        """The processes that keep names; none where no server does nothing else."""
        return []

    def victims(self) -> dict[int, Path]:
        """Servers of which one may be killed, with where each keeps its data."""
        return {}

    def is_whole(self) -> bool | None:
        """Whether everything is as redundant as it shall be; None where that is not known."""
        return None

    def upload(self, source: Path, name: str) -> list[str] | None:
        """The command that stores a local file or tree as `name`; None where there is none."""
        return None

    def download(self, name: str, target: Path) -> list[str] | None:
        """The command that brings `name` to a local file or directory `target`."""
        return None

    # -------------------------------------------------------------- for the modules of systems

    def run(self, *argv: str | Path, timeout_s: float = 120, check: bool = True) -> str:
        """Run a command to its end; what it printed. Raises RuntimeError with what it said."""
        words = list(map(str, argv))
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment(),
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-400:]
            raise RuntimeError(f"{' '.join(words)} failed ({done.returncode}): {said}")
        return done.stdout

    def folder(self, name: str) -> Path:
        made = self.work / name
        made.mkdir(parents=True, exist_ok=True)
        return made
