"""The chunk server: stores fragments on disks, verifies what comes in, sends what is asked.

From the bytes up:

- `fragment_format`  file header, index footer and name of a fragment file, as bytes (FORMAT.md)
- `fragment_file`    one fragment file: create, append, find, seal, recover; blocking calls
- `fragment_scan`    finds the records of a file
- `page_cache`       what of a file is in memory
- `copies`           memory for answers, bounded
- `fragment`         one fragment in use: who may touch it, and in which order
- `identity`         whose disk a data directory is, and that no other process uses it
- `threads`          where the blocking calls of one disk run
- `catalog`          what a disk holds, by chunk, from the names of its files
- `room`             the space of a disk: used, free, kept in reserve
- `health`           what an OSError means for a disk
- `arrival`          fragments that are being made, out of sight until they are whole
- `data_directory`   taking a disk over: its lock, its identity, what it holds
- `disk`             one data directory: all of that, and the fragments in use
- `pace`             background work goes behind clients
- `watch`            looks whether a disk still answers
- `opening`          opens the disks of a server, and waits for none that hangs
- `config`           settings of `dfs chunkserver`
- `service`          answers to clients and the master
- `sources`          reads chunks from other servers, whatever state those are in
- `ahead`            reads one step ahead of what is written
- `rebuild`          makes a fragment from others
- `targets`          writes a new chunk to other servers
- `rewrite`          makes a new chunk of the live bytes of others
- `verify`           checks all of a fragment
- `upkeep`           answers to the master's requests for those
- `report`           registration, heartbeats and chunk reports to the master
- `metrics`          the monitoring port's view of it
- `daemon`           `run_chunkserver`: all of these together

State is touched on the event loop only, except a `FragmentFile`'s, which one worker thread at a
time may change, and the room of a disk, which has a lock.
"""
