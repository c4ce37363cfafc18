"""The process behind a mount: started in the background, and what it says to its starter.

`dfs mount` starts `dfs mount --foreground` in a session of its own, and listens on a pipe: one
line comes, that it is mounted or why it is not. Used by `dfs mount` and `dfs dev`.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from dfs.cli.failures import FAILED, describe, leaves, status_of
from dfs.cli.names import show
from dfs.cli.process import Child, ProcessId, stop
from dfs.core.errors import ConfigError, DfsError

_ANSWER_S: Final = 10.0
_STOP_S: Final = 10.0
_LOG_MAX_BYTES: Final = 8 * 1024 * 1024


class _Word(msgspec.Struct):
    """What the process says: nothing went wrong, or what did."""

    failures: list[str] = []
    status: int = 0


# ---------------------------------------------------------------- the starter's side


def start(master: str, point: str, log: Path, arguments: list[str]) -> ProcessId:
    """Mount in the background; return when the mount answers.

    Args:
        point: as the kernel will name it.
        arguments: options of `dfs mount` and global ones, for the process.

    Raises:
        DfsError, ConfigError: what the process said; it has ended.
    """
    _make_room(log)
    heard, said = os.pipe()
    own = ["--foreground", "--log", str(log), "--ready-fd", str(said)]
    with open(heard, "rb") as words:
        try:
            child = Child(
                ["--master", master, "mount", point, *own, *arguments],
                log=log,
                directory=Path("/"),
                keep=(said,),
            )
        finally:
            os.close(said)
        try:
            line = words.readline()
            if not line:
                raise _died_silently(child, log)
            word = msgspec.json.decode(line, type=_Word)
            if word.failures:
                child.wait()
                kind = ConfigError if word.status == status_of(ConfigError("")) else DfsError
                raise kind("; ".join(word.failures))
            _await_answer(point, child, log)
        except BaseException:
            stop([child.identity], timeout_s=_STOP_S)
            raise
        finally:
            child.release()
    return child.identity


def _make_room(log: Path) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
            log.replace(log.with_name(f"{log.name}.old"))
        log.open("ab").close()
    except OSError as error:
        raise DfsError(
            f"{show(str(log))}: the log cannot be written: {error.strerror}",
            errno=error.errno,
            hint="name another file with --log",
        ) from None


def _died_silently(child: Child, log: Path) -> DfsError:
    status = child.wait()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return DfsError(f"the mount process {how}", hint=f"its log is {show(str(log))}")


def _await_answer(point: str, child: Child, log: Path) -> None:
    """Return when the mount of `child` answers at `point`."""
    from dfs_fuse.about import ask

    end = time.monotonic() + _ANSWER_S
    while True:
        # Until the kernel shows the mount, the directory below answers, or has no such attribute.
        with contextlib.suppress(OSError):
            if ask(point, _ANSWER_S).pid == child.identity.pid:
                return
        if child.exit_status() is not None:
            raise _died_silently(child, log)
        if time.monotonic() > end:
            raise DfsError(
                f"{show(point)}: mounted, and does not answer after {_ANSWER_S:g} s",
                hint=f"its log is {show(str(log))}",
            )
        time.sleep(0.02)


def default_log(point: str) -> Path:
    """Where the mount at `point` logs to, if nobody says: a file of its own."""
    directory = Path("/var/log/dfs")
    if os.geteuid() != 0:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        directory = Path(state) / "dfs"
    # "-" for "/", as systemd does it; what is cut off is found by the rest.
    name = show(point).strip("/").replace("/", "-")[-200:] or "root"
    return directory / f"mount-{name}.log"


# ---------------------------------------------------------------- the process's side


class Starter:
    """Whoever waits at the other end of the pipe; nobody, for a mount in the foreground."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            # No program that libfuse starts may hold it.
            os.set_inheritable(descriptor, False)

    def ready(self) -> None:
        """It is mounted. From any thread."""
        self._say(_Word())

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What ends this block is what the starter hears, unless it heard that all is well."""
        try:
            yield
        except BaseException as error:
            causes = list(leaves(error))
            lines = dict.fromkeys(map(describe, causes))
            self._say(_Word(list(lines), max(map(status_of, causes), default=FAILED)))
            raise

    def _say(self, word: _Word) -> None:
        if self._descriptor is None:
            return
        # A starter that has been killed does not matter to the mount.
        with contextlib.suppress(BrokenPipeError), open(self._descriptor, "wb") as pipe:
            self._descriptor = None
            pipe.write(msgspec.json.encode(word) + b"\n")
