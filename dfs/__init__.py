"""dfs: a distributed file system in Python.

A map of the package, from the bottom up (imports only ever point down):

- `dfs.core`         pure values: ids, errors, inodes, chunks, redundancy, blocks, policies; no I/O
- `dfs.wire`         the one network protocol: messages, framing, connections, servers
- `dfs.master`       the metadata master: a deterministic state machine on RocksDB
- `dfs.chunkserver`  stores fragments of chunks on disks
- `dfs.client`       the Python API: reads and writes files against a cluster
- `dfs_fuse`         the mount (in `fuse/`)
- `dfs.cli`          the `dfs` program
"""

__version__ = "0.1.0"
