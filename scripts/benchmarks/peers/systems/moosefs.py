"""MooseFS 3: a master, four chunk servers, mfsmount; goal 3 and goal 2."""

import shutil
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import wait_for_port
from scripts.benchmarks.peers.rows import COPIES_2, COPIES_3
from scripts.benchmarks.peers.system import ADDRESS, Column, Program, System

_SERVERS: Final = 4
_GOALS: Final = {COPIES_2: "2", COPIES_3: "3"}
_EMPTY_METADATA: Final = Path("/var/lib/mfs/metadata.mfs.empty")
_AS_ROOT: Final = "WORKING_USER = root\nWORKING_GROUP = root\n"


class MooseFS(System):
    """Its master refuses clients at 127.0.0.1, which is why the enclosure has another address."""

    name = "moosefs"
    columns = (
        Column("moosefs-3", "MooseFS", COPIES_3),
        Column("moosefs-2", "MooseFS 2", COPIES_2),
    )
    programs = (
        Program("mfsmaster", "moosefs-master"),
        Program("mfschunkserver", "moosefs-chunkserver"),
        Program("mfsmount", "moosefs-client"),
        Program("mfssetgoal", "moosefs-client"),
    )

    def start(self) -> None:
        home = self.folder("master")
        shutil.copy(_EMPTY_METADATA, home / "metadata.mfs")
        (home / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0:0\n* . rw\n")
        (home / "topology.cfg").write_text("")
        listening = "".join(f"MATO{who}_LISTEN_HOST = {ADDRESS}\n" for who in ("ML", "CS", "CL"))
        config = home / "mfsmaster.cfg"
        config.write_text(
            f"{_AS_ROOT}DATA_PATH = {home}\nEXPORTS_FILENAME = {home}/exports.cfg\n"
            f"TOPOLOGY_FILENAME = {home}/topology.cfg\nLOCK_MEMORY = 0\n{listening}"
        )
        self.processes.start("master", ["mfsmaster", "-f", "-c", str(config), "start"])
        for port in (9419, 9420, 9421):
            wait_for_port(ADDRESS, port)
        for number in range(_SERVERS):
            self._start_server(number)
        for number in range(_SERVERS):
            wait_for_port(ADDRESS, 29430 + number)

    def _start_server(self, number: int) -> None:
        home, disk = self.folder(f"server{number}"), self.folder(f"disk{number}")
        (home / "hdd.cfg").write_text(f"{disk}\n")
        config = home / "chunkserver.cfg"
        config.write_text(
            f"{_AS_ROOT}DATA_PATH = {home}\nHDD_CONF_FILENAME = {home}/hdd.cfg\n"
            f"MASTER_HOST = {ADDRESS}\nCSSERV_LISTEN_HOST = {ADDRESS}\n"
            f"CSSERV_LISTEN_PORT = {29430 + number}\nHDD_LEAVE_SPACE_DEFAULT = 256MiB\n"
        )
        argv = ["mfschunkserver", "-f", "-c", str(config), "start"]
        self.processes.start(f"server{number}", argv)

    def mount(self) -> None:
        super().mount()
        if not self.directory.is_dir():
            self.directory.mkdir()
            self.run("mfssetgoal", "-r", _GOALS[self.column.redundancy], self.directory)
            # What is deleted is gone, as in the others.
            self.run("mfssettrashtime", "-r", "0", self.directory)

    def client(self) -> list[str]:
        return ["mfsmount", "-f", str(self.point), "-H", ADDRESS]

    @property
    def directory(self) -> Path:
        return self.point / "measured"

    @property
    def disks(self) -> list[Path]:
        return [self.folder(f"disk{number}") for number in range(_SERVERS)]

    def metadata_pids(self) -> list[int]:
        return [self.processes.pid("master")]

    def victims(self) -> dict[int, Path]:
        return {
            self.processes.pid(f"server{number}"): disk for number, disk in enumerate(self.disks)
        }
