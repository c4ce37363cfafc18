"""A dev cluster on this machine: what it consists of, and its processes.

Two files in its directory describe it. `dev.json` says what it is made of, stays with the data,
and marks the directory as a dev cluster; `cluster.json` says what runs now, for people and
scripts, and is there only while it runs. Both are replaced atomically, and only while `.lock` is
held.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from dfs.cli import mount_process, ports
from dfs.cli.failures import say
from dfs.cli.names import show
from dfs.cli.process import Child, ProcessId, boot_id, is_running, stop
from dfs.core.errors import ConfigError, DfsError

STOP_TIMEOUT_S: Final = 15.0
LOCK_TIMEOUT_S: Final = 120.0
_LOG_MAX_BYTES: Final = 8 * 1024 * 1024
_LOG_LINES: Final = 8
_FORMAT: Final = 1

MOUNT: Final = "mount"
"""The name of the mount among the processes, and its role."""

Role = Literal["master", "chunkserver", "mount"]


class Member(msgspec.Struct):
    """One process of the cluster, running or not."""

    name: str
    role: Role
    port: int
    disks: list[str] = []
    """Directories, relative to the cluster's."""

    @property
    def address(self) -> str:
        return f"{ports.LOOPBACK}:{self.port}"


class Definition(msgspec.Struct):
    """dev.json."""

    format: int
    master: Member
    servers: list[Member]

    @property
    def members(self) -> list[Member]:
        return [self.master, *self.servers]


class Running(msgspec.Struct):
    """One entry of cluster.json."""

    name: str
    role: Role
    pid: int
    address: str
    started_ticks: int
    log: str
    disks: list[str] = []
    point: str = ""
    """Where a mount is."""

    def process(self, boot: str) -> ProcessId:
        return ProcessId(self.pid, self.started_ticks, boot)


class RunningCluster(msgspec.Struct):
    """cluster.json."""

    master: str
    boot_id: str
    processes: list[Running]

    def alive(self) -> dict[str, ProcessId]:
        """Those that run now, by name."""
        identities = {each.name: each.process(self.boot_id) for each in self.processes}
        return {name: process for name, process in identities.items() if is_running(process)}


class DevCluster:
    """The dev cluster in one directory. Methods that change it want `locked()` around them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().absolute()
        self._definition_file = self.directory / "dev.json"
        self._running_file = self.directory / "cluster.json"

    def __str__(self) -> str:
        return show(str(self.directory))

    # -------------------------------------------------------------- what there is

    def definition(self) -> Definition | None:
        """None where the directory holds no dev cluster.

        Raises:
            ConfigError: it holds one that this program cannot read.
        """
        try:
            found = msgspec.json.decode(self._definition_file.read_bytes(), type=Definition)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{show(str(self._definition_file))}: {error}") from None
        if found.format != _FORMAT:
            raise ConfigError(
                f"{self}: a dev cluster of format {found.format}", hint="use a newer dfs for it"
            )
        return found

    def require(self) -> Definition:
        """Raises DfsError where there is no dev cluster."""
        if found := self.definition():
            return found
        raise DfsError(f"{self}: no dev cluster here", hint="`dfs dev start` makes one")

    def running(self) -> RunningCluster | None:
        """What cluster.json says; None where there is none, or it is unreadable."""
        try:
            return msgspec.json.decode(self._running_file.read_bytes(), type=RunningCluster)
        except (OSError, msgspec.DecodeError):
            return None

    def alive(self) -> dict[str, ProcessId]:
        """The processes that run now, by name."""
        found = self.running()
        return found.alive() if found else {}

    # -------------------------------------------------------------- one command at a time

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other `dfs dev` commands off this directory.

        Raises:
            DfsError: another one was still at work after `LOCK_TIMEOUT_S`.
        """
        end = time.monotonic() + LOCK_TIMEOUT_S
        while (descriptor := self._try_lock()) is None:
            if time.monotonic() > end:
                raise DfsError(
                    f"{self}: another dfs dev command is at work here",
                    hint="wait for it, or stop it, then try again",
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            os.close(descriptor)

    def _try_lock(self) -> int | None:
        """The descriptor that holds the lock, or None while another has it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / ".lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `destroy` deletes the file: a lock on what is no longer there keeps nobody off.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    # -------------------------------------------------------------- planning

    def define(self, servers: int | None, disks: int, *, default_servers: int) -> Definition:
        """The cluster's definition with at least `servers` chunk servers; made where there is none.

        Raises:
            ConfigError: the directory holds something else, or the cluster is larger.
        """
        definition = self.definition()
        if definition is None:
            if extra := sorted(set(os.listdir(self.directory)) - {".lock"}):
                raise ConfigError(
                    f"{self}: holds other things ({show(extra[0])}), and no dev cluster",
                    hint="name an empty or a new directory with --dir",
                )
            taken: set[int] = set()
            master = Member("master", "master", ports.choose(taken))
            definition = Definition(_FORMAT, master, [])
            servers = default_servers if servers is None else servers
        present = len(definition.servers)
        if servers is not None and servers < present:
            raise ConfigError(
                f"{self}: has {present} chunk servers, and data lies on them",
                hint=f"leave --servers out, or give {present} or more",
            )
        taken = {member.port for member in definition.members}
        for number in range(present + 1, (servers or present) + 1):
            name = f"cs{number}"
            paths = [f"{name}/disk{disk}" for disk in range(1, disks + 1)]
            definition.servers.append(Member(name, "chunkserver", ports.choose(taken), paths))
        self._replace(self._definition_file, definition)
        return definition

    def move_taken_ports(self, definition: Definition, settled: Collection[str]) -> bool:
        """Give members that are not `settled` another port where theirs is taken by now.

        Returns whether the master's changed, which its chunk servers then need to be told.
        """
        taken = {member.port for member in definition.members}
        master_port = definition.master.port
        for member in definition.members:
            if member.name not in settled and not ports.is_free(member.port):
                member.port = ports.choose(taken)
        self._replace(self._definition_file, definition)
        return definition.master.port != master_port

    # -------------------------------------------------------------- processes

    def launch(self, definition: Definition, member: Member) -> Child:
        """Start one member, detached. Call `record` after."""
        (self.directory / "logs").mkdir(exist_ok=True)
        log = self.log_file(member.name)
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > _LOG_MAX_BYTES:
                log.replace(log.with_suffix(".log.old"))
        arguments = ["master", "--data", str(self.directory / "master")]
        if member.role == "chunkserver":
            arguments = ["chunkserver", "--master", definition.master.address]
            for disk in self.disk_paths(member):
                arguments += ["--disk", disk]
        arguments += ["--listen", member.address]
        return Child(arguments, log=log, directory=self.directory)

    def record(self, definition: Definition, processes: dict[str, ProcessId]) -> None:
        """Write cluster.json: `processes` are all that run, by name."""
        entries = [
            Running(
                member.name,
                member.role,
                processes[member.name].pid,
                member.address,
                processes[member.name].started_ticks,
                str(self.log_file(member.name)),
                self.disk_paths(member),
            )
            for member in definition.members
            if member.name in processes
        ]
        entries += self._mounts_of_this_boot()
        if not entries:
            self._running_file.unlink(missing_ok=True)
            return
        document = RunningCluster(definition.master.address, boot_id(), entries)
        self._replace(self._running_file, document)

    def stop(self) -> list[str]:
        """Stop what runs: the mount, the chunk servers, the master. Returns the names that ran.

        Each says goodbye to those that come after it.
        """
        found = self.running()
        if found is None:
            return []
        alive = found.alive()
        self.unmount()
        for role in ("chunkserver", "master"):
            names = [each.name for each in found.processes if each.role == role]
            stop([alive[name] for name in names if name in alive], timeout_s=STOP_TIMEOUT_S)
        self._running_file.unlink(missing_ok=True)
        return list(alive)

    def destroy(self, definition: Definition) -> list[str]:
        """Stop it and delete what it made. Returns what else lies in the directory, and stays."""
        self.stop()
        for member in definition.members:
            _delete_tree(self.directory / member.name)
        _delete_tree(self.directory / "logs")
        # The marker goes last: a destroy that was cut short can be run again.
        self._definition_file.unlink()
        (self.directory / ".lock").unlink()
        left = sorted(os.listdir(self.directory))
        if not left:
            self.directory.rmdir()
        return left

    # -------------------------------------------------------------- the mount

    def mount(self) -> Running | None:
        """The mount of this cluster, also a dead one; None where there is none, or no longer."""
        found = self.running()
        for each in found.processes if found else []:
            if each.role == MOUNT and found is not None:
                runs = is_running(each.process(found.boot_id))
                if runs or self._is_mounted(found.master, each.point):
                    return each
        return None

    def _is_mounted(self, master: str, point: str) -> bool:
        from dfs_fuse.mount_table import mounted_at

        mounted = mounted_at(point)
        return mounted is not None and mounted.is_dfs and mounted.source == f"{master}:/"

    def start_mount(self, definition: Definition, point: str) -> None:
        """Mount the cluster at `point`, and put it into cluster.json. Its servers run.

        Raises:
            DfsError: it cannot be mounted.
        """
        master = definition.master.address
        log = self.log_file(MOUNT)
        process = mount_process.start(master, point, log, [])
        document = self.running() or RunningCluster(master, process.boot_id, [])
        document.processes = [each for each in document.processes if each.role != MOUNT]
        document.processes.append(
            Running(MOUNT, MOUNT, process.pid, "", process.started_ticks, str(log), point=point)
        )
        self._replace(self._running_file, document)

    def unmount(self) -> None:
        """End the mount, if there is one, whoever uses it; flush it first, if that can be."""
        from dfs_fuse.unmount import unmount

        found = self.mount()
        if found is None:
            return
        try:
            note = unmount(found.point, force=True, timeout_s=STOP_TIMEOUT_S).note
        except DfsError as error:
            # Whatever is wrong with it, the servers are to be stopped.
            note = str(error)
        if note:
            say(f"{show(found.point)}: {note.rstrip('; ')}")

    def _mounts_of_this_boot(self) -> list[Running]:
        found = self.running()
        if found is None or found.boot_id != boot_id():
            return []
        return [each for each in found.processes if each.role == MOUNT]

    # -------------------------------------------------------------- places

    def log_file(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The last lines of a member's log."""
        try:
            text = self.log_file(name).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(text.splitlines()[-_LOG_LINES:]) or "(its log is empty)"

    def disk_paths(self, member: Member) -> list[str]:
        return [str(self.directory / disk) for disk in member.disks]

    def _replace(self, path: Path, content: msgspec.Struct) -> None:
        """Readers see the old file or the new one, whole, also after a power cut."""
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def default_directory() -> Path:
    """Raises ConfigError where the user has no home."""
    path = os.path.expanduser("~/.local/share/dfs/dev")
    if not path.startswith("/"):
        raise ConfigError("you have no home directory", hint="name a directory with --dir")
    return Path(path)


def accepts_connections(address: str) -> bool:
    """Whether something listens there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _delete_tree(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
