"""Where the suites run: on mounts of a cluster with each driver, and on a local directory.

All of it lies in one temporary directory, and is gone at the end, whatever happens.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster import Cluster

LOCAL: Final = "local"
POLICIES: Final = {"rep2": "rep:2", "ec21": "ec:2+1"}


@dataclass(frozen=True)
class Ground:
    """A directory to run suites in. `driver` and `policy` are "" for the local one."""

    directory: Path
    driver: str = ""
    policy: str = ""

    @property
    def name(self) -> str:
        return f"{self.driver} {self.policy}" if self.driver else LOCAL


@dataclass
class World:
    """A running cluster, mounted with each driver at `work/DRIVER`."""

    work: Path
    cluster: Cluster
    drivers: Sequence[str]

    def ground(self, driver: str, policy: str) -> Ground:
        return Ground(self.point(driver) / f"{driver}-{policy}", driver, policy)

    @property
    def local(self) -> Ground:
        return Ground(self.work / LOCAL)

    def point(self, driver: str) -> Path:
        return self.work / driver

    def mount(self, driver: str) -> None:
        self.cluster.dfs(
            "mount",
            self.point(driver),
            "--driver",
            driver,
            "--log",
            self.log(driver),
            "--profile",
        )

    def umount(self, driver: str) -> None:
        self.cluster.dfs("umount", self.point(driver), timeout_s=300)

    def log(self, driver: str) -> Path:
        return self.work / f"{driver}.log"

    def complaints(self, driver: str) -> list[str]:
        """What the mount's log says of bugs."""
        lines = self.log(driver).read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or "bug in dfs" in line]


def _clear(here: World, driver: str) -> None:
    """Unmounted, whatever has become of it: what lies below is about to be deleted."""
    point = here.point(driver)
    for args in ((), ("--force",)):
        if os.path.ismount(point):
            here.cluster.dfs("umount", point, *args, check=False, timeout_s=300)
    if os.path.ismount(point):
        subprocess.run(["umount", "-l", point], check=True)


@contextlib.contextmanager
def world(drivers: Sequence[str], *, keep: bool) -> Iterator[World]:
    """A cluster of four servers, with a directory of each driver and policy."""
    work = Path(tempfile.mkdtemp(prefix="dfs-posix-"))
    # Users other than root run programs in it.
    work.chmod(0o755)
    try:
        with Cluster(work / "cluster", servers=4) as cluster:
            cluster.broken = True  # the suites mean to provoke what is logged as a warning
            here = World(work, cluster, drivers)
            here.local.directory.mkdir()
            for policy, redundancy in POLICIES.items():
                cluster.dfs("policy", "create", policy, "--redundancy", redundancy)
                for driver in drivers:
                    cluster.dfs("mkdir", f"/{driver}-{policy}")
                    cluster.dfs("policy", "set", f"/{driver}-{policy}", policy)
            try:
                for driver in drivers:
                    here.point(driver).mkdir()
                    here.mount(driver)
                yield here
            finally:
                for driver in drivers:
                    _clear(here, driver)
    finally:
        if keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
