"""The metadata master: a deterministic state machine on an ordered store, and what surrounds it.

The state machine, pure functions over a transaction:

- `keyspace`        the canonical schema: tables, keys, values, invariants
- `store`           the ordered key-value store: RocksDB, or memory
- `transaction`     changes laid over a store
- `commands`        every state change as a value
- `state`           `apply(command) -> result`, one atomic write each
- `journal`         the narrow interface through which commands go; `sync`
- `operations`      the table of namespace operations, and how an Apply runs them
- `context`, `limits`   what one operation runs in; checks of numbers from outside
- `namespace`, `directories`, `rename`, `attributes`, `xattrs`, `permissions`   the tree
- `file_data`, `extents`, `trims`, `removal`, `purge`   what files are made of
- `runs`            what survived the end of an earlier run of the master
- `sessions`, `policies`   clients' sessions, storage policies
- `chunks`          the life of chunks and their fragments
- `membership`      identity of servers and disks
- `queries`         read requests
- `backup`          copies of the metadata, and a master made of one
- `invariants`, `check`   checks everything that `keyspace` promises, and says what would mend it

The shell around it, with time, chance and the network:

- `liveness`        which servers and disks answer, from heartbeats
- `placement`       which disks a new chunk goes to: pure, seeded; on the trees of `domains`
- `leases`          how long sessions may stay silent
- `chunk_reports`   what a disk holds against what the master believes
- `health`          chunks counted by what is left of them
- `service`, `server_service`, `status`   handlers for clients, chunk servers, people
- `jobs`            background work
- `metrics`         figures for the monitoring port
- `daemon`          puts it all together, and runs it as a process
"""
