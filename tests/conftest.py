"""Rules of the whole suite: it is quiet, it never hangs, and long tests are asked for.

- A warning that a `dfs` or `dfs_fuse` logger emits during a test fails it, unless the test says
  with `@pytest.mark.allow_logs("pattern")` that it expects one.
- A test that outlives its limit prints the stack of every trio task and thread, and ends the
  run: a hang shows where it hangs.
- `--long` (or DFS_LONG=1) adds the tests marked `long`.
"""

import faulthandler
import gc
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import IO, Final

import hypothesis
import pytest
import trio

TIME_LIMIT_S: Final = 120.0
LONG_TIME_LIMIT_S: Final = 3600.0

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "long", deadline=None, print_blob=True, max_examples=1000, stateful_step_count=100
)

_stderr = pytest.StashKey[IO[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.fdopen(os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2), "w")
    hypothesis.settings.load_profile("long" if wants_long(config) else "default")


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_stderr].close()


def wants_long(config: pytest.Config) -> bool:
    return bool(config.getoption("--long")) or os.environ.get("DFS_LONG", "") not in ("", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wants_long(config):
        return
    skip = pytest.mark.skip(reason="long: run with --long")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)


# ------------------------------------------------------------------ no hang is silent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("time_limit")
    usual = LONG_TIME_LIMIT_S if item.get_closest_marker("long") else TIME_LIMIT_S
    limit_s = float(marker.args[0]) if marker else usual
    out = item.config.stash[_stderr]
    watchdog = threading.Timer(limit_s, _declare_hang, (item.nodeid, limit_s, out))
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


def _declare_hang(test: str, limit_s: float, out: IO[str]) -> None:
    out.write(f"\n\n{test} has not ended within {limit_s:g} s. Tasks, then threads:\n")
    for candidate in gc.get_objects():
        if isinstance(candidate, trio.lowlevel.Task):
            frames = list(candidate.iter_await_frames())
            if frames:  # none: it has ended, and waits for the garbage collector
                lines = "".join(f"  {_where(frame, line)}\n" for frame, line in frames)
                out.write(f"\ntask {candidate.name}\n{lines}")
    out.flush()
    faulthandler.dump_traceback(out, all_threads=True)
    os._exit(3)


def _where(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"


# ------------------------------------------------------------------ a quiet log


class _Unexpected(logging.Handler):
    """Collects warnings and worse that no pattern allows."""

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.allowed = [re.compile(pattern) for pattern in allowed]
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if not any(pattern.search(line) for pattern in self.allowed):
            self.lines.append(f"{record.name} {record.levelname}: {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    allowed = [str(arg) for mark in item.iter_markers("allow_logs") for arg in mark.args]
    handler = _Unexpected(allowed)
    loggers = [logging.getLogger(name) for name in ("dfs", "dfs_fuse")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        result = yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    if handler.lines:
        pytest.fail("unexpected warnings in the log:\n" + "\n".join(handler.lines), pytrace=False)
    return result
