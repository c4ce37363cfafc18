"""Real mounts of a real cluster, for each driver, and none left behind.

Where nothing can be mounted, the tests are skipped and say why; in continuous integration
(CI=true) that is a failure. `mounts` ends what a test mounted; if the whole run is killed,
`last_resort` does.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dfs.cli.process import identify, is_running, send_signal
from dfs.core.errors import DfsError
from dfs_fuse.about import About, ask
from dfs_fuse.mount_table import mounted_at
from dfs_fuse.options import MountOptions
from dfs_fuse.preconditions import check_machine, choose_driver
from tests.cluster import REPOSITORY, Cluster, Process, environment, wait_until

DRIVERS: Final = ("fusepy", "pyfuse3")


def require(driver: str) -> None:
    """Skip the test where `driver` cannot mount anything; fail it in continuous integration."""
    try:
        check_machine(MountOptions(point="/"))
        choose_driver(driver)
    except DfsError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"nothing can be mounted here: {error}", pytrace=False)
        pytest.skip(f"nothing can be mounted here: {error}")


class Mount:
    """One mount, in the background. Its process is not ours: it is known by what it says."""

    def __init__(self, cluster: Cluster, point: Path, log: Path) -> None:
        self.cluster = cluster
        self.point = point
        self.log = log
        self.about = self.ask()
        identity = identify(self.about.pid)
        assert identity is not None
        self.process = identity

    def ask(self) -> About:
        return ask(str(self.point))

    @property
    def alive(self) -> bool:
        return is_running(self.process)

    @property
    def mounted(self) -> bool:
        return mounted_at(str(self.point)) is not None

    def signal(self, number: signal.Signals) -> None:
        assert send_signal(self.process, number)

    def wait(self, timeout_s: float = 20.0) -> None:
        wait_until(
            lambda: not self.alive, timeout_s, what="the mount has ended", explain=self.log_text
        )

    def umount(
        self, *args: str, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        return self.cluster.dfs("umount", self.point, *args, check=check, timeout_s=timeout_s)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


class Mounts:
    """Mounts of one cluster in a directory."""

    def __init__(self, cluster: Cluster, directory: Path, driver: str) -> None:
        self.cluster = cluster
        self.directory = directory
        self.driver = driver
        self.broken = False
        """The test broke something: the logs may tell of it."""
        self._mounts: list[Mount] = []
        self._foreground: list[Process] = []

    def point(self, name: str = "mnt") -> Path:
        point = self.directory / name
        point.mkdir(exist_ok=True)
        return point

    def mount(self, *args: str, name: str = "mnt") -> Mount:
        """Mounted, with `args` of `dfs mount`."""
        log = self.directory / f"{name}.log"
        point = self.point(name)
        self.cluster.dfs("mount", point, "--driver", self.driver, "--log", log, *args)
        mount = Mount(self.cluster, point, log)
        self._mounts.append(mount)
        return mount

    def adopt(self, mount: Mount) -> None:
        """What the test mounted by itself ends with the others."""
        self._mounts.append(mount)

    def refused(self, *args: str | Path, status: int = 1) -> str:
        """What `dfs mount ARGS` says when it does not mount: one line."""
        log = self.directory / "refused.log"
        done = self.cluster.dfs(
            "mount", "--driver", self.driver, "--log", log, *args, check=False, timeout_s=30
        )
        assert done.returncode == status, done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def foreground(self, *args: str, name: str = "mnt") -> tuple[Process, Mount]:
        """`dfs mount --foreground`, a child of ours, once it answers."""
        point = self.point(name)
        argv = ["--master", self.cluster.master_address, "mount", str(point), "--foreground"]
        argv += ["--driver", self.driver, *args]
        log = self.directory / f"{name}.log"
        process = Process(name, argv, log, "")
        self._foreground.append(process)
        process.spawn()

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return ask(str(point)).pid == process.pid
            return False

        wait_until(answers, what="the mount answers", explain=process.log_tail)
        mount = Mount(self.cluster, point, log)
        self._mounts.append(mount)
        return process, mount

    def close(self) -> None:
        """Unmount everything, by force; no log may tell of a bug."""
        bad = []
        for mount in self._mounts:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                mount.signal(signal.SIGCONT)
            if mount.mounted:
                done = mount.umount("--force", "--timeout", "10", check=False)
                if done.returncode or mount.mounted:
                    bad.append(done.stderr)
                    subprocess.run(["umount", "-l", mount.point], check=False)
            if mount.alive:
                with contextlib.suppress(AssertionError):
                    mount.wait(10)
                if mount.alive:
                    bad.append(f"its process still ran:\n{mount.log_text()}")
                    send_signal(mount.process, signal.SIGKILL)
            for line in mount.log_text().splitlines():
                if "Traceback" in line or "bug" in line or (" ERROR " in line and not self.broken):
                    bad.append(line)
        for process in self._foreground:
            if process.alive:
                process.kill()
        assert not bad, "\n".join(bad)


@contextlib.contextmanager
def last_resort(directory: Path) -> Iterator[None]:
    """Whatever becomes of the test run, no mount below `directory` outlives it."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mount.last_resort", str(directory)],
        stdin=subprocess.DEVNULL,
        env=environment(),
        cwd=REPOSITORY,
        start_new_session=True,
    ) as watcher:
        try:
            yield
        finally:
            watcher.kill()


@contextlib.contextmanager
def mounts_of(cluster: Cluster, directory: Path, driver: str) -> Iterator[Mounts]:
    """Ends all of them, whatever happens."""
    require(driver)
    directory.mkdir(parents=True, exist_ok=True)
    with last_resort(directory):
        mounts = Mounts(cluster, directory, driver)
        try:
            yield mounts
        finally:
            mounts.close()


@pytest.fixture(scope="module")
def by_driver(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Mount]]]:
    """Two mounts of each driver, as long as the module is tested."""
    directory = tmp_path_factory.mktemp("shared")
    with mounts_of(cluster, directory, DRIVERS[0]) as mounts:
        yield {
            driver: [
                mounts.foreground("--driver", driver, name=f"{driver}-{number}")[1]
                for number in (1, 2)
            ]
            for driver in DRIVERS
        }
        mounts.broken = cluster.broken


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Shared by the tests of a module: each works in a directory of its own."""
    with Cluster(tmp_path_factory.mktemp("cluster"), servers=3) as running:
        yield running


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@pytest.fixture
def mounts(cluster: Cluster, tmp_path: Path, driver: str) -> Iterator[Mounts]:
    with mounts_of(cluster, tmp_path / "mounts", driver) as here:
        yield here
