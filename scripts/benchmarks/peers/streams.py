"""One big file: written, read in order and at random; and small writes that are synced."""

import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Final

from scripts.benchmarks.harness import MIB
from scripts.benchmarks.peers.processes import Side
from scripts.benchmarks.peers.scene import Figures, Scene, forget_pages

_PAGE: Final = 4096
_POOL: Final = 64
"""MiB of random data to write from; each is turned by another amount, so none repeats."""


def stream(scene: Scene) -> Figures:
    """Written and synced; read by a new client with cold servers, then by one with warm ones."""
    path, size_mib = scene.directory / "stream", scene.sizes.stream_mib
    pool = [random.Random(seed).randbytes(MIB) for seed in range(min(_POOL, size_mib))]
    before = scene.processes.cpu_seconds()
    begun = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for number in range(size_mib):
            block = pool[number % len(pool)]
            turn = number // len(pool) + 1
            _write_whole(file.fileno(), block[turn:] + block[:turn])
        os.fsync(file.fileno())
    yield "write", size_mib / (time.perf_counter() - begun)
    yield from _cpu("write", before, scene, size_mib)

    scene.fresh_client()
    before = scene.processes.cpu_seconds()
    yield "read-cold", size_mib / _read(path, size_mib)
    yield from _cpu("read", before, scene, size_mib)

    scene.fresh_client(cold=False)
    forget_pages(path)
    yield "read-warm", size_mib / _read(path, size_mib)


def at_random(scene: Scene) -> Figures:
    """4 KiB reads of the file that `stream` left; it is deleted then."""
    path = scene.directory / "stream"
    if not path.exists():
        for _ in stream(scene):
            pass  # it was not asked for, but is needed
    for readers in (1, 4):
        scene.fresh_client()
        yield f"random-{readers}", _random_reads(path, readers, scene.sizes.seconds)
    path.unlink()


def synced(scene: Scene) -> Figures:
    """4 KiB writes to the end of a file, each followed by an fsync."""
    path = scene.directory / "synced"
    block = os.urandom(_PAGE)
    count = 0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        begun = time.perf_counter()
        end = begun + scene.sizes.seconds
        while time.perf_counter() < end:
            _write_whole(fd, block)
            os.fsync(fd)
            count += 1
        yield "fsync", count / (time.perf_counter() - begun)
    finally:
        os.close(fd)
        path.unlink()


def _cpu(what: str, before: dict[Side, float], scene: Scene, size_mib: int) -> Figures:
    after = scene.processes.cpu_seconds()
    size_gib = size_mib / 1024
    yield f"cpu-servers-{what}", (after["server"] - before["server"]) / size_gib
    yield f"cpu-client-{what}", (after["client"] - before["client"]) / size_gib


def _write_whole(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _read(path: Path, size_mib: int) -> float:
    seen = 0
    begun = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(MIB):
            seen += len(data)
    seconds = time.perf_counter() - begun
    if seen != size_mib * MIB:
        raise RuntimeError(f"read {seen} bytes of {size_mib} MiB")
    return seconds


def _random_reads(path: Path, readers: int, seconds: float) -> float:
    """Reads a second of so many processes together."""
    with multiprocessing.Pool(readers) as pool:
        work = [(path, seed, seconds) for seed in range(readers)]
        return sum(pool.starmap(_read_at_random, work, chunksize=1))


def _read_at_random(path: Path, seed: int, seconds: float) -> float:
    rng = random.Random(seed)
    count = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = os.fstat(fd).st_size // _PAGE
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            if len(os.pread(fd, _PAGE, rng.randrange(pages) * _PAGE)) != _PAGE:
                raise RuntimeError("a short read in the middle of the file")
            count += 1
        return count / (now - begun)
    finally:
        os.close(fd)
