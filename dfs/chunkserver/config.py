"""Settings of a chunk server, as `dfs chunkserver` takes them from flags, environment and file."""

import msgspec

from dfs.chunkserver.room import Reserve

DEFAULT_PORT = 9421


class ChunkServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    master: tuple[str, ...]
    """`HOST:PORT` of the masters."""
    disks: tuple[str, ...]
    """Data directories, one a disk."""
    listen: str = f":{DEFAULT_PORT}"
    """`HOST:PORT`; no host: all interfaces; port 0: any."""
    advertise: str = ""
    """`HOST:PORT` at which clients reach this server; "": worked out from `listen`."""
    rack: str = ""
    zone: str = ""
    capacity_bytes: int | None = None
    """Clients store at most this much on each disk, and upkeep (at most 128 MiB) more while it
    rewrites; None: all but the reserve."""
    reserve: Reserve = Reserve()
    token: bytes = b""
    """The cluster's shared secret."""
    http: str = ""
    """`HOST:PORT` of the monitoring port; "": none."""
