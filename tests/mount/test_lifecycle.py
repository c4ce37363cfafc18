"""dfs mount and dfs umount: from the first answer to the end, clean or not."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs_fuse.mount_table import mounted_at
from dfs_fuse.read_ahead import READ_AHEAD_KIB
from tests.cluster import Cluster, environment, free_port, wait_until
from tests.mount.conftest import Mount, Mounts


@contextlib.contextmanager
def somebody_in(directory: Path, code: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in `directory` until the end of the block."""
    script = f"{code}\nprint(flush=True)\nimport sys\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def left_open(path: Path, data: str) -> Iterator[None]:
    """Another process has a file open, and has written `data` to it.

    Not this one: each process that it starts closes a copy, which waits for the mount.
    """
    code = f"file = open({path.name!r}, 'w+b', 0)\nfile.write({data!r}.encode())"
    with somebody_in(path.parent, code):
        yield


def stored(cluster: Cluster, path: str) -> str:
    """A file's content, not through the mount."""
    return cluster.dfs("cat", path).stdout


# ------------------------------------------------------------------ a mount's ordinary life


def test_a_mount_answers_when_the_command_returns(mounts: Mounts) -> None:
    mount = mounts.mount("--cache-size", "64M", "-o", "nosuid,attr_cache=2s,_netdev")
    (mount.point / "answers").write_text("yes")
    assert stored(mounts.cluster, "/answers") == "yes"
    assert mount.about.driver == mounts.driver
    assert mount.about.master == mounts.cluster.master_address
    assert mount.about.log == str(mount.log)
    mounted = mounted_at(str(mount.point))
    assert mounted is not None
    assert mounted.kind == "fuse.dfs"
    assert mounted.source == f"{mounts.cluster.master_address}:/"
    options = next(
        line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.point) in line
    )
    assert "nosuid" in options
    assert "nodev" not in options


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set it")
def test_the_kernel_reads_ahead_as_far_as_the_driver_can_use(mounts: Mounts) -> None:
    mount = mounts.mount()
    entry = mounted_at(str(mount.point))
    assert entry is not None
    setting = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb")
    if not os.access(setting, os.W_OK):
        pytest.skip("sysfs is read-only here")
    wanted = READ_AHEAD_KIB[mounts.driver]
    wait_until(lambda: int(setting.read_text()) == wanted, what="the kernel reads further ahead")


def test_a_mount_survives_the_shell_that_started_it(mounts: Mounts) -> None:
    cluster, point = mounts.cluster, mounts.point()
    log = mounts.directory / "mnt.log"
    words = ["mount", str(point), "--driver", mounts.driver, "--log", str(log)]
    done = subprocess.run(
        ["sh", "-c", '"$@"; kill -HUP 0', "sh", *cluster.command(*words)],
        env=environment(DFS_MASTER=cluster.master_address),
        start_new_session=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGHUP, done.stderr
    mount = Mount(cluster, point, log)
    mounts.adopt(mount)
    assert os.getsid(mount.process.pid) == mount.process.pid
    assert os.readlink(f"/proc/{mount.process.pid}/cwd") == "/"
    (point / "survives").write_text("yes")
    assert (point / "survives").read_text() == "yes"


def test_umount_stores_what_was_written_and_ends_the_process(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mount.point / "unmounted").write_bytes(b"x" * 5_000_000)
    done = mount.umount()
    assert done.stdout == f"Unmounted {mount.point}\n"
    assert done.stderr == ""
    assert not mount.alive
    assert not mount.mounted
    assert list(mount.point.iterdir()) == []
    assert len(stored(mounts.cluster, "/unmounted")) == 5_000_000
    again = mounts.mount()
    assert (again.point / "unmounted").stat().st_size == 5_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_flushes_and_unmounts(mounts: Mounts, number: signal.Signals) -> None:
    process, mount = mounts.foreground()
    name = f"{mounts.driver} {number.name}"
    with left_open(mount.point / name, "not yet flushed"):
        process.signal(number)
        assert process.wait(20) == 0
    assert not mount.mounted
    assert stored(mounts.cluster, f"/{name}") == "not yet flushed"
    assert "all that was written is stored" in mount.log_text()


def test_what_could_not_be_written_at_the_end_is_said(mounts: Mounts) -> None:
    if mounts.driver == "pyfuse3":
        pytest.skip("gathers no writes: the program is told")
    mounts.broken = True
    process, mount = mounts.foreground("-o", "on_unavailable=wait:1s")
    code = "file = open('late', 'w+b', 0)\nprint(flush=True)\ninput()\n"
    with somebody_in(mount.point, code + "file.write(b'late')") as program:
        assert program.stdin is not None
        assert program.stdout is not None
        mounts.cluster.kill("master")
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"\n"
        process.signal(signal.SIGTERM)
        assert process.wait(30) == 1
    mounts.cluster.restart("master")
    assert "; all that was written is stored" not in mount.log_text()


def test_more_signals_end_a_flush_that_takes_too_long(mounts: Mounts) -> None:
    mounts.broken = True
    process, mount = mounts.foreground()
    with left_open(mount.point / f"patience {mounts.driver}", "never stored"):
        with mounts.cluster.paused("master"):
            process.signal(signal.SIGTERM)
            wait_until(lambda: not mount.mounted, what="unmounted")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)

            def has_ended() -> bool:
                if process.alive:
                    process.signal(signal.SIGTERM)
                    time.sleep(0.5)
                return not process.alive

            wait_until(has_ended, what="ended")
    # In libfuse 2 there is a moment in which the first one ends it without a word.
    assert process.wait(0) in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_a_read_only_mount_reads_only(mounts: Mounts) -> None:
    mounts.cluster.dfs("upload", "-", f"/read only {mounts.driver}", stdin=b"kept")
    mount = mounts.mount("--read-only")
    file = mount.point / f"read only {mounts.driver}"
    assert file.read_text() == "kept"
    for change in (
        lambda: file.write_text("changed"),
        (mount.point / "new").mkdir,
        file.unlink,
        lambda: os.utime(file),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert stored(mounts.cluster, f"/read only {mounts.driver}") == "kept"
    mount.umount()


def test_a_directory_of_the_cluster_can_be_the_root(mounts: Mounts) -> None:
    top = f"/top {mounts.driver}"
    mounts.cluster.dfs("mkdir", "-p", f"{top}/sub")
    mounts.cluster.dfs("upload", "-", f"{top}/sub/file", stdin=b"below")
    mount = mounts.mount("--root", f"{top}/sub")
    assert os.listdir(mount.point) == ["file"]
    (mount.point / "new").write_text("new")
    assert stored(mounts.cluster, f"{top}/sub/new") == "new"
    assert mount.about.root == f"{top}/sub"


def test_a_point_may_have_any_name(mounts: Mounts) -> None:
    mount = mounts.mount("-o", "fsname=Größe", name="ein Bäumchen, \\040 #1")
    (mount.point / "odd").write_text("yes")
    assert (mount.point / "odd").read_text() == "yes"
    mounted = mounted_at(str(mount.point))
    assert mounted is not None
    assert mounted.source == "Gr\\xf6\\xdfe"  # a device's name is ASCII
    mount.umount()


def test_relative_paths_and_symlinks_lead_to_the_same_mount(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mounts.directory / "link").symlink_to("mnt")
    for path in (mounts.directory / "link", mounts.directory / "." / "mnt" / ".." / "mnt"):
        assert "already mounted" in mounts.refused(path)
    done = mounts.cluster.dfs("umount", mounts.directory / "link")
    assert done.stdout == f"Unmounted {mount.point}\n"


def test_the_profile_is_logged_on_request_and_at_the_end(mounts: Mounts) -> None:
    mount = mounts.mount("--profile")
    (mount.point / "profiled").write_text("yes")
    mount.signal(signal.SIGUSR1)
    wait_until(lambda: "operations in" in mount.log_text(), what="profile", explain=mount.log_text)
    assert "flush" in mount.log_text()
    (mount.point / "profiled").write_text("still answers")
    mount.umount()
    assert mount.log_text().count("operations in") == 2


# ------------------------------------------------------------------ killed, busy, hung, cut off


def test_a_killed_mount_is_cleared_and_mounted_again(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mount.point / "before").write_text("kept")
    mount.signal(signal.SIGKILL)
    mount.wait()
    with pytest.raises(OSError) as caught:
        os.listdir(mount.point)
    assert caught.value.errno == errno.ENOTCONN
    assert mounts.refused(mount.point) == (
        f"dfs: {mount.point}: the process of the mount here has gone; `dfs umount {mount.point}` "
        "clears it, then mount again\n"
    )
    assert "Cleared" in mount.umount().stdout
    assert not mount.mounted
    again = mounts.mount()
    assert (again.point / "before").read_text() == "kept"


def test_a_killed_mount_is_cleared_though_it_is_used(mounts: Mounts) -> None:
    mount = mounts.mount()
    with somebody_in(mount.point):
        mount.signal(signal.SIGKILL)
        mount.wait()
        assert "Cleared" in mount.umount().stdout
        again = mounts.mount()
        (again.point / "again").write_text("yes")


def test_a_busy_mount_says_who_uses_it_and_stays(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mount.point / "busy").write_text("yes")
    with somebody_in(mount.point) as worker, open(mount.point / "busy", "rb"):
        done = mount.umount(check=False)
        assert done.returncode == 1
        assert f"{mount.point}: busy: " in done.stderr
        assert f"(pid {worker.pid}) works in {mount.point}" in done.stderr
        assert f"(pid {os.getpid()}) has {mount.point}/busy open" in done.stderr
        assert (mount.point / "busy").read_text() == "yes"
    mount.umount()


def test_a_mount_inside_keeps_it_busy(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mount.point / "inner").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.point / "inner"], check=True)
    try:
        assert f"{mount.point}/inner is mounted inside" in mount.umount(check=False).stderr
    finally:
        subprocess.run(["umount", mount.point / "inner"], check=True)
    mount.umount()


def test_lazily_unmounted_it_serves_who_still_uses_it(mounts: Mounts) -> None:
    mount = mounts.mount()
    with open(mount.point / "lazy", "w+b", buffering=0) as file:
        file.write(b"first")
        done = mount.umount("--lazy")
        assert f"(pid {os.getpid()}) has {mount.point}/lazy open" in done.stderr
        assert not mount.mounted
        assert list(mount.point.iterdir()) == []
        file.write(b", second")
        file.seek(0)
        assert file.read() == b"first, second"
        assert mount.alive
    mount.wait()
    assert stored(mounts.cluster, "/lazy") == "first, second"


def test_force_ends_a_busy_mount_and_loses_nothing(mounts: Mounts) -> None:
    mount = mounts.mount()
    with somebody_in(mount.point, f"f = open('forced {mounts.driver}', 'wb', 0); f.write(b'kept')"):
        done = mount.umount("--force")
        assert "it was busy" in done.stderr
        assert not mount.alive
    assert stored(mounts.cluster, f"/forced {mounts.driver}") == "kept"
    mounts.mount()


def test_force_ends_a_mount_that_does_not_answer(mounts: Mounts) -> None:
    mount = mounts.mount()
    (mount.point / "stopped").write_text("kept")
    mount.signal(signal.SIGSTOP)
    done = mount.umount("--timeout", "1", check=False)
    assert done.returncode == 1
    assert "the mount does not answer" in done.stderr
    mount.umount("--force", "--timeout", "1")
    assert not mount.mounted
    assert not mount.alive
    again = mounts.mount()
    assert (again.point / "stopped").read_text() == "kept"


def test_what_cannot_be_flushed_keeps_it_mounted(mounts: Mounts) -> None:
    mounts.broken = True
    cluster = mounts.cluster
    mount = mounts.mount("-o", "on_unavailable=wait:1s")
    name = f"cut off {mounts.driver}"
    with left_open(mount.point / name, "stored later"):
        cluster.kill("master")
        done = mount.umount(check=False)
        assert done.returncode == 1
        assert "stays mounted" in done.stderr
        assert "--force" in done.stderr
        assert mount.mounted
        cluster.restart("master")
    mount.umount()
    assert stored(cluster, f"/{name}") == "stored later"


def test_force_ends_a_mount_whose_servers_are_gone(mounts: Mounts) -> None:
    mounts.broken = True
    mount = mounts.mount("-o", "on_unavailable=wait")
    with left_open(mount.point / f"lost {mounts.driver}", "lost"):
        mounts.cluster.kill("master")
        done = mount.umount("--force", "--timeout", "2")
        assert not mount.mounted
        assert not mount.alive
        assert "had to be killed" in done.stderr
    mounts.cluster.restart("master")


# ------------------------------------------------------------------ what is refused


def test_what_cannot_be_mounted_is_said_on_one_line(mounts: Mounts) -> None:
    directory = mounts.directory
    missing = directory / "missing"
    assert mounts.refused(missing) == (
        f"dfs: {missing}: no such directory; make it: mkdir -p {missing}\n"
    )
    file = directory / "file"
    file.touch()
    assert mounts.refused(file) == (f"dfs: {file}: not a directory; mount on an empty directory\n")
    assert f"{directory}: not empty (it holds " in mounts.refused(directory)
    point = mounts.point()
    assert mounts.refused(point, "--root", "/nowhere/at/all") == (
        "dfs: --root /nowhere/at/all: no such directory in the cluster; `dfs mkdir -p` makes it\n"
    )
    mounts.cluster.dfs("touch", "/plain")
    assert mounts.refused(point, "--root", "/plain") == "dfs: --root /plain: not a directory\n"
    assert "-o frob: no such mount option" in mounts.refused(point, "-o", "frob", status=2)
    assert "'lots' is not a size" in mounts.refused(point, "--cache-size", "lots", status=2)
    assert "is no driver" in mounts.refused(point, "--driver", "ntfs", status=2)
    assert mounted_at(str(point)) is None


def test_a_master_that_does_not_answer_is_said_soon(mounts: Mounts) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    said = mounts.refused(mounts.point(), "--master", nobody)
    assert f"no master answers at {nobody}" in said


def test_a_second_mount_on_the_same_point_is_refused(mounts: Mounts) -> None:
    mount = mounts.mount()
    assert mounts.refused(mount.point) == (
        f"dfs: {mount.point}: already mounted ({mounts.cluster.master_address}:/); "
        f"`dfs umount {mount.point}` first, or choose another directory\n"
    )


def test_umount_of_what_is_no_dfs_mount_says_so(mounts: Mounts) -> None:
    point = mounts.point()
    done = mounts.cluster.dfs("umount", point, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"dfs: {point}: nothing is mounted here; ")
    done = mounts.cluster.dfs("umount", "/proc", check=False)
    assert done.stderr == "dfs: /proc: mounted here is proc, and not dfs; umount(8) is for that\n"
