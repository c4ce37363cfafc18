"""Copies of the metadata, taken while the cluster serves, and a master started from one.

- `process`   reads a snapshot and writes an archive (`dfs.core.archive`)
- `service`   hands it to a client, piece by piece
- `restore`   makes a master's data directory of an archive
- `hold`      what a restored master knows of that, and must not do until a person confirms
"""
