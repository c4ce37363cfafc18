"""Wrong use and hostile bytes: one line that says what to do, and servers that live on."""

import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dfs.client
from dfs.core.errors import FileSystemError
from dfs.wire.framing import HEADER_BYTES, Kind, pack
from dfs.wire.hello import Hello, encode_hello
from dfs.wire.messages import Cred
from tests import oracle
from tests.cluster import Cluster, free_port, wait_until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bad") / "cluster", servers=2) as cluster:
        cluster.broken = True  # hostile bytes are logged as warnings
        yield cluster


def refused(cluster: Cluster, *args: str | Path, status: int = 1) -> str:
    """Run `dfs ARGS`, which must fail with `status` and one line on stderr; that line."""
    done = cluster.dfs(*args, check=False)
    assert done.returncode == status, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
    lines = done.stderr.strip().splitlines()
    if status == 1:
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("dfs: "), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


# ------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    "args",
    [
        ["--no-such-flag"],
        ["no-such-command"],
        ["upload"],
        ["ls", "--bogus", "/"],
        ["dev", "start", "--servers", "many"],
        ["chunkserver", "--master", "127.0.0.1:1"],
    ],
)
def test_wrong_usage_is_status_2(cluster: Cluster, args: list[str]) -> None:
    assert refused(cluster, *args, status=2)


def test_an_unknown_policy_is_named(cluster: Cluster) -> None:
    assert "nonsense" in refused(cluster, "policy", "set", "/", "nonsense")


@pytest.mark.parametrize("text", ["rep:0", "rep:10", "ec:1+1", "ec:4+0", "ec:99+2", "raid5"])
def test_an_impossible_redundancy_is_refused(cluster: Cluster, text: str) -> None:
    done = cluster.dfs("policy", "create", "bad", "--redundancy", text, check=False)
    assert done.returncode in (1, 2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_servers_says_how_many_are_needed_and_present(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.dfs("mkdir", "-p", "/wide")
    cluster.dfs("policy", "set", "/wide", "ec")
    message = refused(cluster, "upload", oracle.random_file(tmp_path / "f", 1000, seed=1), "/wide/")
    assert "6" in message
    assert "2" in message


def test_a_name_that_is_too_long_is_refused(cluster: Cluster) -> None:
    assert "too long" in refused(cluster, "mkdir", "/" + "x" * 256).lower()


def test_paths_that_are_not_what_they_should_be(cluster: Cluster, tmp_path: Path) -> None:
    file = oracle.random_file(tmp_path / "file", 1000, seed=2)
    cluster.dfs("mkdir", "-p", "/dir/file")
    assert "/missing" in refused(cluster, "ls", "/missing")
    assert "/missing" in refused(cluster, "download", "/missing", tmp_path / "x")
    assert "directory" in refused(cluster, "cat", "/dir").lower()
    assert "directory" in refused(cluster, "upload", file, "/dir").lower()
    assert "directory" in refused(cluster, "download", "/dir", tmp_path / "x").lower()
    assert "not there" in refused(cluster, "upload", tmp_path / "not there", "/x")
    assert "directory" in refused(cluster, "rm", "/dir").lower()
    relative = cluster.dfs("ls", "relative/path", check=False)
    assert relative.returncode in (1, 2)
    assert "absolute" in relative.stderr


async def test_permissions_are_checked_by_the_master(cluster: Cluster) -> None:
    stranger = Cred(65534, 65534)
    async with dfs.client.connect(cluster.master_address) as owner:
        await owner.mkdir("/private", mode=0o700)
        await owner.write_file("/private/secret", b"x", mode=0o600)
    async with dfs.client.connect(cluster.master_address, cred=stranger) as client:
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: client.read_file("/private/secret"),
            lambda: client.unlink("/private/secret"),
            lambda: client.mkdir("/private/mine"),
            lambda: client.chmod("/private", 0o777),
        ]
        for attempt in attempts:
            with pytest.raises(FileSystemError, match="private") as refusal:
                await attempt()
            assert refusal.value.errno in (errno.EACCES, errno.EPERM)


def test_a_local_file_that_changes_or_vanishes_while_uploading_is_reported(
    cluster: Cluster, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    oracle.random_file(tree / "a-big", 60_000_000, seed=3)
    for number in range(500):
        (tree / f"z{number}").write_bytes(b"x" * 1000)
    upload = cluster.spawn_dfs("upload", "-r", tree, "/changing")
    time.sleep(0.6)
    (tree / "z499").unlink(missing_ok=True)
    with open(tree / "a-big", "r+b") as file:
        file.truncate(1000)
    _, errors = upload.communicate(timeout=60)
    assert b"Traceback" not in errors, errors.decode()
    if upload.returncode != 0:  # it may have been quicker
        assert upload.returncode == 1
        assert all(line.startswith(b"dfs: ") for line in errors.strip().splitlines())
    assert cluster.dfs("ls", "/changing").stdout


# ------------------------------------------------------------------ wrong addresses


def test_no_master_there_says_so(cluster: Cluster) -> None:
    address = f"127.0.0.1:{free_port()}"
    message = refused(cluster, "--master", address, "ls", "/")
    assert address in message


def test_no_address_names_the_flag_and_the_variable(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.dfs("ls", "/", check=False, env={"DFS_MASTER": "", "HOME": str(tmp_path)})
    assert done.returncode in (1, 2)
    assert "--master" in done.stderr
    assert "DFS_MASTER" in done.stderr


def test_a_chunk_servers_port_is_not_the_masters(cluster: Cluster) -> None:
    refused(cluster, "--master", cluster.servers["cs1"].address, "ls", "/")


@contextmanager
def stranger(answer: bytes) -> Iterator[str]:
    """A listener that is not dfs: sends `answer` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer)
                    connection.settimeout(5)
                    try:
                        while connection.recv(4096):
                            pass
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", bytes(range(256)), b""],
)
def test_something_else_answers(cluster: Cluster, answer: bytes) -> None:
    with stranger(answer) as address:
        message = refused(cluster, "--master", address, "ls", "/")
        assert address in message


def test_a_client_newer_than_the_server_learns_who_is_to_be_upgraded(cluster: Cluster) -> None:
    hello = Hello("client", "99.0", protocol_min=98, protocol_max=99)
    for process in cluster.processes.values():
        answer = exchange(process.address, pack(Kind.HELLO, 0, 0, encode_hello(hello)))
        assert b"99.0" in answer
        assert b"upgrade" in answer


# ------------------------------------------------------------------ hostile bytes


def exchange(address: str, data: bytes, *, timeout_s: float = 10) -> bytes:
    """Send `data` to a server, then read until it closes (or `timeout_s` passes)."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        received = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except OSError:
            pass
        return received


def greeting() -> bytes:
    return pack(Kind.HELLO, 0, 0, encode_hello(Hello("client")))


def hostile(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    good = pack(Kind.REQUEST, 22, 1, b"\x91\x01", timeout_ms=1000)
    huge = struct.pack("<4sBBHQIIIIQ", b"\xd5dfs", 1, 2, 20, 1, 1, 1 << 31, 1 << 31, 0, 0)
    return [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        rng.randbytes(HEADER_BYTES),
        rng.randbytes(1_000_000),
        huge + rng.randbytes(1000),
        good,  # a request before any hello
        greeting() + rng.randbytes(5000),
        greeting() + huge,
        greeting() + pack(Kind.REQUEST, 60000, 1, b"\x90", timeout_ms=1000),
        greeting() + pack(Kind.REQUEST, 22, 1, rng.randbytes(300), timeout_ms=1000),
        greeting() + pack(Kind.REQUEST, 22, 1, b"\x91\xa1x", timeout_ms=1000),
        greeting() + pack(Kind.REPLY, 22, 77, b"\x90"),
        greeting() + pack(Kind.CANCEL, 0, 12345),
        greeting() + good[: len(good) // 2],
        greeting() * 3,
        greeting() + pack(Kind.REQUEST, 100, 1, b"\x90", timeout_ms=1000, payload_length=5000),
    ]


def test_garbage_never_stops_a_server(cluster: Cluster) -> None:
    cluster.dfs("mkdir", "-p", "/alive")
    before = {name: process.memory_bytes() for name, process in cluster.processes.items()}
    for process in cluster.processes.values():
        for seed in range(3):
            for data in hostile(seed):
                exchange(process.address, data)
    assert "alive" in cluster.dfs("ls", "/").stdout
    for name, process in cluster.processes.items():
        assert process.alive
        assert process.memory_bytes() < before[name] + 64 * 1024 * 1024


def test_idle_connections_do_not_keep_others_out(cluster: Cluster) -> None:
    host, _, port = cluster.master_address.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        cluster.dfs("ls", "/")
    finally:
        for connection in idle:
            connection.close()


def test_garbage_on_a_chunk_servers_disk_is_not_taken_for_data(
    cluster: Cluster, tmp_path: Path
) -> None:
    disk = cluster.root / "cs1" / "disk1"
    for name in ("notes.txt", "0000000000000000", ".hidden"):
        (disk / name).write_bytes(os.urandom(1000))
    cluster.broken = True
    cluster.servers["cs1"].kill()
    cluster.restart("cs1")
    wait_until(lambda: cluster.servers_up() == 2)
    file = oracle.random_file(tmp_path / "file", 200_000, seed=4)
    cluster.dfs("upload", file, "/after-garbage")
    cluster.dfs("download", "/after-garbage", tmp_path / "back")
    assert oracle.digest(file) == oracle.digest(tmp_path / "back")
    assert (disk / "notes.txt").exists(), "a file that is not ours was deleted"
