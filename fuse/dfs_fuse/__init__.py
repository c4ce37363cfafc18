"""The mount: a POSIX file system over a dfs cluster, that ordinary programs run on.

A map of the package, from the programs down:

- `fusepy_driver`   libfuse 2 by paths (`hidden_names`: open, unlinked), with what can be answered
                    in its own threads (`fast_path`)
- `pyfuse3_driver`  libfuse 3 by inodes, on trio itself (optional extra `dfs[fuse3]`)
- `bridge`          the one crossing from FUSE's threads into trio
- `vfs`             the file system: inodes, handles, who may what; async, knows no FUSE
- `handles`         open files and directories
- `node_cache`      attributes and names that may be believed for a moment
- `caller`          who asks: uid, gid, groups of a process
- `statistics`      what stat(2) and statvfs(2) count in
- `kernel_sizes`    how long the kernel believes files to be: appends, or pages of a mapping?
- `complaints`      errors: a number for the program, a line for the log
- `interrupts`      Ctrl-C and SIGKILL, where the driver is not told
- `profile`         counts and times of each operation
- `options`         what a mount can be told
- `preconditions`   what the machine and the mount point have to be like
- `mount`           a mount from start to end
- `unmount`         ends one, also one that died; `busy` says who uses it
- `about`           what a mount says of itself; `mount_table` what the kernel says of all

The file `fuse/` is a source root and no package: fusepy's module is called `fuse`.
"""
