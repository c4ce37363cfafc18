"""The Python API of dfs: files and directories of a cluster, asynchronous, on trio.

    import dfs.client, trio

    async def main():
        async with dfs.client.connect("127.0.0.1:9420") as client:
            await client.write_file("/hello", b"world")
            print(await client.read_file("/hello"))

    trio.run(main)

A map of the package. What users call:

- `client`           `connect`, `Client`: paths, files, trees
- `path_operations`  the namespace by path; base of `Client`
- `files`            `File`, a handle with a position
- `upload` (`small_upload`, `big_upload`), `download` (`small_download`, `big_download`),
  `removal`          whole trees; `local_files` is their local side
- `progress`         what those tell: `Progress`, `Summary`, `Failure`

Metadata: `meta` (inode-level calls, changes batched) on `session` (sequence numbers) on
`master_link` (retries), `retry` (how long); `barrier` (what the master may still lose).

Explaining: `fact_finding` (asks everybody about a file) -> `diagnosis` (pure: what that means).

Own directories: `delegations` (how they come and go) on `own_directories` (what is done there),
told later by `write_behind`; `new_files`: the bytes of small files (each a `new_file`) go along.

Reading: `open_files` -> `open_file` (one per inode) -> `extent_map` -> `reader` and `block_cache`
-> `fetcher` (any k good fragments) -> `resolver` (where chunks lie, whom to ask first); `reports`
of bad ones.

Writing: `open_file` -> `writer` (the `pieces` of one file in a `write_buffer`, its `append_queue`;
`writer_sides`: who is told) -> `chunk_writers` (their `write_context`),
`chunk_writer` (blocks of many files into chunks) -> `open_chunk` (fragments of one chunk) ->
`streams` (a run of blocks on its way to them); `avoidance` of disks that failed; a `ticket` says
where written bytes are, `unsynced` what of it may not be on disks yet, `published` (asks the
master) what a file has of it.

Small tools: `interval_map`, `together` (tasks that fail as one), `holding` (locks), `workers`
(threads), `remote_paths`.

Errors are those of `dfs.core.errors`: all of them `OSError`s with an errno.
"""

from dfs.client.client import Client, connect
from dfs.client.files import File
from dfs.client.meta import Meta
from dfs.client.open_file import OpenFile
from dfs.client.open_files import OpenFiles
from dfs.client.progress import Failure, Progress, ProgressCallback, Summary
from dfs.core.inode import Inode as Stat
from dfs.wire.messages import Cred, DirEntry

__all__ = [
    "Client",
    "Cred",
    "DirEntry",
    "Failure",
    "File",
    "Meta",
    "OpenFile",
    "OpenFiles",
    "Progress",
    "ProgressCallback",
    "Stat",
    "Summary",
    "connect",
]
