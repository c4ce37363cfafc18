"""Checking everything that `keyspace` promises, in little memory, and what would mend it.

- `problem`   what a check finds
- `fixes`     repairs, as values
- `mend`, `mend_rows`, `mend_tree`, `lookups`   apply them; `repair` says in what order
- `walk`      the tables in order, handed out id by id
- `sorter`    more records than memory holds, sorted
- `tree`, `inodes`, `chunks`, `indexes`   the invariants, table by table
- `process`   all of that on a checkpoint, in a process of its own
- `disks`     what the disks hold against what the master believes
- `service`, `log`   a check as a client begins, watches and gives it up
"""
