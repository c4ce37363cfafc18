"""A large repository cloned to a mount, packed, unpacked, built there, and its own tests run.

For `scripts/posix --programs`. It is git's own by default, so that what was built can look at the
clone; `GIT_SOURCE=DIR` names a repository on this machine, or one is cloned from the network.
"""

import contextlib
import os
import random
import shutil
from pathlib import Path
from typing import Final

from scripts.conformance.cases import Case, Ended, NotHereError, judged, run
from scripts.conformance.disturbance import fresh, killed_after, remount
from scripts.conformance.grounds import Ground, World
from tests import oracle

_URL: Final = "https://github.com/git/git"
_COMMITS: Final = 20_000
"""So much history is cloned from the network."""
_CHANGED: Final = 300
_WITHOUT: Final = "OPENSSL CURL EXPAT GETTEXT PERL PYTHON TCLTK ICONV"
"""What a build of git can do without, so that nothing but zlib has to be there."""
_TESTS: Final = ("t0001-init", "t1400-update-ref", "t5300-pack-object", "t7600-merge")
_ENVIRONMENT: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def sources(here: World, ground: Ground) -> list[Case]:
    """The clone, then the build: all that follows a failure depends on it, and is left out."""
    origin = _origin(here)
    directory = fresh(ground, "sources")
    cases: list[Case] = []
    for step in (_cloned, _packed, _unpacked, _built, _tested):
        cases += step(here, ground, origin)
        if any(case.status == "failed" for case in cases):
            return cases
    shutil.rmtree(directory)
    return cases


def _origin(here: World) -> Path:
    """A bare repository on a local disk."""
    named = os.environ.get("GIT_SOURCE")
    if named:
        return Path(named)
    origin = here.work / "origin"
    if not origin.exists():
        argv = ["clone", "--quiet", "--bare", f"--depth={_COMMITS}", _URL, str(origin)]
        cloned = _git(here.work, *argv)
        if cloned.status:
            raise NotHereError(f"{_URL} cannot be cloned; name a repository: GIT_SOURCE=DIR")
    return origin


def _git(directory: Path, *args: str) -> Ended:
    return run(["git", *args], directory, timeout_s=3600, env=_ENVIRONMENT)


def _cloned(here: World, ground: Ground, origin: Path) -> list[Case]:
    """Whole and clean; then many loose objects, as `git add` makes them."""
    directory = ground.directory / "sources"
    cases = [
        judged("git clone", _git(directory, "clone", "--quiet", f"file://{origin}", "clone")),
        _clean("after the clone", directory / "clone"),
        judged("git fsck", _git(directory / "clone", "fsck", "--full", "--no-progress")),
    ]
    tracked = _git(directory / "clone", "ls-files", "*.c", "*.h", "*.sh", "*.txt").output.split()
    chosen = random.Random(1).sample(tracked, min(_CHANGED, len(tracked)))
    for name in chosen:
        with open(directory / "clone" / name, "ab") as file:
            file.write(b"\n")
    cases.append(judged(f"git add, {len(chosen)} files", _git(directory / "clone", "add", "-A")))
    cases.append(judged("git commit", _git(directory / "clone", "commit", "-q", "-m", "changes")))
    cases.append(judged("git checkout HEAD~1", _git(directory / "clone", "checkout", "-q", "@~1")))
    return cases


def _clean(when: str, clone: Path) -> Case:
    status = _git(clone, "status", "--porcelain")
    clean = status.status == 0 and not status.output.strip()
    detail = f"{status.seconds:.1f} s" if clean else status.tail()
    return Case(f"git status is clean {when}", "passed" if clean else "failed", detail)


def _packed(here: World, ground: Ground, origin: Path) -> list[Case]:
    clone = ground.directory / "sources" / "clone"
    packed = judged("git gc", _git(clone, "gc", "--quiet", "--prune=now"))
    remount(here, ground)
    return [
        packed,
        _clean("after gc, by a new mount", clone),
        judged("git fsck after gc", _git(clone, "fsck", "--full", "--no-progress")),
    ]


def _unpacked(here: World, ground: Ground, origin: Path) -> list[Case]:
    """The tree as an archive, taken out on the mount and beside it: the same."""
    directory, local = ground.directory / "sources", here.work / "unpacked"
    archive = directory / "tree.tar"
    made = judged("git archive", _git(directory / "clone", "archive", "-o", str(archive), "HEAD"))
    if made.status == "failed":
        return [made]
    local.mkdir()
    (directory / "tree").mkdir()
    try:
        run(["tar", "-xpf", archive, "-C", local], directory, timeout_s=600)
        argv: list[str | Path] = ["tar", "-xpf", archive, "-C", directory / "tree"]
        taken = judged("untar", run(argv, directory, timeout_s=1800))
        different = oracle.differences(local, directory / "tree")
        files = sum(len(names) for *_, names in os.walk(local))
        detail = " | ".join(different[:5]) or f"{files} files"
        return [made, taken, Case("same tree", "failed" if different else "passed", detail)]
    finally:
        shutil.rmtree(local)


def _built(here: World, ground: Ground, origin: Path) -> list[Case]:
    """In parallel, from the start and with a server killed."""
    tree = ground.directory / "sources" / "tree"
    options = [f"NO_{word}=1" for word in _WITHOUT.split()]
    make: list[str | Path] = ["make", "-s", "-j2", "CFLAGS=-O0", *options]
    cases = []
    for name, delay_s in (("make -j2", None), ("make -j2, a server killed", 10.0)):
        run(["make", "-s", *options, "clean"], tree, timeout_s=600)
        with killed_after(here, delay_s) if delay_s else contextlib.nullcontext():
            cases.append(judged(name, run(make, tree, timeout_s=3600)))
        used = ["./git", "--exec-path=.", "-C", "../clone", "log", "--oneline", "-5"]
        cases.append(judged(f"{name}: it works", run(used, tree, timeout_s=60, env=_ENVIRONMENT)))
    again = run([word for word in make if word != "-s"], tree, timeout_s=600)
    compiled = [line for line in again.output.splitlines() if line.split()[:1] == ["CC"]]
    idle = again.status == 0 and not compiled
    name, detail = "make has nothing left to compile", " ".join(compiled[:3]) or again.tail()
    return [*cases, Case(name, "passed") if idle else Case(name, "failed", detail)]


def _tested(here: World, ground: Ground, origin: Path) -> list[Case]:
    """Some of git's own tests, with everything they make on the mount."""
    tests = ground.directory / "sources" / "tree" / "t"
    return [
        judged(name, run(["sh", f"./{name}.sh", "-q"], tests, timeout_s=1800)) for name in _TESTS
    ]
