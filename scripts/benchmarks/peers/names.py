"""Many files: made, listed, renamed and removed; small ones written and read; memory for them."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

from scripts.benchmarks.peers.processes import resident_bytes
from scripts.benchmarks.peers.scene import Figures, Scene, drop_caches

_LIMIT_S: Final = 20.0
"""A slow system does fewer: what it did by then gives its rate."""
_RESIDENT_LIMIT_S: Final = 60.0
_WORKERS: Final = 4
_PER_DIRECTORY: Final = 1000


def names(scene: Scene) -> Figures:
    """One process, in one directory."""
    home = scene.directory / "names"
    home.mkdir()
    made, rate = _rate(_create, [home / f"f{number}" for number in range(scene.sizes.files)])
    yield "create-1", rate

    scene.fresh_client()
    begun = time.perf_counter()
    seen = sum(1 for entry in os.scandir(home) if entry.stat())
    yield "list", seen / (time.perf_counter() - begun)
    if seen != len(made):
        raise RuntimeError(f"{seen} of {len(made)} files are listed")

    renamed, rate = _rate(lambda path: path.rename(path.with_name(f"r{path.name}")), made)
    yield "rename", rate
    moved = [path.with_name(f"r{path.name}") for path in renamed]
    gone, rate = _rate(os.unlink, moved)
    yield "unlink", rate
    for path in [*moved[len(gone) :], *made[len(renamed) :]]:
        path.unlink()
    home.rmdir()


def create_at_once(scene: Scene) -> Figures:
    """Four processes, each in a directory of its own."""
    home = scene.directory / "at-once"
    count, seconds = _create_in_parallel(home, scene.sizes.files // 2, _LIMIT_S)
    yield "create-4", count / seconds
    _remove(home)


def small(scene: Scene) -> Figures:
    """4 KiB files: written, then read in the same order by a new client."""
    home = scene.directory / "small"
    home.mkdir()
    block = os.urandom(4096)

    def write(path: Path) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(block)

    def read(path: Path) -> None:
        with open(path, "rb", buffering=0) as file:
            if len(file.read()) != len(block):
                raise RuntimeError(f"{path} is not what was written")

    written, rate = _rate(write, [home / f"s{number}" for number in range(scene.sizes.files)])
    yield "small-write", rate
    scene.fresh_client()
    _, rate = _rate(read, written)
    yield "small-read", rate
    for path in written:
        path.unlink()
    home.rmdir()


def resident(scene: Scene) -> Figures:
    """Growth of the metadata server's resident memory with the number of files."""
    pids = scene.system.metadata_pids()
    if not pids:
        return
    home = scene.directory / "resident"
    drop_caches()
    before = resident_bytes(pids)
    each = scene.sizes.resident_files // _WORKERS
    count, _ = _create_in_parallel(home, each, _RESIDENT_LIMIT_S)
    time.sleep(3)  # what is told or written a moment later belongs to it
    yield "resident", (resident_bytes(pids) - before) / count
    # They stay where they are: to remove them would take as long again.


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def _rate(act: Callable[[Path], object], paths: Sequence[Path]) -> tuple[list[Path], float]:
    """Those done within the limit, and how many a second."""
    begun = time.perf_counter()
    count = 0
    for path in paths:
        act(path)
        count += 1
        if time.perf_counter() > begun + _LIMIT_S:
            break
    return list(paths[:count]), count / (time.perf_counter() - begun)


def _create_in_parallel(home: Path, each: int, limit_s: float) -> tuple[int, float]:
    """How many files four processes made, in how many seconds."""
    home.mkdir()
    barrier = multiprocessing.Barrier(_WORKERS)
    told: multiprocessing.SimpleQueue[tuple[int, float] | str] = multiprocessing.SimpleQueue()
    workers = [
        multiprocessing.Process(
            target=_creator, args=(home / f"p{n}", each, limit_s, barrier, told)
        )
        for n in range(_WORKERS)
    ]
    for worker in workers:
        worker.start()
    done = [told.get() for _ in workers]
    for worker in workers:
        worker.join()
    counts = []
    for each_done in done:
        if isinstance(each_done, str):
            raise RuntimeError(each_done)
        counts.append(each_done)
    return sum(count for count, _ in counts), max(seconds for _, seconds in counts)


def _creator(
    home: Path,
    count: int,
    limit_s: float,
    barrier: Barrier,
    told: "multiprocessing.SimpleQueue[tuple[int, float] | str]",
) -> None:
    try:
        barrier.wait(60)
        begun = time.perf_counter()
        made = 0
        for number in range(count):
            if number % _PER_DIRECTORY == 0:
                inside = home / f"d{number // _PER_DIRECTORY}"
                inside.mkdir(parents=True)
            _create(inside / f"file-{number:06}.txt")
            made += 1
            if time.perf_counter() > begun + limit_s:
                break
        told.put((made, time.perf_counter() - begun))
    except Exception as error:
        told.put(f"a process that makes files failed: {error!r}")


def _remove(home: Path) -> None:
    for directory, _, files in os.walk(home, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
