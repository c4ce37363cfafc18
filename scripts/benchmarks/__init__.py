"""Benchmarks: programs that measure a cluster of their own. `scripts/bench` runs them.

- `data`, `metadata`, `small`, `space`, `mount`, `wire`: one aspect each, beside a yardstick
- `harness`: what they share; `memory_fs`: the ceiling of a FUSE driver, for `mount`
"""
