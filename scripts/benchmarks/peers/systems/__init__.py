"""The systems that can be measured, in the order of the table, one module each."""

from typing import Final

from scripts.benchmarks.peers.system import System
from scripts.benchmarks.peers.systems.ceph import Ceph
from scripts.benchmarks.peers.systems.gluster import Gluster
from scripts.benchmarks.peers.systems.juicefs import JuiceFS
from scripts.benchmarks.peers.systems.local import Local
from scripts.benchmarks.peers.systems.moosefs import MooseFS
from scripts.benchmarks.peers.systems.ourselves import Ourselves
from scripts.benchmarks.peers.systems.seaweedfs import SeaweedFS

SYSTEMS: Final[dict[str, type[System]]] = {
    system.name: system for system in (Local, Ourselves, MooseFS, Gluster, Ceph, SeaweedFS, JuiceFS)
}
