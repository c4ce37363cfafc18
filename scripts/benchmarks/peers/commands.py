"""Copying to and from a system by its own command: one big file, and many small ones."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.harness import MIB, environment, random_file, warm_cache
from scripts.benchmarks.peers.scene import Figures, Scene, drop_caches
from scripts.benchmarks.small import make_files


def commands(scene: Scene) -> Figures:
    if scene.system.upload(scene.scratch, "none") is None:
        return
    size_mib, count = scene.sizes.upload_mib, scene.sizes.upload_files
    yield from _both(scene, "big", size_mib, lambda tree: _one_file(tree, size_mib * MIB))
    yield from _both(scene, "small", count, lambda tree: make_files(tree, count))


def _both(scene: Scene, what: str, amount: float, make: Callable[[Path], None]) -> Figures:
    """Up, and down again with cold servers; then what came back is looked at."""
    source, back = scene.scratch / what, scene.scratch / "back"
    source.mkdir()
    make(source)
    try:
        if (argv := scene.system.upload(source, what)) is not None:
            yield f"upload-{what}", amount / _time(argv)
        back.mkdir()
        if (argv := scene.system.download(what, back)) is not None:
            drop_caches()
            yield f"download-{what}", amount / _time(argv)
            if _held(back) != _held(source):
                raise RuntimeError(f"what came back of {source} is not what was uploaded")
    finally:
        shutil.rmtree(source)
        shutil.rmtree(back, ignore_errors=True)


def _one_file(tree: Path, size: int) -> None:
    warm_cache(random_file(tree / "file", size))


def _time(argv: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment())
    seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise RuntimeError(f"{' '.join(argv)} failed ({done.returncode}): {said}")
    return seconds


def _held(tree: Path) -> tuple[int, int]:
    """Files and bytes below."""
    sizes = [path.stat().st_size for path in tree.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
