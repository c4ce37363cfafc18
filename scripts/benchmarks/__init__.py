"""Benchmarks: programs that measure a cluster of their own. `scripts/bench` runs them.

- `data`, `metadata`, `small`, `space`, `mount`, `wire`: one aspect each, beside a yardstick
- `healing`, `rewriting`: background work; `master_scale`: a big cluster's master
- `peers`: dfs beside the file systems that people would pick instead, in one run
- `harness`: what the others share; `memory_fs`: the ceiling of a FUSE driver, for `mount`
"""
