"""What disks do to files: damage to the fragment files of a cluster, for tests."""

import os
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dfs.chunkserver.fragment_format import parse_name
from tests.cluster import Cluster


@dataclass(frozen=True, slots=True)
class FragmentFile:
    """A fragment of a chunk, as one file on one server's disk."""

    server: str
    path: Path
    chunk: int
    index: int


def fragments(cluster: Cluster, *servers: str) -> list[FragmentFile]:
    """Every fragment file of the servers named (or all), in order of chunk and index."""
    found = []
    for server in servers or cluster.servers:
        for path in (cluster.root / server).rglob("*"):
            name = parse_name(path.name)
            if name is not None and path.is_file():
                found.append(FragmentFile(server, path, name.chunk, name.index))
    return sorted(found, key=lambda fragment: (fragment.chunk, fragment.index))


def by_chunk(found: list[FragmentFile]) -> dict[int, list[FragmentFile]]:
    chunks: dict[int, list[FragmentFile]] = defaultdict(list)
    for fragment in found:
        chunks[fragment.chunk].append(fragment)
    return dict(chunks)


def flip_bits(path: Path, rng: random.Random, count: int = 1, *, start: int = 0) -> None:
    """Flip `count` random bits at or after byte `start`."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for _ in range(count):
            position = rng.randrange(start, size)
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def flip_bits_everywhere(path: Path, rng: random.Random) -> None:
    """One bit in every 16 KiB, so that every block of any size is hit sooner or later."""
    flip_bits(path, rng, 1 + path.stat().st_size // 16384)


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero_pages(path: Path, rng: random.Random) -> None:
    """What a lost write leaves: some pages of zeros."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for _ in range(3):
            file.seek(rng.randrange(size) & ~4095)
            file.write(bytes(min(4096, size - file.tell())))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    os.truncate(path, 0)


def swap(left: Path, right: Path) -> None:
    """Each file holds the other's bytes."""
    aside = left.with_name("aside")
    left.rename(aside)
    right.rename(left)
    aside.rename(right)
