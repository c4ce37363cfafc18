"""Pure values shared by every part of dfs: no trio, no disk, no sockets.

- `ids`         names of the integer ids, and the reserved ones
- `errors`      the error hierarchy: an errno, a sentence, a hint
- `units`       sizes and durations as people write them
- `config`      settings from flags, environment and one TOML file
- `buffers`     the type of "bytes of any kind"
- `metrics`     one measured value, as monitoring shows it
- `workers`     where blocking calls run (an interface)
- `collector`   the garbage collector of a process that serves
- `allocator`   the C library's memory in one
- `inode`       inode and extent records
- `chunk`       chunk, fragment and disk-location records
- `redundancy`  (k, m) arithmetic: `rep:n` and `ec:k+m`
- `policy`      storage classes
- `space`       what the bytes on disks are for
- `block`       blocks and records: compression, checksums (see FORMAT.md)
- `erasure`     fragments of one block: encode and decode
"""
