"""Threads that C makes, as libfuse does, keep Python's state of them until they end."""

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable

from dfs_fuse.thread_states import ThreadStates

_START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_CALL_ONCE = ctypes.CFUNCTYPE(None)


def _in_foreign_threads(call: Callable[[], None], threads: int) -> None:
    """Each calls it three times, from C."""
    library = ctypes.CDLL(None)
    call_once = _CALL_ONCE(call)

    def start(_: object) -> None:
        for _ in range(3):
            call_once()

    begin = _START(start)
    for _ in range(threads):
        thread = ctypes.c_ulong()
        assert not library.pthread_create(ctypes.byref(thread), None, begin, None)
        assert not library.pthread_join(thread, None)


def _resident_pages() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])


def test_the_state_stays_from_call_to_call() -> None:
    """A `threading.local` is part of it."""
    states, mine = ThreadStates(), threading.local()
    seen: list[int] = []

    def call() -> None:
        states.keep()
        mine.calls = getattr(mine, "calls", 0) + 1
        seen.append(mine.calls)

    _in_foreign_threads(call, 2)
    assert seen == [1, 2, 3, 1, 2, 3]


def test_it_goes_with_its_thread() -> None:
    states = ThreadStates()
    _in_foreign_threads(states.keep, 100)
    before = _resident_pages()
    _in_foreign_threads(states.keep, 1000)
    # Each would take 4 pages at least.
    assert _resident_pages() - before < 1000


def test_a_process_ends_while_threads_have_theirs() -> None:
    program = """
import ctypes, threading
from dfs_fuse.thread_states import ThreadStates
states, there = ThreadStates(), threading.Event()
def start(_):
    states.keep()
    there.set()
    ctypes.CDLL(None).pause()
start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(start)
ctypes.CDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, start, None)
assert there.wait(10)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, timeout=30, capture_output=True
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
