import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs.cli import ports, process
from dfs.cli.process import ProcessId


@contextmanager
def sleeper(code: str = "import time; time.sleep(60)") -> Iterator["subprocess.Popen[bytes]"]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_process_is_known_by_its_start() -> None:
    with sleeper() as child:
        found = process.identify(child.pid)
        assert found is not None
        assert process.is_running(found)
        child.kill()
        child.wait()
        assert not process.is_running(found)
        assert process.identify(child.pid) is None


def test_a_zombie_does_not_run() -> None:
    with sleeper("pass") as child:
        end = time.monotonic() + 10
        while process.identify(child.pid) is not None:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_recycled_pid_is_never_signalled() -> None:
    with sleeper() as child:
        found = process.identify(child.pid)
        assert found is not None
        before = ProcessId(found.pid, found.started_ticks - 1, found.boot_id)
        other_boot = ProcessId(found.pid, found.started_ticks, "another boot")
        for stranger in (before, other_boot):
            assert not process.is_running(stranger)
            assert not process.send_signal(stranger, signal.SIGKILL)
            assert process.stop([stranger], timeout_s=0.1) == []
        assert child.poll() is None


def test_stop_ends_the_polite_and_kills_the_stubborn() -> None:
    stubborn_code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(60)"
    )
    with sleeper() as polite, sleeper(stubborn_code) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        both = [process.identify(polite.pid), process.identify(stubborn.pid)]
        known = [each for each in both if each is not None]
        assert len(known) == 2
        assert process.stop(known, timeout_s=0.5) == [known[1]]
        assert polite.wait() == -signal.SIGTERM
        assert stubborn.wait() == -signal.SIGKILL


def test_ports_are_distinct_free_and_outside_the_outgoing_range() -> None:
    taken: set[int] = set()
    chosen = [ports.choose(taken) for _ in range(20)]
    assert len(set(chosen)) == 20
    assert taken == set(chosen)
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low, high = map(int, file.read().split())
    assert not any(low <= port <= high for port in chosen)
    assert all(map(ports.is_free, chosen))


def test_a_port_in_use_is_not_free() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not ports.is_free(listener.getsockname()[1])


def test_own_process_is_running() -> None:
    found = process.identify(os.getpid())
    assert found is not None
    assert found.boot_id == process.boot_id()


def test_a_process_runs_until_its_last_thread_has_ended() -> None:
    code = (
        "import ctypes, threading, time;"
        "threading.Thread(target=time.sleep, args=(60,)).start();"
        "print('ready', flush=True);"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with sleeper(code) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        assert " Z " in Path(f"/proc/{child.pid}/stat").read_text()
        assert process.identify(child.pid) is not None
        child.kill()
        child.wait()
        assert process.identify(child.pid) is None
