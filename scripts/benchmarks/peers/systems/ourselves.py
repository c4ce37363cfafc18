"""dfs: a `dfs dev` cluster of seven servers, one mount with one of the drivers."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.rows import CODED, COPIES_1, COPIES_3
from scripts.benchmarks.peers.system import Column, NotInstalledError, System

_SERVERS: Final = 7
"""Six for 4+2, and one to mend on."""
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
        self._cluster = self.work / "cluster"
        self._dfs("dev", "start", "--dir", self._cluster, "--servers", str(_SERVERS))
        document = json.loads((self._cluster / "cluster.json").read_text())
        self._master = document["master"]
        self._pids = {each["name"]: each["pid"] for each in document["processes"]}
        self._on_master("policy", "create", "measured", "--redundancy", self._redundancy)
        self._on_master("policy", "set", "/", "measured")

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
        return [self._cluster / name for name in self._pids if name != "master"]

    def metadata_pids(self) -> list[int]:
        return [self._pids["master"]]

    def victims(self) -> dict[int, Path]:
        if self.column.redundancy == COPIES_1:
            return {}
        return {pid: self._cluster / name for name, pid in self._pids.items() if name != "master"}

    def is_whole(self) -> bool:
        """Not before the master has noticed that the server is gone."""
        status = json.loads(self._on_master("admin", "status", "--json", check=False))
        noticed = any(server["state"] != "up" for server in status["servers"])
        chunks = status["chunks"]
        return noticed and not (chunks["degraded"] or chunks["at_risk"] or chunks["lost"])

    def upload(self, source: Path, name: str) -> list[str]:
        return self._words("upload", "-r", str(source), f"/{name}")

    def download(self, name: str, target: Path) -> list[str]:
        return self._words("download", "-r", f"/{name}", str(target))

    def _words(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "dfs", "--master", self._master, *args]

    def _on_master(self, *args: str | Path, check: bool = True) -> str:
        return self.run(*self._words(*map(str, args)), check=check)

    def _dfs(self, *args: str | Path) -> str:
        return self.run(sys.executable, "-m", "dfs", *args)
