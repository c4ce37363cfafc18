"""The local file system under all of them: what the disk and the kernel allow."""

from pathlib import Path

from scripts.benchmarks.peers.system import Column, System


class Local(System):
    """A plain directory. A "new client" has the page cache dropped, as for all."""

    name = "local"
    columns = (Column("local", "local disk", "1 copy"),)

    def start(self) -> None:
        pass

    def mount(self) -> None:
        pass

    def unmount(self) -> None:
        pass

    def client(self) -> list[str]:
        raise NotImplementedError

    @property
    def disks(self) -> list[Path]:
        return [self.point]
