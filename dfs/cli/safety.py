"""`dfs safety`: what a file or a tree survives right now, in one look.

Counted from what the master knows: which fragments are good, which disks answer, when a scrub last
read them. `dfs why` asks the servers themselves, for one file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, RemotePaths, examples
from dfs.cli.connect import run
from dfs.cli.failures import FAILED, Failures
from dfs.cli.locating import is_readable
from dfs.cli.names import document, remote_path, show
from dfs.core.chunk import Chunk, ChunkState, DiskLocation, FragmentState
from dfs.core.errors import DfsError

if TYPE_CHECKING:
    from dfs.cli.walking import Node
    from dfs.client import Client

_FILES_AT_ONCE: Final = 32

_DOMAINS: Final[dict[str, Callable[[DiskLocation], object]]] = {
    "disk": lambda disk: disk.disk,
    "server": lambda disk: disk.server,
    "rack": lambda disk: (disk.zone, disk.rack),
    "zone": lambda disk: disk.zone,
}
"""What may be lost as a whole, and which of them a disk belongs to."""


def register(app: typer.Typer) -> None:
    app.command("safety", epilog=examples("dfs safety /", "dfs safety /photos --json"))(safety)


def survives(
    chunk: Chunk, disks: Mapping[int, DiskLocation], domain: Callable[[DiskLocation], object]
) -> int:
    """How many domains, whichever they are, a chunk can lose now and still be read; -1: none is
    needed, it cannot be read as it is."""
    held: Counter[object] = Counter()
    indexes = set()
    for fragment in chunk.fragments:
        if is_readable(fragment, disks) and fragment.index not in indexes:
            indexes.add(fragment.index)
            held[domain(disks[fragment.disk])] += 1
    spare = len(indexes) - chunk.k
    if spare < 0:
        return -1
    lost = 0
    for _, count in held.most_common():
        spare -= count
        if spare < 0:
            break
        lost += 1
    return lost


@dataclass(slots=True)
class Survey:
    """What is known of the files under one path."""

    path: bytes
    files: int = 0
    size: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict)
    disks: dict[int, DiskLocation] = field(default_factory=dict)
    files_of: dict[int, set[int]] = field(default_factory=dict)
    bytes_of: Counter[int] = field(default_factory=Counter)

    def count(self, ino: int, extents: Iterable[tuple[int, int]]) -> None:
        """A file with its (chunk, length)."""
        for chunk, length in extents:
            self.files_of.setdefault(chunk, set()).add(ino)
            self.bytes_of[chunk] += length

    def weakest(self, domain: str) -> int | None:
        """How many of `domain` everything here survives; None where nothing is stored."""
        found = [
            survives(chunk, self.disks, _DOMAINS[domain])
            for number, chunk in self.chunks.items()
            if self.bytes_of[number]
        ]
        return min(found, default=None)

    def with_margin(self, margin: Callable[[int], bool]) -> tuple[int, int]:
        """(files, bytes) in chunks whose number of disks to spare is such."""
        files: set[int] = set()
        size = 0
        for number, chunk in self.chunks.items():
            if self.bytes_of[number] and margin(survives(chunk, self.disks, _DOMAINS["disk"])):
                files |= self.files_of[number]
                size += self.bytes_of[number]
        return len(files), size

    def domains(self) -> list[str]:
        """Those that the cluster has: racks and zones only where some are named."""
        named = [name for name in ("rack", "zone") if any(getattr(d, name) for d in self._all())]
        return ["disk", "server", *named]

    def _all(self) -> Iterable[DiskLocation]:
        return self.disks.values()


def safety(paths: RemotePaths, json: Json = False) -> int:
    """Show which losses files survive now, what is one failure from loss, and when it was read.

    Exit status 1 where something cannot be read, or would be lost with one more disk.
    """
    names = [remote_path(path) for path in paths]

    async def body(client: "Client") -> int:
        failures = Failures()
        documents = []
        for path in names:
            try:
                survey = await look_at(client, path, failures)
            except DfsError as error:
                failures.add(error)
                continue
            described = _describe(survey)
            documents.append(described)
            if not json:
                _print(described)
        if json:
            render.emit_json({"paths": documents})
        unsafe = any(each["at_risk"]["bytes"] or each["lost"]["bytes"] for each in documents)
        return FAILED if unsafe else failures.status

    return run(body)


async def look_at(client: "Client", path: bytes, failures: Failures) -> Survey:
    """All files at and below `path`, with their chunks. Raises DfsError where it does not exist."""
    import trio

    from dfs.cli.walking import Node, TreeWalk
    from dfs.client import Progress
    from dfs.client.fact_finding import read_map

    survey = Survey(path)
    root = Node(path, await client.stat(path, follow=False), 0)
    limit = trio.CapacityLimiter(_FILES_AT_ONCE)
    seen: set[int] = set()

    async def add(node: "Node") -> None:
        try:
            _, extents, layout = await read_map(client, node.inode)
        except DfsError as error:
            failures.add(f"{show(node.path)}: {error}")
        else:
            survey.count(node.inode.ino, ((each.chunk, each.length) for each in extents))
            survey.chunks.update({each.chunk: each for each in layout.chunks})
            survey.disks.update({each.disk: each for each in layout.disks})
        finally:
            limit.release_on_behalf_of(node)

    with render.ProgressBar("looking", in_bytes=False) as bar:
        async with trio.open_nursery() as ahead, trio.open_nursery() as readers:
            async for node in TreeWalk(client, ahead, failures).nodes(root):
                if not node.inode.is_file or node.inode.ino in seen:
                    continue
                seen.add(node.inode.ino)
                survey.files += 1
                survey.size += node.inode.size
                bar.update(Progress(files_done=survey.files))
                if node.inode.allocated:
                    await limit.acquire_on_behalf_of(node)
                    readers.start_soon(add, node)
    return survey


def _describe(survey: Survey) -> dict[str, Any]:
    at_risk_files, at_risk_bytes = survey.with_margin(lambda spare: spare == 0)
    lost_files, lost_bytes = survey.with_margin(lambda spare: spare < 0)
    sealed = [chunk for chunk in survey.chunks.values() if chunk.state == ChunkState.SEALED]
    verified = [chunk.verified_s for chunk in sealed if chunk.verified_s]
    missing = sum(
        chunk.width - sum(each.state == FragmentState.GOOD for each in chunk.fragments)
        for chunk in sealed
    )
    return {
        **document("path", survey.path),
        "files": survey.files,
        "size": survey.size,
        "chunks": len(survey.chunks),
        "fragments_missing": max(0, missing),
        "survives": {f"{name}s": survey.weakest(name) for name in survey.domains()},
        "at_risk": {"files": at_risk_files, "bytes": at_risk_bytes},
        "lost": {"files": lost_files, "bytes": lost_bytes},
        "verified": {
            "oldest_s": min(verified, default=None),
            "chunks": len(verified),
            "not_yet": len(sealed) - len(verified),
            "open": len(survey.chunks) - len(sealed),
        },
    }


def _print(described: dict[str, Any]) -> None:
    verified, at_risk, lost = described["verified"], described["at_risk"], described["lost"]
    losses = [
        f"any {render.plural(count, name[:-1])}"
        for name, count in described["survives"].items()
        if count is not None and count > 0
    ]
    now = "the loss of " + ", or ".join(losses) if losses else "no loss at all"
    if not described["chunks"]:
        now = "nothing is stored there"
    if lost["bytes"]:
        now = "parts cannot be read as it is"
    oldest = verified["oldest_s"]
    checked = "not yet"
    if oldest is not None:
        checked = f"all since {render.time_ns(oldest * 1_000_000_000)[:19]}"
        if verified["not_yet"]:
            checked += f", but {render.plural(verified['not_yet'], 'chunk')} not yet"
    print(
        f"{show(described['path'])}: {render.plural(described['files'], 'file')}, "
        f"{render.human(described['size'])} in {render.plural(described['chunks'], 'chunk')}"
    )
    for title, value in (
        ("Survives", now),
        ("One failure from loss", _amount(at_risk)),
        ("Cannot be read now", _amount(lost)),
        ("Verified", checked),
    ):
        print(f"  {title:<22} {value}")


def _amount(part: dict[str, int]) -> str:
    if not part["bytes"]:
        return "nothing"
    return f"{render.human(part['bytes'])} in {render.plural(part['files'], 'file')}"
