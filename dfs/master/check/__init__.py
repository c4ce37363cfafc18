"""Checking everything that `keyspace` promises, in little memory, and what would mend it.

- `problem`   what a check finds
- `fixes`     repairs, as values
- `walk`      the tables in order, handed out id by id
- `sorter`    more records than memory holds, sorted
- `tree`, `inodes`, `chunks`, `indexes`   the invariants, table by table
"""
