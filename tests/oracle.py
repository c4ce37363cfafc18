"""What a tree must look like: makes trees with everything a file system may meet, compares two.

The oracle is an ordinary local directory: what goes into dfs must come back as it was there.
"""

import hashlib
import os
import random
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

ODD_NAMES: Final = (
    b"space and 'quotes' \"double\"",
    b"-starts-with-a-dash",
    b"*glob?[x]",
    b"newline\nand\ttab",
    b"\xff\xfe not utf-8",
    "ümlaut-日本語-🙂".encode(),
    b"." * 3,
    b"back\\slash",
    b"$HOME;`id`",
    b"x" * 255,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What two trees must agree on. `content` is a digest, or a symlink's target."""

    kind: str
    mode: int
    mtime_ns: int
    size: int
    content: str
    same_as: bytes = b""
    """Hard links: the first path, in order of names, that is the same file."""


def snapshot(
    root: Path | str, *, times: bool = True, hard_links: bool = True
) -> dict[bytes, Entry]:
    """Every path under `root` (relative, as bytes), and `b"."` for itself."""
    top = os.fsencode(root)
    entries = {b".": _entry(top, times)}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            entries[os.path.relpath(path, top)] = _entry(path, times)
    first: dict[int, bytes] = {}
    for path in sorted(entries) if hard_links else ():
        info = os.lstat(os.path.join(top, path))
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            same_as = first.setdefault(info.st_ino, path)
            entries[path] = replace(entries[path], same_as=same_as)
    return entries


def _entry(path: bytes, times: bool) -> Entry:
    info = os.lstat(path)
    kind, content, size = "other", "", 0
    if stat.S_ISREG(info.st_mode):
        kind, content, size = "file", digest(path), info.st_size
    elif stat.S_ISDIR(info.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(info.st_mode):
        kind, content = "symlink", repr(os.readlink(path))
    mode = 0 if kind == "symlink" else stat.S_IMODE(info.st_mode)
    return Entry(kind, mode, info.st_mtime_ns if times else 0, size, content)


def digest(path: bytes | str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def differences(
    left: Path | str, right: Path | str, *, times: bool = True, hard_links: bool = True
) -> list[str]:
    """What `right` has different from `left`, one line each; empty when they are the same."""
    before = snapshot(left, times=times, hard_links=hard_links)
    after = snapshot(right, times=times, hard_links=hard_links)
    lines = [f"missing: {path!r}" for path in sorted(before.keys() - after.keys())]
    lines += [f"unexpected: {path!r}" for path in sorted(after.keys() - before.keys())]
    for path in sorted(before.keys() & after.keys()):
        if before[path] != after[path]:
            lines.append(f"changed: {path!r}: {before[path]} is now {after[path]}")
    return lines


def assert_same(
    left: Path | str, right: Path | str, *, times: bool = True, hard_links: bool = True
) -> None:
    lines = differences(left, right, times=times, hard_links=hard_links)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:20])


# ------------------------------------------------------------------ making trees


def make_tree(root: Path, *, seed: int, files: int = 200, odd_names: bool = True) -> Path:
    """A random tree: nested directories, sizes from 0 to some MiB, links, modes, old times.

    Most files are small; a few span blocks, one spans several MiB. The same seed makes the same
    tree.
    """
    rng = random.Random(seed)
    root.mkdir(parents=True)
    directories = [root]
    for number in range(max(3, files // 10)):
        directory = rng.choice(directories) / f"dir{number}"
        directory.mkdir()
        directories.append(directory)
    paths = []
    for number in range(files):
        path = rng.choice(directories) / f"file{number}.{rng.choice(('txt', 'bin', 'c'))}"
        path.write_bytes(content(rng, _size(rng, number)))
        paths.append(path)
    if odd_names:
        for name in ODD_NAMES:
            with open(os.path.join(os.fsencode(root), name), "wb") as file:
                file.write(content(rng, rng.randrange(5000)))
    for number in range(max(3, files // 20)):
        target = rng.choice((rng.choice(paths).name, "../up", "/absolute/nowhere", "dangling"))
        os.symlink(target, rng.choice(directories) / f"link{number}")
    for number in range(max(2, files // 40)):
        os.link(rng.choice(paths), rng.choice(directories) / f"hard{number}")
    (root / "empty-directory").mkdir()
    for path in paths:
        path.chmod(rng.choice((0o644, 0o600, 0o755, 0o444, 0o640, 0o4755)))
    _set_times(root, rng)
    return root


def _size(rng: random.Random, number: int) -> int:
    if number == 0:
        return 3 * 1024 * 1024 + 17
    if number % 17 == 0:
        return 0
    if number % 23 == 0:
        return rng.choice((65535, 65536, 65537, 131071, 131072, 131073, 262144, 400_000))
    return int(min(100_000, rng.lognormvariate(7.5, 1.8)))


def _set_times(root: Path, rng: random.Random) -> None:
    """Old modification times with nanoseconds, innermost first (a child changes its parent's)."""
    for directory, names, files in os.walk(os.fsencode(root), topdown=False):
        for name in sorted((*files, *names)):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isdir(path):
                _age(path, rng)
        _age(directory, rng)


def _age(path: bytes, rng: random.Random) -> None:
    at_ns = rng.randrange(0, 1_700_000_000_000_000_000)
    os.utime(path, ns=(at_ns, at_ns), follow_symlinks=False)


def content(rng: random.Random, size: int) -> bytes:
    """`size` bytes: half the time random, else text that compresses."""
    if rng.random() < 0.5:
        return rng.randbytes(size)
    line = f"{rng.random()} the quick brown fox jumps over the lazy dog\n".encode()
    return (line * (size // len(line) + 1))[:size]


def random_file(path: Path, size: int, *, seed: int) -> Path:
    """A file of random bytes, made in pieces."""
    rng = random.Random(seed)
    with open(path, "wb") as file:
        left = size
        while left:
            piece = rng.randbytes(min(left, 1 << 20))
            file.write(piece)
            left -= len(piece)
    return path


def text_file(path: Path, size: int, *, seed: int) -> Path:
    """A file of words, as compressible as prose or logs."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(4000)]
    with open(path, "w", encoding="ascii") as file:
        left = size
        while left:
            line = " ".join(rng.choices(words, k=2000)) + "\n"
            file.write(line[:left])
            left -= min(left, len(line))
    return path
