"""Servers die, hang and come back under programs that work on a mount: a pause, or a clear end."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster import Cluster, environment, wait_until
from tests.mount.conftest import Mounts

PAUSE_MAX_S: Final = 5.0
INTERRUPTED_WITHIN_S: Final = 2.0
_MIB: Final = 1 << 20
_BIG_MIB: Final = 200
_BUSY_S: Final = 4.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("faults") / "cluster", servers=4) as cluster:
        cluster.dfs("policy", "create", "two", "--redundancy", "rep:2")
        cluster.dfs("policy", "set", "/", "two")
        yield cluster


def program(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )


def stored(cluster: Cluster, tmp_path: Path, path: str, data: bytes) -> None:
    """A file of the cluster that no mount has seen yet."""
    local = tmp_path / "stored"
    local.write_bytes(data)
    cluster.dfs("upload", local, path)


@contextlib.contextmanager
def hanging(cluster: Cluster, *names: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(cluster.paused(name))
        yield
    cluster.wait_ready()


# ------------------------------------------------------------------ the master


_BUSY: Final = """
import os, sys, time
top, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
longest = number = 0
print("at work", flush=True)
while time.monotonic() < end:
    begun = time.monotonic()
    data = b"%d " % number * (1 + number * 97 % 5000)
    with open(f"{top}/new", "wb") as file:
        file.write(data)
        if number % 5 == 0:
            file.flush()
            os.fsync(file.fileno())
    os.rename(f"{top}/new", f"{top}/{number % 20}")
    assert os.stat(f"{top}/{number % 20}").st_size == len(data)
    with open(f"{top}/{number % 20}", "rb") as file:
        assert file.read() == data
    with open(f"{top}/log", "a") as file:
        file.write(f"{number}\\n")
    assert str(number % 20) in os.listdir(top)
    longest = max(longest, time.monotonic() - begun)
    number += 1
print(number, longest)
"""


def test_a_master_that_dies_and_comes_back_is_a_pause(mounts: Mounts) -> None:
    mounts.broken = True
    _, mount = mounts.foreground()
    top = mount.point / f"busy-{mounts.driver}"
    top.mkdir()
    with program(_BUSY, top, _BUSY_S) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "at work\n"
        time.sleep(1)
        mounts.cluster.kill("master")
        time.sleep(1)
        mounts.cluster.restart("master")
        output, errors = busy.communicate(timeout=60)
    assert busy.returncode == 0, errors
    rounds, longest_s = output.split()
    print(f"{mounts.driver}: {rounds} rounds, the longest {float(longest_s):.1f} s")
    assert 0.9 < float(longest_s) < 1 + PAUSE_MAX_S
    assert (top / "log").read_text() == "".join(f"{each}\n" for each in range(int(rounds)))


# ------------------------------------------------------------------ one server


def part(number: int) -> bytes:
    """One MiB of the big file."""
    return random.Random(number).randbytes(64 * 1024) * 16


def test_a_server_that_dies_under_a_big_write_is_a_short_pause(mounts: Mounts) -> None:
    mounts.broken = True
    _, mount = mounts.foreground()
    path = mount.point / f"big-{mounts.driver}"
    longest_s = 0.0
    expected = hashlib.blake2b()
    with open(path, "wb", buffering=0) as file:
        for number in range(_BIG_MIB):
            data = part(number)
            expected.update(data)
            if number == _BIG_MIB // 3:
                mounts.cluster.kill("cs2")
            begun = time.monotonic()
            assert file.write(data) == _MIB
            longest_s = max(longest_s, time.monotonic() - begun)
        begun = time.monotonic()
        os.fsync(file.fileno())
        print(f"{mounts.driver}: longest write {longest_s:.2f} s, ", end="")
        print(f"fsync {time.monotonic() - begun:.2f} s")
    assert longest_s < PAUSE_MAX_S
    # With the server still away, and by a mount that has none of it in memory.
    _, fresh = mounts.foreground(name="fresh")
    with open(fresh.point / path.name, "rb") as file:
        assert hashlib.file_digest(file, "blake2b").digest() == expected.digest()
    mounts.cluster.restart("cs2")
    path.unlink()


# ------------------------------------------------------------------ nobody answers


_READ_ALL: Final = """
import sys
print("reading", flush=True)
with open(sys.argv[1], "rb") as file:
    print(len(file.read()))
"""


@pytest.mark.parametrize("who", ["chunk servers", "master"])
def test_programs_that_wait_for_servers_can_be_stopped(
    mounts: Mounts, tmp_path: Path, who: str
) -> None:
    mounts.broken = True
    cluster = mounts.cluster
    _, mount = mounts.foreground("-o", "on_unavailable=wait:60s")
    name = f"{mounts.driver}-{who[0]}"
    data = random.Random(name).randbytes(1_500_000)
    # Each in a directory of its own: in one, the kernel has the second wait for the first.
    cold = [mount.point / f"cold-{name}-{number}" / "file" for number in (1, 2)]
    for path in cold:
        path.parent.mkdir()
        stored(cluster, tmp_path, f"/{path.relative_to(mount.point)}", data)
    warm = mount.point / f"warm-{name}"
    warm.write_bytes(data[:300_000])
    assert warm.read_bytes() == data[:300_000]
    victims = ["master"] if who == "master" else list(cluster.servers)
    with open(warm, "rb", buffering=0) as kept, hanging(cluster, *victims):
        with (
            program(_READ_ALL, cold[0]) as by_ctrl_c,
            program(_READ_ALL, cold[1]) as by_kill,
        ):
            waiting = {signal.SIGINT: by_ctrl_c, signal.SIGKILL: by_kill}
            for each in waiting.values():
                assert each.stdout is not None
                assert each.stdout.readline() == "reading\n"
            time.sleep(1)
            begun = time.monotonic()
            if who != "master":
                # Others go on with what is there.
                assert os.pread(kept.fileno(), 400_000, 0) == data[:300_000]
                assert len(os.listdir(mount.point)) >= 2
                with program(_READ_ALL, warm) as another:
                    assert another.communicate(timeout=10)[0] == "reading\n300000\n"
                assert time.monotonic() - begun < PAUSE_MAX_S
            for number, each in waiting.items():
                assert each.poll() is None
                begun = time.monotonic()
                each.send_signal(number)
                each.wait(30)
                assert time.monotonic() - begun < INTERRUPTED_WITHIN_S
                assert each.returncode == -number
    for path in cold:
        assert path.read_bytes() == data


def test_unavailable_is_an_error_soon_where_the_mount_says_so(
    mounts: Mounts, tmp_path: Path
) -> None:
    mounts.broken = True
    cluster = mounts.cluster
    _, mount = mounts.foreground("-o", "on_unavailable=error")
    name = f"refused-{mounts.driver}"
    data = random.Random(name).randbytes(1_500_000)
    stored(cluster, tmp_path, f"/{name}", data)
    cluster.kill(*cluster.servers)
    try:
        begun = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (mount.point / name).read_bytes()
        assert time.monotonic() - begun < PAUSE_MAX_S
        wait_until(lambda: "WARNING" in mount.log_text(), 2, what="a line in the log")
        reasons = [line for line in mount.log_text().splitlines() if "read" in line]
        assert any("chunk" in line for line in reasons), mount.log_text()
        assert "cannot be read now" in cluster.dfs("why", f"/{name}", check=False).stdout
    finally:
        cluster.restart(*cluster.servers)
    wait_until(
        lambda: _read(mount.point / name) == data, 15, what="the mount reads again by itself"
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
