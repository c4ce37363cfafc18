"""CephFS: a monitor, a manager, three OSDs (BlueStore in files), a metadata server, ceph-fuse."""

import json
import uuid
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import wait_for_port, wait_until
from scripts.benchmarks.peers.rows import COPIES_3
from scripts.benchmarks.peers.system import ADDRESS, Column, Program, System

_OSDS: Final = 3
_ANSWERS_S: Final = 120.0
_SETTINGS: Final = """[global]
fsid = {fsid}
mon host = {monitors}
public network = 10.78.0.0/24
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 3
osd pool default min size = 2
osd pool default pg num = 32
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool delete = true
run dir = {run}
admin socket = {run}/$cluster-$name.$pid.asok
log file = {run}/$name.log
pid file =
crash dir = {run}
mon cluster log file = {run}/cluster.log
keyring = {home}/keyring
mon data = {home}/mon
mgr data = {home}/mgr
mds data = {home}/mds
osd data = {home}/osd$id
bluestore block size = 21474836480
bluestore block create = true
osd memory target = 1073741824
mon data avail crit = 1
mon data avail warn = 2
"""


class Ceph(System):
    """Three copies, two of which are enough to go on; no authentication."""

    name = "ceph"
    columns = (Column("ceph", "CephFS", COPIES_3),)
    programs = (
        Program("ceph-mon", "ceph-mon"),
        Program("ceph-mgr", "ceph-mgr"),
        Program("ceph-osd", "ceph-osd"),
        Program("ceph-mds", "ceph-mds"),
        Program("ceph-fuse", "ceph-fuse"),
        Program("ceph", "ceph-common"),
    )

    def start(self) -> None:
        self._home = self.folder("ceph")
        for part in ("mon", "mgr", "mds", "run"):
            self.folder(f"ceph/{part}")
        fsid = str(uuid.uuid4())
        monitors = f"[v2:{ADDRESS}:3300,v1:{ADDRESS}:6789]"
        self._config = str(self._home / "ceph.conf")
        Path(self._config).write_text(
            _SETTINGS.format(fsid=fsid, monitors=monitors, run=self._home / "run", home=self._home)
        )
        self._make_monitor(fsid, monitors)
        self.processes.start("mon", self._daemon("ceph-mon", "a"))
        wait_for_port(ADDRESS, 3300)
        self.processes.start("mgr", self._daemon("ceph-mgr", "x"))
        for number in range(_OSDS):
            self._start_osd(number)
        wait_until(lambda: self._stat("osd")["num_up_osds"] == _OSDS, _ANSWERS_S, "OSDs come up")
        for number in range(_OSDS):
            self._ceph(
                "osd", "crush", "add", f"osd.{number}", "1", "root=default", f"host=h{number}"
            )
        self._ceph("osd", "pool", "create", "meta", "16")
        self._ceph("osd", "pool", "create", "data", "32")
        self._ceph("fs", "new", "measured", "meta", "data")
        self.processes.start("mds", self._daemon("ceph-mds", "a"))
        wait_until(self._has_metadata_server, _ANSWERS_S, "the metadata server becomes active")

    def _make_monitor(self, fsid: str, monitors: str) -> None:
        keyring, monmap = str(self._home / "keyring"), str(self._home / "monmap")
        caps = [word for who in ("mon", "osd", "mds", "mgr") for word in ("--cap", who, "allow *")]
        create = ("ceph-authtool", "--create-keyring", keyring, "--gen-key")
        self.run(*create, "-n", "mon.", "--cap", "mon", "allow *")
        self.run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *caps)
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitors, monmap)
        made_of = ("--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self.run("ceph-mon", "-c", self._config, *made_of)

    def _start_osd(self, number: int) -> None:
        self.folder(f"ceph/osd{number}")
        identity = str(uuid.uuid4())
        self._ceph("osd", "new", identity, str(number))
        which = ("-i", str(number), "--mkfs", "--osd-uuid", identity)
        self.run("ceph-osd", "-c", self._config, *which)
        self.processes.start(f"osd{number}", self._daemon("ceph-osd", str(number)))

    def _daemon(self, program: str, name: str) -> list[str]:
        return [program, "-c", self._config, "-f", "-i", name]

    def _ceph(self, *args: str) -> str:
        return self.run("ceph", "-c", self._config, *args)

    def _stat(self, of: str) -> dict[str, int]:
        found: dict[str, int] = json.loads(self._ceph(of, "stat", "--format=json"))
        return found

    def _has_metadata_server(self) -> bool:
        return "up:active" in self._ceph("mds", "stat")

    def client(self) -> list[str]:
        return ["ceph-fuse", "-c", self._config, "-f", "-n", "client.admin", str(self.point)]

    @property
    def disks(self) -> list[Path]:
        return [self.folder(f"ceph/osd{number}") for number in range(_OSDS)]

    def metadata_pids(self) -> list[int]:
        return [self.processes.pid("mds")]

    def victims(self) -> dict[int, Path]:
        return {self.processes.pid(f"osd{number}"): disk for number, disk in enumerate(self.disks)}
