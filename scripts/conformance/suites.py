"""The suites, each a function from a directory to what it says of its cases.

None of them is ours but `publish`, which no public suite has: replacing by rename under readers.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from scripts.conformance.cases import Case, NotHereError, Status, judged, run

PJDFSTEST: Final = "https://github.com/pjd/pjdfstest"
XFSTESTS: Final = "https://github.com/kdave/xfstests"
CPYTHON_TESTS: Final = "test_os test_shutil test_tempfile test_mmap test_largefile test_pathlib"


@dataclass(frozen=True)
class Suite:
    """`run` gets an empty directory, and one for its tools that all its runs share.

    `of_data`: what it shows depends on the redundancy, so that it runs with each policy.
    """

    name: str
    about: str
    run: Callable[[Path, Path], list[Case]]
    of_data: bool = False


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise NotHereError(f"{program} is not installed")
    return path


def checkout(variable: str, url: str, tools: Path) -> Path:
    """A copy of a source tree: of the checkout that `variable` names, or cloned."""
    copy = tools / url.rsplit("/", 1)[1]
    if copy.exists():
        return copy
    named = os.environ.get(variable)
    if named:
        shutil.copytree(named, copy, symlinks=True)
        return copy
    argv = [need("git"), "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=20"]
    cloned = run([*argv, "clone", "--depth=1", "--quiet", url, copy], tools, timeout_s=300)
    if cloned.status:
        raise NotHereError(f"{url} cannot be cloned; name a checkout of it: {variable}=DIR")
    return copy


def build(argv: list[str], directory: Path) -> None:
    built = run(argv, directory, timeout_s=600)
    if built.status:
        raise NotHereError(f"{' '.join(argv[:2])} failed: {built.tail()}")


# ------------------------------------------------------------------ pjdfstest


def pjdfstest(directory: Path, tools: Path) -> list[Case]:
    prove = need("prove")
    source = checkout("PJDFSTEST", PJDFSTEST, tools)
    if not os.access(source / "pjdfstest", os.X_OK):
        build([need("autoreconf"), "-ifs"], source)
        build(["./configure"], source)
        build([need("make"), "pjdfstest"], source)
    ended = run([prove, "-rv", source / "tests"], directory, timeout_s=3600)
    return list(_tap(ended.output, source / "tests"))


def _tap(output: str, tests: Path) -> Iterator[Case]:
    """Cases out of what `prove -v` prints; what was planned and not reported has failed."""
    script, planned = "", set[int]()
    for line in output.splitlines():
        if match := re.match(r"(/\S+\.t) \.\.", line):
            yield from (Case(f"{script}:{number}", "failed", "not run") for number in planned)
            script, planned = str(Path(match[1]).relative_to(tests)), set()
        elif match := re.match(r"1\.\.(\d+)", line):
            planned = set(range(1, int(match[1]) + 1))
        elif match := re.match(r"(not )?ok (\d+)(.*)", line):
            planned.discard(int(match[2]))
            name = f"{script}:{match[2]}"
            if match[1] and "# TODO" not in match[3]:
                yield Case(name, "failed", match[3].strip(" -"))
            else:
                yield Case(name, "skipped" if "# SKIP" in match[3].upper() else "passed")
    yield from (Case(f"{script}:{number}", "failed", "not run") for number in planned)


# ------------------------------------------------------------------ CPython


def cpython(directory: Path, tools: Path) -> list[Case]:
    report = tools / "junit.xml"
    report.unlink(missing_ok=True)
    argv: list[str | Path] = [
        _python_with_tests(),
        "-m",
        "test",
        "-u",
        "largefile",
        "--tempdir",
        directory,
    ]
    ended = run(
        [*argv, "--junit-xml", report, *CPYTHON_TESTS.split()],
        directory,
        timeout_s=1800,
        env={"TMPDIR": str(directory), "PYTHONPATH": ""},
    )
    if not report.exists():
        return [Case("all", "failed", ended.tail())]
    cases = []
    for each in ElementTree.parse(report).iter("testcase"):
        name = each.get("name", "?")
        for kind in ("failure", "error", "skipped"):
            found = each.find(kind)
            if found is not None:
                words = (found.text or found.get("message") or "").strip().splitlines()
                status: Status = "skipped" if kind == "skipped" else "failed"
                cases.append(Case(name, status, words[-1] if words else ""))
                break
        else:
            cases.append(Case(name, "passed"))
    return cases


def _python_with_tests() -> str:
    for python in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            argv = [python, "-c", "import test.test_os, test.test_pathlib"]
            if subprocess.run(argv, check=False, capture_output=True, cwd="/").returncode == 0:
                return str(python)
    raise NotHereError("no Python here has its own tests; on Debian: libpython3.X-testsuite")


# ------------------------------------------------------------------ fio

_FIO: Final = {
    "sequential, 512 B to 128 KiB": "--rw=write --bsrange=512-128k --bs_unaligned=1",
    "random, mixed sizes": "--rw=randwrite --bssplit=4k/50:16k/30:64k/20",
    "reads and writes, fsync": "--rw=randrw --bsrange=4k-256k --fsync=32",
    "four writers": "--rw=randwrite --bs=8k --numjobs=4 --size=8M",
    "direct, sequential": "--rw=write --bs=64k --direct=1",
    "direct, random": "--rw=randwrite --bssplit=4k/50:16k/30:64k/20 --direct=1",
    "direct, libaio": "--rw=randwrite --bs=16k --direct=1 --ioengine=libaio --iodepth=8",
    "mmap, sequential": "--rw=write --bs=16k --ioengine=mmap",
    "mmap, random": "--rw=randwrite --bs=4k --ioengine=mmap",
}


def fio(directory: Path, tools: Path) -> list[Case]:
    base = [need("fio"), "--name=job", f"--directory={directory}", "--size=32M", "--minimal"]
    base += ["--ioengine=psync", "--fallocate=none", "--verify=crc32c", "--verify_fatal=1"]
    cases = []
    for name, options in _FIO.items():
        cases.append(judged(name, run([*base, *options.split()], tools, timeout_s=300)))
        for left in directory.iterdir():
            left.unlink()
    return cases


# ------------------------------------------------------------------ fsx, fsstress

_FSX: Final = {
    "any sizes, mapped too": "-S 1",
    # Today's fsx has the machine drop all its caches each time.
    "closed and opened": "-S 2 -c 250",
    "cache dropped": "-S 3 -f -c 500",
    "direct, page-aligned": "-S 4 -W -R -Z -r 4096 -w 4096 -t 4096",
    "synced": "-S 5 -y",
}
_HAVE: Final = (
    "ASSERT_H DIRENT_H ERRNO_H ERR_H FALLOCATE FCNTL_H INTTYPES_H LINUX_FALLOC_H MALLOC_H "
    "RENAMEAT2 SIGNAL_H STATX STDARG_H STDINT_H STDLIB_H STRINGS_H STRING_H SYS_FILE_H "
    "SYS_IOCTL_H SYS_MMAN_H SYS_PARAM_H SYS_PRCTL_H SYS_STATVFS_H SYS_STAT_H SYS_TIME_H "
    "SYS_TYPES_H SYS_WAIT_H TIME_H UNISTD_H"
)

_XFS_H: Final = Path("/usr/include/xfs/xfs.h")
"""Of the package xfslibs-dev: fsstress names things of it."""


def _xfstests(program: str, tools: Path) -> Path:
    """fsx or fsstress, without what it has for XFS alone."""
    source = checkout("XFSTESTS", XFSTESTS, tools)
    binary = source / program
    if not binary.exists():
        have = [*_HAVE.split(), *(["XFS_XFS_H"] if _XFS_H.exists() else [])]
        words = "".join(f"#define HAVE_{word} 1\n" for word in have)
        (source / "config.h").write_text(words)
        argv = [need("gcc"), "-O1", "-w", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-I."]
        argv += ["-include", "getopt.h", "-include", "time.h"]
        argv += ["-Isrc", "-Iltp", "-o", program, f"ltp/{program}.c"]
        build([*argv, *(["lib/random.c", "-lm"] if program == "fsstress" else [])], source)
    return binary


def fsx(directory: Path, tools: Path) -> list[Case]:
    binary = _xfstests("fsx", tools)
    cases = []
    for name, options in _FSX.items():
        argv: list[str | Path] = [
            binary,
            "-q",
            "-N",
            "5000",
            "-l",
            "1000000",
            "-o",
            "100000",
            "-P",
            tools,
        ]
        argv += [*options.split(), directory / "file"]
        cases.append(judged(name, run(argv, tools, timeout_s=600)))
    return cases


def fsstress(directory: Path, tools: Path) -> list[Case]:
    """Random operations of several processes on a tree; says nothing but whether all went on."""
    binary = _xfstests("fsstress", tools)
    argv: list[str | Path] = [
        binary,
        "-d",
        directory,
        "-n",
        "1500",
        "-p",
        "4",
        "-s",
        "7",
        "-S",
        "t",
    ]
    return [judged("four processes", run(argv, tools, timeout_s=900))]


# ------------------------------------------------------------------ stress-ng, dbench

_STRESSORS: Final = (
    "access chdir chmod chown dentry dir dirdeep dirmany dup fallocate fcntl fiemap file-ioctl "
    "filename flock fstat getdent hdd inode-flags io iomix lease link locka lockf lockofd mknod "
    "mmap mmapfork msync open readahead rename revio seek sendfile splice symlink sync-file touch "
    "utime xattr"
)
_SIZES: Final = (
    "--hdd-bytes 32M --iomix-bytes 16M --seek-size 8M --fallocate-bytes 16M --readahead-bytes 32M "
    "--revio-bytes 16M --sync-file-bytes 8M"
)
_NOT_POSSIBLE: Final = {3: "no resources", 4: "not implemented"}


def stress_ng(directory: Path, tools: Path) -> list[Case]:
    program = need("stress-ng")
    base = [program, "--verify", "-t", "3", "--temp-path", str(directory), *_SIZES.split()]
    cases = []
    for name in _STRESSORS.split():
        ended = run([*base, f"--{name}", "2"], directory, timeout_s=400)
        if ended.status in _NOT_POSSIBLE:
            cases.append(Case(name, "skipped", _NOT_POSSIBLE[ended.status]))
        elif ended.status:
            wrong = [line for line in ended.output.splitlines() if re.search("fail|error", line)]
            cases.append(Case(name, "failed", " | ".join(wrong[:3]) or ended.tail()))
        else:
            cases.append(judged(name, ended))
    return cases


def dbench(directory: Path, tools: Path) -> list[Case]:
    loads = [Path(p) for p in ("/usr/share/dbench/client.txt",) if Path(p).exists()]
    argv: list[str | Path] = [need("dbench"), "-D", directory, "-t", "60", "-x"]
    argv += ["-c", loads[0]] if loads else []
    ended = run([*argv, "4"], tools, timeout_s=300)
    case = judged("four clients", ended)
    rate = re.search(r"Throughput [\d.]+ MB/sec", ended.output)
    if case.status == "passed" and rate is not None:
        case = Case(case.name, "passed", rate[0])
    return [case]


# ------------------------------------------------------------------ replacing by rename

_PUBLISH_S: Final = 10.0


def publish(directory: Path, tools: Path) -> list[Case]:
    """A file is replaced by rename again and again, while others read it: none finds it missing."""
    target, ended = directory / "published", threading.Event()
    target.write_bytes(b"0" * 4096)
    read, failures = [0], list[str]()

    def reader() -> None:
        while not ended.is_set():
            try:
                target.stat()
                data = target.read_bytes()
            except OSError as error:
                failures.append(str(error))
            else:
                read[0] += 1
                if len(data) != 4096 or len(set(data)) != 1:
                    failures.append(f"{len(data)} bytes of {len(set(data))} kinds")

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _PUBLISH_S
    replaced = 0
    while time.monotonic() < end:
        replaced += 1
        new = directory / f"new{replaced}"
        new.write_bytes(bytes([48 + replaced % 10]) * 4096)
        new.rename(target)
    ended.set()
    for thread in threads:
        thread.join()
    detail = f"{replaced} replaced, {read[0]} reads, {len(failures)} failed"
    if failures:
        return [Case("four readers", "failed", f"{detail}: {failures[0]}")]
    return [Case("four readers", "passed", detail)]


SUITES: Final = {
    suite.name: suite
    for suite in (
        Suite("pjdfstest", "8,800 assertions on every call of the namespace", pjdfstest),
        Suite("cpython", f"CPython's own {CPYTHON_TESTS}", cpython),
        Suite("publish", "replacing by rename under readers", publish),
        Suite("fsx", "random reads, writes, maps and truncations of a file", fsx, of_data=True),
        Suite("fsstress", "random operations of processes on a tree", fsstress, of_data=True),
        Suite("fio", "writes of mixed sizes, verified by checksum", fio, of_data=True),
        Suite("dbench", "a file server's load for a minute", dbench, of_data=True),
        Suite("stress-ng", "forty stressors of files, verified", stress_ng),
    )
}
