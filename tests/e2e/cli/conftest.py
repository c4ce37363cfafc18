"""One dev cluster for all tests of the command line, which then run real `dfs` processes."""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pytest

from tests.cluster import REPOSITORY, environment

_libc: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def _end_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Done:
    """What a `dfs` process did."""

    status: int
    out: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandServer:
    """See `command_server`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.cli.command_server"],
            stdin=theirs.fileno(),
            env=environment(),
            cwd=REPOSITORY,
        )
        theirs.close()

    def run(self, args: list[str], env: dict[str, str], files: list[int]) -> int:
        """The exit status of `dfs ARGS` with these files as stdin, stdout and stderr."""
        umask = os.umask(0)
        os.umask(umask)
        request = json.dumps({"args": args, "env": env, "umask": umask}).encode()
        socket.send_fds(self._socket, [request], files)
        answer = self._socket.recv(64)
        assert answer, "the command server died"
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        assert self._process.wait(30) == 0


class Dfs:
    """Runs `dfs ARGUMENTS`; each has to end with the status expected, and nothing else on stderr.

    In a fresh interpreter, or where there is a `server` in a fork of it.
    """

    def __init__(self, server: CommandServer | None = None, **env: str) -> None:
        self.env = environment(**env)
        self._server = server
        self._numbers = itertools.count(1)

    def __call__(
        self, *args: str | bytes | Path, status: int = 0, stdin: bytes = b"", **env: str
    ) -> Done:
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as errors,
        ):
            given.write(stdin)
            given.seek(0)
            files = [given.fileno(), out.fileno(), errors.fileno()]
            everything = {**self.env, **env}
            if self._server is None:
                ended = subprocess.run(
                    self.command(*args),
                    stdin=given,
                    stdout=out,
                    stderr=errors,
                    timeout=60,
                    check=False,
                    env=everything,
                ).returncode
            else:
                ended = self._server.run([os.fsdecode(arg) for arg in args], everything, files)
            found = Done(ended, _content(out), _content(errors).decode())
        assert found.status == status, f"dfs {args}: status {found.status}\n{found.errors}"
        if status == 0:
            assert found.errors == ""
        else:
            assert all(line.startswith("dfs: ") for line in found.errors.splitlines())
        return found

    def command(self, *args: str | bytes | Path) -> list[str | bytes | Path]:
        return [sys.executable, "-m", "dfs", *args]

    @contextlib.contextmanager
    def running(self, *args: str | Path, **how: Any) -> Iterator["subprocess.Popen[Any]"]:
        """`dfs ARGUMENTS` in the background, killed if it outlives the test."""
        process = subprocess.Popen(
            self.command(*args),
            env=self.env,
            preexec_fn=_end_with_us,  # noqa: PLW1509 - it only makes a system call
            **how,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def fresh(self) -> str:
        """A new empty directory in the cluster."""
        path = f"/t{next(self._numbers)}"
        self("mkdir", path)
        return path


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def dfs(tmp_path_factory: pytest.TempPathFactory, command_server: CommandServer) -> Iterator[Dfs]:
    """`dfs` against a cluster of three chunk servers. It stops when the test run does."""
    directory = tmp_path_factory.mktemp("cli") / "dev"
    dev = Dfs()
    # In the foreground, it is told when we end, however that happens.
    start = ("dev", "start", "--foreground", "--servers", "3", "--dir", directory)
    with dev.running(*start, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        document = json.loads((directory / "cluster.json").read_text())
        yield Dfs(command_server, DFS_MASTER=document["master"])
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    dev("dev", "destroy", "--dir", directory, "--yes")
    assert not directory.exists()


@pytest.fixture
def umask_022() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
