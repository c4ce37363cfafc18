"""Background work of the master. One file a job; all have the shape of `loop.Job`.

- `loop`     how a job is run: for ever, yielding to clients, surviving errors
- `context`  what jobs work with
- `board`    the jobs that people see: started, paused, cancelled, bounded, taken up again
- `mover`    makes one fragment anew on another disk, for the four below
- `repair`   gives chunks back what they lack
- `drain`    empties disks
- `rebalance` fills all disks evenly
- `scrub`    has every fragment read and checked
- `membership` takes disks out, puts them back, removes them
- `count`    counts chunks by health
- `expire`   ends sessions whose lease ran out
- `flush`    brings the log to the disk every second
- `purge`    frees rows of removed files, and fragments of doomed chunks
- `seal`     seals chunks whose writer is gone
- `watch`    notices servers that fall silent
"""
