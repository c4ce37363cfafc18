"""A mount that works alone in a directory: it does not wait for the master, and others see no less.

What a mount did in a directory of its own is told a moment later, or as soon as anybody else looks.
That a directory is a mount's own shows when the master is stopped: programs go on.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster import Cluster, environment, wait_until
from tests.mount.conftest import Mount, Mounts, require

_TOLD_S: Final = 1.0
"""A change is told after so long at the latest."""


@pytest.fixture(params=["fusepy-pyfuse3", "pyfuse3-fusepy"])
def pair(by_driver: dict[str, list[Mount]], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A directory that is the first mount's own, and the same on the second."""
    one, other = request.param.split("-")
    require(one)
    require(other)
    name = "".join(each if each.isalnum() else "-" for each in request.node.name)
    made = by_driver[one][0].point / name
    made.mkdir()
    earn(made)
    return made, by_driver[other][1].point / name


def earn(directory: Path) -> None:
    """Work in a directory until it is the mount's own; nothing is left behind."""
    for number in range(8):
        path = directory / f"earning-{number}"
        path.touch()
        path.unlink()
        time.sleep(0.02)
    time.sleep(0.2)


@contextlib.contextmanager
def no_master(cluster: Cluster) -> Iterator[None]:
    """The master does not answer; whatever ends well needed no answer."""
    with cluster.paused("master"):
        yield


def touch_all(directory: Path, names: list[str]) -> None:
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def test_its_programs_do_not_wait_for_the_master(cluster: Cluster, pair: tuple[Path, Path]) -> None:
    here, there = pair
    names = [f"file-{number}" for number in range(40)]
    with no_master(cluster):
        touch_all(here, names)
        for name in names[:10]:
            (here / name).rename(here / f"{name}-renamed")
        for name in names[10:20]:
            (here / name).unlink()
        for name in names[20:]:
            info = (here / name).stat()
            assert (info.st_mode & 0o777, info.st_size, info.st_nlink) == (0o640, 0, 1)
        with pytest.raises(FileExistsError):
            touch_all(here, names[20:21])
        with pytest.raises(FileNotFoundError):
            (here / names[0]).stat()
        (here / names[20]).rename(here / names[21])
        inodes = {name: (here / name).stat().st_ino for name in names[21:]}
    expected = {f"{name}-renamed" for name in names[:10]} | set(names[21:])
    assert set(os.listdir(there)) == expected
    assert {name: (there / name).stat().st_ino for name in names[21:]} == inodes
    assert set(os.listdir(here)) == expected
    assert here.stat().st_size == len(expected)


def test_others_see_at_once_what_was_done_there(pair: tuple[Path, Path]) -> None:
    here, there = pair
    for turn in range(3):
        touch_all(here, [f"{turn}-{number}" for number in range(5)])
        if turn:
            (here / f"{turn - 1}-0").unlink()
        assert f"{turn}-4" in os.listdir(there)
        with pytest.raises(FileExistsError):
            touch_all(there, [f"{turn}-2"])
        touch_all(there, [f"{turn}-there"])
        with pytest.raises(FileExistsError):
            touch_all(here, [f"{turn}-there"])
    assert "0-0" not in os.listdir(there)


def test_a_name_is_exclusive_among_mounts(pair: tuple[Path, Path]) -> None:
    """The first is answered without the master, the second waits for the first to be told."""
    here, there = pair
    touch_all(here, ["lock"])
    with pytest.raises(FileExistsError):
        touch_all(there, ["lock"])


def test_a_file_that_is_renamed_into_place_is_what_others_open(pair: tuple[Path, Path]) -> None:
    here, there = pair
    (here / "current").write_bytes(b"old")
    assert (there / "current").read_bytes() == b"old"
    earn(here)
    for turn in range(5):
        data = b"%d " % turn * 1000
        (here / "new").write_bytes(data)
        (here / "new").rename(here / "current")
        assert (there / "current").read_bytes() == data, f"turn {turn}"


_WORKER: Final = """
import os, sys, time
directory, who, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
made, number = set(), 0
while time.monotonic() < end:
    number += 1
    name = f"{who}-{number}"
    os.close(os.open(f"{directory}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    if number % 3 == 0:
        os.rename(f"{directory}/{name}", f"{directory}/{name}-renamed")
        name += "-renamed"
    if number % 5 == 0:
        os.unlink(f"{directory}/{name}")
    else:
        made.add(name)
    if number % 40 == 0:
        mine = {each for each in os.listdir(directory) if each.startswith(who)}
        assert mine == made, (mine ^ made)
    # The two meet now and then, and have it to themselves in between.
    if number % 200 == 0:
        time.sleep(0.05)
print(*sorted(made))
"""


def worker(directory: Path, who: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(directory), who, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )


def test_two_mounts_at_work_in_one_directory(pair: tuple[Path, Path]) -> None:
    workers = [worker(pair[0], "one", 2.0), worker(pair[1], "other", 2.0)]
    made = set()
    for each in workers:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in workers:
        made |= set(each.communicate("\n", timeout=60)[0].split())
        assert each.returncode == 0
    assert len(made) > 50
    for place in pair:
        assert set(os.listdir(place)) - {"earning"} == made
        # From memory, from the master, from the kernel: all the same.
        assert {each.name for each in os.scandir(place) if each.stat().st_nlink == 1} == made


def test_what_was_not_told_outlives_the_death_of_the_master(
    cluster: Cluster, pair: tuple[Path, Path]
) -> None:
    here, there = pair
    names = [f"file-{number}" for number in range(30)]
    with no_master(cluster):
        touch_all(here, names)
        cluster.kill("master")
    cluster.restart("master")
    touch_all(here, ["after"])
    assert set(os.listdir(there)) == {*names, "after"}
    # A master that has just started delegates nothing: it does not know who looks where.
    time.sleep(1.2)


@pytest.mark.parametrize("driver", ["pyfuse3"])
def test_it_is_told_after_a_moment(cluster: Cluster, mounts: Mounts) -> None:
    process, mount = mounts.foreground()
    mounts.broken = True
    here = mount.point / f"moment-{mounts.driver}"
    here.mkdir()
    earn(here)
    touch_all(here, ["one", "two"])
    time.sleep(_TOLD_S)
    process.kill()
    listed = cluster.dfs("ls", f"/{here.name}").stdout.split()
    assert listed == ["one", "two"]


@pytest.mark.parametrize("driver", ["fusepy"])
def test_a_synced_directory_outlives_everything(cluster: Cluster, mounts: Mounts) -> None:
    process, mount = mounts.foreground()
    mounts.broken = True
    here = mount.point / f"synced-{mounts.driver}"
    here.mkdir()
    earn(here)
    touch_all(here, ["by-directory"])
    descriptor = os.open(here, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    file = os.open(here / "by-file", os.O_CREAT | os.O_WRONLY)
    os.fsync(file)
    process.kill()
    cluster.kill_all()
    with contextlib.suppress(OSError):
        os.close(file)
    cluster.start_all()
    assert cluster.dfs("ls", f"/{here.name}").stdout.split() == ["by-directory", "by-file"]


@pytest.mark.parametrize("driver", ["pyfuse3"])
def test_the_directory_of_a_mount_that_was_killed_is_free_soon(
    cluster: Cluster, mounts: Mounts
) -> None:
    process, mount = mounts.foreground()
    mounts.broken = True
    cluster.allow_logs("has not given directory .* back")
    here = mount.point / f"killed-{mounts.driver}"
    here.mkdir()
    earn(here)
    touch_all(here, ["told"])
    time.sleep(_TOLD_S)
    process.kill()
    begun = time.monotonic()
    # Past the time that a master which has just started gives everybody.
    assert cluster.dfs("ls", f"/{here.name}").stdout.split() == ["told"]
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("driver", ["fusepy"])
def test_unmounting_tells_all_of_it(cluster: Cluster, mounts: Mounts) -> None:
    _, mount = mounts.foreground()
    here = mount.point / f"unmounted-{mounts.driver}"
    here.mkdir()
    earn(here)
    names = [f"file-{number:02}" for number in range(30)]
    touch_all(here, names)
    mount.umount()
    assert cluster.dfs("ls", f"/{here.name}").stdout.split() == names


def test_permissions_are_those_of_the_master(pair: tuple[Path, Path]) -> None:
    if os.geteuid():
        pytest.skip("takes root, to be somebody else")
    here, there = pair
    touch_all(here, ["of-root"])
    here.chmod(0o1777)
    earn(here)
    # The way to it is root's alone.
    directory = os.open(here, os.O_RDONLY)
    with acting_as(1234):
        make_in(directory, "of-user")
        with pytest.raises(PermissionError):
            os.unlink("of-root", dir_fd=directory)
    info = (there / "of-user").stat()
    assert (info.st_uid, info.st_gid) == (1234, 1234)
    here.chmod(0o755)
    with acting_as(1234), pytest.raises(PermissionError):
        make_in(directory, "another")
    os.close(directory)
    assert set(os.listdir(there)) == {"of-root", "of-user"}


def make_in(directory: int, name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640, dir_fd=directory))


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Files are made and reached for as another user, in a group of the same number."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("driver", ["pyfuse3"])
def test_sync_names_waits_for_the_master(cluster: Cluster, mounts: Mounts) -> None:
    _, mount = mounts.foreground("-o", "sync_names")
    here = mount.point / f"sync-{mounts.driver}"
    here.mkdir()
    earn(here)
    code = f"open({str(here / 'waits')!r}, 'x')"
    with no_master(cluster):
        with subprocess.Popen([sys.executable, "-c", code]) as program:
            time.sleep(1.0)
            assert program.poll() is None
            cluster.resume("master")
            assert program.wait(10) == 0
    wait_until((here / "waits").exists, what="it is there")
