"""Background work of the master. One file a job; all have the shape of `loop.Job`.

- `loop`     how a job is run: for ever, yielding to clients, surviving errors
- `context`  what jobs work with
- `count`    counts chunks by health
- `expire`   ends sessions whose lease ran out
- `flush`    brings the log to the disk every second
- `purge`    frees rows of removed files, and fragments of doomed chunks
- `seal`     seals chunks whose writer is gone
- `watch`    notices servers that fall silent
"""
