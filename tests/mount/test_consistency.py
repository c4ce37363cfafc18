"""What two mounts see of each other, what one sees of itself, and what outlives everything.

Two mounts of each driver are shared by the tests of the module; each test works in a directory of
its own. Readers and writers that must be at it at the same time are programs of their own.
"""

import errno
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests import oracle
from tests.cluster import Cluster, environment, wait_until
from tests.mount.conftest import DRIVERS, Mount, Mounts, require

ATTR_CACHE_S: Final = 1.0
_ENTRIES: Final = 5000
_DEEP: Final = 60
_STEADILY_S: Final = 2.0


@pytest.fixture
def directory(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test."""
    return "".join(each if each.isalnum() else "-" for each in request.node.name)


@pytest.fixture
def here(by_driver: dict[str, list[Mount]], driver: str, directory: str) -> Path:
    """A directory of one mount."""
    return _made(by_driver[driver][0].point / directory)


@pytest.fixture(params=["fusepy-fusepy", "pyfuse3-pyfuse3", "fusepy-pyfuse3"])
def pair(
    by_driver: dict[str, list[Mount]], request: pytest.FixtureRequest, directory: str
) -> tuple[Path, Path]:
    """The same directory on two mounts."""
    one, other = request.param.split("-")
    require(one)
    require(other)
    made = _made(by_driver[one][0].point / directory)
    return made, by_driver[other][1].point / made.name


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def program(code: str, *args: object) -> subprocess.Popen[str]:
    """A Python program, with `args` in `sys.argv`, that is told to begin by a line."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )


def finished(programs: list[subprocess.Popen[str]], timeout_s: float = 60) -> list[str]:
    """What each of them printed; all began at about the same time and ended well."""
    for each in programs:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in programs:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    outputs = [each.communicate(timeout=timeout_s)[0] for each in programs]
    assert [each.returncode for each in programs] == [0] * len(programs)
    return outputs


_START: Final = """
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
"""


# ------------------------------------------------------------------ two mounts


def test_an_open_sees_what_another_mount_has_closed(pair: tuple[Path, Path]) -> None:
    rng = random.Random(1)
    files = [pair[0] / "file", pair[1] / "file"]
    for turn in range(40):
        # Now longer, now shorter, now of the same size: nothing but the bytes tells.
        data = rng.randbytes(rng.choice((0, 10, 5000, 5000, 5000, 200_000, 200_000)))
        writer, reader = files[turn % 2], files[1 - turn % 2]
        writer.write_bytes(data)
        if turn % 3 and reader.exists():
            # What the kernel is told here may be a moment old; an open is not.
            reader.stat()
        with open(reader, "rb") as file:
            assert os.fstat(file.fileno()).st_size == len(data)
            assert file.read() == data, f"turn {turn}"


def test_an_open_sees_what_another_mount_has_changed_in_the_middle(
    pair: tuple[Path, Path],
) -> None:
    files = [pair[0] / "file", pair[1] / "file"]
    expected = bytearray(random.Random(2).randbytes(600_000))
    files[0].write_bytes(expected)
    for turn in range(20):
        assert files[turn % 2].read_bytes() == expected
        data = random.Random(turn).randbytes(3000)
        at = turn * 20_011
        with open(files[turn % 2], "r+b", buffering=0) as file:
            file.seek(at)
            file.write(data)
        expected[at : at + len(data)] = data
    assert files[0].read_bytes() == files[1].read_bytes() == expected


def test_a_renamed_file_is_what_another_mount_opens_at_once(pair: tuple[Path, Path]) -> None:
    writer, reader = pair
    for turn in range(40):
        data = b"%d " % turn * (1 + 300 * (turn % 3))
        (writer / "new").write_bytes(data)
        (writer / "new").rename(writer / "current")
        if turn % 2:
            # What the kernel is told here may be a moment old, and of another file.
            (reader / "current").stat()
        assert (reader / "current").read_bytes() == data, f"turn {turn}"


def test_removed_and_renamed_directories_are_gone_elsewhere_after_a_moment(
    pair: tuple[Path, Path],
) -> None:
    writer, reader = pair
    (writer / "old").mkdir()
    (writer / "old" / "file").write_bytes(b"in it")
    assert (reader / "old" / "file").read_bytes() == b"in it"
    (writer / "old").rename(writer / "new")
    assert (reader / "new" / "file").read_bytes() == b"in it"
    (writer / "new" / "file").unlink()
    (writer / "new").rmdir()
    time.sleep(ATTR_CACHE_S + 0.2)
    assert os.listdir(reader) == []
    for name in ("old", "new"):
        with pytest.raises(FileNotFoundError):
            (reader / name).stat()


def test_attributes_of_another_mount_are_seen_after_a_moment(pair: tuple[Path, Path]) -> None:
    writer, reader = pair
    (writer / "file").write_bytes(b"x")
    assert (reader / "file").stat().st_size == 1
    (writer / "file").chmod(0o600)
    os.utime(writer / "file", ns=(1, 2_000_000_003))
    os.setxattr(writer / "file", "user.note", b"said")
    time.sleep(ATTR_CACHE_S + 0.2)
    info = (reader / "file").stat()
    assert (info.st_mode & 0o777, info.st_mtime_ns) == (0o600, 2_000_000_003)
    assert os.getxattr(reader / "file", "user.note") == b"said"


_APPENDER: Final = (
    _START
    + """
path, name, lines = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(lines):
    line = f"{name} {number} ".encode()
    line += b"." * (number * 37 % 3000) + b"\\n"
    assert os.write(file, line) == len(line)
    if number % 20 == 19:
        os.fsync(file)
os.close(file)
"""
)


def test_appends_of_two_mounts_lose_and_tear_nothing(pair: tuple[Path, Path]) -> None:
    lines = 120
    names = [f"{place}-{number}" for place in (0, 1) for number in (0, 1)]
    finished([program(_APPENDER, pair[int(name[0])] / "log", name, lines) for name in names])
    for place in pair:
        found = (place / "log").read_bytes().splitlines()
        seen = {(line.split()[0].decode(), int(line.split()[1])): line for line in found}
        assert len(seen) == len(found) == lines * len(names)
        for (name, number), line in seen.items():
            assert line == f"{name} {number} ".encode() + b"." * (number * 37 % 3000)
        for name in names:
            of_one = [int(line.split()[1]) for line in found if line.startswith(name.encode())]
            assert of_one == sorted(of_one)


_STEADY_APPENDER: Final = (
    _START
    + """
path, name, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
number = 0
while time.monotonic() < end:
    line = f"{name} {number} ".encode()
    # The kernel cuts what crosses a page, and what is longer than a request.
    line += b"." * (300_000 if number % 10 == 9 else number * 373 % 6000) + b"\\n"
    assert os.write(file, line) == len(line)
    number += 1
os.close(file)
print(number)
"""
)


_STEADY_CLOSER: Final = (
    _START
    + """
path, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    os.close(os.open(path, os.O_WRONLY))
"""
)


def test_an_append_stays_in_one_piece_although_others_publish_the_file_meanwhile(
    pair: tuple[Path, Path],
) -> None:
    logs = [place / "log" for place in pair]
    logs[0].touch()
    appenders = [program(_STEADY_APPENDER, log, place, 1.0) for place, log in enumerate(logs)]
    # To close a file publishes it, also in the middle of another program's write.
    closers = [program(_STEADY_CLOSER, log, 1.0) for log in logs]
    counts = finished([*appenders, *closers])[: len(appenders)]
    for log in logs:
        found = log.read_bytes().splitlines()
        for place, count in enumerate(counts):
            of_one = [line for line in found if line.startswith(b"%d " % place)]
            for number, line in enumerate(of_one):
                dots = 300_000 if number % 10 == 9 else number * 373 % 6000
                assert line == b"%d %d " % (place, number) + b"." * dots, line[:40]
            assert len(of_one) == int(count)
        assert len(found) == sum(map(int, counts))


@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_RDWR], ids=["write", "read and write"])
def test_an_append_overwrites_nothing_where_the_kernel_believes_an_older_size(
    pair: tuple[Path, Path], mode: int
) -> None:
    one, other = (place / "log" for place in pair)
    one.write_bytes(b"1" * 4096)
    assert one.stat().st_size == 4096
    with open(other, "ab") as file:
        file.write(b"2" * 8192)
    for data in (b"3" * 100, b"4" * 4096):
        descriptor = os.open(one, mode | os.O_APPEND)
        assert os.write(descriptor, data) == len(data)
        os.close(descriptor)
    expected = b"1" * 4096 + b"2" * 8192 + b"3" * 100 + b"4" * 4096
    assert one.read_bytes() == other.read_bytes() == expected


def test_a_mapping_of_a_file_open_to_append_changes_it_in_place(pair: tuple[Path, Path]) -> None:
    one, other = (place / "log" for place in pair)
    one.write_bytes(b"1" * 4096)
    assert one.stat().st_size == 4096
    with open(other, "ab") as file:
        file.write(b"2" * 8192)
    time.sleep(ATTR_CACHE_S + 0.2)
    expected = bytearray(b"1" * 4096 + b"2" * 8192)
    with open(one, "a+b", buffering=0) as file:
        for turn in range(3):
            with mmap.mmap(file.fileno(), 0) as mapped:
                for at in (0, 4095, 5000, len(expected) - 1):
                    mapped[at] = expected[at] = ord("a") + turn
                mapped.flush()
            data = b"%d" % turn * 4096 * (turn + 1)
            assert file.write(data) == len(data)
            expected += data
    assert one.read_bytes() == other.read_bytes() == expected


def test_a_reader_follows_a_file_that_another_mount_appends_to(pair: tuple[Path, Path]) -> None:
    writer, reader = pair
    (writer / "log").write_bytes(b"")
    expected = b""
    with open(reader / "log", "rb", buffering=0) as following:
        for number in range(3):
            line = b"line %d\n" % number * (1 + number * 700)
            with open(writer / "log", "ab", buffering=0) as file:
                file.write(line)
            expected += line
            seen = b""

            def came(wanted: int = len(line)) -> bool:
                nonlocal seen
                seen += following.read(1 << 20) or b""
                return len(seen) >= wanted

            wait_until(came, 3 * ATTR_CACHE_S, what=f"line {number} at the reader")
            assert seen == line
    assert (reader / "log").read_bytes() == expected


_READER: Final = (
    _START
    + """
path, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
opens = missing = torn = 0
while time.monotonic() < end:
    opens += 1
    try:
        os.stat(path)
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        missing += 1
        print(error, file=sys.stderr)
        continue
    # The first byte says how long it is.
    torn += not data or len(data) != 37 * data[0] or len(set(data)) != 1
print(opens, missing, torn)
"""
)


@pytest.mark.parametrize("where", ["one mount", "two mounts"])
def test_replacing_by_rename_never_shows_readers_a_gap(
    by_driver: dict[str, list[Mount]], driver: str, directory: str, where: str
) -> None:
    one, other = by_driver[driver]
    here = _made(one.point / directory)
    read_at = (here if where == "one mount" else other.point / directory) / "current"
    (here / "current").write_bytes(b"0" * 37 * ord("0"))
    readers = [program(_READER, read_at, _STEADILY_S) for _ in range(4)]
    writer = program(
        _START
        + """
directory, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
turns = 0
while time.monotonic() < end:
    turns += 1
    with open(directory + "/new", "wb") as file:
        file.write(bytes([1 + turns % 255]) * 37 * (1 + turns % 255))
    os.rename(directory + "/new", directory + "/current")
print(turns)
""",
        here,
        _STEADILY_S,
    )
    *read, turns = finished([*readers, writer])
    counts = [tuple(map(int, line.split())) for line in read]
    opens, missing, torn = (sum(column) for column in zip(*counts, strict=True))
    print(f"{driver}: {opens} opens, {missing} found nothing, {turns.strip()} replacements")
    assert torn == 0
    assert int(turns) > 20
    assert opens > 100
    if driver == "pyfuse3":
        assert missing == 0, f"{missing} of {opens}"


# ------------------------------------------------------------------ one mount


def test_a_mount_sees_its_own_writes_at_once(here: Path) -> None:
    path = here / "file"
    rng = random.Random(3)
    expected = bytearray()
    with open(path, "w+b", buffering=0) as writer, open(path, "rb", buffering=0) as other:
        for turn in range(60):
            at = rng.randrange(len(expected) + 5000)
            data = rng.randbytes(rng.choice((1, 100, 4096, 70_000)))
            assert os.pwrite(writer.fileno(), data, at) == len(data)
            if at > len(expected):
                expected += bytes(at - len(expected))
            expected[at : at + len(data)] = data
            assert path.stat().st_size == len(expected)
            assert os.fstat(other.fileno()).st_size == len(expected)
            way = turn % 3
            if way == 0:
                assert (
                    os.pread(other.fileno(), len(data) + 10, at) == expected[at:][: len(data) + 10]
                )
            elif way == 1:
                assert path.read_bytes() == expected
            else:
                with mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    assert mapped[:] == expected


def test_what_is_done_by_one_name_of_a_file_is_seen_by_its_others_at_once(here: Path) -> None:
    one, other, third = here / "one", here / "other", here / "third"
    one.touch()
    os.link(one, other)
    for turn in range(30):
        names = [one, other][:: 1 if turn % 2 else -1]
        assert one.stat().st_nlink == other.stat().st_nlink == 2
        names[0].chmod(0o600 + turn % 8)
        assert names[1].stat().st_mode & 0o777 == 0o600 + turn % 8
        with open(names[0], "ab", buffering=0) as file:
            file.write(b"x" * 100)
            assert names[1].stat().st_size == 100 * (turn + 1)
        assert len(names[1].read_bytes()) == 100 * (turn + 1)
        os.utime(names[0], ns=(turn, turn))
        assert names[1].stat().st_mtime_ns == turn
        os.link(names[0], third)
        assert names[1].stat().st_nlink == names[0].stat().st_nlink == 3
        if turn % 3:
            third.unlink()
        else:
            (here / "new").touch()
            (here / "new").replace(third)
            assert third.stat().st_nlink == 1
        assert names[1].stat().st_nlink == names[0].stat().st_nlink == 2
        third.unlink(missing_ok=True)


_LINKER: Final = (
    _START
    + """
os.chdir(sys.argv[1])
os.mkdir("inner")
took = []
for number in range(40):
    with open("inner/temporary", "xb") as file:
        file.write(b"x" * 100)
    begun = time.monotonic()
    os.link("inner/temporary", f"inner/{number}")
    os.unlink("inner/temporary")
    took.append(time.monotonic() - begun)
    assert os.stat(f"inner/{number}").st_nlink == 1
print(sorted(took)[len(took) // 2])
"""
)


def test_a_file_is_linked_into_place_without_waiting_for_what_the_kernel_believes(
    here: Path,
) -> None:
    """As git does, which names everything from its working directory."""
    deep = here / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (took_s,) = finished([program(_LINKER, deep)])
    # A wait is of 18 ms, and there were two.
    assert float(took_s) < 0.018


def test_a_file_made_anew_where_another_was_removed_can_be_mapped_at_once(here: Path) -> None:
    path = here / "file"
    for turn in range(6):
        data = b"%d" % turn * 5000
        path.write_bytes(data)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == data
            if turn % 2:
                path.unlink()
            assert mapped[:] == data
        if not turn % 2:
            path.unlink()


def test_what_a_mapping_writes_is_read_at_once(here: Path) -> None:
    path = here / "file"
    path.write_bytes(bytes(300_000))
    expected = bytearray(300_000)
    with open(path, "r+b", buffering=0) as file, open(path, "rb", buffering=0) as other:
        with mmap.mmap(file.fileno(), 0) as mapped:
            for turn in range(30):
                at = turn * 9973
                data = random.Random(turn).randbytes(5000)
                mapped[at : at + 5000] = data
                expected[at : at + 5000] = data
                assert os.pread(other.fileno(), 5000, at) == data
                os.pwrite(file.fileno(), b"written", at + 100)
                expected[at + 100 : at + 107] = b"written"
                assert mapped[at : at + 5000] == expected[at : at + 5000]
                if turn % 7 == 6:
                    mapped.flush()
    assert path.read_bytes() == expected


def test_an_unlinked_file_lives_as_long_as_it_is_open(here: Path, driver: str) -> None:
    path = here / "directory" / "file"
    path.parent.mkdir()
    with open(path, "w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        if driver == "pyfuse3":
            # By paths, a descriptor in a directory that is gone can be read and written only.
            path.parent.rmdir()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.pwrite(file.fileno(), b"after" * 50_000, 6)
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), 200_000)
        assert os.pread(file.fileno(), 300_000, 0) == (b"before" + b"after" * 50_000)[:200_000]
        os.fchmod(file.fileno(), 0o600)
        info = os.fstat(file.fileno())
        assert (info.st_mode & 0o777, info.st_size) == (0o600, 200_000)
        if path.parent.exists():
            path.parent.rmdir()
        assert os.pread(file.fileno(), 10, 0) == b"beforeafte"
    assert os.listdir(here) == []


# ------------------------------------------------------------------ names, sizes, directories


def test_names_of_any_bytes(
    by_driver: dict[str, list[Mount]], driver: str, here: Path, directory: str
) -> None:
    single = [
        bytes([byte]) for byte in (*range(1, 128, 9), *range(128, 256, 5)) if byte not in b"/."
    ]
    names = {*oracle.ODD_NAMES, *single, b"\xff" * 255, "\u00e9".encode(), "e\u0301".encode()}
    top = os.fsencode(here)
    for name in names:
        with open(os.path.join(top, name), "wb") as file:
            file.write(name)
        os.symlink(name, os.path.join(top, b"\x80-" + name)[: len(top) + 256])
    with pytest.raises(OSError, match="too long"):
        os.mkdir(os.path.join(top, b"x" * 256))
    other = DRIVERS[1 - DRIVERS.index(driver)]
    for point in (by_driver[driver][0].point, by_driver[other][1].point):
        seen = os.fsencode(point / here.name)
        listed = os.listdir(seen)
        assert len(listed) == len(set(listed)) == 2 * len(names)
        assert names <= set(listed)
        for name in names:
            with open(os.path.join(seen, name), "rb") as file:
                assert file.read() == name


def test_offsets_beyond_4_gib(pair: tuple[Path, Path]) -> None:
    here, there = pair
    marks = {at: b"at %d" % at for at in (0, (1 << 32) - 3, 5 << 30, (1 << 40) + 12345)}
    with open(here / "sparse", "w+b", buffering=0) as file:
        for at, mark in marks.items():
            os.pwrite(file.fileno(), mark, at)
        end = max(marks) + len(marks[max(marks)])
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == end
        for at, mark in marks.items():
            assert os.pread(file.fileno(), len(mark), at) == mark
    assert (here / "sparse").stat().st_blocks * 512 < 1 << 20
    with open(there / "sparse", "r+b", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == end
        for at, mark in marks.items():
            expected = (mark + bytes(100))[: end - at]
            assert os.pread(file.fileno(), len(mark) + 100, at) == expected
        assert os.pread(file.fileno(), 70_000, 3 << 30) == bytes(70_000)
        os.ftruncate(file.fileno(), (5 << 30) + 4)
    with open(here / "sparse", "rb") as file:
        file.seek((5 << 30) - 2)
        assert file.read() == b"\0\0" + marks[5 << 30][:4]


def test_paths_of_any_depth(here: Path) -> None:
    directory = os.open(here, os.O_RDONLY)
    for level in range(_DEEP):
        name = f"{level}-" + "d" * 100
        os.mkdir(name, dir_fd=directory)
        inner = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    file = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=directory)
    os.write(file, b"deep down")
    os.close(file)
    os.close(directory)
    # Longer than PATH_MAX: only step by step.
    assert len(os.fspath(here)) + _DEEP * 100 > 4096
    found = 0
    for _, names, files, _ in os.fwalk(here):
        found += len(names) + len(files)
    assert found == _DEEP + 1
    shutil.rmtree(here)
    assert not here.exists()


@pytest.fixture(scope="module")
def many(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory of the cluster with thousands of files."""
    local = tmp_path_factory.mktemp("many") / "many"
    local.mkdir()
    for number in range(_ENTRIES):
        (local / f"stays-{number}").touch()
    cluster.dfs("upload", "-r", local, "/")
    return "many"


def test_a_big_directory_is_listed_while_it_changes(
    by_driver: dict[str, list[Mount]], driver: str, many: str
) -> None:
    top = by_driver[driver][0].point / many
    expected = {f"stays-{number}" for number in range(_ENTRIES)}
    with program(
        _START
        + """
import threading
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
number = 0
while not stop.is_set():
    number += 1
    path = f"{sys.argv[1]}/{'az'[number % 2]}-comes-and-goes-{number}"
    open(path, "x").close()
    if number % 3:
        os.rename(path, path + "-renamed")
        path += "-renamed"
    os.unlink(path)
print(number)
""",
        top,
    ) as changing:
        assert changing.stdin is not None
        assert changing.stdout is not None
        assert changing.stdout.readline() == "ready\n"
        changing.stdin.write("\n")
        changing.stdin.flush()
        end = time.monotonic() + _STEADILY_S
        while time.monotonic() < end:
            with os.scandir(top) as listing:
                names = [each.name for each in listing]
            stayed = [name for name in names if name.startswith("stays-")]
            assert len(stayed) == len(set(stayed))
            assert set(stayed) == expected
        changes = int(changing.communicate("\n", timeout=20)[0])
    assert changes > 10
    assert set(os.listdir(top)) == expected


# ------------------------------------------------------------------ what lasts, and what fails


@pytest.mark.time_limit(240)
def test_what_was_synced_outlives_the_mount_and_all_servers(mounts: Mounts) -> None:
    process, mount = mounts.foreground()
    cluster = mounts.cluster
    mounts.broken = True
    top = mount.point / f"lasts-{mounts.driver}"
    top.mkdir()
    data = random.Random(4).randbytes(3_000_000)
    with open(top / "new", "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
        file.write(b"this may be lost")
        (top / "new").rename(top / "renamed")
        descriptor = os.open(top, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        process.kill()
        cluster.kill_all()
        with pytest.raises(OSError):
            os.fsync(file.fileno())
        with pytest.raises(OSError):
            file.close()
    cluster.start_all()
    cluster.dfs("umount", mount.point)
    mounts.foreground()
    assert os.listdir(top) == ["renamed"]
    with open(top / "renamed", "rb") as file:
        assert file.read(len(data)) == data
        assert file.read() in (b"", b"this may be lost")


@pytest.mark.time_limit(240)
def test_a_write_that_failed_is_reported(mounts: Mounts) -> None:
    _, mount = mounts.foreground("-o", "on_unavailable=wait:1s")
    cluster = mounts.cluster
    mounts.broken = True
    names = ("by-fsync", "by-close")
    paths = [mount.point / f"{mounts.driver}-{name}" for name in names]
    by_fsync, by_close = (os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) for path in paths)
    data = random.Random(5).randbytes(400_000)
    cluster.kill(*cluster.servers)
    try:
        os.write(by_fsync, data)
        os.write(by_close, data)
        begun = time.monotonic()
        for report in (lambda: os.fsync(by_fsync), lambda: os.close(by_close)):
            with pytest.raises(OSError) as caught:
                report()
            assert caught.value.errno in (errno.EIO, errno.ENOSPC), caught.value
        assert time.monotonic() - begun < 20
    finally:
        cluster.restart(*cluster.servers)
    # Nothing is given up while the file is open.
    os.fsync(by_fsync)
    os.close(by_fsync)
    assert paths[0].read_bytes() == data
    paths[1].write_bytes(b"goes on")
    assert paths[1].read_bytes() == b"goes on"
