"""`dfs locate`: where a file's bytes are: its chunks, their fragments, the disks, their health."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, RemotePaths, examples
from dfs.cli.connect import run
from dfs.cli.failures import Failures
from dfs.cli.names import document, remote_path, show
from dfs.core.chunk import (
    Chunk,
    ChunkState,
    DiskLocation,
    DiskState,
    Fragment,
    FragmentState,
    Layout,
)
from dfs.core.errors import DfsError
from dfs.core.inode import Extent, Inode
from dfs.core.redundancy import Redundancy

if TYPE_CHECKING:
    from dfs.client import Client

HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
AT_RISK: Final = "at risk"
LOST: Final = "lost"

STYLES: Final = {
    HEALTHY: "32", DEGRADED: "33", AT_RISK: "1;31", LOST: "1;37;41",
    "up": "32", "suspect": "33", "draining": "33", "full": "33", "down": "1;31", "failed": "1;31",
    "good": "32", "corrupt": "1;31",
}  # fmt: skip

_SERVING: Final = frozenset({DiskState.UP, DiskState.DRAINING, DiskState.FULL, DiskState.UNSTEADY})


def register(app: typer.Typer) -> None:
    app.command("locate", epilog=examples("dfs locate /photos/a.jpg"))(locate)


def disk_state(state: int) -> str:
    """`up`, `suspect`, `down`, ...; a newer master may know more states than we do."""
    try:
        return DiskState(state).name.lower()
    except ValueError:
        return f"state {state}"


def is_readable(fragment: Fragment, disks: Mapping[int, DiskLocation]) -> bool:
    disk = disks.get(fragment.disk)
    return fragment.state == FragmentState.GOOD and disk is not None and disk.state in _SERVING


def health(chunk: Chunk, disks: Mapping[int, DiskLocation]) -> str:
    """How safe a chunk is with the disks as they are now; counted as the master counts."""
    readable = len({each.index for each in chunk.fragments if is_readable(each, disks)})
    if readable < chunk.k:
        return LOST if chunk.length else HEALTHY
    if readable >= chunk.k + chunk.m:
        return HEALTHY
    return AT_RISK if readable == chunk.k else DEGRADED


def locate(paths: RemotePaths, json: Json = False) -> int:
    """Show where the bytes of files are: chunks, fragments, disks, and their health.

    A chunk may hold bytes of many small files. Its fragments are whole copies under rep:N; under
    ec:K+M any K of them give the data.
    """
    names = [remote_path(path) for path in paths]

    async def body(client: "Client") -> int:
        failures = Failures()
        disk_paths = {
            disk.disk: disk.path for server in await client.meta.servers() for disk in server.disks
        }
        found = []
        for path in names:
            try:
                inode, extents, layout = await _read_map(client, path)
            except DfsError as error:
                failures.add(error)
                continue
            described = _describe(path, inode, extents, layout, disk_paths)
            found.append(described)
            if not json:
                _print(path, inode, described)
        if json:
            render.emit_json({"files": found})
        return failures.status

    return run(body)


async def _read_map(client: "Client", path: bytes) -> tuple[Inode, list[Extent], Layout]:
    """All extents of a file, and where their chunks lie."""
    from dfs.client.fact_finding import read_map

    inode = await client.stat(path)
    if not inode.is_file:
        raise DfsError(f"{show(path)}: not a regular file: only those have bytes to locate")
    return await read_map(client, inode)


def _describe(
    path: bytes,
    inode: Inode,
    extents: list[Extent],
    layout: Layout,
    disk_paths: Mapping[int, str],
) -> dict[str, Any]:
    disks = {disk.disk: disk for disk in layout.disks}
    return {
        **document("path", path),
        "inode": inode.ino,
        "size": inode.size,
        "extents": [
            {
                "file_offset": extent.file_offset,
                "length": extent.length,
                "chunk": extent.chunk,
                "chunk_offset": extent.chunk_offset,
            }
            for extent in extents
        ],
        "chunks": [_describe_chunk(chunk, disks, disk_paths) for chunk in layout.chunks],
    }


def _describe_chunk(
    chunk: Chunk, disks: Mapping[int, DiskLocation], disk_paths: Mapping[int, str]
) -> dict[str, Any]:
    return {
        **describe_chunk(chunk, disks),
        "fragments": [
            describe_fragment(fragment, disks, disk_paths) for fragment in chunk.fragments
        ],
    }


def describe_fragment(
    fragment: Fragment, disks: Mapping[int, DiskLocation], disk_paths: Mapping[int, str]
) -> dict[str, Any]:
    """What the JSON documents say of a fragment."""
    disk = disks.get(fragment.disk)
    return {
        "index": fragment.index,
        "state": FragmentState(fragment.state).name.lower(),
        "disk": fragment.disk,
        "disk_state": disk_state(disk.state) if disk is not None else "unknown",
        "path": disk_paths.get(fragment.disk, ""),
        "server": disk.server if disk is not None else 0,
        "address": disk.address if disk is not None else "",
    }


def describe_chunk(chunk: Chunk, disks: Mapping[int, DiskLocation]) -> dict[str, Any]:
    """What the JSON documents say of a chunk, but for its fragments."""
    return {
        "chunk": chunk.chunk,
        "state": ChunkState(chunk.state).name.lower(),
        "health": health(chunk, disks),
        "redundancy": str(Redundancy(chunk.k, chunk.m)),
        "length": chunk.length,
        "live": chunk.live,
    }


def _print(path: bytes, inode: Inode, described: dict[str, Any]) -> None:
    extents, chunks = described["extents"], described["chunks"]
    print(
        f"{show(path)}: {render.plural(inode.size, 'byte')}, "
        f"{render.plural(len(extents), 'extent')} in {render.plural(len(chunks), 'chunk')}"
    )
    if not extents:
        return
    print()
    render.print_table(
        ("Offset", "Length", "Chunk", "At"),
        [
            [str(each[key]) for key in ("file_offset", "length", "chunk", "chunk_offset")]
            for each in extents
        ],
        numbers=frozenset({"Offset", "Length", "Chunk", "At"}),
    )
    print()
    rows = []
    for chunk in chunks:
        first = [str(chunk["chunk"]), chunk["state"], chunk["redundancy"], chunk["health"]]
        for fragment in chunk["fragments"]:
            rows.append(
                [
                    *first,
                    str(fragment["index"]),
                    fragment["state"],
                    str(fragment["disk"]),
                    fragment["disk_state"],
                    fragment["address"],
                    fragment["path"],
                ]
            )
            first = [""] * 4
    render.print_table(
        ("Chunk", "State", "Redundancy", "Health", "Fragment", "", "Disk", " ", "Server", "Path"),
        rows,
        numbers=frozenset({"Chunk", "Fragment", "Disk"}),
        styles=STYLES,
    )
    print()
