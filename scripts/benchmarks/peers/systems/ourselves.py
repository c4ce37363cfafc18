"""dfs: a master, some chunk servers, one mount with one of the drivers."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

from scripts.benchmarks.peers.processes import wait_for_port, wait_until
from scripts.benchmarks.peers.rows import CODED, COPIES_1, COPIES_3
from scripts.benchmarks.peers.system import ADDRESS, Column, NotInstalledError, System

_PORT: Final = 9420
_MASTER: Final = f"{ADDRESS}:{_PORT}"
_SERVERS: Final = {COPIES_1: 4, COPIES_3: 4, CODED: 7}
"""One more than copies or fragments, to mend on."""
_GRACE: Final = "20s"
"""A server that is away so long is given up; by default 60 s, so that a reboot moves nothing."""
_REDUNDANCY: Final = {COPIES_1: "rep:1", COPIES_3: "rep:3", CODED: "ec:4+2"}


class Ourselves(System):
    """Columns of fusepy are named so; the others are on pyfuse3, the driver that is preferred."""

    name = "dfs"
    columns = (
        Column("dfs-3", "dfs rep:3", COPIES_3),
        Column("dfs-3-fusepy", "dfs rep:3, fusepy", COPIES_3, judged=False),
        Column("dfs-ec", "dfs ec:4+2", CODED),
        Column("dfs-ec-fusepy", "dfs ec:4+2, fusepy", CODED, judged=False),
        Column("dfs-1", "dfs rep:1", COPIES_1),
    )

    def start(self) -> None:
        self._driver = "fusepy" if self.column.name.endswith("fusepy") else "pyfuse3"
        if self._driver == "pyfuse3" and importlib.util.find_spec("pyfuse3") is None:
            raise NotInstalledError(
                f"pyfuse3 is not installed: {sys.executable} -m pip install -e '.[fuse3]' (needs "
                "libfuse3-dev, pkg-config and gcc)"
            )
        servers = _SERVERS[self.column.redundancy]
        home = self.folder("master")
        self._serve("master", _PORT, ["--data", str(home), "--down-after", _GRACE])
        for number in range(servers):
            disk = self.folder(f"disk{number}")
            options = ["--master", _MASTER, "--disk", str(disk)]
            self._serve("chunkserver", _PORT + 1 + number, options, role=f"chunkserver{number}")
        wait_until(lambda: self._up() == servers, 60, f"{servers} chunk servers are up")
        self._on_master("policy", "create", "measured", "--redundancy", self._redundancy)
        self._on_master("policy", "set", "/", "measured")

    def _serve(self, verb: str, port: int, options: list[str], role: str = "") -> None:
        argv = [sys.executable, "-m", "dfs", verb, "--listen", f"{ADDRESS}:{port}", *options]
        self.processes.start(role or verb, argv)
        wait_for_port(ADDRESS, port)

    def _up(self) -> int:
        return sum(server["state"] == "up" for server in self._status()["servers"])

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(
            self._on_master("admin", "status", "--json", check=False)
        )
        return status

    @property
    def _redundancy(self) -> str:
        return _REDUNDANCY[self.column.redundancy]

    def client(self) -> list[str]:
        return [*self._words("mount", "--foreground", "--driver", self._driver), str(self.point)]

    def unmount(self) -> None:
        self._on_master("umount", self.point)
        super().unmount()

    @property
    def disks(self) -> list[Path]:
        return [self.folder(f"disk{n}") for n in range(_SERVERS[self.column.redundancy])]

    def metadata_pids(self) -> list[int]:
        return [self.processes.pid("master")]

    def victims(self) -> dict[int, Path]:
        if self.column.redundancy == COPIES_1:
            return {}
        return {
            self.processes.pid(f"chunkserver{number}"): disk
            for number, disk in enumerate(self.disks)
        }

    def is_whole(self) -> bool:
        """Not before the master has noticed that the server is gone."""
        status = self._status()
        noticed = any(server["state"] != "up" for server in status["servers"])
        chunks = status["chunks"]
        return noticed and not (chunks["degraded"] or chunks["at_risk"] or chunks["lost"])

    def upload(self, source: Path, name: str) -> list[str]:
        return self._words("upload", "-r", str(source), f"/{name}")

    def download(self, name: str, target: Path) -> list[str]:
        return self._words("download", "-r", f"/{name}", str(target))

    def _words(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "dfs", "--master", _MASTER, *args]

    def _on_master(self, *args: str | Path, check: bool = True) -> str:
        return self.run(*self._words(*map(str, args)), check=check)
