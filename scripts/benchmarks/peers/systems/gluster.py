"""GlusterFS: one glusterd, a volume of three replicas or of 4 + 2 fragments, its FUSE client."""

import os
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import wait_for_port
from scripts.benchmarks.peers.rows import CODED, COPIES_3
from scripts.benchmarks.peers.system import ADDRESS, Column, Program, System

_PORT: Final = 24007
_KINDS: Final = {COPIES_3: (3, ("replica", "3")), CODED: (6, ("disperse", "6", "redundancy", "2"))}


class Gluster(System):
    """Bricks are processes that glusterd forks. No server keeps names alone."""

    name = "gluster"
    columns = (
        Column("gluster-3", "Gluster", COPIES_3),
        Column("gluster-ec", "Gluster 4+2", CODED),
    )
    programs = (
        Program("glusterd", "glusterfs-server"),
        Program("gluster", "glusterfs-server"),
        Program("glusterfs", "glusterfs-client"),
    )

    def start(self) -> None:
        home = self.folder("glusterd")
        settings = home / "glusterd.vol"
        settings.write_text(
            "volume management\n    type mgmt/glusterd\n"
            f"    option working-directory {home}\n    option transport-type socket\n"
            f"    option transport.socket.listen-port {_PORT}\n"
            f"    option transport.socket.bind-address {ADDRESS}\n"
            "    option ping-timeout 0\n    option event-threads 1\nend-volume\n"
        )
        for directory in ("/var/run/gluster", "/var/log/glusterfs"):
            Path(directory).mkdir(parents=True, exist_ok=True)
        argv = ["glusterd", "-N", "-f", str(settings), "-l", str(home / "log")]
        self.processes.start("glusterd", [*argv, "-p", str(home / "pid")])
        wait_for_port(ADDRESS, _PORT)
        bricks = [f"{ADDRESS}:{disk}" for disk in self.disks]
        kind = _KINDS[self.column.redundancy][1]
        self._gluster("volume", "create", "measured", *kind, *bricks, "force")
        self._gluster("volume", "start", "measured")

    def _gluster(self, *args: str) -> None:
        self.run("gluster", "--mode=script", *args)

    def client(self) -> list[str]:
        log = str(self.processes.logs / "client-gluster.log")
        server = [f"--volfile-server={ADDRESS}", "--volfile-id=measured", "-l", log]
        return ["glusterfs", "-N", *server, str(self.point)]

    @property
    def disks(self) -> list[Path]:
        count, _ = _KINDS[self.column.redundancy]
        return [self.folder(f"brick{number}") for number in range(count)]

    def victims(self) -> dict[int, Path]:
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (line := _command_line(int(entry))):
                for disk in self.disks:
                    if "glusterfsd" in line[0] and str(disk) in line:
                        found[int(entry)] = disk
        return found


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []  # it has ended
